"""The history of an alias: who moved it to which version, when and why; and which of two moves at once was the first.

MLflow moves an alias unconditionally: of two who decide at once, the later would win and neither would know. So each move is
first appended to a ledger, a registered model `<model>@<alias>` whose versions are the moves. The store hands out their
numbers one after the other, each once, in SQLite and PostgreSQL alike (the number is part of a primary key), so everybody
reads the same order. A move names the last move that its author knew; it counts if no move that counts came between. Only
then does its author move the alias, and marks the move as settled. A move that counts and is not settled was interrupted:
whoever comes next settles it.
"""

from __future__ import annotations

import getpass
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from components.register.patience import patiently

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PROMOTION, ROLLBACK = "promotion", "rollback"
# Tags of a move, besides its own fields.
_SETTLED, _VOID = "settled", "void"


@dataclass(frozen=True)
class Move:
    """An alias's move to a version.

    Attributes:
        number: its place in the ledger, from 1; 0 for a move that is not there yet.
        before: the version that the alias pointed to; empty where there was none.
        known: number of the last move that its author knew.
        verdict: what the gate found, in words.
        token: tells a move from others of the same content.
        when: milliseconds since 1970, by the store's clock.
        void: why it does not count; empty where it does.
    """

    kind: str
    version: str
    before: str
    known: int
    reason: str
    verdict: str = ""
    forced: bool = False
    who: str = ""
    token: str = ""
    number: int = 0
    when: int = 0
    settled: bool = False
    void: str = ""


class LostError(Exception):
    """Another move came first."""

    def __init__(self, winner: Move) -> None:
        super().__init__(winner)
        self.winner = winner


class Ledger:
    """The moves of one alias of one registered model."""

    def __init__(self, client: MlflowClient, model: str, alias: str) -> None:
        self._client, self._model, self.alias = client, model, alias
        self.name = f"{model}@{alias}"

    def all(self) -> list[Move]:
        """Every move in order, also those that do not count."""
        found: list[ModelVersion] = []
        token = None
        while token != "":
            search = partial(self._client.search_model_versions, f"name = '{self.name}'", page_token=token)
            page = patiently("reading the history", search)
            found += page
            token = page.token or ""
        return _judged([_read(version) for version in sorted(found, key=lambda version: int(version.version))])

    def moves(self) -> list[Move]:
        """The moves that count, in order."""
        return [move for move in self.all() if not move.void]

    def pointed_at(self) -> str:
        """The version that the alias points to; empty where there is none."""
        found = patiently("reading the alias", partial(self._client.get_registered_model, self._model))
        version = found.aliases.get(self.alias)
        return str(version) if version is not None else ""

    def recover(self) -> Move | None:
        """Settles a move that was interrupted, and returns it; None where there is none, or none that could be settled."""
        from mlflow.exceptions import MlflowException

        moves = self.moves()
        if not moves or moves[-1].settled:
            return None
        try:
            return self.settle(moves[-1])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._strike(moves[-1], "its version was deleted")
            return None

    def make(self, move: Move) -> Move:
        """Appends the move and moves the alias.

        Raises:
            LostError: if another move came first.
        """
        token = uuid.uuid4().hex
        self._append(move, token)
        moves = self.all()
        mine = next(found for found in moves if found.token == token)
        if mine.void:
            winner = next(found for found in moves if not found.void and found.number > move.known)
            self._strike(mine, mine.void)
            raise LostError(winner)
        return self.settle(mine)

    def settle(self, move: Move) -> Move:
        """Has the alias point where the move says. Can be repeated, also by several at once."""
        while True:
            patiently("moving the alias", partial(self._move, move))
            last = self.moves()[-1]
            if last.number == move.number:
                return last
            # Who stalled before moving the alias may have undone a later move, which is made good here.
            move = last

    def _move(self, move: Move) -> None:
        if move.forced:
            tag = f"forced.{self.alias}.{move.number}"
            self._client.set_model_version_tag(self._model, move.version, tag, f"{move.reason} ({move.who})")
        self._client.set_registered_model_alias(self._model, self.alias, move.version)
        self._client.set_model_version_tag(self.name, str(move.number), _SETTLED, "true")

    def _strike(self, move: Move, why: str) -> None:
        tag = partial(self._client.set_model_version_tag, self.name, str(move.number), _VOID, why)
        patiently("writing the history", tag)

    def _append(self, move: Move, token: str) -> None:
        fields = {"kind": move.kind, "version": move.version, "before": move.before, "known": str(move.known)}
        fields |= {"reason": move.reason, "verdict": move.verdict, "forced": str(move.forced).lower(), "who": caller()}
        tags = {key: value for key, value in fields.items() if value} | {"token": token}
        source = f"models:/{self._model}/{move.version}"

        def append() -> None:
            # Also where it was tried before and only the answer was lost. Should it be there twice, the first counts.
            if not any(found.token == token for found in self.all()):
                self._client.create_model_version(self.name, source, tags=tags, description=_sentence(move))

        patiently("making its history", self._create)
        patiently("writing the history", append)

    def _create(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(
                self.name, description=f"The history of the alias {self.alias!r} of {self._model}: each version is a move."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def earlier(moves: Sequence[Move], now: str) -> list[str]:
    """The versions that a rollback goes to: the champions before the one that serves, the last at first.

    Args:
        now: the version that the alias points to; moved by other hands, it lies above the last one of the history.
    """
    held: list[str] = []
    for move in moves:
        if move.kind == ROLLBACK:
            while held and held[-1] != move.version:
                held.pop()
        elif move.before and held[-1:] != [move.before]:
            held.append(move.before)
        if held[-1:] != [move.version]:
            held.append(move.version)
    if held[-1:] != [now]:
        held.append(now)
    return held[-2::-1]


def caller() -> str:
    """Who runs this, as far as this machine knows."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    return f"{user} on {socket.gethostname()}"


def _judged(moves: Sequence[Move]) -> list[Move]:
    """The same, with those that do not count marked."""
    judged: list[Move] = []
    last = 0
    for move in moves:
        void = move.void or (f"move {last} came first" if last > move.known else "")
        last = last if void else move.number
        judged.append(replace(move, void=void))
    return judged


def _read(version: ModelVersion) -> Move:
    tags: Mapping[str, str] = version.tags
    return Move(
        kind=tags.get("kind", PROMOTION),
        version=tags.get("version", ""),
        before=tags.get("before", ""),
        known=int(tags.get("known", "0")),
        reason=tags.get("reason", ""),
        verdict=tags.get("verdict", ""),
        forced=tags.get("forced") == "true",
        who=tags.get("who", ""),
        token=tags.get("token", ""),
        number=int(version.version),
        when=int(version.creation_timestamp or 0),
        settled=_SETTLED in tags,
        void=tags.get(_VOID, ""),
    )


def _sentence(move: Move) -> str:
    forced = ", against the gate" if move.forced else ""
    return f"{move.kind} of version {move.version}{forced}: {move.reason}"
