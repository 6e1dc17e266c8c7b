"""Embedders: Sentence-Transformers models by name, and texts to unit vectors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from tqdm import tqdm

from components.contracts import InputError
from components.models.resolve import resolve, trusted

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

STYLOMETRIC = "stylometric"


@dataclass(frozen=True)
class Vectors:
    """Vectors of texts, (texts, width) float32 of unit length, and how many texts were cut at the embedder's limit."""

    vectors: np.ndarray[Any, np.dtype[np.float32]]
    truncated: int


def load_embedder(name: str, remote_code: Collection[str] = ()) -> SentenceTransformer:
    """The embedder of that name: `stylometric`, or whatever `resolve` finds.

    Raises:
        InputError: if there is no such model, or it is not one of Sentence-Transformers.
    """
    from sentence_transformers import SentenceTransformer

    if name == STYLOMETRIC:
        from components.models.stylometric import Stylometric

        return SentenceTransformer(modules=[Stylometric()], device="cpu")
    folder = resolve(name)
    if not (folder / "modules.json").is_file():
        raise InputError(f"model {name!r}: {folder} is not a Sentence-Transformers model (it has no modules.json).")
    code = trusted(name, remote_code)
    try:
        return SentenceTransformer(str(folder), trust_remote_code=code, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError) as error:
        raise InputError(f"model {name!r}: no embedder can be loaded from {folder}: {error}") from error


def encode(
    model: SentenceTransformer, texts: Sequence[str], label: str, batch_size: int = 32, bar: tqdm[NoReturn] | None = None
) -> Vectors:
    """Embeds texts, longest first, so that a batch holds texts of like length and the time left is an upper bound.

    Args:
        label: what the embedder is called, on screen and in errors.
        bar: counts the texts; one of its own otherwise.

    Raises:
        InputError: if a text has no direction (a vector of length 0, or not finite).
    """
    if bar is None:
        with tqdm(total=len(texts), desc=f"embed {label}", unit="text", mininterval=1) as own:
            return encode(model, texts, label, batch_size, own)
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), texts[i]))
    result = np.empty((len(texts), int(model.get_embedding_dimension() or 0)), np.float32)
    truncated = 0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = [texts[i] for i in rows]
        truncated += _too_long(model, batch)
        result[rows] = model.encode(batch, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
        bar.update(len(rows))
    lengths = np.linalg.norm(result, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.all()):
        text = texts[int(np.argmin(np.nan_to_num(lengths[:, 0], nan=0.0, posinf=0.0)))]
        raise InputError(f"the embedder ({label}) gives a text no direction, which starts with {text[:80]!r}.")
    return Vectors(result / lengths, truncated)


def _too_long(model: SentenceTransformer, texts: list[str]) -> int:
    """How many of the texts the embedder cuts."""
    limit = model.max_seq_length
    # A text of n bytes has at most n tokens and two special ones.
    if limit is None or not (long := [text for text in texts if len(text.encode()) + 2 > limit]):
        return 0
    ids = model.tokenizer(long, truncation=False, verbose=False)["input_ids"]
    return sum(len(tokens) > limit for tokens in ids)
