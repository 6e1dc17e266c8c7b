"""How many texts are embedded at a time."""

from __future__ import annotations

from pydantic import Field

from components.params import Section


class Params(Section):
    """Batches and resumption; none of it changes what a vector means."""

    batch_size: int = Field(32, ge=1, description="texts that go through the embedder together")
    chunk: int = Field(2048, ge=1, description="texts after which finished work is safe from a kill")
