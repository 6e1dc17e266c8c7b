"""How much the texts of a prompt repeat each other, word by word. An empty text must not look diverse: each measure says how it
counts one.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from itertools import combinations

import numpy as np

_WORD = re.compile(r"[^\W_]+")
_LONGEST = 4


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits: ROUGE's words, in any script."""
    return _WORD.findall(text.lower())


def shortened(text: str, length: int) -> str:
    """The text up to its `length`-th word (as separated by white space), its own white space kept."""
    ends = [match.end() for match, _ in zip(re.finditer(r"\S+", text), range(length), strict=False)]
    return text[: ends[-1]] if ends else text


def ngram_diversity(texts: Sequence[Sequence[str]]) -> float:
    """Sum over n = 1..4 of the share of distinct n-grams among all n-grams of a prompt's texts (Meister et al. 2023).

    No n-gram reaches across two texts. A text that is too short for an n counts there as a repetition: as many n-grams as the
    others have on average, none of them distinct.

    Args:
        texts: words of each text.

    Returns:
        In [0, 4]; higher is more diverse.
    """
    total = 0.0
    for n in range(1, _LONGEST + 1):
        grams = [list(zip(*(text[i:] for i in range(n)), strict=False)) for text in texts]
        counts = [len(found) for found in grams if found]
        if counts:
            total += len({gram for found in grams for gram in found}) / (sum(counts) * len(texts) / len(counts))
    return total


def compression_ratio(texts: Sequence[str]) -> float:
    """Size of a prompt's texts by their size after one gzip (Shaib et al. 2024, arXiv 2403.00553); higher is more alike.

    The texts stand in one file, a line feed between two. An empty text counts as a copy of the first that is not.

    Returns:
        NaN where all texts are empty.
    """
    told = [text for text in texts if text.strip()]
    if not told:
        return np.nan
    data = "\n".join(text if text.strip() else told[0] for text in texts).encode()
    return len(data) / len(gzip.compress(data, compresslevel=9, mtime=0))


def homogenisation(texts: Sequence[Sequence[str]]) -> float:
    """Mean ROUGE-L F1 (Lin 2004) of two texts of a prompt, over all pairs (Padmakumar & He 2024); higher is more alike.

    F1 = 2 LCS / (a + b), a and b = the lengths in words, LCS = that of their longest common subsequence. A text without words
    counts as no different from any other.

    rouge-score gives the same number, but fills the table of subsequences in Python: 4 ms for two texts of 150 words, and 16
    times as much for four times the words; a comparison has some 50,000 pairs.

    Args:
        texts: words of each text, two texts at least.

    Returns:
        In [0, 1].
    """
    return float(np.mean([_rouge_l(a, b) for a, b in combinations(texts, 2)]))


def _rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    if not a or not b:
        return 1.0
    return 2 * common_subsequence(a, b) / (len(a) + len(b))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by the bit-parallel algorithm of Hyyrö (2004).

    A row of the table is one number, `row`: bit i is 0 where the table's row rises at a[i].
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    for word in b:
        if matches := row & places.get(word, 0):
            row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()
