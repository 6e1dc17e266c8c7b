"""The order in which examples are trained on: batches of like length, in random order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader, Sampler

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


class Share(Sampler[list[int]]):
    """The batches of one of several processes. Each example is in one batch of one process, whatever their number.

    All processes have the same number of batches. The last ones may be smaller, or empty: nothing is repeated to fill them.
    """

    def __init__(self, order: Sampler[int], batch_size: int, processes: int, process: int) -> None:
        self._order, self._batch_size = order, batch_size
        self._processes, self._process = processes, process

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self._order, LikeLength):
            self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(cast(Sized, self._order)) // (self._batch_size * self._processes))

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._order)
        together = self._batch_size * self._processes
        for start in range(0, len(order), together):
            yield order[start : start + together][self._process :: self._processes]


class Batches(DataLoader[Any]):
    """A loader of the batches of a `Share`, that tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        cast(Share, self.batch_sampler).set_epoch(epoch)
