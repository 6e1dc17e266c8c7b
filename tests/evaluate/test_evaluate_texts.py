"""Measures of repetition between texts: by hand, and against the libraries that define them."""

from __future__ import annotations

import gzip
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.util import everygrams
from rouge_score.rouge_scorer import RougeScorer

from components.evaluate.texts import (
    common_subsequence,
    compression_ratio,
    homogenisation,
    ngram_diversity,
    shortened,
    words,
)

SENTENCES = st.lists(st.sampled_from("the a cat dog sat ran , . far away".split()), max_size=80).map(" ".join)
WORDS = st.lists(st.sampled_from("abcdef"), max_size=150)


class Tokenizer:
    """Our words, as rouge-score takes them."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def test_words() -> None:
    assert words("It's 3 o'clock, Éva_said – ЩИ!") == ["it", "s", "3", "o", "clock", "éva", "said", "щи"]


@pytest.mark.parametrize(
    ("length", "expected"), [(1, " One"), (2, " One\n\ntwo,"), (3, " One\n\ntwo, three"), (9, " One\n\ntwo, three ")]
)
def test_shortened(length: int, expected: str) -> None:
    assert shortened(" One\n\ntwo, three ", length).rstrip() == expected.rstrip()


@given(st.text(max_size=60), st.integers(1, 12))
def test_shortened_is_a_beginning_of_so_many_words(text: str, length: int) -> None:
    short = shortened(text, length)
    assert text.startswith(short)
    assert short.split() == text.split()[:length]


def test_ngrams_by_hand() -> None:
    # 1: a, b, c of 5. 2: ab, bc, ca of 3; none reaches into the next text. 3: abc of 1, and the other text is too short.
    assert ngram_diversity([list("abc"), list("ca")]) == pytest.approx(3 / 5 + 3 / 3 + 1 / (1 * 2))
    # All equal: half of the n-grams of each length.
    assert ngram_diversity([list("abcd"), list("abcd")]) == pytest.approx(4 * 0.5)
    assert ngram_diversity([list("abcd"), list("efgh")]) == pytest.approx(4)


def test_a_short_text_counts_as_repetition() -> None:
    assert ngram_diversity([list("abcd"), []]) == pytest.approx(ngram_diversity([list("abcd"), list("abcd")]))
    assert ngram_diversity([[], []]) == 0
    assert ngram_diversity([list("abcd"), ["x"]]) < ngram_diversity([list("abcd"), list("wxyz")])


@given(st.lists(WORDS.filter(lambda text: len(text) >= 4), min_size=2, max_size=4))
def test_ngrams_are_those_of_nltk(texts: list[list[str]]) -> None:
    expected = 0.0
    for n in range(1, 5):
        grams = [gram for text in texts for gram in everygrams(text, n, n)]
        expected += len(set(grams)) / len(grams)
    assert ngram_diversity(texts) == pytest.approx(expected)


def test_compression() -> None:
    once = "The quick brown fox jumps over the lazy dog while seven wizards vex a nymph."
    other = "Every unkind morning Jakob bought plums; his grandmother, zealous, counted few."
    assert compression_ratio([once, other]) == len(f"{once}\n{other}") / len(
        gzip.compress(f"{once}\n{other}".encode(), mtime=0)
    )
    assert compression_ratio([once, once]) > 1.3 * compression_ratio([once, other])


def test_an_empty_text_compresses_like_a_copy() -> None:
    text = "A story that is told but once."
    assert compression_ratio([text, " ", ""]) == compression_ratio([text] * 3)
    assert compression_ratio(["", text, ""]) == compression_ratio([text] * 3)
    assert math.isnan(compression_ratio(["", "\n"]))


def test_homogenisation_by_hand() -> None:
    # LCS(abcd, acde) = acd: 2 * 3 / 8. LCS(abcd, x) = 0. LCS(acde, x) = 0. The last text counts.
    assert homogenisation([list("abcd"), list("acde"), ["x"]]) == pytest.approx((0.75 + 0 + 0) / 3)
    assert homogenisation([list("abcd"), list("acde"), list("abcd")]) == pytest.approx((0.75 + 1 + 0.75) / 3)
    # An empty one is like any other.
    assert homogenisation([list("abcd"), [], ["x"]]) == pytest.approx((1 + 0 + 1) / 3)


@given(SENTENCES, SENTENCES)
def test_homogenisation_is_rouge_l(a: str, b: str) -> None:
    if words(a) and words(b):
        scorer = RougeScorer(["rougeL"], tokenizer=Tokenizer())
        assert homogenisation([words(a), words(b)]) == pytest.approx(scorer.score(a, b)["rougeL"].fmeasure)
        # In plain English our words are those of ROUGE.
        plain = RougeScorer(["rougeL"]).score(a, b)["rougeL"].fmeasure
        assert homogenisation([words(a), words(b)]) == pytest.approx(plain)


@given(WORDS, WORDS)
def test_common_subsequence_equals_the_table(a: list[str], b: list[str]) -> None:
    row = [0] * (len(b) + 1)
    for x in a:
        above, row = row, [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    assert common_subsequence(a, b) == row[-1] == common_subsequence(b, a)
