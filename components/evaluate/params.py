"""How systems are compared."""

from __future__ import annotations

from pydantic import Field

from components.params import Section


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
    temperature: float = Field(1.0, gt=0, description="1 leaves the model's distribution as it is")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus: least set of tokens with so much probability")
    top_k: int = Field(50, ge=0, description="the likeliest tokens kept; 0 keeps all")
    repetition_penalty: float = Field(1.1, ge=1, description="1 is none")
    max_new_tokens: int = Field(256, ge=1, description="a story that has not ended by then is cut; the paper allows 2048")
    batch_size: int = Field(32, ge=1, description="sequences generated at once")
    metrics: Metrics = Metrics()
