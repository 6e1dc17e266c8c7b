"""What the data should be like, beyond what it must be."""

from __future__ import annotations

from pydantic import Field, model_validator

from components.params import Section


class Params(Section):
    """Bounds of the warnings. What makes the data unusable is not a matter of taste and has no parameter."""

    tolerated: float = Field(0.05, ge=0, lt=1, description="share of rows out of bounds below which there is no warning")
    min_responses: int = Field(5, ge=1, description="responses of a prompt; weights serve badly at four or fewer")
    min_test_prompts: int = Field(20, ge=1, description="prompts on the test side")
    min_characters: int = Field(200, ge=0, description="length of a response")
    max_characters: int = Field(20000, ge=1, description="length of a response")
    min_distinct: float = Field(
        0.7,
        ge=0,
        le=1,
        description="share of a response that does not repeat an earlier part; ordinary stories: above 0.85",
    )
    max_zero_weight: float = Field(0.5, ge=0, le=1, description="share of the pairs whose winner has weight 0")

    @model_validator(mode="after")
    def _ordered(self) -> Params:
        if self.min_characters > self.max_characters:
            raise ValueError("min_characters must not be above max_characters")
        return self
