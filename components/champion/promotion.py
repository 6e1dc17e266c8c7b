"""Which version serves: moved there after another look at the gate, and back within seconds."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from components.champion.comparison import DifferentSetsError, Side, baseline, differences, measured, own, sides
from components.champion.ledger import PROMOTION, ROLLBACK, Ledger, LostError, Move, earlier
from components.champion.tables import aligned, spread
from components.champion.versions import AbsentError, Version, find, opened
from components.contracts import InputError
from components.register.gate import DIVERSITY, QUALITY, Verdict, judge
from components.register.params import Params
from components.register.patience import patiently
from components.register.record import UNKNOWN

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("polyphony")
# Names that an alias may have here: what MLflow reserves is none, nor is the one that registration moves.
_ALIAS = re.compile(r"(?!(?:latest|candidate|v\d+)$)[A-Za-z][\w-]{0,99}", re.ASCII | re.IGNORECASE)
# What MLflow's databases keep of a description.
_LONGEST_REASON = 2000


@dataclass(frozen=True)
class Review:
    """What speaks for and against a promotion.

    Attributes:
        against: name of what it was compared with.
        verdict: None where the two cannot be compared.
        objections: what speaks against it.
    """

    candidate: Version
    against: str
    sides: tuple[Side, Side] | None
    verdict: Verdict | None
    objections: tuple[str, ...]

    def table(self) -> str:
        """The comparison on both axes, as aligned text."""
        if self.verdict is None or self.sides is None:
            return f"{self.candidate.name} and {self.against} cannot be compared."
        one, other = (measured(side) for side in self.sides)
        rows = [["", self.candidate.short, self.against, "difference", "must lie above", ""]]
        headings = {QUALITY: "quality (reward)"} | {metric: metric.replace("_", " ") for metric in DIVERSITY}
        for check in self.verdict.checks:
            difference = spread({"mean": check.mean, "low": check.low, "high": check.high}, sign="+")
            cells = [spread(one[check.metric]), spread(other[check.metric]), difference, f"{check.bound:+.3f}"]
            rows.append([headings[check.metric], *cells, "holds" if check.passed else "FAILS"])
        return aligned(rows)


def promote(
    client: MlflowClient,
    model: str,
    number: str,
    alias: str,
    reason: str,
    *,
    force: bool,
    agrees: Callable[[Review], bool],
) -> Move | None:
    """Has `alias` point to a version of `model`, if the gate lets it pass; None where who was asked did not agree.

    Args:
        force: promote it whatever speaks against it; the move and the version say so for ever.
        agrees: shown the review before anything is changed.

    Raises:
        InputError: if there is no such version, it is the champion already, something speaks against it, or another move of
            the alias came first.
    """
    ledger = _ledger(client, model, alias, reason)
    known, before, finished = _state(client, ledger, model)
    if finished and (finished.kind, finished.version, before) == (PROMOTION, number, number):
        return finished
    find(client, f"{model}/{number}")
    if before == number:
        raise InputError(f"{model} version {number} is the {alias} already. See `polyphony history --model '{model}'`.")
    with ExitStack() as folders:
        (candidate,) = folders.enter_context(opened(client, f"{model}/{number}"))
        try:
            champion = folders.enter_context(opened(client, f"{model}/{before}"))[0] if before else None
        except InputError as error:
            review = Review(candidate, f"v{before}", None, None, (f"today's {alias} cannot be read: {error}",))
        else:
            review = look(candidate, champion, alias)
        agreed = agrees(review)
    if review.objections and not force:
        raise InputError(f"not promoted: {'; '.join(review.objections)}")
    if not agreed:
        return None
    verdict = (
        "; ".join(review.objections) or f"passed against {review.against}: {review.verdict.reasons if review.verdict else ''}"
    )
    move = Move(PROMOTION, number, before, known, reason, verdict=verdict, forced=bool(review.objections))
    return _make(ledger, move)


def look(candidate: Version, champion: Version | None, alias: str) -> Review:
    """The gate again, against today's champion; against the baseline of the registration where there is none."""
    objections: list[str] = []
    pair: tuple[Side, Side] | None = None
    verdict: Verdict | None = None
    against = champion.short if champion else f"{candidate.record['verdict']['baseline']} (no {alias} yet)"
    try:
        pair = sides(candidate, champion) if champion else (own(candidate), baseline(candidate))
        bounds = Params(name=candidate.model, **candidate.record["verdict"]["gate"])
        verdict = judge(differences(*pair), candidate.short, against, bounds)
    except DifferentSetsError as error:
        objections.append(f"{error} {_what_to_run(champion)}" if champion else str(error))
    if verdict and not verdict.passed:
        objections.append(f"the gate fails against {against}: {verdict.reasons}")
    code = candidate.record["code"]["dirty"]
    if code != "false":
        what = "is not known" if code == UNKNOWN else "was changed and not committed"
        objections.append(f"the code that made it {what} (see its card)")
    return Review(candidate, against, pair, verdict, tuple(objections))


