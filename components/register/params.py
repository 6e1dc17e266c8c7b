"""What a model must show to become a candidate, and under which name it is registered."""

from __future__ import annotations

from pydantic import Field

from components.params import Section


class Params(Section):
    """The registered name and the gate.

    The gate compares the model with `baseline`, prompt by prompt, on two axes, by the 95 % interval of the mean difference:
    both diversities must have gained, and the reward must not have lost more than a tolerance.
    """

    name: str = Field("polyphony", min_length=1, pattern=r"^[\w. -]+$", description="name in the MLflow model registry")
    candidate: str = Field("ddpo", pattern=r"^[\w.-]+$", description="objective whose model is registered")
    baseline: str = Field("dpo", description="system to compare with, as `evaluate` names it")
    diversity_gain: float = Field(0.0, ge=0, lt=2, description="the interval of each diversity's gain must lie above this")
    quality_tolerance: float = Field(
        0.1, ge=0, le=2, description="the interval of the reward's difference must lie above -this"
    )
