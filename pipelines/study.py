"""`polyphony study ...`: blinded tasks for people or a judge, and what their answers show."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Adds `study` and what belongs under it to a command line."""
    study = commands.add_parser("study", help="do people prefer it, do they find it more diverse: export, judge, analyse")
    study.set_defaults(main=main)
    actions = study.add_subparsers(dest="action", required=True, metavar="ACTION")

    export = actions.add_parser("export", help="blinded tasks of two systems, for a page of its own and for Label Studio")
    export.add_argument("systems", nargs=2, metavar="SYSTEM", help="two systems of the evaluation, such as ddpo dpo")
    export.add_argument("--generations", type=Path, default=Path("artifacts/generations.parquet"), metavar="PATH")
    export.add_argument("--output", type=Path, default=Path("study"), metavar="DIR")
    export.add_argument("--tasks", type=int, default=100, metavar="N", help="at most so many; default 100")
    export.add_argument(
        "--annotators", default="annotator-1,annotator-2,annotator-3", metavar="NAMES", help="with commas between them"
    )
    export.add_argument("--per-task", type=int, default=1, metavar="N", help="annotators of each task; default 1")
    export.add_argument("--seed", type=int, default=0)
    export.add_argument(
        "--summaries", type=Path, metavar="FILE", help="JSON lines of system, prompt_id, sample, summary: shown above stories"
    )

    analyse = actions.add_parser("analyse", help="win rates, sign test, agreement")
    analyse.add_argument("study", type=Path, metavar="STUDY", help="the folder that `export` wrote")
    analyse.add_argument("answers", type=Path, nargs="+", metavar="FILE", help="saved answers, or an export of Label Studio")
    analyse.add_argument("--output", type=Path, metavar="FILE", help="also as JSON")


def main(arguments: argparse.Namespace) -> int:
    """Runs an action; returns the exit status."""
    from components.contracts import InputError

    try:
        return _ACTIONS[arguments.action](arguments)
    except InputError as error:
        print(f"study {arguments.action}: {error}", file=sys.stderr)
        return 1


def _export(arguments: argparse.Namespace) -> int:
    from components.study.export import KEY, LABEL_STUDIO, PAGE, export

    made = export(
        arguments.generations,
        (arguments.systems[0], arguments.systems[1]),
        arguments.output,
        count=arguments.tasks,
        annotators=[name.strip() for name in arguments.annotators.split(",") if name.strip()],
        per_task=arguments.per_task,
        seed=arguments.seed,
        summaries=_summaries(arguments.summaries) if arguments.summaries else None,
    )
    fewer = f"; {arguments.tasks} were asked for" if made["tasks"] < arguments.tasks else ""
    print(f"{made['tasks']} tasks{fewer}.")
    print(f"  give to annotators   {arguments.output / PAGE}   (or {LABEL_STUDIO} and its .xml, for Label Studio)")
    print(f"  keep from them       {arguments.output / KEY}")
    return 0


def _summaries(path: Path) -> dict[tuple[str, str, int], str]:
    from components.contracts import InputError

    summaries = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            summaries[row["system"], row["prompt_id"], row["sample"]] = row["summary"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not JSON lines of system, prompt_id, sample and summary ({error!r}).") from None
    return summaries


def _analyse(arguments: argparse.Namespace) -> int:
    from components.contracts import atomic
    from components.study.analysis import analyse
    from components.study.answers import load_study, read_answers

    study = load_study(arguments.study)
    result = analyse(study, read_answers(study, arguments.answers))
    print(analysis_text(result))
    if arguments.output:
        with atomic(arguments.output) as partial:
            partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def analysis_text(result: Mapping[str, Any]) -> str:
    """The analysis as aligned text."""
    first, second = result["systems"]
    rows = [["", f"{first} wins", f"{second} wins", "ties", "sign test", "agreement"]]
    for question, found in result["questions"].items():
        alpha = found["agreement"]
        rows.append([question, *_cells(found, (first, second)), "" if alpha is None else f"alpha {alpha:.2f}"])
        rows += [[f"  {name}", *_cells(of[question], (first, second)), ""] for name, of in result["annotators"].items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return f"{table}\n\n{result['tasks']} tasks; 95 % Wilson intervals; two-sided sign test without ties."


def _cells(found: Mapping[str, Any], systems: Sequence[str]) -> list[str]:
    wins = [found["wins"][system] for system in systems]
    p = found["p"]
    test = "all ties" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return [f"{w['rate']:.0%} [{w['low']:.0%}, {w['high']:.0%}]" for w in wins] + [str(found["ties"]), test]


_ACTIONS = {"export": _export, "analyse": _analyse}
