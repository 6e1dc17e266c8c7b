"""Batches of like length."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from components.train.batches import Batches, LikeLength, Share


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


@given(st.integers(1, 100), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2))
def test_processes_share_what_one_would_do(count: int, size: int, processes: int, epoch: int) -> None:
    """Nothing is lost or repeated, and each step's examples are those of one process with the whole batch."""

    def batches(size: int, processes: int, process: int, together: int) -> list[list[int]]:
        share = Share(LikeLength([0] * count, together, 0), size, processes, process)
        share.set_epoch(epoch)
        assert len(share) == len(list(share))
        return list(share)

    together = size * processes
    shares = [batches(size, processes, process, together) for process in range(processes)]
    steps = [sorted(number for batch in step for number in batch) for step in zip(*shares, strict=True)]
    assert steps == [sorted(batch) for batch in batches(together, 1, 0, together)]
    assert all(len(batch) <= size for share in shares for batch in share)


def test_the_loader_tells_the_epoch_and_gives_empty_batches() -> None:
    loader = Batches([10, 11, 12], batch_sampler=Share(LikeLength([0] * 3, 2, 0), 1, 2, 1), collate_fn=list)
    seen = set()
    for epoch in range(8):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == 2 and batches[1] == []
        seen.add(batches[0][0])
    assert len(seen) > 1
