"""Trains one model: the reward model, the SFT model, or a preference model that starts from the SFT model."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts import InputError, atomic, require_passed
from components.lineage import when_recorded
from components.models.params import Params as Models
from components.train.manifest import claim, manifest
from components.train.params import Optimisation, Params

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from components.train.trainer import PackedTrainer

log = logging.getLogger("polyphony")


def run(
    *,
    train: Params,
    models: Models,
    objective: str,
    responses: Path | None,
    pairs: Path | None,
    deviations: Path | None,
    validation: Path | None,
    reference: Path | None,
    sft: Path | None,
    model: Path,
) -> dict[str, Any]:
    """Trains by `objective` and writes the adapter to `model`: safetensors, tokenizer and `training.json`.

    Checkpoints lie in the work folder, under a name made of all that the result depends on; a killed run goes on from the
    last one and ends with the same bytes. They are kept until the lineage is recorded too.

    Args:
        responses: for `reward` and `sft`.
        pairs, reference, sft: for `dpo` and `ddpo`.
        deviations: for `ddpo`; `dpo` weighs every pair 1.

    Raises:
        InputError: if an input that the objective needs is missing, or the data failed validation.
    """
    needed = (
        {"responses": responses} if objective in ("reward", "sft") else {"pairs": pairs, "reference": reference, "sft": sft}
    )
    if objective == "ddpo":
        needed["deviations"] = deviations
    if missing := [f"--{name}" for name, path in needed.items() if path is None]:
        raise InputError(f"--objective {objective} needs {', '.join(missing)}.")
    require_passed(validation)
    inputs = {name: path for name, path in needed.items() if path is not None}
    section = objective if objective in ("reward", "sft") else "preference"
    with claim(manifest(objective, section, train, models, inputs)) as work, atomic(model) as folder:
        if objective == "reward":
            from components.train.reward import train_reward

            metrics = train_reward(models, train, inputs["responses"], folder, work)
        else:
            metrics = _train_language(objective, train, models, inputs, folder, work)
    when_recorded(lambda: shutil.rmtree(work, ignore_errors=True))
    return metrics


def _train_language(
    objective: str, train: Params, models: Models, inputs: Mapping[str, Path], folder: Path, work: Path
) -> dict[str, Any]:
    from components.models.language import load_tokenizer
    from components.train.examples import stories, weighted_pairs
    from components.train.fit import fit
    from components.train.trainer import DiversifiedDPOTrainer, SFTPackedTrainer

    tokenizer = load_tokenizer(models)
    if objective == "sft":
        settings: Optimisation = train.sft
        examples = stories(inputs["responses"], tokenizer)
        kind: type[PackedTrainer] = SFTPackedTrainer
    else:
        settings = train.preference
        examples = weighted_pairs(inputs["pairs"], inputs["reference"], inputs.get("deviations"), tokenizer)
        kind = DiversifiedDPOTrainer
    adapter = _adapter(train, models, inputs.get("sft"))
    trainer = kind(
        adapter, args=_arguments(objective, train, settings, work), train_dataset=examples, processing_class=tokenizer
    )
    fit(trainer, train, "sft" if objective == "sft" else "preference")
    adapter.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(folder)
    metrics = _metrics(trainer, len(examples))
    record = {"objective": objective, "metrics": metrics, "parameters": settings.model_dump()}
    (folder / "training.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return metrics


def _adapter(train: Params, models: Models, sft: Path | None) -> PeftModel:
    """A new adapter on the base model, or the SFT model's to go on with."""
    from transformers import set_seed

    from components.models.language import load_model

    if sft is not None:
        return load_model(models, sft, trainable=True)  # type: ignore[return-value]
    from peft import LoraConfig, get_peft_model

    set_seed(train.seed)
    targets = train.lora.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=train.lora.r,
        lora_alpha=train.lora.alpha,
        lora_dropout=train.lora.dropout,
        target_modules=targets[0] if targets == ("all-linear",) else list(targets),
    )
    try:
        return get_peft_model(load_model(models), config)  # type: ignore[return-value]
    except ValueError as error:
        raise InputError(f"train.lora.target_modules: {', '.join(targets)} do not fit {models.language!r}: {error}") from error


def _arguments(objective: str, train: Params, settings: Optimisation, work: Path) -> Any:
    import torch
    from trl import DPOConfig

    extra: dict[str, Any] = {"beta": train.preference.beta} if objective != "sft" else {}
    return DPOConfig(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=train.seed,
        optim="adamw_torch_fused",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        **extra,
    )


def _metrics(trainer: PackedTrainer, examples: int) -> dict[str, Any]:
    """The means over the last epoch of what was logged at each step, and the size of the training."""
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    last = steps[-max(1, round(len(steps) / trainer.state.num_train_epochs)) :]
    names = [name for name in last[-1] if name not in ("epoch", "learning_rate", "step", "time", "num_tokens")]
    return {
        "examples": examples,
        "steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
        **{name: sum(entry[name] for entry in last) / len(last) for name in names},
    }
