"""The objectives by name: what each reads, and which parameters are its own."""

from __future__ import annotations

from typing import NamedTuple


class Objective(NamedTuple):
    """`section` of the parameters is the objective's own; it reads the inputs that `needs` names."""

    section: str
    needs: tuple[str, ...]


OBJECTIVES = {
    "reward": Objective("reward", ("responses",)),
    "sft": Objective("sft", ("responses",)),
    "dpo": Objective("preference", ("pairs", "reference", "sft")),
    "ddpo": Objective("preference", ("pairs", "reference", "sft", "deviations")),
    "orpo": Objective("orpo", ("pairs",)),
    "dorpo": Objective("orpo", ("pairs", "deviations")),
    "dorpo_released": Objective("orpo", ("pairs", "deviations")),
}
