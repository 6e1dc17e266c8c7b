"""Which prompts are used, and on which side: by hash, so that neither order nor other prompts matter."""

from __future__ import annotations

import hashlib


def draw(seed: int, purpose: str, prompt_id: str) -> float:
    """A number in [0, 1) that belongs to the prompt, the seed and the purpose."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{prompt_id}".encode()).digest()
    # 53 bits: as many as a float holds exactly.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
