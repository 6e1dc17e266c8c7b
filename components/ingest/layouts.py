"""The two layouts of a raw row, and what each row holds: prompts with responses and scores, as they were written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

LONG = ("prompt", "response", "score")
PREFERENCES = ("post_title", "post_text", "comment_texts", "comment_scores")
EXPECTED = f"expected {', '.join(LONG)}, or {', '.join(PREFERENCES)}"


class Fault(NamedTuple):
    """A row that cannot be read as one of the layouts: the rule it breaks, and the row as JSON."""

    reason: str
    content: str


class Candidate(NamedTuple):
    """A prompt, a response and its score as the source has them: of any type."""

    prompt: Any
    response: Any
    score: Any

    def content(self) -> str:
        return as_json(self._asdict())


def as_json(value: Any) -> str:
    """JSON that UTF-8 can encode: half a surrogate pair is written as its escape."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if encodable(text) else json.dumps(value, default=str)


def encodable(text: str) -> bool:
    """Whether UTF-8 can hold the text: half a surrogate pair, as JSON's escapes can write it, it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def named(columns: Sequence[str]) -> str:
    """The names of columns for a message, however many and however long."""
    return ", ".join(name if len(name) <= 40 else f"{name[:40]}..." for name in columns[:20]) + ", ..." * (len(columns) > 20)


def columns(found: Sequence[str]) -> tuple[str, ...] | None:
    """The columns to read of those found; None where they are of neither layout."""
    return next((layout for layout in (PREFERENCES, LONG) if set(layout) <= set(found)), None)


def candidates(row: dict[str, Any]) -> Iterator[Candidate | Fault]:
    """What a row holds. Columns that are absent count as null, columns of neither layout are ignored."""
    if "comment_texts" in row or "comment_scores" in row:
        yield from _preferences(row)
    elif any(name in row for name in LONG):
        yield Candidate(*(row.get(name) for name in LONG))
    else:
        yield Fault("malformed", as_json(row))


def _preferences(row: dict[str, Any]) -> Iterator[Candidate | Fault]:
    title, text, texts, scores = (row.get(name) for name in PREFERENCES)
    parts = [part for part in (title, text) if part is not None]
    texts, scores = texts or [], scores or []
    if not (
        all(isinstance(part, str) for part in parts)
        and isinstance(texts, list)
        and isinstance(scores, list)
        and len(texts) == len(scores)
    ):
        yield Fault("malformed", as_json({name: row.get(name) for name in PREFERENCES}))
        return
    prompt = "\n".join(part.strip() for part in parts if part.strip())
    if not texts:
        yield Candidate(prompt, None, None)
    for response, score in zip(texts, scores, strict=True):
        yield Candidate(prompt, response, score)
