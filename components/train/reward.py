"""The reward model: trained to tell the votes of a response from its text, and measured on prompts kept back."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from tqdm import tqdm
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from components.contracts import RESPONSES, InputError, content_id
from components.models.params import Params as Models
from components.models.reward import RewardModel, load_base
from components.train.agreement import agreement
from components.train.artifact import save_adapter, save_tokenizer
from components.train.batches import LikeLength
from components.train.fit import Watched, fit
from components.train.params import Params, Reward
from components.train.votes import TOLERANCE, Floats, VoteScale, places

log = logging.getLogger("polyphony")
# Steps between two entries of the training loss in MLflow.
_LOGGING_STEPS = 10


@dataclass(frozen=True)
class Plan:
    """What the rows of the responses table are for.

    Attributes:
        targets: (rows,) in [-1, 1].
        train, heldout: (rows,) whether the model is trained, or measured, on the row.
        scale: of the votes trained on.
    """

    targets: Floats
    train: NDArray[np.bool_]
    heldout: NDArray[np.bool_]
    scale: VoteScale


def train_reward(models: Models, params: Params, responses: Path, folder: Path, work: Path) -> dict[str, Any]:
    """Trains a LoRA adapter and a head of `models.reward` on the votes of the training prompts (METHOD: reward model).

    A share of the training prompts is kept back, and the model is measured on it; the test prompts are never looked at.

    Args:
        folder: gets the adapter (safetensors), the tokenizer and `training.json`.
        work: keeps checkpoints; the same call with the same folder goes on after a kill, to the same weights.

    Returns:
        Counts of prompts, responses and cut texts on either side, and the measures of `agreement` on the prompts kept back.

    Raises:
        InputError: if there is nothing to learn: no training prompt, or no difference between votes.
    """
    plan = make_plan(responses, params.reward)
    set_seed(params.seed)
    base = load_base(models)
    examples, truncated = _encode(responses, plan, base)
    _without_dropout(base.model)
    model = get_peft_model(
        base.model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=params.reward.lora_r,
            lora_alpha=params.reward.lora_alpha,
            target_modules="all-linear",
            modules_to_save=list(base.heads),
        ),
    )
    trainer = _Trainer(
        model=model,
        args=_arguments(params, work),
        train_dataset=examples,
        data_collator=partial(_collate, DataCollatorWithPadding(base.tokenizer)),
        compute_loss_func=_l1,
    )
    fit(trainer, params, "reward", less_memory(params.reward))

    measured = measure(replace(base, model=model), responses, plan)
    ids = RESPONSES.read(responses, ["prompt_id"]).column("prompt_id").to_numpy()
    sides = {"train": plan.train, "heldout": plan.heldout}
    metrics: dict[str, Any] = {
        "prompts": {side: len(set(ids[rows])) for side, rows in sides.items()},
        "responses": {side: int(rows.sum()) for side, rows in sides.items()},
        "truncated": {"train": truncated, "heldout": measured.pop("truncated")},
        **measured,
    }
    _save(model, base, folder, models)
    used = {"seed": params.seed, "model": models.reward, "votes": asdict(plan.scale), **params.reward.model_dump()}
    training = {"objective": "reward", "metrics": metrics, "parameters": used}
    (folder / "training.json").write_text(json.dumps(training, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return metrics


def make_plan(responses: Path, reward: Reward) -> Plan:
    """Which rows are used, for what, and their targets.

    With `places`, prompts whose votes are all equal say nothing and are not used. The scale of the votes is taken from the
    rows trained on; the votes of the others are cut to it.

    Raises:
        InputError: if there is nothing to learn.
    """
    frame = RESPONSES.read(responses, ["prompt_id", "score", "split"]).to_pandas()
    usable = frame["split"] == "train"
    if not usable.any():
        raise InputError(f"{responses}: no training prompt, so there is nothing to train a reward model on.")
    if reward.targets == "places":
        votes = frame.groupby("prompt_id")["score"]
        usable &= votes.transform("max") - votes.transform("min") > TOLERANCE
    heldout = usable & frame["prompt_id"].isin(heldout_prompts(set(frame["prompt_id"][usable]), reward.heldout_share))
    train = usable & ~heldout
    trained = frame["score"][train]
    if not train.any() or trained.max() - trained.min() <= TOLERANCE:
        where = "of every training prompt" if reward.targets == "places" else "that the reward model could be trained on"
        raise InputError(f"{responses}: the votes {where} are all equal, so there is nothing to learn. Check the scores.")
    scale = VoteScale(float(trained.min()), float(trained.max()))
    targets = places(frame["prompt_id"], frame["score"]) if reward.targets == "places" else scale(frame["score"])
    return Plan(targets, train.to_numpy(), heldout.to_numpy(), scale)


def heldout_prompts(prompt_ids: Iterable[str], share: float) -> set[str]:
    """The prompts to measure on: about `share` of them, by hash, so that it is the same ones whatever other prompts there are.

    At least one prompt is left on either side; a single prompt is trained on.
    """
    draws = sorted((int(content_id("reward heldout", prompt_id), 16) / 16**16, prompt_id) for prompt_id in prompt_ids)
    count = sum(draw < share for draw, _ in draws)
    count = max(min(max(count, 1), len(draws) - 1), 0)
    return {prompt_id for _, prompt_id in draws[:count]}


def _rows(responses: Path, wanted: NDArray[np.bool_], desc: str) -> Iterator[tuple[list[dict[str, Any]], NDArray[np.intp]]]:
    """The wanted rows of the responses and their numbers, batch by batch."""
    start = 0
    with tqdm(total=len(wanted), desc=desc, unit="response", mininterval=1) as bar:
        for batch in RESPONSES.batches(responses, ["prompt_id", "prompt", "response_id", "response", "score"], rows=512):
            chosen = np.flatnonzero(wanted[start : start + batch.num_rows])
            if len(chosen):
                yield batch.take(pa.array(chosen)).to_pylist(), start + chosen
            start += batch.num_rows
            bar.update(batch.num_rows)


def _encode(responses: Path, plan: Plan, base: RewardModel) -> tuple[Dataset, int]:
    """What the Trainer trains on, and the number of texts cut. Texts themselves are not kept: there may be many."""
    parts, truncated = [], 0
    for rows, numbers in _rows(responses, plan.train, "tokenise"):
        features, cut = base.encode([row["prompt"] for row in rows], [row["response"] for row in rows])
        truncated += cut
        columns = {name: pa.array([f[name] for f in features], pa.list_(pa.int32())) for name in features[0]}
        # The collator makes the mask anew, for the padding.
        columns.pop("attention_mask", None)
        columns["id"] = pa.array([row["response_id"] for row in rows])
        parts.append(pa.table({**columns, "labels": pa.array(plan.targets[numbers], pa.float32())}))
    return Dataset(pa.concat_tables(parts)), truncated


def measure(model: RewardModel, responses: Path, plan: Plan) -> dict[str, Any]:
    """The measures of `agreement` on the prompts kept back, and how many of their texts were cut."""
    rows = [row for batch, _ in _rows(responses, plan.heldout, "read") for row in batch]
    scores = model.score([row["prompt"] for row in rows], [row["response"] for row in rows], "measure")
    votes = np.array([row["score"] for row in rows], float)
    words = np.array([len(row["response"].split()) for row in rows], float)
    found = agreement([row["prompt_id"] for row in rows], votes, plan.targets[plan.heldout], scores.values, words)
    return {**found, "truncated": scores.truncated}


def less_memory(settings: Reward) -> str:
    """Which parameter to lower so that a step needs less memory, and to what."""
    size = settings.batch_size
    if size == 1:
        return (
            "train.reward.batch_size is 1 already. Set train.gradient_checkpointing to true, or use a smaller model or a "
            "larger machine."
        )
    part = next(number for number in range(2, size + 1) if size % number == 0)
    return (
        f"lower train.reward.batch_size from {size} to {size // part} and raise train.reward.accumulation from "
        f"{settings.accumulation} to {settings.accumulation * part}; a step then still learns from as many examples."
    )


def _without_dropout(model: torch.nn.Module) -> None:
    """Switches dropout off: its noise shifts what a regression learns, and on a CPU it takes a third of the time."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _arguments(params: Params, work: Path) -> TrainingArguments:
    reward = params.reward
    return TrainingArguments(
        output_dir=str(work),
        save_strategy="no",
        seed=params.seed,
        num_train_epochs=reward.epochs,
        learning_rate=reward.learning_rate,
        **reward.scheduler(),
        warmup_steps=reward.warmup_steps,
        per_device_train_batch_size=reward.batch_size,
        gradient_accumulation_steps=reward.accumulation,
        activation_checkpointing=params.gradient_checkpointing,
        remove_unused_columns=False,
        logging_steps=_LOGGING_STEPS,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _collate(pad: DataCollatorWithPadding, examples: list[dict[str, Any]]) -> Any:
    ids = [example.pop("id") for example in examples]
    batch: Any = pad(examples)
    batch["ids"] = ids
    return batch


class _Trainer(Watched, Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> LikeLength:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = pc.list_value_length(dataset.data.column("input_ids")).to_numpy()
        return LikeLength(lengths, self.args.per_device_train_batch_size, self.args.seed)


def _l1(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
    """Sum of absolute errors over the examples of a whole step, which may be several batches."""
    return (outputs.logits[:, 0].float() - labels).abs().sum() / num_items_in_batch


def _save(model: PeftModel, base: RewardModel, folder: Path, models: Models) -> None:
    save_adapter(model, folder, models.reward)
    save_tokenizer(base.tokenizer, folder)
