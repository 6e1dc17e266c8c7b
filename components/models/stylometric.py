"""A small style embedder that needs no download: how a text is written, not what it is about.

Four groups of features, after classical stylometry: function words, punctuation, character n-grams, and the shape of words,
sentences and paragraphs. Every feature is compared with what is usual in English fiction, and every group counts alike.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import Module

FUNCTION_WORDS = (
    "a about after again all also an and any are as at back be because been before but by can could did do down even for from "
    "get had has have he her here him his how i if in into is it its just like me more my never no not now of off on one only "
    "or our out over said she so some such than that the their them then there these they this those through to too under "
    "until up us was we well were what when where which while who why will with would yet you your"
).split()
PUNCTUATION = ".,;:!?\"'-()…—*\n"
_PLACE = {word: i for i, word in enumerate(FUNCTION_WORDS)}
_NGRAMS = 128
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)]*(?:\s+|$)|\n+")
# Typographic variants of one sign are one sign.
_PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "—", "\r": "\n"})
# Characters of a text that are looked at: a style shows well before that.
_LONGEST = 40_000


class Stylometric(Module):
    """Maps texts to unit vectors of stylometric features; takes no parameters and learns nothing."""

    config_keys: list[str] = []  # noqa: RUF012 (declared so by the base class)

    def __init__(self) -> None:
        super().__init__()
        self.max_seq_length = None

    def get_embedding_dimension(self) -> int:
        return len(FUNCTION_WORDS) + len(PUNCTUATION) + _NGRAMS + _SHAPE_CENTRE.size

    get_sentence_embedding_dimension = get_embedding_dimension

    def preprocess(self, inputs: list[str], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        del prompt, kwargs
        return {"features": torch.from_numpy(np.stack([features(text) for text in inputs]))}

    tokenize = preprocess

    def forward(self, features: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        del kwargs
        features["sentence_embedding"] = features["features"]
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        del args, safe_serialization, kwargs
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, *args: Any, **kwargs: Any) -> Stylometric:
        del model_name_or_path, args, kwargs
        return cls()


def features(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The style of a text, float32 of unit length; any text has one, also an empty one."""
    text = text[:_LONGEST].translate(_PLAIN)
    words = [word.lower() for word in _WORD.findall(text)]
    groups = (_function_words(words), _punctuation(text, len(words)), _ngrams(words), _shape(text, words))
    # Each group has the same expected length, so that none drowns the others.
    vector = np.concatenate([weight * group for weight, group in zip(_GROUP_WEIGHTS, groups, strict=True)])
    # The constant keeps a text without any feature from having no direction.
    vector[-1] += 1e-6
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _function_words(words: list[str]) -> np.ndarray[Any, Any]:
    counts = np.zeros(len(FUNCTION_WORDS))
    for word, count in Counter(words).items():
        if word in _PLACE:
            counts[_PLACE[word]] = count
    # Square roots level out the variance of rates; Poisson noise of a short text then has the same size everywhere.
    return (np.sqrt(counts / max(len(words), 1)) - _WORD_CENTRE) / np.sqrt(len(FUNCTION_WORDS))


def _punctuation(text: str, words: int) -> np.ndarray[Any, Any]:
    counts = Counter(text)
    rates = np.array([counts[sign] for sign in PUNCTUATION]) / max(words, 1)
    return (np.sqrt(rates) - _SIGN_CENTRE) / np.sqrt(len(PUNCTUATION))


def _ngrams(words: list[str]) -> np.ndarray[Any, Any]:
    """Beginnings and endings of words, two and three characters long, hashed: morphology rather than topic."""
    counts = np.zeros(_NGRAMS)
    for word, count in Counter(words).items():
        for part in (f"{word[-2:]}$", f"{word[-3:]}$", f"^{word[:2]}"):
            counts[zlib.crc32(part.encode()) % _NGRAMS] += count
    return (np.sqrt(counts / max(3 * len(words), 1)) - np.sqrt(1 / _NGRAMS)) / np.sqrt(_NGRAMS)


def _shape(text: str, words: list[str]) -> np.ndarray[Any, Any]:
    n = max(len(words), 1)
    sentences = np.array([len(_WORD.findall(s)) for s in _SENTENCE_END.split(text) if s and _WORD.search(s)] or [0])
    lengths = np.array([len(word) for word in words] or [0])
    paragraphs = [p for p in text.split("\n") if p.strip()] or [""]
    first = Counter(words)
    capitals = sum(c.isupper() for c in text)
    values = np.array(
        [
            np.log1p(sentences.mean()),
            np.log1p(sentences.std()),
            np.log1p(sentences.max()),
            (sentences <= 4).mean(),
            lengths.mean(),
            lengths.std(),
            (lengths >= 8).mean(),
            len(set(words[:100])) / min(n, 100),
            np.log1p(n / len(paragraphs)),
            sum(p.lstrip()[:1] in "\"'" for p in paragraphs) / len(paragraphs),
            text.count('"') / n,
            sum(first[w] for w in ("i", "me", "my", "we", "us", "our")) / n,
            sum(first[w] for w in ("you", "your")) / n,
            sum(first[w] for w in ("he", "she", "they", "his", "her", "their", "him", "them")) / n,
            sum(w.endswith("ed") for w in words) / n,
            sum(w.endswith("ing") for w in words) / n,
            sum(w.endswith("ly") for w in words) / n,
            sum("'" in w for w in words) / n,
            capitals / max(len(text), 1),
            sum(c.isdigit() for c in text) / max(len(text), 1),
        ]
    )
    return np.tanh((values - _SHAPE_CENTRE) / _SHAPE_SCALE / 2) * 2 / np.sqrt(len(values))


# What is usual in short English fiction, rounded: the centre from which a style departs.
_SHAPE_CENTRE = np.array(
    [2.5, 2.0, 3.3, 0.15, 4.2, 2.2, 0.1, 0.7, 3.9, 0.2, 0.03, 0.04, 0.015, 0.06, 0.05, 0.03, 0.015, 0.03, 0.025, 0.001]
)
_SHAPE_SCALE = np.array(
    [0.4, 0.5, 0.5, 0.15, 0.3, 0.3, 0.04, 0.08, 0.7, 0.25, 0.03, 0.035, 0.02, 0.03, 0.02, 0.015, 0.01, 0.02, 0.01, 0.002]
)
_COMMON = {
    "the": 0.06, "and": 0.03, "a": 0.027, "to": 0.025, "of": 0.025, "i": 0.02, "in": 0.016, "he": 0.014, "was": 0.014,
    "it": 0.012, "that": 0.011, "his": 0.01, "you": 0.01, "she": 0.009, "her": 0.009, "with": 0.008, "had": 0.008, "for": 0.008,
    "my": 0.008, "as": 0.007, "on": 0.007, "at": 0.006, "is": 0.006, "but": 0.006, "not": 0.006,
}  # fmt: skip
_WORD_CENTRE = np.sqrt([_COMMON.get(word, 0.002) for word in FUNCTION_WORDS])
_SIGN_CENTRE = np.sqrt(
    [
        {".": 0.08, ",": 0.07, '"': 0.04, "'": 0.03, "\n": 0.03, "?": 0.008, "!": 0.006, "-": 0.006}.get(s, 0.002)
        for s in PUNCTUATION
    ]
)
_GROUP_WEIGHTS = np.array([11.0, 8.0, 22.0, 1.0])
