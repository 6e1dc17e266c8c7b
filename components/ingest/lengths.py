"""Rows in tokens of the language model: how long they are, and whether a text could forge a turn of the chat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from components.models.language import conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Lengths:
    """Counts tokens of whole batches.

    Args:
        limit: longest prompt + response, in tokens; longer ones need not be counted exactly. None: no limit.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> None:
        self._tokenizer = tokenizer
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        self._special = re.compile("|".join(re.escape(token) for token in sorted(special)) or r"(?!)")
        # No token stands for more characters than the longest has: a text beyond this has too many tokens for certain.
        self._most_characters = limit * max(map(len, tokenizer.get_vocab())) if limit else None

    def forges(self, text: str) -> bool:
        """Whether the tokenizer would read a special token out of the text."""
        return self._special.search(text) is not None

    def count(self, rows: Sequence[tuple[str, str]]) -> list[int | None]:
        """Tokens of each (prompt, response), the chat template included; None where certainly over the limit."""
        most = self._most_characters
        counted = [most is None or len(prompt) + len(response) <= most for prompt, response in rows]
        texts = [conversation(self._tokenizer, *row) for row, wanted in zip(rows, counted, strict=True) if wanted]
        distinct = list(dict.fromkeys(text for pair in texts for text in pair))
        if not distinct:
            return [None] * len(rows)
        ids = self._tokenizer(distinct, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        tokens = {text: len(sequence) for text, sequence in zip(distinct, ids, strict=True)}
        totals = iter([tokens[before] + tokens[answer] for before, answer in texts])
        return [next(totals) if wanted else None for wanted in counted]
