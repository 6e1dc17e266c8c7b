"""Repairs and rules: from a prompt, a response and a score as found to clean ones, or to the name of the rule they break.

Texts are otherwise kept as they were written; in particular, no Unicode normal form is imposed.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from components.ingest.layouts import Candidate, encodable
from components.ingest.params import Params

# Every rule, in the order in which rows meet them.
RULES = (
    "malformed",
    "not_utf8",
    "no_prompt",
    "no_response",
    "score_not_a_number",
    "removed",
    "moderation",
    "special_tokens",
    "too_long",
    "duplicate",
    "too_few",
)
_MODERATION = re.compile(
    "|".join(map(re.escape, ("**Welcome to the Prompt!**", "this submission has been removed", "**Off-Topic Discussion**"))),
    re.IGNORECASE,
)
_REMOVED = re.compile(r"\[\s*(?:removed|deleted)(?: by [^\]\n]*)?\s*\]", re.IGNORECASE)
_TAGS = re.compile(r"\A(?:\[\s?(?:[A-Z]{2}|[Ww]p)\s?\]\s*)+")
# Only with their semicolon: "AT&T" and "R&copyright" are what they look like.
_ENTITY = re.compile(r"&(?:#\d{1,8}|#[xX][0-9a-fA-F]{1,7}|[A-Za-z][A-Za-z0-9]{1,31});")
_ESCAPED_AMPERSAND = re.compile(r"&(?:(?:amp|AMP|#0*38|#[xX]0*26);)+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NEWLINE = "<\\newline>"
_TOKENISED = (
    (re.compile(r"`` ?"), '"'),
    (re.compile(r" ?''"), '"'),
    (re.compile(r" (n't|'(?:s|m|d|ll|re|ve))\b", re.IGNORECASE), r"\1"),
    (re.compile(r"(?<! ) +([,.;:?!)\]])"), r"\1"),
    (re.compile(r"([(\[]) +"), r"\1"),
)


def _html_entities(text: str) -> str:
    return _ENTITY.sub(_character, _ESCAPED_AMPERSAND.sub("&", text)).replace("\u200b", "")


def _character(entity: re.Match[str]) -> str:
    character = html.unescape(entity[0])
    # An entity is how the source wrote an ordinary space; a no-break space typed as such is kept.
    return " " if character == "\xa0" else character


def _detokenise(text: str) -> str:
    for pattern, replacement in _TOKENISED:
        text = pattern.sub(replacement, text)
    return text


def _newline_tokens(text: str) -> str:
    if _NEWLINE not in text:
        return text
    return "\n".join(part.strip(" \t") for part in text.split(_NEWLINE))


def _removed_text(text: str) -> str:
    before, _, last_line = text.rpartition("\n")
    return before if _REMOVED.fullmatch(last_line.strip()) and before else text


# In the order in which they are made: entities may hide what the others look for.
_REPAIRS: dict[str, Callable[[str], str]] = {
    "html_entities": _html_entities,
    "bom": lambda text: text.replace("\ufeff", ""),
    "control": lambda text: _CONTROL.sub("", text),
    "line_endings": lambda text: text.replace("\r\n", "\n").replace("\r", "\n"),
    "newline_tokens": _newline_tokens,
    "detokenise": _detokenise,
}
_PROMPT_REPAIRS: dict[str, Callable[[str], str]] = {
    "prompt_tag": lambda text: _TAGS.sub("", text),
    "removed_text": _removed_text,
}
REPAIRS = (*_REPAIRS, *_PROMPT_REPAIRS)


def repair(text: str, names: Sequence[str]) -> tuple[str, int]:
    """The text after the named repairs, repeated until they change nothing more, without outer white space.

    Returns:
        The text, and the repairs that changed it as a bit mask over `REPAIRS`.
    """
    made = 0
    changed = True
    while changed:
        changed = False
        text = text.strip()
        for name in names:
            repaired = (_REPAIRS.get(name) or _PROMPT_REPAIRS[name])(text)
            if repaired != text:
                text, made, changed = repaired, made | 1 << REPAIRS.index(name), True
    return text, made


class Clean(NamedTuple):
    """A clean prompt, response and score, and the repairs made to each text, as bit masks over `REPAIRS`."""

    prompt: str
    response: str
    score: float
    prompt_repairs: int
    response_repairs: int


class Cleaner:
    """Applies the repairs and those rules that need nothing but the row itself."""

    def __init__(self, params: Params) -> None:
        self._rules = params.rules
        self._for_responses = [name for name in _REPAIRS if getattr(params.repairs, name)]
        self._for_prompts = [name for name in REPAIRS if getattr(params.repairs, name)]

    def __call__(self, candidate: Candidate) -> Clean | str:
        """The clean row, or the rule that it breaks."""
        for text, rule in ((candidate.prompt, "no_prompt"), (candidate.response, "no_response")):
            if text is None:
                return rule
            if not isinstance(text, str):
                return "malformed"
            if not encodable(text):
                return "not_utf8"
        prompt, prompt_repairs = repair(candidate.prompt, self._for_prompts)
        response, response_repairs = repair(candidate.response, self._for_responses)
        score = _number(candidate.score)
        if not prompt:
            return "no_prompt"
        if not response:
            return "no_response"
        if score is None:
            return "score_not_a_number"
        if self._rules.removed and (_REMOVED.fullmatch(prompt) or _REMOVED.fullmatch(response)):
            return "removed"
        if self._rules.moderation and _MODERATION.search(response):
            return "moderation"
        return Clean(prompt, response, score, prompt_repairs, response_repairs)


def _number(value: Any) -> float | None:
    """The score as a finite number; None where it is anything else, text that looks like a number included."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    # Adding 0.0 turns -0.0 into 0.0: equal scores, equal bytes.
    return number + 0.0 if math.isfinite(number) else None
