"""`polyphony lineage ...` and `polyphony impact`: where a model came from, and whose stories are in it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

_TARGET = "MODEL@ALIAS, MODEL/VERSION, a digest as in dvc.lock, or the path of an artifact"


def add_to(commands: Any) -> None:
    """Adds `lineage` and `impact` to a command line."""
    lineage = commands.add_parser("lineage", help="where a model came from: show it, verify it, make it again")
    lineage.set_defaults(main=main)
    actions = lineage.add_subparsers(dest="action", required=True, metavar="ACTION")

    show = actions.add_parser("show", help="the tree from a model to the raw data")
    show.add_argument("target", metavar="TARGET", help=_TARGET)
    show.add_argument("--json", action="store_true", help="as JSON")
    show.add_argument("--html", type=Path, metavar="FILE", help="as a page")

    verify = actions.add_parser("verify", help="fetch what the digests name, hash it again, look for every commit")
    verify.add_argument("target", metavar="TARGET", help=_TARGET)
    _repository(verify)


def _repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repository", type=Path, default=Path(), metavar="DIR", help="the project's checkout, with DVC; default: this folder"
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs an action; returns the exit status: 1 where something is wrong, with the input or with what was looked at."""
    from components.contracts import InputError

    name = " ".join(filter(None, (arguments.command, getattr(arguments, "action", ""))))
    try:
        return _ACTIONS[name](arguments)
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1


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


_ACTIONS = {"lineage show": _show, "lineage verify": _verify}
