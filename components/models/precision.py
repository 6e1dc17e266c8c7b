"""Which numbers a machine computes fast with."""

from __future__ import annotations

from functools import cache

# Names of units that multiply matrices of bfloat16: of x86, and of ARM. Without them, bfloat16 takes up to 100 times as long as
# float32.
_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


@cache
def has_bfloat16() -> bool:
    """Whether the GPU, or without one the CPU, computes in bfloat16 itself."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return any(has.get(unit, False) for unit in _UNITS)
