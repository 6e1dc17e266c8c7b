"""Checkpoints by the clock for any Trainer of Transformers, and going on from the last one after a kill."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger("polyphony")
# Transformers fills a checkpoint's folder in place; this file in it says that all is there.
_MARK = "complete"


def train(trainer: Trainer, minutes: float) -> None:
    """Trains to the end, from the last complete checkpoint in `trainer.args.output_dir` where there is one.

    The Trainer needs `save_strategy="no"` and no `save_total_limit`: saving and removing checkpoints is done here. The
    training losses that it reports at the end are those since the last start, so they are no metrics.

    Args:
        minutes: time between checkpoints, which is the work that a kill costs at most.
    """
    trainer.add_callback(Checkpoints(minutes))
    checkpoint = last_complete(Path(str(trainer.args.output_dir)))
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def last_complete(folder: Path) -> Path | None:
    """The latest complete checkpoint in `folder`; those that a kill left half written or half removed are removed."""
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / _MARK).is_file():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]), default=None)


class Checkpoints(TrainerCallback):
    """Has a checkpoint saved when `minutes` have passed, marks it when it is complete, and keeps only the latest."""

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._saved = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, state, control
        self._saved = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, state
        control.should_save |= time.monotonic() - self._saved >= self._seconds

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del control
        latest = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        (latest / _MARK).touch()
        for older in latest.parent.glob("checkpoint-*"):
            if older != latest:
                # First the mark, so that a kill in between leaves nothing that looks complete.
                (older / _MARK).unlink(missing_ok=True)
                shutil.rmtree(older)
        self._saved = time.monotonic()
