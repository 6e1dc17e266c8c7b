"""Embeds every distinct text once, in chunks that survive a kill."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file

from components.contracts import EMBEDDINGS, RESPONSES, atomic, require_passed
from components.embed.params import Params
from components.lineage import digest
from components.models.embedders import encode, load_embedder
from components.models.params import Params as Models

_KINDS = ("semantic", "style")


def run(*, embed: Params, models: Models, responses: Path, validation: Path | None, embeddings: Path) -> dict[str, Any]:
    """Writes `embeddings`, in the order of `responses`; returns counts.

    A finished chunk is kept in `.work` until all are done, so that a killed run goes on where it was and ends with the same
    bytes.
    """
    require_passed(validation)
    names = {"semantic": models.semantic, "style": models.style}
    embedders = {name: load_embedder(name, models.remote_code) for name in dict.fromkeys(names.values())}
    widths = {kind: int(embedders[name].get_embedding_dimension() or 0) for kind, name in names.items()}
    key = f"{digest(responses)} {models.model_dump_json()} {embed.model_dump_json()}"
    work = Path(".work/embed") / hashlib.sha256(key.encode()).hexdigest()[:16]
    distinct, place = _distinct(responses)
    truncated = dict.fromkeys(_KINDS, 0)
    parts = []
    for number, (start, texts) in enumerate(_chunks(responses, distinct, embed.chunk)):
        part = work / f"{number}.safetensors"
        parts.append(part)
        if not part.exists():
            label = f"{start + len(texts)}/{len(distinct)} texts"
            made = {name: encode(model, texts, f"{name}, {label}", embed.batch_size) for name, model in embedders.items()}
            arrays = {kind: made[name].vectors for kind, name in names.items()}
            cut = {f"{kind}.truncated": np.array([made[name].truncated]) for kind, name in names.items()}
            with atomic(part) as partial:
                save_file(arrays | cut, partial)
    vectors = {
        kind: np.lib.format.open_memmap(work / f"{kind}.npy", "w+", np.float32, (len(distinct), width))
        for kind, width in widths.items()
    }
    row = 0
    for part in parts:
        arrays = load_file(part)
        for kind in _KINDS:
            vectors[kind][row : row + len(arrays[kind])] = arrays[kind]
            truncated[kind] += int(arrays[f"{kind}.truncated"][0])
        row += len(arrays[_KINDS[0]])
    with EMBEDDINGS.writer(embeddings, metadata=names, **widths) as writer:
        row = 0
        for batch in RESPONSES.batches(responses, ["response_id"]):
            rows = place[row : row + batch.num_rows]
            row += batch.num_rows
            columns = {
                kind: pa.FixedSizeListArray.from_arrays(pa.array(vectors[kind][rows].ravel()), width)
                for kind, width in widths.items()
            }
            writer.write(pa.table({"response_id": batch.column(0), **columns}))
    shutil.rmtree(work)
    return {"texts": len(place), "distinct_texts": len(distinct), "width": widths, "truncated": truncated}


def _distinct(responses: Path) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """The row at which each distinct text first occurs, and for each response the number of its text."""
    seen: dict[bytes, int] = {}
    first: list[int] = []
    place: list[int] = []
    for batch in RESPONSES.batches(responses, ["response"]):
        for text in batch.column(0).to_pylist():
            number = seen.setdefault(hashlib.blake2b(text.encode(), digest_size=16).digest(), len(seen))
            if number == len(first):
                first.append(len(place))
            place.append(number)
    return np.array(first), np.array(place)


def _chunks(responses: Path, distinct: np.ndarray[Any, np.dtype[np.int64]], size: int) -> Iterator[tuple[int, list[str]]]:
    """The distinct texts in chunks of `size`, each with the number of its first text."""
    wanted = set(distinct.tolist())
    texts: list[str] = []
    row = start = 0
    for batch in RESPONSES.batches(responses, ["response"]):
        for text in batch.column(0).to_pylist():
            if row in wanted:
                texts.append(text)
            row += 1
            if len(texts) == size:
                yield start, texts
                start, texts = start + size, []
    if texts:
        yield start, texts
