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
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from components.train.examples import collate_pairs, collate_stories
from components.train.outlook import count_tokens
from components.train.trainer import (
    DiversifiedDPOTrainer,
    DiversifiedORPOTrainer,
    PackedTrainer,
    ReleasedDORPOTrainer,
    SFTPackedTrainer,
)

BETA = 0.3
Gradients = dict[str, torch.Tensor]


def adapter(folder: Path) -> Any:
    """The tiny model in float32 with an adapter that is not zero."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False))


def examples(count: int = 6, weights: list[float] | None = None, prompt: tuple[int, int] = (2, 9)) -> list[dict[str, Any]]:
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
                "prompt_ids": ids(*prompt),
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
        **({"activation_checkpointing": False} | options),
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )


def ours(
    model_folder: Path,
    folder: Path,
    rows: list[dict[str, Any]],
    kind: type[PackedTrainer] = DiversifiedDPOTrainer,
    tokens_per_pass: int = 10_000,
    **options: Any,
) -> PackedTrainer:
    dataset = Dataset.from_list(rows)
    return kind(
        adapter(model_folder),
        args=arguments(folder, **options),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model_folder),
        lengths=count_tokens(dataset).examples.tolist(),
        tokens_per_pass=tokens_per_pass,
    )


def gradients(trainer: Any) -> Gradients:
    """What one step's backward passes leave behind, by the plain name of each parameter."""
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None and ".ref." not in name}


def step(trainer: PackedTrainer, rows: list[dict[str, Any]], parts: int = 1) -> tuple[float, Gradients]:
    """Loss and gradients of one optimiser step over the rows, in so many passes."""
    size = -(-len(rows) // parts)
    return backward(trainer, [collate_pairs(rows[start : start + size]) for start in range(0, len(rows), size)])


def backward(trainer: PackedTrainer, passes: list[dict[str, Any]]) -> tuple[float, Gradients]:
    trainer.model.zero_grad()
    (taken,), _ = trainer.get_batch_samples(iter([passes]), 1, torch.device("cpu"))
    loss = trainer.training_step(trainer.model, taken)
    return loss.item(), gradients(trainer)


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


def trls_orpo(model_folder: Path, folder: Path, rows: list[dict[str, Any]]) -> tuple[float, Gradients]:
    """Mean over the pairs of loss and gradients of TRL's ORPOTrainer, which sees one pair at a time."""
    args = ORPOConfig(
        output_dir=str(folder), beta=BETA, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], max_length=256
    )
    trl = ORPOTrainer(
        adapter(model_folder),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
    )
    total = 0.0
    for row in rows:
        batch = {}
        for side in ("chosen", "rejected"):
            ids = row["prompt_ids"] + row[f"{side}_ids"]
            batch[f"{side}_input_ids"] = torch.tensor([ids])
            batch[f"{side}_attention_mask"] = torch.ones(1, len(ids), dtype=torch.long)
            batch[f"{side}_labels"] = torch.tensor([[-100] * len(row["prompt_ids"]) + row[f"{side}_ids"]])
        loss = trl.compute_loss(trl.model, batch) / len(rows)
        loss.backward()
        total += loss.item()
    return total, gradients(trl)


@pytest.mark.parametrize("kind", [DiversifiedORPOTrainer, ReleasedDORPOTrainer])
def test_weights_of_one_are_trls_orpo(tiny_model: Path, tmp_path: Path, kind: type[PackedTrainer]) -> None:
    """TRL's likelihood covers the prompt too, all but its first token: with prompts of one token it is the completion's."""
    rows = examples(prompt=(1, 2))
    loss, expected = trls_orpo(tiny_model, tmp_path, rows)
    our_loss, our_gradients = step(ours(tiny_model, tmp_path, rows, kind), rows, parts=2)
    assert 0.05 < our_loss == pytest.approx(loss, abs=1e-5)
    assert_same(our_gradients, expected)


def test_orpo_has_no_likelihood_of_the_prompt(tiny_model: Path, tmp_path: Path) -> None:
    """What TRL's loss has beside ours is just that."""
    (row,) = examples(1)
    loss, _ = trls_orpo(tiny_model, tmp_path, [row])
    our_loss, _ = step(ours(tiny_model, tmp_path, [row], DiversifiedORPOTrainer), [row])
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    completion = ids.clone()
    completion[:, : len(row["prompt_ids"])] = -100
    with torch.no_grad():
        whole, ours_alone = (float(adapter(tiny_model)(input_ids=ids, labels=labels).loss) for labels in (ids, completion))
    assert our_loss - loss == pytest.approx(ours_alone - whole, abs=1e-5) != 0


