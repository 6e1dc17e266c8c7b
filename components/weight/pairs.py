"""Which responses of a prompt are compared: winner and loser, as indices into the prompt's responses."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from components.weight.deviation import Floats
from components.weight.params import Params

Pair = tuple[int, int]


def generator(seed: int, prompt_id: str, purpose: str) -> np.random.Generator:
    """Random numbers of a prompt: the same whatever other prompts there are, and in whatever order."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed} {purpose} {prompt_id}".encode()).digest()[:8]))


def choose(scores: Floats, deviations: Floats, params: Params, prompt_id: str) -> list[Pair]:
    """The pairs (winner, loser) of one prompt; the winner always has the higher score.

    Args:
        scores: (n,) votes.
        deviations: (n,) how deviant each response is; only `divpo` looks at it.
    """
    rng = generator(params.seed, prompt_id, "pairs")
    if params.pairs == "gap":
        pairs = by_gap(scores, params.gap, rng)
    elif params.pairs == "all":
        pairs = every(scores, params.cap, rng)
    else:
        pairs = divpo(scores, deviations, params.rho)
    if params.high_quality_winners:
        pairs = [pair for pair in pairs if scores[pair[0]] == scores.max()]
    return pairs


def by_gap(scores: Floats, gap: float, rng: np.random.Generator) -> list[Pair]:
    """Random disjoint pairs whose scores differ by at least `gap` and, when none is left, by anything.

    A draw is uniform over all admissible pairs. With the scores sorted, the partners of each loser are a tail of the list,
    found by bisection: O(n log n) a draw.
    """
    left = np.argsort(scores, kind="stable")
    pairs: list[Pair] = []
    while len(left) > 1:
        values = scores[left]
        first = np.searchsorted(values, values + gap, side="left")
        first = np.maximum(first, np.searchsorted(values, values, side="right"))
        partners = len(left) - first
        if partners.sum() == 0:
            first = np.searchsorted(values, values, side="right")
            partners = len(left) - first
            if partners.sum() == 0:
                break
        ends = np.cumsum(partners)
        draw = int(rng.integers(ends[-1]))
        loser = int(np.searchsorted(ends, draw, side="right"))
        winner = int(first[loser] + ends[loser] - 1 - draw)
        pairs.append((int(left[winner]), int(left[loser])))
        left = np.delete(left, [loser, winner])
    return pairs


def every(scores: Floats, cap: int, rng: np.random.Generator) -> list[Pair]:
    """All pairs of different scores, or a random `cap` of them."""
    winners, losers = np.nonzero(scores[:, None] > scores[None, :])
    if len(winners) > cap:
        keep = np.sort(rng.choice(len(winners), cap, replace=False))
        winners, losers = winners[keep], losers[keep]
    return list(zip(winners.tolist(), losers.tolist(), strict=True))


def divpo(scores: Floats, deviations: Floats, rho: float, most: int = 2) -> list[Pair]:
    """The most deviant of the best against the least deviant of the worst (DivPO, Lanchantin et al. 2025, arXiv 2501.18101).

    Args:
        rho: share of the responses, by score, that are the best, and the worst.
        most: number of pairs at most.
    """
    pool = min(math.ceil(rho * len(scores)), len(scores) // 2)
    order = np.argsort(scores, kind="stable")
    worst, best = order[:pool], order[len(order) - pool :]
    winners = best[np.argsort(-deviations[best], kind="stable")][:most]
    losers = worst[np.argsort(deviations[worst], kind="stable")][:most]
    return [(int(winner), int(loser)) for winner, loser in zip(winners, losers, strict=True) if scores[winner] > scores[loser]]
