"""Trains the language model: what each process of a training does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model
from transformers import set_seed
from trl import DPOConfig

from components.lineage import digest
from components.models.language import context_length, identity, load_model, load_tokenizer
from components.models.params import Params as Models
from components.train import trainer as trainers
from components.train.artifact import save_adapter, save_tokenizer
from components.train.estimate import measure_data
from components.train.examples import Examples, read_once, require_made_by, stories, weighted_pairs
from components.train.fit import fit
from components.train.objectives import OBJECTIVES
from components.train.outlook import announce, check_room, count_tokens, less_memory, lora, plan_model
from components.train.params import Optimisation, Orpo, Params, Preference
from components.train.throughput import MEASURED
from components.train.worker import EXAMPLES

if TYPE_CHECKING:
    from peft import PeftModel

_TRAINERS: dict[str, type[trainers.PackedTrainer]] = {
    "sft": trainers.SFTPackedTrainer,
    "dpo": trainers.DiversifiedDPOTrainer,
    "ddpo": trainers.DiversifiedDPOTrainer,
    "orpo": trainers.DiversifiedORPOTrainer,
    "dorpo": trainers.DiversifiedORPOTrainer,
    "dorpo_released": trainers.ReleasedDORPOTrainer,
}


def train_language(
    objective: str, train: Params, models: Models, inputs: Mapping[str, Path], folder: Path, work: Path
) -> dict[str, Any]:
    """Trains an adapter by `objective`; the first of the processes writes it.

    Args:
        inputs: what the objective needs, by name.
        folder: gets the adapter (safetensors), the tokenizer and `training.json`.
        work: keeps checkpoints.

    Returns:
        Means over the last epoch of what was logged; counts of examples, of what was left out, of steps and tokens.
    """
    section = OBJECTIVES[objective].section
    settings: Optimisation = getattr(train, section)
    planned = plan_model(train, models)
    check_room(planned, train, models)
    arguments = _arguments(train, models, settings, work)
    tokenizer = load_tokenizer(models)
    limit = context_length(models)
    if "reference" in inputs:
        require_made_by(inputs["reference"], {"sft": digest(inputs["sft"]), **identity(models, tokenizer)})

    def read() -> Examples:
        if objective == "sft":
            return stories(inputs["responses"], tokenizer, limit)
        return weighted_pairs(inputs["pairs"], inputs.get("reference"), inputs.get("deviations"), tokenizer, limit)

    examples = read_once(read, work / EXAMPLES) if train.processes > 1 else read()
    lengths = count_tokens(examples.dataset)
    data = measure_data(lengths, settings.batch_size, train.tokens_per_pass)
    announce(planned, data, settings, train)
    adapter = _adapter(train, models, inputs.get("sft"))
    trainer = _TRAINERS[objective](
        adapter,
        args=arguments,
        train_dataset=examples.dataset,
        processing_class=tokenizer,
        lengths=lengths.examples.tolist(),
        tokens_per_pass=train.tokens_per_pass,
        sharded=train.sharding == "fsdp2",
    )
    fit(trainer, train, section, less_memory(train, data))
    metrics = _metrics(trainer, examples)
    save_adapter(adapter, folder, models.language, writes=trainer.is_world_process_zero())
    if trainer.is_world_process_zero():
        save_tokenizer(tokenizer, folder)
        record = {"objective": objective, "metrics": metrics, "parameters": settings.model_dump()}
        (folder / "training.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return metrics


def _adapter(train: Params, models: Models, sft: Path | None) -> PeftModel:
    """A new adapter on the base model, or the SFT model's to go on with."""
    base_on = "cpu" if train.sharding == "fsdp2" else None
    if sft is not None:
        return load_model(models, sft, trainable=True, device=base_on)  # type: ignore[return-value]
    set_seed(train.seed)
    return get_peft_model(load_model(models, device=base_on), lora(train))


def _arguments(train: Params, models: Models, settings: Optimisation, work: Path) -> DPOConfig:
    """All objectives go through TRL's DPO configuration; what it calls beta is lambda to ORPO, as in TRL's own."""
    strength: dict[str, Any] = {}
    if isinstance(settings, Preference):
        strength["beta"] = settings.beta
    elif isinstance(settings, Orpo):
        strength["beta"] = settings.odds_weight
    return DPOConfig(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        **settings.scheduler(),
        warmup_steps=settings.warmup_steps,
        per_device_train_batch_size=settings.batch_size,
        activation_checkpointing=train.gradient_checkpointing,
        bf16=models.precision != "float32",
        use_cpu=not torch.cuda.is_available(),
        seed=train.seed,
        optim="adamw_torch_fused",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        **strength,
    )


def _metrics(trainer: trainers.PackedTrainer, examples: Examples) -> dict[str, Any]:
    """The means over the last epoch of what was logged at each step, and the size of the training."""
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    last = steps[-max(1, round(len(steps) / trainer.state.num_train_epochs)) :]
    # The artifact is the same on every run, so what depends on the clock and the machine stays out.
    aside = {"epoch", "learning_rate", "step", "time", "num_tokens", *MEASURED}
    names = [name for name in last[-1] if name not in aside]
    return {
        "examples": len(examples.dataset),
        "rejected": examples.rejected,
        "rejected_tokens": examples.rejected_tokens,
        "steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
        **{name: sum(entry[name] for entry in last) / len(last) for name in names},
    }
