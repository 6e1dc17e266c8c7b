"""How the models are trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from components.params import Section


class Lora(Section):
    """The adapter that SFT begins and preference training goes on with. The paper: r 128, alpha 256, on q_proj and v_proj."""

    r: int = Field(16, ge=1, description="rank")
    alpha: int = Field(32, ge=1, description="scale: the adapter's output is multiplied by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's inputs dropped while training")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), min_length=1, description="names of the layers that get an adapter; `all-linear` for all"
    )


class Optimisation(Section):
    """What every training has in common."""

    epochs: int = Field(1, ge=1, description="times through the data")
    learning_rate: float = Field(1.0e-4, gt=0, le=1, description="peak of the schedule")
    schedule: Literal["linear", "cosine", "cosine_to_half", "constant"] = Field(
        "linear", description="how the rate falls after the warm-up: to 0, or to half the peak, or not"
    )
    warmup_steps: int = Field(0, ge=0, description="steps over which the rate rises from 0")
    batch_size: int = Field(4, ge=1, description="examples of a step, in each process")

    def scheduler(self) -> dict[str, Any]:
        """The schedule as Transformers' training arguments name it."""
        names = {"constant": "constant_with_warmup", "cosine_to_half": "cosine_with_min_lr"}
        settings = {"min_lr_rate": 0.5} if self.schedule == "cosine_to_half" else None
        return {"lr_scheduler_type": names.get(self.schedule, self.schedule), "lr_scheduler_kwargs": settings}


class Sft(Optimisation):
    """Next-token loss on the training responses, completion tokens only."""


class Preference(Optimisation):
    """DPO and DDPO on the training pairs; they differ in the weights alone."""

    beta: float = Field(0.1, gt=0, description="strength of the pull towards the reference")


class Orpo(Optimisation):
    """ORPO and DORPO on the training pairs: from the base model, with a new adapter and without a reference.

    The defaults are those of the paper.
    """

    epochs: int = Field(4, ge=1, description="times through the data")
    learning_rate: float = Field(5.0e-6, gt=0, le=1, description="peak of the schedule")
    odds_weight: float = Field(0.25, ge=0, description="lambda: what the odds ratio counts beside the likelihood")


class Reward(Optimisation):
    """L1 loss on targets in [-1, 1] made of the votes; LoRA on all linear layers, r 16 and alpha 32 as in the paper.

    The paper shrinks the votes of the whole data set by logarithms (`votes`). That presumes one scale of votes, and on it a
    prompt's popularity outweighs what tells its responses apart; where sources with other scales are mixed in, next to
    nothing is left of that. Every use of the reward compares responses to one prompt, so the default is their order.
    The paper's rate is 3e-5, for a model of 2 billion parameters; a small encoder takes more.
    """

    epochs: int = Field(3, ge=1, description="times through the data")
    learning_rate: float = Field(1.0e-3, gt=0, le=1, description="peak of the schedule")
    batch_size: int = Field(8, ge=1, description="examples that go through the model together")
    accumulation: int = Field(1, ge=1, description="batches whose gradients make one step")
    targets: Literal["places", "votes"] = Field(
        "places", description="what is learned: a response's place among its prompt's, or its votes shrunk as in the paper"
    )
    heldout_share: float = Field(
        0.15, gt=0, lt=1, description="share of the training prompts on which the model's quality is measured"
    )
    lora_r: int = Field(16, ge=1, description="rank of its adapter")
    lora_alpha: int = Field(32, ge=1, description="scale of its adapter")


class Params(Section):
    """All trainings. `seed` draws the adapter's first weights and the order of the examples."""

    objectives: tuple[Literal["dpo", "ddpo", "orpo", "dorpo", "dorpo_released"], ...] = Field(
        ("dpo", "ddpo"), min_length=1, description="preference objectives that are trained side by side and compared"
    )
    seed: int = Field(0, ge=0, description="seed of all training")
    checkpoint_minutes: float = Field(5.0, gt=0, description="work that a kill costs at most")
    processes: int = Field(1, ge=1, description="processes that share the batches, one to a GPU; the reward model takes one")
    sharding: Literal["none", "ddp", "fsdp2"] = Field(
        "none",
        validate_default=True,
        description="with more processes: each holds the whole model (ddp), or they share its frozen weights (fsdp2)",
    )
    tokens_per_pass: int = Field(
        2048,
        ge=1,
        description="tokens that go through the language model together: a step takes as many passes as it needs; memory grows "
        "with it, results do not depend on it",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute each layer again in the backward pass: far less memory, a third more time"
    )
    lora: Lora = Lora()
    sft: Sft = Sft()
    preference: Preference = Preference()
    orpo: Orpo = Orpo()
    reward: Reward = Reward()

    @field_validator("objectives")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in value if value.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} stands there twice")
        return value

    @field_validator("sharding")
    @classmethod
    def _fits_the_processes(cls, value: str, info: ValidationInfo) -> str:
        processes = info.data.get("processes", 1)
        if processes > 1 and value == "none":
            raise ValueError(f"train.processes is {processes}: choose ddp, or fsdp2 where the model does not fit one GPU")
        if processes == 1 and value != "none":
            raise ValueError("train.processes is 1, and one process shares nothing: choose none, or more processes")
        return value