def test_released_dorpo_has_the_mean_weight_of_the_step(tiny_model: Path, tmp_path: Path) -> None:
    """From its parts, each taken from ORPO: the likelihood at lambda 0, and the ratio that is logged."""
    rows = examples(5, [0.0, 1.0, 2.0, 0.5, 3.0])
    trainer = ours(tiny_model, tmp_path, rows, ReleasedDORPOTrainer)
    loss, _ = step(trainer, rows, parts=2)
    expected = 0.0
    for row in rows:
        alone = ours(tiny_model, tmp_path, [row], DiversifiedORPOTrainer)
        step(alone, [row | {"weight": 1.0}])
        logged = alone.means()
        ratio = torch.tensor(row["weight"] * logged["log_odds_ratio"])
        expected += 1.3 * logged["nll_per_token"] - BETA * torch.nn.functional.logsigmoid(ratio).item()
    assert loss == pytest.approx(expected / 5, abs=1e-5)


def test_the_tokens_of_a_pass_change_nothing_but_memory(tiny_model: Path, tmp_path: Path) -> None:
    """Two whole trainings, of steps that take one pass and of steps that take several."""
    rows = examples(7, [0.0, 1.0, 2.0, 0.5, 3.0, 0.25, 0.25])
    options = {"per_device_train_batch_size": 4, "logging_steps": 1, "num_train_epochs": 2, "learning_rate": 1e-2}
    logs, weights, most = [], [], []
    for budget in (10_000, 100):
        trainer = ours(tiny_model, tmp_path, rows, tokens_per_pass=budget, **options)
        most.append(max(one["size"][0] for step in trainer.get_train_dataloader() for one in step))
        trainer.train()
        steps = trainer.state.log_history[:4]
        logs.append([{name: entry[name] for name in ("loss", "grad_norm", "num_tokens")} for entry in steps])
        weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert logs[1] == [pytest.approx(entry, abs=1e-5, rel=1e-5) for entry in logs[0]]
    assert_same(*weights)
    longest = max(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)
    assert most[1] <= max(100, longest) < most[0]


@pytest.mark.parametrize("kind", [DiversifiedDPOTrainer, ReleasedDORPOTrainer])
def test_gradient_checkpointing_changes_no_gradient(tiny_model: Path, tmp_path: Path, kind: type[PackedTrainer]) -> None:
    rows = examples(5, [0.0, 1.0, 2.0, 0.5, 3.0])
    options = {"per_device_train_batch_size": 5, "logging_steps": 1, "max_steps": 1, "learning_rate": 1e-2}
    found = []
    for checkpointing in (False, True):
        trainer = ours(tiny_model, tmp_path, rows, kind, 100, activation_checkpointing=checkpointing, **options)
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            trainer.train()
        logged = trainer.state.log_history[0]
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        found.append((logged["loss"], logged["grad_norm"], weights, kept))
    (loss, norm, plain, much), (same_loss, same_norm, same, little) = found
    assert (same_loss, same_norm) == pytest.approx((loss, norm), abs=1e-6)
    assert_same(same, plain)
    # The layers' inputs are left; what is computed again in the backward pass, hooks do not see.
    assert little < much / 3


@pytest.mark.parametrize("kind", [DiversifiedDPOTrainer, DiversifiedORPOTrainer])
def test_weight_zero_removes_a_pair_and_weights_scale(tiny_model: Path, tmp_path: Path, kind: type[PackedTrainer]) -> None:
    rows = examples(3, [1.0, 0.0, 2.5])
    trainer = ours(tiny_model, tmp_path, rows, kind)
    loss, with_zero = step(trainer, rows)
    other = [rows[0], examples(9)[8] | {"weight": 0.0}, rows[2]]
    loss_of_other, with_other = step(trainer, other)
    assert loss == pytest.approx(loss_of_other, abs=1e-6)
    assert_same(with_zero, with_other)
    _, alone = step(trainer, [rows[0]])
    _, third = step(trainer, [rows[2] | {"weight": 1.0}])
    assert_same(with_zero, {name: (alone[name] + 2.5 * third[name]) / 3 for name in alone})


@pytest.mark.parametrize("kind", [DiversifiedDPOTrainer, DiversifiedORPOTrainer, ReleasedDORPOTrainer])
@pytest.mark.parametrize("parts", [2, 4])
def test_passes_equal_one_big_batch(tiny_model: Path, tmp_path: Path, parts: int, kind: type[PackedTrainer]) -> None:
    """Also where the last pass is smaller than the others."""
    rows = examples(7, [0.0, 1.0, 2.0, 0.5, 3.0, 0.25, 0.25])
    trainer = ours(tiny_model, tmp_path, rows, kind)
    loss, whole = step(trainer, rows)
    split_loss, split = step(trainer, rows, parts)
    assert split_loss == pytest.approx(loss, abs=1e-5)
    assert_same(split, whole)


