"""A story, whoever wrote it."""

from __future__ import annotations

from dataclasses import dataclass

# The system that people are.
GOLD = "gold"


@dataclass(frozen=True)
class Story:
    """One story for one prompt.

    Attributes:
        tokens: its length in tokens of the language model, without the token that ends it.
        finish_reason: see contracts.GENERATIONS.
    """

    system: str
    prompt_id: str
    sample: int
    text: str
    tokens: int
    finish_reason: str

    @property
    def words(self) -> int:
        return len(self.text.split())

    @property
    def empty(self) -> bool:
        return not self.text.strip()
