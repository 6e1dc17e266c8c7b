"""Comparisons in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.evaluate.stories import GOLD

Interval = Mapping[str, float]
# p-value, corrected for the number of comparisons, from which nothing is claimed.
LEVEL = 0.05
_DIVERSITIES = {"semantic_diversity": "in meaning", "style_diversity": "in style"}


def ordered(measured: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The systems beside people: those that stand beside the pipeline's own, and its own (all, where it has none)."""
    names, origins = [name for name in measured["systems"] if name != GOLD], measured.get("origins", {})
    # What the pipeline trained is known by its adapter's digest alone.
    own = [name for name in names if "adapter" in origins.get(name, ())] or names
    return [name for name in names if name not in own], own


def statements(measured: Mapping[str, Any]) -> list[str]:
    """One statement for every two systems, each compared with those named before it, the pipeline's own also with all others.

    First come those of its own systems and people alone.
    """
    others, own = ordered(measured)
    names = [*others, *own]
    pairs = [(a, b) for i, a in reversed(list(enumerate(names))) for b in reversed(names[:i])]
    if GOLD in measured["systems"]:
        pairs += [(name, GOLD) for name in reversed(names)]
    pairs.sort(key=lambda pair: sum(name in others for name in pair))
    rest = measured["matched_words"], bool(measured["warnings"])
    return [statement(a, b, measured["differences"][f"{a}-{b}"], *rest) for a, b in pairs]


def statement(a: str, b: str, difference: Mapping[str, Interval], matched_words: int, doubted: bool) -> str:
    """How a compares with b in a sentence, with the 95 % intervals of a - b; claims only what is significant after correction.

    Where lengths differ and diversity at equal length does not say the same, another says so.

    Args:
        difference: metric -> {mean, low, high, p, p_adjusted}.
        matched_words: length at which the matched diversities were measured.
        doubted: whether there is a warning about the reward model.
    """
    other = "people" if b == GOLD else b
    text = _diversity(a, other, {where: difference[metric] for metric, where in _DIVERSITIES.items()})
    reward = difference["reward"]
    text += f", at a quality difference of {_spread(reward)}{'' if _claim(reward) else ', which may be chance'}"
    if doubted:
        text += "; mind the warning about the reward model"
    if length := _length(a, other, difference, matched_words):
        text += f". {length}"
    return f"{text}."


def _diversity(a: str, b: str, intervals: Mapping[str, Interval]) -> str:
    """What is claimed of the diversities, by what they are of."""
    more = [f"{where} {_by(interval)}" for where, interval in intervals.items() if _claim(interval) > 0]
    less = [f"{where} {_by(interval)}" for where, interval in intervals.items() if _claim(interval) < 0]
    unclear = [f"{where} ({_spread(interval)})" for where, interval in intervals.items() if not _claim(interval)]
    parts = [
        f"is {word} diverse than {b} {' and '.join(claims)}" for word, claims in (("more", more), ("less", less)) if claims
    ]
    if not parts:
        return f"{a} is not shown to differ from {b} in diversity, {' or '.join(unclear)}"
    parts += [f"not shown to differ {' or '.join(unclear)}"] if unclear else []
    return f"{a} {', and '.join(parts)}"


def _length(a: str, b: str, difference: Mapping[str, Interval], matched_words: int) -> str:
    """What changes about the diversities when all stories are cut to one length; nothing where lengths do not differ."""
    words = difference["words"]
    changed = {
        where: matched
        for metric, where in _DIVERSITIES.items()
        if _claim(matched := difference[f"{metric}_matched"]) != _claim(difference[metric])
    }
    if not changed or not _claim(words):
        return ""
    longer = "longer" if words["mean"] > 0 else "shorter"
    return f"Stories of {a} are {longer} {_by(words, 0)} words. In the first {matched_words} words of all, " + _diversity(
        a, b, changed
    )


def number(value: float, digits: int = 3) -> str:
    """A number as the report prints it, with a true minus sign."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def _claim(interval: Interval) -> int:
    """1 for more, -1 for less, 0 where no difference is shown."""
    return 0 if interval["p_adjusted"] >= LEVEL else 1 if interval["mean"] > 0 else -1


def _by(interval: Interval, digits: int = 3) -> str:
    ends = sorted(abs(interval[end]) for end in ("low", "high"))
    return f"by {number(abs(interval['mean']), digits)} [{number(ends[0], digits)}, {number(ends[1], digits)}]"


def _spread(interval: Interval) -> str:
    mean, low, high = (_signed(interval[key]) for key in ("mean", "low", "high"))
    # An interval without 0 would seem to show something.
    seeming = not _claim(interval) and (round(interval["low"], 3) > 0 or round(interval["high"], 3) < 0)
    return f"{mean} [{low}, {high}]" + (f", corrected p {number(interval['p_adjusted'], 2)}" if seeming else "")


def _signed(value: float) -> str:
    text = number(value)
    return f"+{text}" if value > 0 and float(f"{value:.3f}") else text