@pytest.mark.parametrize("kind", [DiversifiedDPOTrainer, DiversifiedORPOTrainer])
def test_pairs_of_weight_zero_go_forward_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[PackedTrainer]
) -> None:
    """Whole trainings that spare their backward passes, and that do not, log the same and end the same; in one of the steps
    there are no others."""
    rows = examples(9, [0.0] * 7 + [2.0, 0.5])
    options = {"per_device_train_batch_size": 3, "logging_steps": 1, "num_train_epochs": 2, "learning_rate": 1e-2, "seed": 1}
    logs, weights, done, passes = [], [], [], []
    for spares in (True, False):
        trainer = ours(tiny_model, tmp_path, rows, kind, **options)
        trainer._spares = spares
        done.append(0)
        backward = trainer.accelerator.backward

        def counting(*arguments: Any, backward: Any = backward, **rest: Any) -> None:
            done[-1] += 1
            backward(*arguments, **rest)

        monkeypatch.setattr(trainer.accelerator, "backward", counting)
        passes.append(sum(len(step) for step in trainer.get_train_dataloader()))
        trainer.train()
        clocked = {"tokens_per_second", "epoch", "step", "time"}
        steps = trainer.state.log_history[:6]
        logs.append([{name: value for name, value in entry.items() if name not in clocked} for entry in steps])
        weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert logs[0] == [pytest.approx(entry, abs=1e-5, rel=1e-5) for entry in logs[1]]
    assert 1.0 in [entry["zero_weight_share"] for entry in logs[0]]
    assert_same(*weights)
    # A step in one pass has one backward pass; what is spared is in a pass of its own.
    assert done == [6, 6] and passes[0] > passes[1] == 3


def test_an_empty_pass_adds_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """A process that has no example left takes part in the step all the same."""
    rows = examples(3)
    trainer = ours(tiny_model, tmp_path, rows)
    loss, alone = step(trainer, rows)
    with_empty, found = backward(trainer, [collate_pairs(rows), collate_pairs([])])
    assert with_empty == loss
    assert_same(found, alone)
    assert collate_stories([])["sequences"] == 0


def test_what_is_logged(tiny_model: Path, tmp_path: Path) -> None:
    """Means over the pairs of a step, although its passes differ in size."""
    rows = examples(5, [0.0, 1.0, 2.0, 1.0, 1.0])
    options = {"per_device_train_batch_size": 5, "logging_steps": 1, "learning_rate": 0.0}
    trainer = ours(tiny_model, tmp_path, rows, max_steps=1, tokens_per_pass=100, **options)
    trainer.train()
    logged = trainer.state.log_history[0]
    weighted, found = step(trainer, rows)
    assert logged["loss"] == pytest.approx(weighted, abs=1e-5)
    assert logged["grad_norm"] == pytest.approx(torch.stack([g.norm() for g in found.values()]).norm().item(), rel=1e-4)
    assert logged["zero_weight_share"] == 0.2
    assert logged["effective_sample_share"] == pytest.approx(5**2 / 7 / 5)
    unweighted, _ = step(trainer, [row | {"weight": 1.0} for row in rows])
    assert logged["unweighted_loss"] == pytest.approx(unweighted, abs=1e-5) != weighted
    assert logged["rewards/margins"] == pytest.approx(logged["rewards/chosen"] - logged["rewards/rejected"], abs=1e-5)
    assert logged["rewards/accuracies"] in (0, 0.2, 0.4, 0.6, 0.8, 1)
    tokens = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    assert logged["num_tokens"] == tokens
    assert logged["tokens_per_second"] > 0
    assert "ref" not in trainer.model.peft_config


def test_a_step_of_pairs_without_weight_is_logged_like_any_other(tiny_model: Path, tmp_path: Path) -> None:
    rows = examples(4, [0.0, 0.0, 0.0, 0.0])
    trainer = ours(tiny_model, tmp_path, rows, per_device_train_batch_size=4, max_steps=1, learning_rate=0.0, logging_steps=1)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert (logged["loss"], logged["zero_weight_share"], logged["effective_sample_share"]) == (0, 1, 0)
    assert "weight" not in logged


def test_sft_learns_completions_alone(tiny_model: Path, tmp_path: Path) -> None:
    """The loss is the mean over completion tokens, as the model's own loss with the prompt masked."""
    rows = [{"prompt_ids": r["prompt_ids"], "completion_ids": r["chosen_ids"]} for r in examples(3)]
    options = {"per_device_train_batch_size": 3, "max_steps": 1, "learning_rate": 0.0, "logging_steps": 1}
    trainer = ours(tiny_model, tmp_path, rows, SFTPackedTrainer, **options)
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
