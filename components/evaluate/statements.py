"""Comparisons in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.evaluate.stories import GOLD

Interval = Mapping[str, float]
_DIVERSITIES = {"semantic_diversity": "in meaning", "style_diversity": "in style"}


def statements(measured: Mapping[str, Any]) -> list[str]:
    """One statement for every two systems, each system compared with those named before it; people's stories last."""
    names = [name for name in measured["systems"] if name != GOLD]
    pairs = [(a, b) for i, a in reversed(list(enumerate(names))) for b in reversed(names[:i])]
    if GOLD in measured["systems"]:
        pairs += [(name, GOLD) for name in reversed(names)]
    return [statement(a, b, measured["differences"][f"{a}-{b}"]) for a, b in pairs]


def statement(a: str, b: str, difference: Mapping[str, Interval]) -> str:
    """How a compares with b, with the 95 % intervals of a - b; claims nothing where an interval contains 0."""
    other = "people" if b == GOLD else b
    more: list[str] = []
    less: list[str] = []
    unclear: list[str] = []
    for metric, where in _DIVERSITIES.items():
        interval = difference[metric]
        claims = more if interval["low"] > 0 else less if interval["high"] < 0 else unclear
        claims.append(f"{where} {_spread(interval) if claims is unclear else _by(interval)}")
    parts = [
        f"is {word} diverse than {other} {' and '.join(claims)}" for word, claims in (("more", more), ("less", less)) if claims
    ]
    text = f"{a} {', and '.join(parts)}" if parts else f"Between {a} and {other} no difference in diversity is shown"
    if unclear:
        text += f"; no difference is shown {' and '.join(unclear)}" if parts else f": {' and '.join(unclear)}"
    reward = difference["reward"]
    if reward["low"] > 0 or reward["high"] < 0:
        return f"{text}. The reward of {a} is {'higher' if reward['low'] > 0 else 'lower'} {_by(reward)}."
    return f"{text}. No difference in reward is shown: {_spread(reward)}."


def number(value: float, digits: int = 3) -> str:
    """A number as the report prints it, with a true minus sign."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def _by(interval: Interval) -> str:
    ends = sorted(abs(interval[end]) for end in ("low", "high"))
    return f"by {number(abs(interval['mean']))} [{number(ends[0])}, {number(ends[1])}]"


def _spread(interval: Interval) -> str:
    mean, low, high = (_signed(interval[key]) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _signed(value: float) -> str:
    text = number(value)
    return f"+{text}" if value > 0 and float(f"{value:.3f}") else text
