"""Embeds every distinct text once, in chunks that survive a kill."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from components.contracts import EMBEDDINGS, RESPONSES, InputError, atomic, require_passed, work_folder
from components.embed.params import Params
from components.lineage import digest, when_recorded
from components.models.embedders import encode, load_embedder
from components.models.params import Params as Models

log = logging.getLogger("polyphony")
_KINDS = ("semantic", "style")

Ints = np.ndarray[Any, np.dtype[np.int64]]


def run(
    *,
    embed: Params,
    models: Models,
    responses: Path,
    validation: Path | None,
    embeddings: Path,
    shard: int = 0,
    of: int = 1,
) -> dict[str, Any]:
    """Writes `embeddings`, in the order of `responses`.

    A finished chunk is kept in the work folder until all are done and recorded, so that a killed run goes on where it was
    and ends with the same bytes.

    Args:
        shard, of: only the responses whose texts are in the chunks of shard `shard` (from 0) of `of`. A shard is of whole
            chunks, which are embedded as they would be without shards: all of them together are the same bytes.

    Returns:
        Numbers of texts, of distinct ones, of those longer than an embedder reads, and the widths of the vectors.

    Raises:
        InputError: if a model or a shard does not exist, or the responses did not pass validation.
    """
    if not 0 <= shard < of:
        raise InputError(f"--shard {shard} --of {of}: shards are counted from 0 to {of - 1}.")
    require_passed(validation)
    names = {"semantic": models.semantic, "style": models.style}
    embedders = {name: load_embedder(name, models.remote_code) for name in dict.fromkeys(names.values())}
    widths = {kind: int(embedders[name].get_embedding_dimension() or 0) for kind, name in names.items()}
    distinct, place = _distinct(responses)
    if not len(place):
        raise InputError(f"{responses}: holds no responses. Run ingest again.")
    chunks = -(-len(distinct) // embed.chunk)
    mine = range(shard * chunks // of, (shard + 1) * chunks // of)
    start = mine.start * embed.chunk
    distinct = distinct[start : mine.stop * embed.chunk]
    (wanted,) = ((place >= start) & (place < start + len(distinct))).nonzero()
    key = f"{digest(responses)} {names} {models.remote_code} {embed.model_dump_json()} {shard}/{of}"
    work = work_folder("embed") / hashlib.sha256(key.encode()).hexdigest()[:16]
    parts = []
    with tqdm(total=len(distinct) * len(embedders), desc="embed", unit="text", mininterval=1) as bar:
        for number, texts in enumerate(_chunks(responses, distinct, embed.chunk)):
            part = work / f"{number}.safetensors"
            parts.append(part)
            if part.exists():
                # Done by a killed run: not part of the rate.
                bar.initial += len(texts) * len(embedders)
                bar.n += len(texts) * len(embedders)
                continue
            made = {name: encode(model, texts, name, embed.batch_size, bar) for name, model in embedders.items()}
            arrays = {kind: made[name].vectors for kind, name in names.items()}
            cut = {f"{kind}.truncated": np.array([made[name].truncated]) for kind, name in names.items()}
            with atomic(part) as partial:
                save_file(arrays | cut, partial)
    vectors, truncated = _gather(parts, work, widths)
    with EMBEDDINGS.writer(embeddings, metadata=names, **widths) as writer:
        row = 0
        for batch in RESPONSES.batches(responses, ["response_id"]):
            rows = wanted[np.searchsorted(wanted, row) : np.searchsorted(wanted, row + batch.num_rows)]
            columns = {
                kind: pa.FixedSizeListArray.from_arrays(pa.array(vectors[kind][place[rows] - start].ravel()), width)
                for kind, width in widths.items()
            }
            writer.write(pa.table({"response_id": batch.column(0).take(pa.array(rows - row)), **columns}))
            row += batch.num_rows
    del vectors
    when_recorded(lambda: shutil.rmtree(work, ignore_errors=True))
    for kind, count in truncated.items():
        if count:
            log.info("%d of %d texts are longer than the %s embedder (%s) reads", count, len(distinct), kind, names[kind])
    return {"texts": len(wanted), "distinct_texts": len(distinct), "width": widths, "truncated": truncated}


def _distinct(responses: Path) -> tuple[Ints, Ints]:
    """The row at which each distinct text first occurs, and for each response the number of its text."""
    seen: dict[bytes, int] = {}
    first: list[int] = []
    place: list[int] = []
    for text in _texts(responses):
        number = seen.setdefault(hashlib.blake2b(text.encode(), digest_size=16).digest(), len(seen))
        if number == len(first):
            first.append(len(place))
        place.append(number)
    return np.array(first, np.int64), np.array(place, np.int64)


def _chunks(responses: Path, distinct: Ints, size: int) -> Iterator[list[str]]:
    """The distinct texts, in chunks of `size`."""
    wanted = set(distinct.tolist())
    texts = (text for row, text in enumerate(_texts(responses)) if row in wanted)
    while chunk := list(islice(texts, size)):
        yield chunk


def _texts(responses: Path) -> Iterator[str]:
    for batch in RESPONSES.batches(responses, ["response"]):
        yield from batch.column(0).to_pylist()


def _gather(
    parts: list[Path], work: Path, widths: dict[str, int]
) -> tuple[dict[str, np.ndarray[Any, np.dtype[np.float32]]], dict[str, int]]:
    """The vectors of all chunks, (texts, width) by kind, on disk and not in memory; and how many texts were cut."""
    truncated = dict.fromkeys(_KINDS, 0)
    if not parts:
        return {kind: np.empty((0, width), np.float32) for kind, width in widths.items()}, truncated
    files = {kind: work / f"{kind}.float32" for kind in _KINDS}
    # Written as files, not through the map: where the disk is full, a write says so and a map kills the process.
    with files["semantic"].open("wb") as semantic, files["style"].open("wb") as style:
        for part in parts:
            arrays = load_file(part)
            for kind, file in (("semantic", semantic), ("style", style)):
                file.write(arrays[kind].tobytes())
                truncated[kind] += int(arrays[f"{kind}.truncated"][0])
    return {kind: np.memmap(files[kind], np.float32, "r").reshape(-1, widths[kind]) for kind in _KINDS}, truncated
