"""Rules: from a prompt, a response and a score as found to clean ones, or to the name of the rule they break."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any, NamedTuple

from components.ingest.layouts import Candidate, encodable
from components.ingest.params import Params
from components.ingest.repairs import ANY, PROMPT, REMOVED, RESPONSE, repair

# Every rule, in the order in which rows meet them.
RULES = (
    "malformed",
    "not_utf8",
    "no_prompt",
    "no_response",
    "score_not_a_number",
    "removed",
    "moderation",
    "looping",
    "special_tokens",
    "too_long",
    "duplicate",
    "too_few",
)
_MODERATION = re.compile(
    "|".join(
        (
            r"\*\*Welcome to the Prompt!\*\*",
            r"\*\*Off-Topic Discussion\*\*",
            "this submission has been removed",
            "I am a bot, and this action was performed automatically",
        )
    ),
    re.IGNORECASE,
)
# A text loops where fewer than half of its sequences of four words are distinct; in most stories 99 % of them are, and 1,587 by
# people and models held 14 below a half, each stuck in a loop. Shorter texts may have a refrain.
_LOOP_WORDS, _LOOP_DISTINCT, _LOOP_CHARACTERS = 100, 0.5, 100_000
_WORD = re.compile(r"\w+")


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
        self._for_prompts = [name for name in (*ANY, *PROMPT) if getattr(params.repairs, name)]
        self._for_responses = [name for name in (*ANY, *RESPONSE) if getattr(params.repairs, name)]

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
        if self._rules.removed and (REMOVED.fullmatch(prompt) or REMOVED.fullmatch(response)):
            return "removed"
        if self._rules.moderation and _MODERATION.search(response):
            return "moderation"
        if self._rules.looping and _loops(response):
            return "looping"
        return Clean(prompt, response, score, prompt_repairs, response_repairs)


def _loops(text: str) -> bool:
    words = _WORD.findall(text[:_LOOP_CHARACTERS])
    if len(words) < _LOOP_WORDS:
        return False
    sequences = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return len(set(sequences)) < _LOOP_DISTINCT * len(sequences)


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
