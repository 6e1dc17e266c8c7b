"""`polyphony promote`, `rollback`, `history`, `compare`, `try`, `export`: which version serves, why, and what it writes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.champion.ledger import Move
    from components.champion.promotion import Review

_VERSION = "a version: model@alias, such as polyphony@champion, or model/number"


def add_to(commands: Any) -> None:
    """Adds the commands to a command line."""
    promote = commands.add_parser("promote", help="have a version serve, after another look at the gate")
    _moves(promote)
    promote.add_argument("--version", required=True, metavar="N")
    promote.add_argument("--to", default="champion", metavar="ALIAS", help="default: champion")
    promote.add_argument("--yes", action="store_true", help="do not ask")
    promote.add_argument("--force", action="store_true", help="whatever speaks against it; the history says so for ever")
    promote.set_defaults(main=_command, does=_promote)

    rollback = commands.add_parser("rollback", help="have the previous champion serve again, at once")
    _moves(rollback)
    rollback.add_argument("--of", default="champion", metavar="ALIAS", help="default: champion")
    rollback.set_defaults(main=_command, does=_rollback)

    history = commands.add_parser("history", help="who made which version the champion, when and why")
    history.add_argument("--model", required=True, metavar="NAME")
    history.add_argument("--of", default="champion", metavar="ALIAS", help="default: champion")
    history.add_argument("--json", action="store_true")
    history.set_defaults(main=_command, does=_history)

    compare = commands.add_parser("compare", help="two versions: metrics, paired differences, stories side by side")
    compare.add_argument("one", help=_VERSION)
    compare.add_argument("other", help="another")
    compare.add_argument("--prompts", type=int, default=3, metavar="N", help="prompts whose stories are shown as text")
    shape = compare.add_mutually_exclusive_group()
    shape.add_argument("--html", type=Path, metavar="FILE", help="write a page with all stories that there are instead")
    shape.add_argument("--json", action="store_true")
    compare.set_defaults(main=_command, does=_compare)

    trial = commands.add_parser("try", help="stories from a registered version, as its consumers load it")
    trial.add_argument("version", help=_VERSION)
    trial.add_argument("prompt")
    trial.add_argument("-k", type=int, default=4, metavar="N", help="stories")
    trial.add_argument("--max-new-tokens", type=int, metavar="N", help="default: as it was evaluated")
    trial.add_argument("--seed", type=int, help="for the same stories again")
    trial.add_argument("--json", action="store_true")
    _remote_code(trial)
    trial.set_defaults(main=_command, does=_try)

    export = commands.add_parser("export", help="a folder that Transformers and vLLM load")
    export.add_argument("version", help=_VERSION)
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="must not be there yet")
    export.add_argument("--merge", action="store_true", help="base model and adapter in one; otherwise the adapter")
    export.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the merged weights; default: that of the training")
    _remote_code(export)
    export.set_defaults(main=_command, does=_export)


def _moves(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="NAME", help="name in the registry")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="stays with the history")


def _remote_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--remote-code", action="append", default=[], metavar="ID",
        help="base model that may run its own code here: owner/name@<commit>, as the training allowed it",
    )  # fmt: skip


def _command(arguments: argparse.Namespace) -> int:
    """Runs one of the commands with MLflow; returns the exit status."""
    from mlflow.exceptions import MlflowException

    from components.contracts import InputError
    from components.lineage import tracking_client

    try:
        status: int = arguments.does(tracking_client(), arguments)
    except MlflowException as error:
        raise InputError(f"MLflow says: {error}") from error
    return status


def _promote(client: Any, arguments: argparse.Namespace) -> int:
    from components.champion.promotion import promote
    from components.contracts import InputError

    if not (arguments.yes or sys.stdin.isatty()):
        raise InputError("nobody is there to be asked (no terminal). Say --yes to promote without a question.")

    def agrees(review: Review) -> bool:
        print(review.table())
        for objection in review.objections:
            print(f"\nAGAINST IT: {objection}")
        if review.objections and not arguments.force:
            return False
        if arguments.yes:
            return True
        forced = " against the gate" if review.objections else ""
        question = f"\nMake {review.candidate.name} the {arguments.to}{forced}? [y/N] "
        return input(question).strip().lower() in ("y", "yes")

    move = promote(
        client, arguments.model, arguments.version, arguments.to, arguments.reason, force=arguments.force, agrees=agrees
    )
    if move is None:
        print("Nothing was changed.")
        return 1
    print(f"\n{arguments.model} version {move.version} is the {arguments.to} (before: {_before(move)}; move {move.number}).")
    return 0


def _before(move: Move) -> str:
    return f"version {move.before}" if move.before else "none"


def _rollback(client: Any, arguments: argparse.Namespace) -> int:
    from components.champion.promotion import rollback

    move = rollback(client, arguments.model, arguments.of, arguments.reason)
    print(
        f"{arguments.model} version {move.version} is the {arguments.of} again (before: {_before(move)}; move {move.number})."
    )
    return 0


def _history(client: Any, arguments: argparse.Namespace) -> int:
    from components.champion.history import as_json, as_text

    show = as_json if arguments.json else as_text
    print(show(client, arguments.model, arguments.of))
    return 0


def _compare(client: Any, arguments: argparse.Namespace) -> int:
    from components.champion import side_by_side
    from components.champion.versions import opened
    from components.contracts import atomic

    with opened(client, arguments.one, arguments.other) as (one, other):
        found = side_by_side.compare(one, other)
        if arguments.html:
            with atomic(arguments.html) as partial:
                partial.write_text(side_by_side.as_html(found), encoding="utf-8")
            print(arguments.html)
        else:
            print(json.dumps(found, indent=2) if arguments.json else side_by_side.as_text(found, arguments.prompts))
    return 0


def _try(client: Any, arguments: argparse.Namespace) -> int:
    from components.champion.trial import as_text, tell
    from components.champion.versions import opened

    with opened(client, arguments.version) as (version,):
        told = tell(
            version, arguments.prompt, arguments.k, seed=arguments.seed, max_new_tokens=arguments.max_new_tokens,
            remote_code=arguments.remote_code,
        )  # fmt: skip
    print(json.dumps(told, indent=2) if arguments.json else as_text(told))
    return 0


def _export(client: Any, arguments: argparse.Namespace) -> int:
    from components.champion.export import adapter, merged
    from components.champion.versions import opened
    from components.contracts import InputError, atomic

    output: Path = arguments.output
    if output.exists():
        raise InputError(f"{output} is there already. Name a new folder, or remove it.")
    with opened(client, arguments.version) as (version,), atomic(output) as partial:
        if arguments.merge:
            notes = merged(version, partial, dtype=arguments.dtype, remote_code=arguments.remote_code)
        else:
            notes = adapter(version, partial)
    print("\n".join([f"{version.name}: {output}", *notes]))
    return 0
