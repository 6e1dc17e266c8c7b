"""`polyphony lineage ...` and `polyphony impact`: where a model came from, and whose stories are in it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pipelines.repro import dvc

_TARGET = "MODEL@ALIAS, MODEL/VERSION, a digest as in dvc.lock, or the path of an artifact"


def add_to(commands: Any) -> None:
    """Adds `lineage` and `impact` to a command line."""
    lineage = commands.add_parser("lineage", help="where a model came from: show it, verify it, make it again")
    actions = lineage.add_subparsers(dest="action", required=True, metavar="ACTION")

    show = actions.add_parser("show", help="the tree from a model to the raw data")
    show.set_defaults(main=_show)
    show.add_argument("target", metavar="TARGET", help=_TARGET)
    show.add_argument("--json", action="store_true", help="as JSON")
    show.add_argument("--html", type=Path, metavar="FILE", help="as a page")

    verify = actions.add_parser("verify", help="fetch what the digests name, hash it again, look for every commit")
    verify.set_defaults(main=_verify)
    verify.add_argument("target", metavar="TARGET", help=_TARGET)
    _repository(verify)

    again = actions.add_parser("reproduce", help="write a workspace in which `dvc repro` makes it again")
    again.set_defaults(main=_reproduce)
    again.add_argument("target", metavar="TARGET", help=_TARGET)
    again.add_argument("--output", type=Path, required=True, metavar="DIR", help="the workspace, a new folder")
    again.add_argument(
        "--commit", default="", metavar="REVISION", help="whose code to use, where no one commit has that of all steps"
    )
    again.add_argument("--raw", type=Path, metavar="PATH", help="the raw data, where it is kept nowhere that is known")
    again.add_argument("--run", action="store_true", help="also run it, and compare what it made")
    _repository(again)

    impact = commands.add_parser("impact", help="every registered version that learned from a story, a prompt or data")
    impact.set_defaults(main=_impact)
    what = impact.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", metavar="DIGEST", help="of the raw data, or of any artifact")
    what.add_argument("--prompt", metavar="ID", help="prompt_id, as in the responses table")
    what.add_argument("--response", metavar="ID", help="response_id, as in the responses table")
    what.add_argument("--text", type=Path, metavar="FILE", help="a story; looked for as ingest's default repairs leave it")
    impact.add_argument("--json", action="store_true", help="as JSON")
    _repository(impact)


def _repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repository", type=Path, default=Path(), metavar="DIR", help="the project's checkout, with DVC; default: this folder"
    )


def _show(arguments: argparse.Namespace) -> int:
    from components.trace.ancestry import document, find
    from components.trace.render import page, text
    from components.trace.store import open_store

    ancestry = find(arguments.target, open_store())
    if arguments.html:
        from components.contracts import atomic

        with atomic(arguments.html) as partial:
            partial.write_text(page(ancestry), encoding="utf-8")
    if arguments.json:
        print(json.dumps(document(ancestry), indent=2))
    elif arguments.html:
        print(arguments.html)
    else:
        print(text(ancestry))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from components.trace.ancestry import find
    from components.trace.content import Contents
    from components.trace.store import open_store
    from components.trace.verify import verify

    ancestry = find(arguments.target, open_store())
    with tqdm(desc="hash", unit="B", unit_scale=True) as bar:
        report = verify(ancestry, Contents(arguments.repository), bar.update)
    print(f"{ancestry.label}: {len(report.sound)} sound, {len(report.problems)} problem(s); {report.read:,} bytes read\n")
    print("\n".join([*(f"  ok  {line}" for line in report.sound), *(f"  BAD {line}" for line in report.problems)]))
    return 1 if report.problems else 0


def _reproduce(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from components.trace.ancestry import find
    from components.trace.content import Contents
    from components.trace.reproduce import compare, reproduce
    from components.trace.store import open_store

    ancestry = find(arguments.target, open_store())
    with tqdm(desc="fetch", unit="B", unit_scale=True) as bar:
        plan = reproduce(
            ancestry, Contents(arguments.repository), arguments.output, bar.update, arguments.commit, arguments.raw
        )
    print(f"{plan.folder}: the workspace of {plan.of}, at commit {plan.commit[:12]}")
    for note in plan.notes:
        print(f"  {note}")
    if not arguments.run:
        print(f"\nMake it again: cd {plan.folder} && dvc repro {plan.stage}\nreproduce.json there has the digests to expect.")
        return 0
    if status := dvc("repro", plan.stage, folder=plan.folder):
        return status
    if differing := compare(plan):
        print(
            f"{len(differing)} of {len(plan.expected)} artifacts differ, in the order in which they are made:", file=sys.stderr
        )
        print("\n".join(f"  {line}" for line in differing), file=sys.stderr)
        return 1
    print(f"all {len(plan.expected)} artifacts have the digests that they had")
    return 0


def _impact(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from components.contracts import InputError
    from components.trace import impact
    from components.trace.content import Contents
    from components.trace.store import open_store

    try:
        text = impact.cleaned(arguments.text.read_text(encoding="utf-8")) if arguments.text else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--text {arguments.text}: {error}") from None
    sought = impact.Sought(arguments.data or "", arguments.prompt or "", arguments.response or "", text)
    with tqdm(desc="versions", unit="") as bar:
        found = impact.impact(sought, open_store(), Contents(arguments.repository), bar.update)
    if arguments.json:
        told = [
            {
                "name": one.version.name,
                "version": one.version.version,
                "aliases": one.version.aliases,
                "verdict": one.verdict,
                "how": one.how,
            }
            for one in found
        ]
        print(json.dumps(told, indent=2))
        return 0
    for verdict, words in (
        (impact.LEARNED, "learned from it"),
        (impact.UNKNOWN, "cannot be ruled out"),
        (impact.MEASURED, "only measured with it"),
    ):
        for one in found:
            if one.verdict == verdict:
                aliases = "".join(f" @{alias}" for alias in one.version.aliases)
                print("\n    ".join([f"{one.version}{aliases}: {words}", *one.how]))
    counts = impact.counted(found)
    print(
        f"{len(found)} versions: {counts[impact.LEARNED]} learned from it, {counts[impact.UNKNOWN]} cannot be ruled out, "
        f"{counts[impact.MEASURED]} only measured with it, {counts[impact.NOTHING]} not touched"
    )
    return 0
