"""Runs a training to its end, and where that cannot be reached says why and what to do."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import ProgressCallback

from components.contracts import InputError, atomic
from components.train import checkpoints
from components.train.params import Optimisation, Params
from components.train.progress import Progress

if TYPE_CHECKING:
    from transformers import Trainer

log = logging.getLogger("polyphony")
# Examples named in the message; the file has all.
_NAMED = 8


class NotFiniteError(Exception):
    """The loss or the gradient of a step is NaN or infinite.

    Attributes:
        found: what is not finite, and its value.
        step: the step under way, from 1.
        ids: ids of the examples whose loss is not finite, or of all the step's where only the gradient is not.
    """

    def __init__(self, found: dict[str, float], step: int, ids: list[str]) -> None:
        super().__init__(f"step {step}: {found}")
        self.found, self.step, self.ids = found, step, ids


class Watched:
    """For a Trainer to inherit first: stops before a step that would spoil the weights, and knows whose step it was.

    What goes through the model may carry `ids`, one text per example; they are taken out here.
    """

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self._ids: list[list[str]] = []
        self._losses: list[torch.Tensor] = []
        return super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.watched(super().training_step, model, inputs, *args, **kwargs)  # type: ignore[misc]

    def watched(self, step: Callable[..., torch.Tensor], model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of what `step` puts through the model."""
        self._ids.append(inputs.pop("ids", []))
        loss = step(model, inputs, *args, **kwargs)
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        # One wait for the device a step, not one a pass.
        *losses, gradient = torch.stack([*self._losses, torch.as_tensor(norm, device=self._losses[0].device)]).tolist()
        finite = [abs(loss) < float("inf") for loss in losses]
        if all(finite) and abs(gradient) < float("inf"):
            return norm
        found = {"loss": next((loss for loss, good in zip(losses, finite, strict=True) if not good), sum(losses))}
        at_fault = [ids for ids, good in zip(self._ids, finite, strict=True) if not good or all(finite)]
        step = self.state.global_step + 1  # type: ignore[attr-defined]
        raise NotFiniteError(found | {"grad_norm": gradient}, step, [name for ids in at_fault for name in ids])


def fit(trainer: Trainer, params: Params, section: str, less_memory: str) -> None:
    """Trains to the end, from the last checkpoint in the trainer's folder where there is one; see `checkpoints.train`.

    A bar, lines of the log and MLflow show how it goes.

    Args:
        trainer: one that is `Watched`.
        section: the part of `params` that holds the objective's parameters.
        less_memory: what to do if the memory does not suffice.

    Raises:
        InputError: if the loss or the gradient becomes NaN or infinite, or the memory does not suffice; says what to do.
    """
    settings: Optimisation = getattr(params, section)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress)
    try:
        checkpoints.train(trainer, params.checkpoint_minutes)
    except NotFiniteError as error:
        raise InputError(_not_finite(error, trainer, settings, f"train.{section}")) from error
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise InputError(f"out of memory: {less_memory} ({error})") from error


def _not_finite(error: NotFiniteError, trainer: Trainer, settings: Optimisation, section: str) -> str:
    folder = Path(str(trainer.args.output_dir))
    file = folder / f"not-finite-{trainer.args.process_index}.json"
    with atomic(file) as partial:
        record = {"step": error.step, **{name: str(value) for name, value in error.found.items()}, "ids": error.ids}
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    kept = checkpoints.last_complete(folder)
    named = ", ".join(error.ids[:_NAMED]) + (f" and {len(error.ids) - _NAMED} more" if len(error.ids) > _NAMED else "")
    what = ", ".join(f"{name} {value:g}" for name, value in error.found.items())
    return (
        f"step {error.step} is not finite ({what}); no weight was changed by it. "
        f"{f'The last good checkpoint is kept: {kept}.' if kept else 'There was no checkpoint yet.'} "
        f"Examples: {named} (all in {file}). Lower {section}.learning_rate, {settings.learning_rate:g} now, to "
        f"{settings.learning_rate / 3:.1g}, or raise {section}.warmup_steps, {settings.warmup_steps} now; if it stays, look at "
        "these examples."
    )


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, as CUDA, the CPU's allocator and Python say it."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in words)
