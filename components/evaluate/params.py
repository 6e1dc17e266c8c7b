"""How systems are compared."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from components.models.endpoint import Endpoint
from components.params import Section

# What a system may be called: the name stands in metrics, in files and as a key of MLflow.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
# Taken: people's stories, and what the step itself reads.
RESERVED = ("gold", "responses", "reward")


def named(name: str) -> str:
    """The name of a system.

    Raises:
        ValueError: if it is none.
    """
    if name in RESERVED or not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r}: a system's name is made of letters, digits, `_`, `.` and `-`, begins with a letter or digit, and is "
            f"none of {', '.join(RESERVED)}."
        )
    return name


Temperature = Annotated[float, Field(ge=0.01)]
Nucleus = Annotated[float, Field(gt=0, le=1)]
Likeliest = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Penalty = Annotated[float, Field(ge=1)]
Tokens = Annotated[int, Field(ge=1)]


class Sampling(Section):
    """What of the sampling is a system's own; the rest is as for all."""

    temperature: Temperature | None = None
    top_p: Nucleus | None = None
    top_k: Likeliest | None = None
    min_p: Share | None = None
    repetition_penalty: Penalty | None = None
    max_new_tokens: Tokens | None = None

    def given(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class System(Section):
    """A system beside the ones that the pipeline trains: a model, an endpoint, or another system sampled otherwise.

    Attributes:
        model: a model by name (see models.language; also a PEFT adapter) or a registered version (`models:/NAME/VERSION` or
            `models:/NAME@ALIAS`); empty: models.language, untrained.
        tokenizer: model whose tokenizer and chat template are used; empty: its own.
        like: a system's name: the same as that one, but for the sampling.
        endpoint: where the model answers that is asked instead.
        mode: how an endpoint is asked. plain: each story by itself; iterative: to differ from the prompt's earlier ones, which
            are shown; verbalized: for all stories of a prompt at once, with their probabilities.
        sampling: what differs from evaluate's own. An endpoint is sent these and nothing else but the limit of length.
    """

    model: str = ""
    tokenizer: str = ""
    like: str = ""
    endpoint: Endpoint | None = None
    mode: Literal["plain", "iterative", "verbalized"] = "plain"
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _of_one_kind(self) -> System:
        kinds = [bool(self.model or self.tokenizer), bool(self.like), self.endpoint is not None]
        if sum(kinds) > 1:
            raise ValueError("only one of `model` (with `tokenizer`), `like` and `endpoint` says what the system is")
        if self.mode != "plain" and self.endpoint is None:
            raise ValueError("`mode` is for endpoints")
        return self


class Metrics(Section):
    """What the metrics need to know. None of it touches the stories."""

    similarity: float = Field(
        0.75,
        gt=0,
        le=1,
        description="distinct, utility: cosine in meaning from which two stories tell the same; fits models.semantic",
    )
    patience: float = Field(0.8, ge=0, le=1, description="utility: chance that a reader asks for the next story")
    quality_bar: float = Field(
        0.5, ge=0, le=1, description="effective diversity: share of people's stories whose reward lies below the bar"
    )
    matched_words: int = Field(
        50, ge=10, description="matched diversity: words to which every story is cut; raise it where stories are long"
    )


class Params(Section):
    """Sampling of the stories, as in Chung et al. 2025, and the size of the comparison."""

    seed: int = Field(0, ge=0, description="seed of the sampling, of the choice of gold stories and of the bootstrap")
    max_prompts: int = Field(1000, ge=1, description="at most so many test prompts, chosen by hash")
    samples: int = Field(4, ge=2, description="stories per prompt and system; gold is subsampled to as many")
    temperature: Temperature = Field(1.0, description="1 leaves the model's distribution as it is")
    top_p: Nucleus = Field(0.95, description="nucleus: least set of tokens with so much probability")
    top_k: Likeliest = Field(50, description="the likeliest tokens kept; 0 keeps all")
    min_p: Share = Field(0.0, description="tokens kept: at least so probable as this share of the likeliest; 0 keeps all")
    repetition_penalty: Penalty = Field(1.1, description="1 is none")
    max_new_tokens: Tokens = Field(256, description="a story that has not ended by then is cut; the paper allows 2048")
    batch_size: int = Field(64, ge=1, description="sequences generated at once")
    metrics: Metrics = Metrics()
    systems: dict[Annotated[str, AfterValidator(named)], System] = Field(
        default_factory=dict,
        description="further systems to compare, by name: {base: {}} is models.language untrained; see README",
    )

    def sampled(self, sampling: Sampling) -> Params:
        """These parameters with what of the sampling is a system's own."""
        return self.model_copy(update=sampling.given())
