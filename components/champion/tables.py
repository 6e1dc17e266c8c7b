"""Numbers, tables and stories as text for a terminal."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Mapping, Sequence

# The one invisible character that belongs to texts: it joins emoji.
_JOINER = "\u200d"


def spread(interval: Mapping[str, float], digits: int = 3, sign: str = "") -> str:
    """A mean with its interval."""
    mean, low, high = (f"{interval[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of as many cells each, in columns."""
    shown = [[plain(" ".join(cell.split())) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown)


def plain(text: str) -> str:
    """The text without what a terminal would obey: control characters, and marks that turn the direction of writing."""
    return "".join(
        mark if mark in ("\n", _JOINER) or unicodedata.category(mark) not in ("Cc", "Cf") else "\N{REPLACEMENT CHARACTER}"
        for mark in text.replace("\r\n", "\n").replace("\t", "    ")
    )


def wrapped(text: str, width: int) -> list[str]:
    """The text's lines, none wider than `width`."""
    return [line for paragraph in plain(text).splitlines() for line in textwrap.wrap(paragraph, width) or [""]]


def beside(left: Sequence[str], right: Sequence[str], width: int) -> list[str]:
    """Two columns of lines, each `width` wide."""
    rows = max(len(left), len(right))
    filled = ([*column, *[""] * (rows - len(column))] for column in (left, right))
    return [f"{a.ljust(width)} | {b}".rstrip() for a, b in zip(*filled, strict=True)]
