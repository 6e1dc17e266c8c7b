"""What is seen of a training under way: a bar with the time left, a line every so often, every entry of its log in MLflow."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from components import lineage

log = logging.getLogger("polyphony")
# Seconds between two lines.
_LINE = 30.0
# Entries of the log that a line shows, with names for people.
_SHOWN = {
    "loss": "loss {:.4f}",
    "nll_per_token": "nll {:.3f}",
    "rewards/margins": "margin {:.3f}",
    "rewards/accuracies": "accuracy {:.2f}",
    "grad_norm": "gradient {:.2g}",
    "tokens_per_second": "{:,.0f} tokens/s",
}
# In MLflow beside the metrics of the finished step, which may have the same names.
_PREFIX = "train/"
# Entries that are no measurements of a step.
_ASIDE = {"step", "time"}


class Progress(TrainerCallback):
    """Takes the place of Transformers' own progress bar, which prints every entry of the log as it is."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._entries: list[dict[str, float]] = []
        self._last = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, control
        if not state.is_world_process_zero:
            return
        # What was logged before a kill stands in the checkpoint; this run of MLflow may be another.
        for entry in state.log_history:
            _send(entry)
        # Into a file, rarely: there every update is a line.
        interval = 0.1 if sys.stderr.isatty() else _LINE
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step", mininterval=interval)
        self._last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, control
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, control
        # Trainer's last entry is of the time since the last start, and no loss.
        if self._bar is None or "loss" not in state.log_history[-1]:
            return
        entry = state.log_history[-1]
        entry["time"] = time.time()
        _send(entry)
        self._entries.append(entry)
        if time.monotonic() - self._last >= _LINE or state.global_step >= state.max_steps:
            with self._bar.external_write_mode():
                log.info("step %d/%d  %s", state.global_step, state.max_steps, line(self._entries))
            self._entries.clear()
            self._last = time.monotonic()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, state, control
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _send(entry: dict[str, float]) -> None:
    if "time" in entry:
        values = {f"{_PREFIX}{name}": value for name, value in entry.items() if name not in _ASIDE}
        lineage.live(values, int(entry["step"]), entry["time"])


def line(entries: Iterable[dict[str, float]]) -> str:
    """The means over entries of the log, as a person reads them."""
    shown = []
    for name, text in _SHOWN.items():
        if values := [entry[name] for entry in entries if name in entry]:
            shown.append(text.format(sum(values) / len(values)))
    return "  ".join(shown)
