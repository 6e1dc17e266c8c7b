"""`polyphony study ...`: blinded tasks for people or a judge, and what their answers show."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.models.endpoint import Chat


def add_to(commands: Any) -> None:
    """Adds `study` and what belongs under it to a command line."""
    study = commands.add_parser("study", help="do people prefer it, do they find it more diverse: export, judge, analyse")
    actions = study.add_subparsers(dest="action", required=True, metavar="ACTION")

    export = actions.add_parser("export", help="blinded tasks of two systems, for a page of its own and for Label Studio")
    export.set_defaults(main=_export)
    export.add_argument("systems", nargs=2, metavar="SYSTEM", help="two systems of the evaluation, such as ddpo dpo")
    export.add_argument("--generations", type=Path, default=Path("artifacts/generations.parquet"), metavar="PATH")
    export.add_argument("--output", type=Path, default=Path("study"), metavar="DIR")
    export.add_argument("--tasks", type=_count, default=100, metavar="N", help="at most so many; default 100")
    export.add_argument(
        "--annotators", default="annotator-1,annotator-2,annotator-3", metavar="NAMES", help="with commas between them"
    )
    export.add_argument("--per-task", type=_count, default=1, metavar="N", help="annotators of each task; default 1")
    export.add_argument("--seed", type=int, default=0)
    summarised = export.add_mutually_exclusive_group()
    summarised.add_argument(
        "--summaries", type=Path, metavar="FILE", help="JSON lines of system, prompt_id, sample, summary: shown above stories"
    )
    summarised.add_argument("--summarise", action="store_true", help="have the model of the endpoint write such summaries")
    _endpoint(export, required=False)

    judge = actions.add_parser("judge", help="ask a language model the same questions, each task in both orders")
    judge.set_defaults(main=_judge)
    judge.add_argument("study", type=Path, metavar="STUDY", help="the folder that `export` wrote")
    judge.add_argument("--output", type=Path, required=True, metavar="FILE", help="its answers, for `analyse --judge`")
    _endpoint(judge, required=True)

    analyse = actions.add_parser("analyse", help="win rates, sign test, agreement")
    analyse.set_defaults(main=_analyse)
    analyse.add_argument("study", type=Path, metavar="STUDY", help="the folder that `export` wrote")
    analyse.add_argument("answers", type=Path, nargs="*", metavar="FILE", help="saved answers, or an export of Label Studio")
    analyse.add_argument("--judge", type=Path, metavar="FILE", help="what `judge` wrote: its rates, its agreement with people")
    analyse.add_argument("--output", type=Path, metavar="FILE", help="also as JSON")


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _endpoint(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """The flags of an OpenAI-compatible endpoint; each is a field of components.models.endpoint.Endpoint."""
    group = parser.add_argument_group("endpoint", "any OpenAI-compatible API")
    group.add_argument("--base-url", required=required, metavar="URL", help="such as https://api.openai.com/v1")
    group.add_argument("--model", required=required, metavar="NAME", help="the model's name there")
    group.add_argument("--key", metavar="VARIABLE", help="environment variable that holds the key; default OPENAI_API_KEY")
    group.add_argument("--concurrency", type=int, metavar="N", help="requests at once; default 8")
    group.add_argument("--limit", choices=("max_tokens", "max_completion_tokens"), help="what the API calls the longest reply")
    group.add_argument("--minutes", type=float, metavar="N", help="ask nothing more after so long")
    group.add_argument("--money", type=float, metavar="SUM", help="spend at most so much; needs the prices")
    group.add_argument("--input-price", type=float, metavar="SUM", help="of a million tokens read")
    group.add_argument("--output-price", type=float, metavar="SUM", help="of a million tokens written")


def _export(arguments: argparse.Namespace) -> int:
    from components.study.export import KEY, LABEL_STUDIO, PAGE, export, plan

    tasks = plan(
        arguments.generations,
        (arguments.systems[0], arguments.systems[1]),
        count=arguments.tasks,
        annotators=[name.strip() for name in arguments.annotators.split(",") if name.strip()],
        per_task=arguments.per_task,
        seed=arguments.seed,
    )
    summaries = _summaries(arguments.summaries) if arguments.summaries else None
    if arguments.summarise:
        from components.study.summaries import summarise

        with _chat(arguments) as chat:
            summaries = summarise(tasks, chat)
    export(tasks, arguments.output, arguments.seed, summaries)
    fewer = f"; {arguments.tasks} were asked for" if len(tasks) < arguments.tasks else ""
    print(f"{len(tasks)} tasks{fewer}.")
    print(f"  give to annotators   {arguments.output / PAGE}   (or {LABEL_STUDIO} and its .xml, for Label Studio)")
    print(f"  keep from them       {arguments.output / KEY}")
    return 0


def _chat(arguments: argparse.Namespace) -> Chat:
    """The endpoint of the flags. What it replies is kept in the work folder, and is not asked for again."""
    from pydantic import ValidationError

    from components.contracts import InputError, work_folder
    from components.models.endpoint import Chat, Endpoint

    given = {name: value for name, value in vars(arguments).items() if name in Endpoint.model_fields and value is not None}
    try:
        return Chat(Endpoint(**given), work_folder("study") / "replies.jsonl")
    except ValidationError as error:
        wrong = "; ".join(
            "".join([*(f"--{str(name).replace('_', '-')}: " for name in e["loc"]), e["msg"]]) for e in error.errors()
        )
        raise InputError(f"the endpoint: {wrong}.") from None


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


def _judge(arguments: argparse.Namespace) -> int:
    from components.contracts import atomic
    from components.study.answers import load_study
    from components.study.judge import judge, record

    study = load_study(arguments.study)
    with _chat(arguments) as chat:
        result = record(study, arguments.model, judge(study, chat), chat.spent)
    with atomic(arguments.output) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{len(result['answers'])} tasks judged, {len(result['unanswered'])} without a readable answer: {arguments.output}")
    return 0


def _analyse(arguments: argparse.Namespace) -> int:
    from components.contracts import InputError, atomic
    from components.study.analysis import agreement_with, analyse
    from components.study.answers import load_study, read_answers
    from components.study.judge import read_judge

    if not (arguments.answers or arguments.judge):
        raise InputError("no answers: give saved files, an export of Label Studio, or --judge FILE.")
    study = load_study(arguments.study)
    result: dict[str, Any] = {}
    people = read_answers(study, arguments.answers) if arguments.answers else []
    if people:
        result["people"] = analyse(study, people)
    if arguments.judge:
        judged, consistency = read_judge(study, arguments.judge)
        if not judged:
            raise InputError(f"{arguments.judge}: the judge gave no readable answer to any task.")
        result["judge"] = analyse(study, judged) | consistency | {"agreement_with_people": agreement_with(people, judged)}
    print("\n\n".join(analysis_text(part) for part in result.values()))
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
    text = f"{table}\n\n{result['tasks']} tasks; 95 % Wilson intervals; two-sided sign test without ties."
    if "judge" not in result:
        return text
    text += f" {result['unanswered']} without a readable answer.\nThe same answer in both orders: "
    text += ", ".join(f"{question} {share:.0%}" for question, share in result["consistent"].items())
    for question, found in result["agreement_with_people"].items():
        if found["tasks"]:
            alpha = "" if found["alpha"] is None else f", alpha {found['alpha']:.2f}"
            text += f"\nAgrees with people on {question}: {found['same']:.0%} of {found['tasks']} tasks{alpha}"
    return text


def _cells(found: Mapping[str, Any], systems: Sequence[str]) -> list[str]:
    wins = [found["wins"][system] for system in systems]
    p = found["p"]
    test = "all ties" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return [f"{w['rate']:.0%} [{w['low']:.0%}, {w['high']:.0%}]" for w in wins] + [str(found["ties"]), test]
