"""Before a training starts: what it will need on this machine, and whether it can fit at all."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import torch
from peft import LoraConfig, get_peft_model

from components.contracts import InputError
from components.models.language import four_bits, skeleton
from components.models.params import Params as Models
from components.train.estimate import Data, Hardware, Lengths, Model, duration, measure_model, memory, seconds
from components.train.params import Optimisation, Params
from components.train.throughput import peak

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("polyphony")
_GB = 1e9


def announce(model: Model, data: Data, settings: Optimisation, train: Params) -> None:
    """Says what the training will need."""
    machine = hardware(model)
    log.info("%s", describe(model, data, settings, train, machine))
    if sum(needed(model, data.largest, train).values()) > _room(train, machine):
        log.warning("it may run out of memory. If it does: %s", less_memory(train, data))


def less_memory(train: Params, data: Data) -> str:
    """Which parameter to change so that a step needs less memory, and to what."""
    if data.largest > data.longest:
        part = max(data.longest, data.largest // 2)
        return f"lower train.tokens_per_pass from {train.tokens_per_pass} to {part}; the result stays the same."
    if not train.gradient_checkpointing:
        return "set train.gradient_checkpointing to true; the result stays the same, the time is about a third longer."
    return (
        f"the longest example alone, {data.longest} tokens, is too much. Lower models.max_tokens (longer stories are then "
        "rejected) or train.lora.r, or use a smaller model or a larger machine."
    )


def needed(model: Model, largest: int, train: Params) -> dict[str, float]:
    """Bytes that each process needs at most, by what needs them; `largest` is the largest pass, in tokens."""
    share = 1 / train.processes if train.sharding == "fsdp2" else 1.0
    return memory(model, largest, share_of_weights=share, checkpointing=train.gradient_checkpointing)


def describe(model: Model, data: Data, settings: Optimisation, train: Params, machine: Hardware) -> str:
    """The estimate as one line for people."""
    most = needed(model, data.largest, train)
    parts = ", ".join(f"{name} {value / _GB:.1f}" for name, value in most.items() if value >= 0.05 * _GB)
    processes = train.processes if torch.cuda.is_available() else 1
    lasts = seconds(model, data, settings.epochs, machine, processes, checkpointing=train.gradient_checkpointing)
    steps = -(-data.examples // (settings.batch_size * train.processes)) * settings.epochs
    return (
        f"{data.examples:,} examples, {data.tokens:,} tokens, {settings.epochs} times, in {steps:,} steps: about "
        f"{duration(lasts)}; at most about {sum(most.values()) / _GB:.1f} GB a process ({parts}); {train.processes} "
        f"process(es), {machine.name}, {machine.memory / _GB:.0f} GB"
    )


def plan_model(train: Params, models: Models) -> Model:
    """The costs of the language model with the adapter that `train` gives it."""
    targets = train.lora.target_modules
    try:
        bare = skeleton(models)
        with torch.device("meta"):
            adapted = get_peft_model(bare, lora(train))
    except ValueError as error:
        raise InputError(f"train.lora.target_modules: {', '.join(targets)} do not fit {models.language!r}: {error}") from error
    return measure_model(adapted, four_bits=models.precision == "nf4")


def lora(train: Params) -> LoraConfig:
    """The adapter that SFT and the ORPO family begin."""
    targets = train.lora.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=train.lora.r,
        lora_alpha=train.lora.alpha,
        lora_dropout=train.lora.dropout,
        target_modules=targets[0] if targets == ("all-linear",) else list(targets),
    )


def count_tokens(dataset: Dataset) -> Lengths:
    """The lengths of training examples, as `stories` or `weighted_pairs` make them."""
    sides = [name for name in ("completion_ids", "chosen_ids", "rejected_ids") if name in dataset.column_names]
    prompts, *completions = (
        pc.list_value_length(dataset.data.column(name)).to_numpy().astype(np.int64) for name in ("prompt_ids", *sides)
    )
    return Lengths(prompts, np.stack(completions, 1))


def check_room(model: Model, train: Params, models: Models) -> None:
    """Refuses, before anything is loaded, what cannot fit.

    Raises:
        InputError: if the weights alone need more memory than there is, or cannot be kept in 4 bits.
    """
    if models.precision == "nf4":
        four_bits()
        if train.sharding == "fsdp2":
            raise InputError("models.dtype: nf4 cannot be sharded. Use train.sharding: ddp, or models.dtype: bfloat16.")
    name, total = _memory()
    room = _room(train, Hardware(name, total, 0.0))
    least = sum(needed(model, 0, train)[part] for part in ("weights", "adapter"))
    if least > room:
        raise InputError(
            f"models.language {models.language!r} needs {least / _GB:.1f} GB a process for its weights alone, and {name} has "
            f"{room / _GB:.1f}. Use a smaller model or a larger machine, or share the weights among more GPUs "
            "(train.processes, train.sharding: fsdp2)."
        )


def _room(train: Params, machine: Hardware) -> float:
    """Bytes for one process: a GPU is its own, the memory of the machine is shared."""
    return machine.memory if torch.cuda.is_available() else machine.memory / train.processes


def hardware(model: Model) -> Hardware:
    """This machine, in the precision of the model: a GPU by its data sheet, or by a product of matrices where that does not
    say, as of CPUs."""
    name, total = _memory()
    dtype = torch.float32 if model.dtype == torch.float32.itemsize else torch.bfloat16
    if torch.cuda.is_available():
        known = peak(torch.cuda.get_device_name()) if dtype == torch.bfloat16 else None
        return Hardware(name, total, known or _measured_speed("cuda", dtype))
    return Hardware(name, total, _measured_speed("cpu", dtype))


def _memory() -> tuple[str, int]:
    """The name and the bytes of memory of the GPU, or of this machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    return f"{torch.get_num_threads()} CPU thread(s)", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _measured_speed(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a product of matrices as a model has them; takes a fraction of a second."""
    size = 1024 if device == "cpu" else 8192
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        product = a @ a
        # Waits for the device.
        product[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
