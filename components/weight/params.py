"""How far "different" counts, and who is compared with whom."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.params import Section


class Params(Section):
    """Deviation weights and preference pairs.

    Everything under `pairs` and `max_responses` decides which pairs there are; the rest decides weights alone and leaves the
    pairs, and with them the reference, untouched.
    """

    deviation: Literal["semantic", "style", "both"] = Field("both", description="embedder(s) that measure deviation")
    floor: float = Field(0.0, ge=0, le=1, description="smallest weight; 0.2 helps where prompts have four responses or fewer")
    over: Literal["all", "paired"] = Field(
        "all", description="whom a response is compared with: all of the prompt, or all in a pair"
    )
    max_responses: int = Field(0, ge=0, description="at most so many responses a prompt, drawn at random; 0 for all")
    pairs: Literal["gap", "all", "divpo"] = Field("gap", description="how pairs are chosen")
    gap: float = Field(5.0, ge=0, description="gap: scores differ by at least this, while such pairs are left")
    cap: int = Field(32, ge=1, description="all: at most so many pairs a prompt")
    rho: float = Field(0.25, gt=0, le=0.5, description="divpo: share of the prompt's responses at the top and at the bottom")
    high_quality_winners: bool = Field(False, description="keep only pairs whose winner has its prompt's highest score")
    seed: int = Field(0, ge=0, description="of every random choice")
