"""Batches of like length."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from components.train.batches import LikeLength


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_every_example_once_and_the_same_again(lengths: list[int], size: int, seed: int, epoch: int) -> None:
    def order() -> list[int]:
        sampler = LikeLength(lengths, size, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert sorted(order()) == list(range(len(lengths)))
    assert order() == order()


def test_epochs_and_seeds_differ() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 100).tolist()
    orders = set()
    for seed in (0, 1):
        sampler = LikeLength(lengths, 8, seed)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 4


def test_little_padding() -> None:
    """Of the padding that a random order needs, a quarter is left at most."""
    lengths = np.random.default_rng(0).integers(1, 500, 1000)

    def padding(order: list[int]) -> int:
        return sum(int(lengths[b].max() * len(b) - lengths[b].sum()) for b in np.array_split(order, 125))

    assert padding(list(LikeLength(lengths, 8, 0))) < 0.25 * padding(list(range(1000)))


def test_lengths_come_in_no_order() -> None:
    """Batches are shuffled after sorting: the longest do not come first, nor last, epoch for epoch."""
    lengths = np.arange(800)
    firsts = []
    sampler = LikeLength(lengths, 8, 0)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        firsts.append(np.mean(list(sampler)[:8]))
    assert 250 < np.mean(firsts) < 550
