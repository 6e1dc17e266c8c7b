"""The order in which examples are trained on, and which of them go through the model together."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

# Batches that are filled from one pool: more would waste less padding, fewer leave more to chance.
_POOL = 16


class LikeLength(Sampler[int]):
    """Shuffles the examples such that those of a batch are of like length.

    The order depends on the seed and the epoch alone, so that a training that goes on in the middle of an epoch finds the
    rest of it. (The sampler of Transformers draws its order from the global generator, which is not to be had any more then.)
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = np.asarray(lengths), batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self._seed, self._epoch))
        order = rng.permutation(len(self))
        size = self._batch_size * _POOL
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        order = np.concatenate([pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools])
        whole = len(order) - len(order) % self._batch_size
        batches = rng.permutation(order[:whole].reshape(-1, self._batch_size))
        # What does not fill a batch comes last, or it would shift all that follow.
        yield from [*batches.ravel().tolist(), *order[whole:].tolist()]


class Steps(Sampler[list[list[int]]]):
    """What one of several processes does in each step: passes, each a list of examples that go through the model together.

    A step takes `batch_size * processes` examples, one at random from each of as many groups of like length, so that steps
    cost alike and each example is in each step with the same probability. Which these are depends on nothing but their
    lengths, the seed and the epoch. `divide` spreads them over processes and passes. What does not divide, drawn from all, is
    the last step: nothing is repeated to fill it.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        budget: int,
        seed: int,
        processes: int = 1,
        process: int = 0,
        apart: Sequence[bool] | None = None,
    ) -> None:
        """
        Args:
            lengths: tokens of each example.
            budget: tokens of a pass.
            apart: whether an example goes through the model with its like alone, before the others of its step.
        """
        self._lengths, self._budget, self._seed = np.asarray(lengths), budget, seed
        self._together = batch_size * processes
        self._processes, self._process = processes, process
        self._apart = np.zeros(len(lengths), bool) if apart is None else np.asarray(apart)
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._together)

    def __iter__(self) -> Iterator[list[list[int]]]:
        rng = np.random.default_rng((self._seed, self._epoch))
        # Examples of the same length are in random order, too.
        order = rng.permutation(len(self._lengths))
        rest, last = np.split(order, [len(order) - len(order) % self._together])
        groups = rest[np.argsort(self._lengths[rest], kind="stable")].reshape(self._together, -1)
        for step in [*rng.permuted(groups, axis=1).T, *([last] if len(last) else [])]:
            apart = self._apart[step]
            parts = [part for part in (step[apart], step[~apart]) if len(part)]
            passes = [divide(self._lengths[part].tolist(), self._budget, self._processes)[self._process] for part in parts]
            yield [part[one].tolist() for part, own in zip(parts, passes, strict=True) for one in own]


def divide(lengths: Sequence[int], budget: int, processes: int) -> list[list[list[int]]]:
    """Spreads the examples of a step evenly, by tokens, over as few passes of each process as the budget allows.

    All processes have the same number of passes, as those that share a model must compute side by side; some may be empty.

    Args:
        lengths: tokens of each example.
        budget: tokens of a pass at most; an example that is longer has a pass to itself.

    Returns:
        for each process its passes, the largest first, each a list of places in `lengths`.
    """
    passes = max(1, -(-sum(lengths) // (budget * processes)))
    while True:
        shares = _shares(lengths, passes * processes)
        loads = [sum(lengths[place] for place in share) for share in shares]
        if passes * processes >= len(lengths) or max(loads) <= max(budget, *lengths):
            break
        passes += 1
    order = sorted(range(len(shares)), key=lambda share: -loads[share])
    rows = [order[start : start + processes] for start in range(0, len(order), processes)]
    # There and back, or one process would have the larger share of every row.
    rows = [row[::-1] if number % 2 else row for number, row in enumerate(rows)]
    return [[shares[row[process]] for row in rows] for process in range(processes)]


def _shares(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Places in `lengths`, in `count` groups of like sums: the longest first, each to the group that has least."""
    shares: list[list[int]] = [[] for _ in range(count)]
    least = [(0, number) for number in range(count)]
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        load, number = heapq.heappop(least)
        shares[number].append(place)
        heapq.heappush(least, (load + lengths[place], number))
    return shares


class Batches(DataLoader[Any]):
    """A loader of the passes of each step, that tells its sampler the epoch."""

    def __init__(self, dataset: Any, steps: Sampler[Any], collate: Callable[[list[Any]], Any], **options: Any) -> None:
        super().__init__(_Groups(dataset), batch_sampler=steps, collate_fn=partial(_each, collate), **options)

    def set_epoch(self, epoch: int) -> None:
        cast(Any, self.batch_sampler).set_epoch(epoch)


class _Groups(Dataset[list[Any]]):
    """A dataset whose items are lists of another's."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, numbers: list[int]) -> list[Any]:
        return [self._dataset[number] for number in numbers]


def _each(collate: Callable[[list[Any]], Any], groups: list[list[Any]]) -> list[Any]:
    return [collate(group) for group in groups]
