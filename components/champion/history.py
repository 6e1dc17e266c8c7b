"""The history of an alias, to be read."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from components.champion.ledger import Ledger, Move
from components.champion.tables import aligned
from components.contracts import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def as_text(client: MlflowClient, model: str, alias: str) -> str:
    """A line for each move with what was said and found, the last first."""
    ledger = Ledger(client, model, alias)
    moves, now = ledger.all(), ledger.pointed_at()
    if not moves and not now:
        raise InputError(f"{model}: nothing was the {alias} yet.")
    rows = [["move", "when (UTC)", "what", "version", "before", "who", "why"]]
    rows += [_row(move) for move in reversed(moves)]
    lines = [aligned(rows)]
    counting = [move for move in moves if not move.void]
    missing = sorted(set(range(1, moves[-1].number)) - {move.number for move in moves}) if moves else []
    if missing:
        lines.append(f"Deleted from the history: move {', '.join(map(str, missing))}.")
    if counting and not counting[-1].settled:
        lines.append(f"Move {counting[-1].number} was interrupted; the next promotion or rollback finishes it.")
    elif not counting or counting[-1].version != now:
        lines.append(f"The alias points to {f'version {now}' if now else 'nothing'}: it was moved by other means than these.")
    return "\n".join(lines)


def as_json(client: MlflowClient, model: str, alias: str) -> str:
    ledger = Ledger(client, model, alias)
    moves = [asdict(move) | {"when": _when(move)} for move in ledger.all()]
    return json.dumps({"model": model, "alias": alias, "points_to": ledger.pointed_at(), "moves": moves}, indent=2)


def _row(move: Move) -> list[str]:
    what = f"{move.kind}, FORCED" if move.forced else move.kind
    why = move.reason + (f" [{move.verdict}]" if move.verdict else "")
    if move.void:
        what = f"{move.kind}, did not count"
        why += f" ({move.void})"
    return [str(move.number), _when(move), what, move.version, move.before or "-", move.who, " ".join(why.split())]


def _when(move: Move) -> str:
    return datetime.fromtimestamp(move.when / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
