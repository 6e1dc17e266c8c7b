"""The order of examples, and how those of a step are spread over processes and passes."""

from __future__ import annotations

import numpy as np
from accelerate import skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st

from components.train.batches import Batches, LikeLength, Steps, divide


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
@settings(deadline=None)
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


LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 5), st.integers(1, 1500), st.integers(1, 4), st.integers(0, 2))
@settings(deadline=None)
def test_processes_share_what_one_would_do(lengths: list[int], size: int, budget: int, processes: int, epoch: int) -> None:
    """Nothing is lost or repeated, and each step's examples are those of one process with the whole batch, in one pass."""

    def steps(size: int, budget: int, processes: int, process: int) -> list[list[list[int]]]:
        found = Steps(lengths, size, budget, 0, processes, process)
        found.set_epoch(epoch)
        assert len(found) == len(list(found))
        return list(found)

    shares = [steps(size, budget, processes, process) for process in range(processes)]
    together = [sorted(number for share in step for one in share for number in one) for step in zip(*shares, strict=True)]
    (whole,) = zip(*steps(size * processes, 10**6, 1, 0), strict=True)
    assert together == [sorted(one) for one in whole]
    assert sorted(number for step in together for number in step) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=9), st.integers(1, 4))
@settings(max_examples=5, deadline=None)
def test_every_example_is_as_likely_in_every_step(lengths: list[int], size: int) -> None:
    """Whatever the lengths, and also in the last step, which may be smaller."""
    epochs = 800
    steps = Steps(lengths, size, 10**6, 0)
    counts = np.zeros((len(steps), len(lengths)))
    for epoch in range(epochs):
        steps.set_epoch(epoch)
        for number, (step,) in enumerate(steps):
            counts[number, step] += 1
    expected = np.full(len(steps), size / len(lengths))
    expected[-1] = 1 - expected[:-1].sum()
    # Five standard deviations.
    np.testing.assert_allclose(counts / epochs, np.tile(expected[:, None], len(lengths)), rtol=0, atol=2.5 / epochs**0.5)


def test_steps_cost_alike() -> None:
    """The tokens of steps spread less than half as much as those of random draws, for stories as they are, and with more
    examples a step less still."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(6.6, 0.4, 1000), 300, 2000).astype(int)
    spreads = {}
    for size in (4, 16):
        steps = [
            sum(lengths[one].sum() for one in step) for step in list(Steps(lengths.tolist(), size, 4096, 0))[: 1000 // size]
        ]
        random = [lengths[rng.choice(1000, size, replace=False)].sum() for _ in range(1000)]
        spreads[size] = np.std(steps) / np.mean(steps)
        assert spreads[size] < 0.5 * np.std(random) / np.mean(random)
    assert spreads[16] < 0.5 * spreads[4]


def test_the_rest_of_an_epoch_is_found_again() -> None:
    """What goes on in the middle of an epoch gets the steps that are left, as Transformers skips those done."""
    lengths = np.random.default_rng(0).integers(1, 500, 50).tolist()

    def loader() -> Batches:
        made = Batches(list(range(50)), Steps(lengths, 4, 600, 0), tuple)
        made.set_epoch(2)
        return made

    assert list(skip_first_batches(loader(), 5)) == list(loader())[5:]


@given(LENGTHS, st.integers(1, 1500), st.integers(1, 5))
@settings(deadline=None)
def test_passes_keep_to_the_budget(lengths: list[int], budget: int, processes: int) -> None:
    """But for examples that are longer by themselves; all processes have as many passes, and no more than are needed."""
    shares = divide(lengths, budget, processes)
    loads = [[sum(lengths[place] for place in one) for one in share] for share in shares]
    assert len({len(share) for share in shares}) == 1
    assert max(map(max, loads)) <= max(budget, *lengths)
    assert all(load == sorted(load, reverse=True) for load in loads)
    # Longest first, each to the least: no worse than 4/3 of the best, so a third more of passes at most.
    least = -(-sum(lengths) // (budget * processes))
    assert len(shares[0]) <= max(least, -(-len(lengths) // processes))
    # The last example of the fullest process would make no other fuller than that.
    totals = [sum(load) for load in loads]
    assert max(totals) - min(totals) <= max(budget, *lengths)


def test_steps_of_many_processes_cost_alike() -> None:
    """Within a few percent, for stories as they are."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = rng.integers(200, 2000, 48).tolist()
        loads = [sum(lengths[place] for one in share for place in one) for share in divide(lengths, 4096, 4)]
        assert max(loads) < 1.03 * min(loads)


def test_the_loader_tells_the_epoch_and_gives_empty_passes() -> None:
    loader = Batches([10, 11, 12], Steps([1, 1, 1], 1, 9, 0, 2, 1), tuple)
    assert len(loader.dataset) == 3  # type: ignore[arg-type]
    seen = set()
    for epoch in range(8):
        loader.set_epoch(epoch)
        steps = list(loader)
        assert len(steps) == 2 and steps[1] == [()]
        seen.add(steps[0][0])
    assert len(seen) > 1