def _what_to_run(champion: Version) -> str:
    model = f"models:/{champion.model}/{champion.number}"
    return (
        f"Evaluate both together: set `systems: {{champion: {{model: '{model}'}}}}` under `evaluate` in params.yaml, run "
        "`dvc repro`, and promote the version that it registers."
    )


def rollback(client: MlflowClient, model: str, alias: str, reason: str) -> Move:
    """Has `alias` point to the version before the one that it points to now.

    Raises:
        InputError: if there was none that is still there, or another move of the alias came first.
    """
    ledger = _ledger(client, model, alias, reason)
    known, before, finished = _state(client, ledger, model)
    if finished and (finished.kind, finished.version) == (ROLLBACK, before):
        # Not back once more: whoever was interrupted gives the same command again.
        return finished
    for to in earlier(ledger.moves(), before):
        try:
            find(client, f"{model}/{to}")
        except AbsentError as error:
            log.warning("not to version %s: %s", to, error)
        else:
            return _make(ledger, Move(ROLLBACK, to, before, known, reason))
    raise InputError(f"{model}: nothing that is still there was the {alias} before {f'version {before}' if before else 'now'}.")


def _ledger(client: MlflowClient, model: str, alias: str, reason: str) -> Ledger:
    if not _ALIAS.fullmatch(alias):
        raise InputError(f"{alias!r} is no alias to promote to: a letter, then letters, digits, `_` and `-`; not `candidate`.")
    if not 0 < len(reason.strip()) <= _LONGEST_REASON:
        raise InputError(f"a reason is needed, of at most {_LONGEST_REASON} characters; it stays with the history.")
    return Ledger(client, model, alias)


def _state(client: MlflowClient, ledger: Ledger, model: str) -> tuple[int, str, Move | None]:
    """Number of the last move, the version that the alias points to, and the move that was interrupted and is settled here."""
    from mlflow.exceptions import MlflowException

    try:
        patiently("reading the model", partial(client.get_registered_model, model))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(f"{model}: the registry at {client.tracking_uri} has no such model.") from None
    if settled := ledger.recover():
        log.warning(
            "finished the move to version %s that was interrupted (%s, by %s)", *(settled.version, settled.reason, settled.who)
        )
    moves = ledger.moves()
    now = ledger.pointed_at()
    if moves and moves[-1].version != now:
        log.warning(
            "%s: the alias points to %s and not to version %s, as its history says: it was moved by other means",
            *(ledger.name, f"version {now}" if now else "nothing", moves[-1].version),
        )
    return (moves[-1].number if moves else 0), now, settled


def _make(ledger: Ledger, move: Move) -> Move:
    try:
        return ledger.make(move)
    except LostError as lost:
        winner = lost.winner
        raise InputError(
            f"nothing was changed: {winner.who} made version {winner.version} the {ledger.alias} at the same time, and first "
            f"({winner.kind}: {winner.reason}). Look at the new {ledger.alias} and decide again."
        ) from None
