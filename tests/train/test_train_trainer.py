"""The trainer against TRL's own, in full precision, on the same token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from components.train.examples import collate_pairs
from components.train.trainer import DiversifiedDPOTrainer, SFTPackedTrainer

BETA = 0.3
Gradients = dict[str, torch.Tensor]


def adapter(folder: Path) -> Any:
    """The tiny model in float32 with an adapter that is not zero."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False))


def examples(count: int = 6, weights: list[float] | None = None) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(7)

    def ids(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most, (1,), generator=generator))
        return torch.randint(3, 300, (length,), generator=generator).tolist()

    rows = []
    for number in range(count):
        chosen, rejected = ids(3, 40), ids(3, 40)
        # About what a model that knows nothing gives its 400 tokens, so that no pair is beyond doubt.
        near = (4 * torch.rand(2, generator=generator) - 2).tolist()
        rows.append(
            {
                "prompt_ids": ids(2, 9),
                "chosen_ids": chosen,
                "rejected_ids": rejected,
                "ref_chosen_logps": near[0] - 6 * len(chosen),
                "ref_rejected_logps": near[1] - 6 * len(rejected),
                "weight": weights[number] if weights else 1.0,
                "chosen_id": str(number),
            }
        )
    return rows


def arguments(folder: Path, **options: Any) -> DPOConfig:
    return DPOConfig(
        output_dir=str(folder),
        beta=BETA,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )


def ours(model_folder: Path, folder: Path, rows: list[dict[str, Any]], **options: Any) -> DiversifiedDPOTrainer:
    return DiversifiedDPOTrainer(
        adapter(model_folder),
        args=arguments(folder, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
    )


def gradients(trainer: Any) -> Gradients:
    """What one step's backward passes leave behind, by the plain name of each parameter."""
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None and ".ref." not in name}


def step(trainer: DiversifiedDPOTrainer, rows: list[dict[str, Any]], parts: int = 1) -> tuple[float, Gradients]:
    """Loss and gradients of one optimiser step over the rows, in so many batches."""
    size = -(-len(rows) // parts)
    batches = [collate_pairs(rows[start : start + size]) for start in range(0, len(rows), size)]
    trainer.model.zero_grad()
    taken, _ = trainer.get_batch_samples(iter(batches), parts, torch.device("cpu"))
    total = 0.0
    for batch in taken:
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        total += loss.item()
    return total, gradients(trainer)


def assert_same(first: Gradients, second: Gradients, factor: float = 1.0) -> None:
    assert first.keys() == second.keys() != set()
    for name in first:
        torch.testing.assert_close(first[name], factor * second[name], atol=1e-5, rtol=1e-5)


def test_weights_of_one_are_trls_dpo(tiny_model: Path, tmp_path: Path) -> None:
    rows = examples()
    trl = DPOTrainer(
        adapter(tiny_model),
        args=arguments(tmp_path),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    trl.precompute_ref_logps = True
    loss = trl.compute_loss(trl.model, trl.data_collator([{k: v for k, v in row.items() if k != "weight"} for row in rows]))
    loss.backward()
    our_loss, our_gradients = step(ours(tiny_model, tmp_path, rows), rows)
    assert 0.05 < our_loss == pytest.approx(loss.item(), abs=1e-5)
    assert_same(our_gradients, gradients(trl))


def test_weight_zero_removes_a_pair_and_weights_scale(tiny_model: Path, tmp_path: Path) -> None:
    rows = examples(3, [1.0, 0.0, 2.5])
    trainer = ours(tiny_model, tmp_path, rows)
    loss, with_zero = step(trainer, rows)
    other = [rows[0], examples(9)[8] | {"weight": 0.0}, rows[2]]
    loss_of_other, with_other = step(trainer, other)
    assert loss == pytest.approx(loss_of_other, abs=1e-6)
    assert_same(with_zero, with_other)
    _, alone = step(trainer, [rows[0]])
    _, third = step(trainer, [rows[2] | {"weight": 1.0}])
    assert_same(with_zero, {name: (alone[name] + 2.5 * third[name]) / 3 for name in alone})


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_accumulation_equals_one_big_batch(tiny_model: Path, tmp_path: Path, parts: int) -> None:
    """Also where the last batch is smaller than the others."""
    rows = examples(7, [0.0, 1.0, 2.0, 0.5, 3.0, 0.25, 0.25])
    trainer = ours(tiny_model, tmp_path, rows)
    loss, whole = step(trainer, rows)
    split_loss, split = step(trainer, rows, parts)
    assert split_loss == pytest.approx(loss, abs=1e-5)
    assert_same(split, whole)


def test_what_is_logged(tiny_model: Path, tmp_path: Path) -> None:
    rows = examples(4, [0.0, 1.0, 2.0, 1.0])
    trainer = ours(tiny_model, tmp_path, rows, per_device_train_batch_size=4, max_steps=1, learning_rate=0.0, logging_steps=1)
    trainer.train()
    logged = trainer.state.log_history[0]
    batch = collate_pairs(rows)
    trainer._items = torch.tensor(4)
    weighted = trainer.compute_loss(trainer.model, batch).item()
    assert logged["loss"] == pytest.approx(weighted, abs=1e-4)
    assert logged["zero_weight_share"] == 0.25
    assert logged["unweighted_loss"] != pytest.approx(weighted, abs=1e-3)
    assert logged["rewards/margins"] == pytest.approx(logged["rewards/chosen"] - logged["rewards/rejected"], abs=1e-4)
    assert "ref" not in trainer.model.peft_config


def test_sft_learns_completions_alone(tiny_model: Path, tmp_path: Path) -> None:
    """The loss is the mean over completion tokens, as the model's own loss with the prompt masked."""
    rows = [{"prompt_ids": r["prompt_ids"], "completion_ids": r["chosen_ids"]} for r in examples(3)]
    trainer = SFTPackedTrainer(
        adapter(tiny_model),
        args=arguments(tmp_path, per_device_train_batch_size=3, max_steps=1, learning_rate=0.0, logging_steps=1),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    trainer.train()
    model, total, tokens = adapter(tiny_model), 0.0, 0
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        labels = ids.clone()
        labels[:, : len(row["prompt_ids"])] = -100
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * len(row["completion_ids"])
        tokens += len(row["completion_ids"])
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / tokens, abs=1e-4)
