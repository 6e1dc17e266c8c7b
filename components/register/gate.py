"""The gate: is the model more diverse than the baseline, and still as good?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.register.params import Params

DIVERSITY = ("semantic_diversity", "style_diversity")
QUALITY = "reward"


@dataclass(frozen=True)
class Check:
    """One comparison: the interval [low, high] of a mean paired difference against the bound that it must lie above."""

    metric: str
    mean: float
    low: float
    high: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.low > self.bound

    def __str__(self) -> str:
        verb = "lies above" if self.passed else "does not lie above"
        return f"{self.metric}: {self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] {verb} {self.bound:+.3f}"


@dataclass(frozen=True)
class Verdict:
    """What the gate found, with its reasons."""

    candidate: str
    baseline: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> str:
        """The failed checks, or all of them where none failed."""
        failed = [check for check in self.checks if not check.passed]
        return "; ".join(str(check) for check in failed or self.checks)


def judge(difference: Mapping[str, Mapping[str, float]], candidate: str, baseline: str, params: Params) -> Verdict:
    """Applies the gate to the paired differences candidate - baseline.

    Args:
        difference: metric -> {mean, low, high}, as in the evaluation's `metrics.json`.
    """
    bounds = dict.fromkeys(DIVERSITY, params.diversity_gain) | {QUALITY: -params.quality_tolerance}
    return Verdict(
        candidate,
        baseline,
        tuple(
            Check(metric, difference[metric]["mean"], difference[metric]["low"], difference[metric]["high"], bound)
            for metric, bound in bounds.items()
        ),
    )
