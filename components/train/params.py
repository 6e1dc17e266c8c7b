"""How the models are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="how the rate falls after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps over which the rate rises from 0")
    batch_size: int = Field(4, ge=1, description="examples that go through the model together")
    accumulation: int = Field(1, ge=1, description="batches whose gradients make one step")


class Sft(Optimisation):
    """Next-token loss on the training responses, completion tokens only."""


class Preference(Optimisation):
    """DPO and DDPO on the training pairs; they differ in the weights alone."""

    beta: float = Field(0.1, gt=0, description="strength of the pull towards the reference")


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

    seed: int = Field(0, ge=0, description="seed of all training")
    checkpoint_minutes: float = Field(5.0, gt=0, description="work that a kill costs at most")
    lora: Lora = Lora()
    sft: Sft = Sft()
    preference: Preference = Preference()
    reward: Reward = Reward()
