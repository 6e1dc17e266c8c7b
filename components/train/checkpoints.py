"""Checkpoints by the clock for any Trainer of Transformers, and going on from the last one after a kill."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger("polyphony")
# Where checkpoints are written, beside those that are whole, and where they are removed.
_PARTIAL = "partial"


# What a shell and a container report of a process that SIGTERM ended. Engines retry it: 128 and above is the machine's doing,
# below that (1, the input is at fault) trying again is of no use.
STOPPED = 128 + signal.SIGTERM


def train(trainer: Trainer, minutes: float) -> None:
    """Trains to the end, from the last checkpoint in `trainer.args.output_dir` where there is one.

    The Trainer needs `save_strategy="no"` and no `save_total_limit`: saving and removing checkpoints is done here. The
    training losses that it reports at the end are those since the last start, so they are no metrics. The last step has a
    checkpoint too, so that what follows the training may fail and be done again.

    Args:
        minutes: time between checkpoints, which is the work that a kill costs at most.

    Raises:
        SystemExit: with `STOPPED`, after a checkpoint, if the process got SIGTERM (a preempted pod) before the end.
    """
    callback = Checkpoints(minutes)
    trainer.add_callback(callback)
    folder = Path(str(trainer.args.output_dir))
    checkpoint = last_complete(folder)
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
    # What a kill left; the processes of one training all do this, before any of them has done a step.
    shutil.rmtree(folder / _PARTIAL, ignore_errors=True)
    with _stopping_at_sigterm(callback), _writing_to(folder / _PARTIAL, trainer.args):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < trainer.state.max_steps:
        log.warning(
            "told to stop (SIGTERM): step %d of %d is saved in %s; the same command goes on from there",
            *(trainer.state.global_step, trainer.state.max_steps, folder),
        )
        raise SystemExit(STOPPED)


@contextmanager
def _stopping_at_sigterm(callback: Checkpoints) -> Iterator[None]:
    """SIGTERM has `callback` save and stop at the end of the step under way. Elsewhere it ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may say what signals do.
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: callback.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _writing_to(folder: Path, args: TrainingArguments) -> Iterator[None]:
    """Has Transformers fill the folders of checkpoints in `folder`, which it does in place."""
    before, args.output_dir = args.output_dir, str(folder)
    try:
        yield
    finally:
        args.output_dir = before


def last_complete(folder: Path) -> Path | None:
    """The latest checkpoint in `folder`; each got its name when it was whole, and lost it before anything of it was removed."""
    return max(folder.glob("checkpoint-*"), key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]), default=None)


class Checkpoints(TrainerCallback):
    """Has a checkpoint saved when `minutes` have passed, gives it its name when it is whole, and keeps only the latest."""

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._saved = time.monotonic()
        self._stop = False

    def stop(self) -> None:
        """Has the training saved and ended after the step under way."""
        self._stop = True

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, state, control
        self._saved = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = time.monotonic() - self._saved >= self._seconds or state.global_step >= state.max_steps
        due, stop = _any(args, due or self._stop, self._stop)
        control.should_save |= due
        control.should_training_stop |= stop

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del control
        self._saved = time.monotonic()
        # Until here, other processes may not have written their part.
        _any(args)
        if not state.is_world_process_zero:
            return
        partial = Path(str(args.output_dir))
        folder, name = partial.parent, f"checkpoint-{state.global_step}"
        (partial / name).rename(folder / name)
        for older in folder.glob("checkpoint-*"):
            if older.name != name:
                older.rename(partial / older.name)
        shutil.rmtree(partial)


def _any(args: TrainingArguments, *flags: bool) -> list[bool]:
    """Each flag, set if it is set in any process of the training: they must save and stop together."""
    if args.world_size == 1:
        return list(flags)
    shared = torch.tensor([*flags, False], dtype=torch.int32, device=args.device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in shared[:-1].tolist()]
