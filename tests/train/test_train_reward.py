"""The reward model: what it learns, what it is measured on, what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from components.contracts import RESPONSES, InputError
from components.lineage import digest, step_run
from components.models.params import Params as Models
from components.models.reward import load_base, load_reward
from components.train import reward as reward_module
from components.train.params import Params, Reward
from components.train.reward import heldout_prompts, make_plan, measure, train_reward
from tests.conftest import WORDS, response_rows

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *sorted({*WORDS, *"plot write about number : . 0 1 2 3 4 5 6 7 8 9".split()}),
]
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
}


def save_encoder(folder: Path, config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> Models:
    """An encoder with random weights, without a pooler or head, as pre-training leaves them."""
    torch.manual_seed(0)
    body = AutoModel.from_config(config)
    if hasattr(body, "pooler"):
        body = AutoModel.from_config(config, add_pooling_layer=False)
    body.to(dtype).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)}, model_max_length=128).save_pretrained(folder)
    return Models(reward=str(folder))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A BERT of 2 layers."""
    return save_encoder(tmp_path_factory.mktemp("tiny-bert"), BertConfig(**SIZES))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    RESPONSES.write(path, rows)
    return path


def parameters(**reward: Any) -> Params:
    return Params(reward={"epochs": 2, "learning_rate": 1e-2, "batch_size": 4, **reward})


def trained(folder: Path, models: Models, responses: Path, **reward: Any) -> tuple[Path, dict[str, Any]]:
    model = folder / "model"
    metrics = train_reward(models, parameters(**reward), responses, model, folder / "work")
    return model, metrics


def test_what_it_leaves_behind(tmp_path: Path, models: Models, responses: Path) -> None:
    folder, metrics = trained(tmp_path, models, responses)
    names = {file.name for file in folder.iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }

    def no_constant(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    training = json.loads((folder / "training.json").read_text(), parse_constant=no_constant)
    assert training["objective"] == "reward"
    assert training["metrics"] == metrics
    own = {"seed": 0, "model": models.reward, "votes": training["parameters"]["votes"]}
    assert training["parameters"] == parameters().reward.model_dump() | own
    assert metrics["prompts"] == {"train": 3, "heldout": 1}
    assert metrics["responses"] == {"train": 12, "heldout": 4}
    assert metrics["truncated"] == {"train": 0, "heldout": 0}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (16, 32, "SEQ_CLS")


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**SIZES),
        RobertaConfig(**SIZES | {"pad_token_id": 0}),
        DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"], pooler_hidden_size=32),
        ModernBertConfig(**SIZES, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3),
    ],
    ids=lambda config: config.model_type,
)
def test_saved_and_loaded_it_scores_alike(tmp_path: Path, responses: Path, config: PreTrainedConfig) -> None:
    """Poolers and heads that the checkpoint has no weights for differ at every load: they must be saved with the adapter."""
    models = save_encoder(tmp_path / "base", config)
    folder, metrics = trained(tmp_path, models, responses, epochs=1)
    assert_measures_again(models, folder, responses, metrics)


def test_decoder_with_a_chat_template(tmp_path: Path, responses: Path, tiny_model: Path) -> None:
    models = Models(reward=str(tiny_model))
    folder, metrics = trained(tmp_path, models, responses, epochs=1)
    assert_measures_again(models, folder, responses, metrics)


def test_bfloat16_checkpoint(tmp_path: Path, responses: Path) -> None:
    """The body keeps its precision; whatever is trained is float32, or small steps would be rounded away."""
    models = save_encoder(tmp_path / "base", BertConfig(**SIZES), torch.bfloat16)
    folder, metrics = trained(tmp_path, models, responses)
    assert {value.dtype for value in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}
    assert_measures_again(models, folder, responses, metrics)


def test_classifier_of_several_classes_as_base(tmp_path: Path, responses: Path, models: Models) -> None:
    base = tmp_path / "base"
    AutoModelForSequenceClassification.from_pretrained(models.reward, num_labels=3).save_pretrained(base)
    BertTokenizer.from_pretrained(models.reward).save_pretrained(base)
    models = Models(reward=str(base))
    folder, metrics = trained(tmp_path, models, responses, epochs=1)
    assert_measures_again(models, folder, responses, metrics)


def assert_measures_again(models: Models, folder: Path, responses: Path, metrics: dict[str, Any]) -> None:
    """Measures the model as loaded, with other random numbers, against what was measured after training."""
    torch.manual_seed(99)
    loaded = load_reward(models, folder)
    again = measure(loaded, responses, make_plan(responses, parameters().reward))
    again.pop("truncated")
    assert again == {key: metrics[key] for key in again}
    assert again["mae"] > 0


def learnable(prompts: int = 24, responses: int = 6) -> list[dict[str, Any]]:
    """Votes for how often a story says `plot`."""
    rows = response_rows(prompts=prompts, responses=responses, test=4, words=20)
    for number, row in enumerate(rows):
        row["response"] += " plot" * (number % 5)
        row["score"] = float((number % 5) ** 2 * 10 - 7)
    return rows


@pytest.mark.parametrize("targets", ["places", "votes"])
def test_it_learns(tmp_path: Path, models: Models, targets: str) -> None:
    path = write(tmp_path / "responses.parquet", learnable())
    _, metrics = trained(tmp_path, models, path, epochs=20, learning_rate=1e-3, targets=targets)
    assert metrics["pair_accuracy"] > 0.85
    assert metrics["spearman"] > 0.75
    assert metrics["spearman_pooled"] > 0.8
    assert metrics["mae"] < 0.25


def test_same_inputs_same_bytes_and_test_prompts_do_not_matter(tmp_path: Path, models: Models, responses: Path) -> None:
    rows = RESPONSES.read(responses).to_pylist()
    changed = [row | {"response": "never.", "score": 1e6} if row["split"] == "test" else row for row in rows]
    other = write(tmp_path / "changed.parquet", changed)
    one, two = trained(tmp_path / "a", models, responses), trained(tmp_path / "b", models, other)
    assert digest(one[0]) == digest(two[0])
    assert one[1] == two[1]


def test_other_seed_other_weights(tmp_path: Path, models: Models, responses: Path) -> None:
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path / str(seed))
        train_reward(models, parameters().model_copy(update={"seed": seed}), responses, folders[-1], tmp_path / f"work{seed}")
    a, b = (digest(folder / "adapter_model.safetensors") for folder in folders)
    assert a != b


KILLED = """
import os, signal, sys
from pathlib import Path
from components.models.params import Params as Models
from components.train.checkpoints import Checkpoints
from components.train.params import Params, Reward
from components.train.reward import train_reward

on_save, step = Checkpoints.on_save, int(sys.argv[5])
def kill(self, args, state, control, **rest):
    if state.global_step == step:
        os.kill(os.getpid(), signal.SIGKILL)
    on_save(self, args, state, control, **rest)
Checkpoints.on_save = kill
train_reward(Models(reward=sys.argv[1]), Params.model_validate_json(sys.argv[2]), *map(Path, sys.argv[3:5]), Path("work"))
"""


def test_killed_it_ends_with_the_same_bytes(tmp_path: Path, models: Models, responses: Path) -> None:
    """SIGKILL in the middle of the second epoch, while a checkpoint does not have its name yet; then the same call again."""
    whole, _ = trained(tmp_path / "whole", models, responses)
    killed = tmp_path / "killed"
    params = parameters().model_copy(update={"checkpoint_minutes": 1e-9})
    call = [sys.executable, "-c", KILLED, models.reward, params.model_dump_json(), str(responses), str(killed)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    first = subprocess.run([*call, "5"], env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert not killed.exists()
    assert sorted(path.name for path in Path("work").iterdir()) == ["checkpoint-4", "partial"]
    second = subprocess.run([*call, "-1"], env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "checkpoint-4" in second.stderr or "4/" in second.stderr
    assert digest(killed) == digest(whole)


@pytest.mark.usefixtures("store")
def test_logs_into_the_open_run(tmp_path: Path, models: Models, responses: Path) -> None:
    import mlflow

    with step_run("train-reward", {}, {"responses": responses}):
        run_id = mlflow.active_run().info.run_id
        trained(tmp_path, models, responses, epochs=4)
        assert mlflow.active_run().info.run_id == run_id
    runs = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert [run.info.run_id for run in runs] == [run_id]
    assert len(mlflow.MlflowClient().get_metric_history(run_id, "train/loss")) >= 1


@given(st.sets(st.text(min_size=1, max_size=5), max_size=60), st.floats(0.01, 0.99))
def test_heldout_prompts(prompt_ids: set[str], share: float) -> None:
    chosen = heldout_prompts(prompt_ids, share)
    assert chosen <= prompt_ids
    if len(prompt_ids) > 1:
        assert 0 < len(chosen) < len(prompt_ids)
    else:
        assert not chosen
    # With other prompts beside them, those that are kept back by their hash still are.
    more = prompt_ids | {f"other {n}" for n in range(50)}
    assert len(chosen) <= 1 or len(chosen) == len(prompt_ids) - 1 or chosen == heldout_prompts(more, share) & prompt_ids


def test_heldout_share() -> None:
    assert 100 < len(heldout_prompts({str(n) for n in range(1000)}, 0.15)) < 200


def test_one_prompt_is_trained_on_and_nothing_measured(tmp_path: Path, models: Models) -> None:
    rows = response_rows(prompts=1, responses=5, test=0)
    folder, metrics = trained(tmp_path, models, write(tmp_path / "one.parquet", rows))
    assert metrics["prompts"] == {"train": 1, "heldout": 0}
    assert metrics["responses"] == {"train": 5, "heldout": 0}
    measured = {key: metrics[key] for key in ("spearman", "spearman_pooled", "pair_accuracy", "mae", "length_correlation")}
    assert set(measured.values()) == {None}
    assert json.loads((folder / "training.json").read_text())["metrics"]["mae"] is None


def test_equal_votes_in_every_prompt(tmp_path: Path, models: Models) -> None:
    """Places say nothing then; votes differ between prompts, which can be learned, and measured but within a prompt."""
    rows = response_rows()
    for row in rows:
        row["score"] = float(int(row["prompt_id"], 16) % 7)
    path = write(tmp_path / "flat.parquet", rows)
    with pytest.raises(InputError, match="votes of every training prompt are all equal"):
        trained(tmp_path, models, path)
    _, metrics = trained(tmp_path, models, path, targets="votes")
    assert (metrics["spearman"], metrics["pair_accuracy"]) == (None, None)
    assert metrics["mae"] > 0


def test_plan_of_places(tmp_path: Path) -> None:
    rows = response_rows(prompts=8, responses=3, test=2)
    flat = {row["prompt_id"] for row in rows if row["split"] == "train"}.pop()
    for row in rows:
        if row["prompt_id"] == flat:
            row["score"] = 5.0
    plan = make_plan(write(tmp_path / "rows.parquet", rows), Reward())
    assert (plan.train & plan.heldout).sum() == 0
    assert plan.train.sum() + plan.heldout.sum() == 5 * 3
    for row, used, target in zip(rows, plan.train | plan.heldout, plan.targets, strict=True):
        assert used == (row["split"] == "train" and row["prompt_id"] != flat)
        if used:
            votes = sorted(other["score"] for other in rows if other["prompt_id"] == row["prompt_id"])
            assert target == votes.index(row["score"]) - 1


def test_plan_of_votes(tmp_path: Path) -> None:
    """The scale is that of the votes trained on; prompts of equal votes are used like any other."""
    rows = response_rows(prompts=8, responses=3, test=2)
    path = write(tmp_path / "rows.parquet", rows)
    heldout = make_plan(path, Reward(targets="votes")).heldout
    for row, kept in zip(rows, heldout, strict=True):
        row["score"] = 1e6 if kept or row["split"] == "test" else row["score"] + 3
    plan = make_plan(write(path, rows), Reward(targets="votes"))
    assert (plan.heldout == heldout).all()
    votes = [row["score"] for row, used in zip(rows, plan.train, strict=True) if used]
    assert (plan.scale.minimum, plan.scale.maximum) == (min(votes), max(votes))
    assert plan.targets[plan.train] == pytest.approx(plan.scale(votes))
    assert set(plan.targets[plan.heldout]) == {1.0}


def test_two_valued_votes(tmp_path: Path, models: Models) -> None:
    rows = response_rows()
    for number, row in enumerate(rows):
        row["score"] = float(50 * (number % 2))
    _, metrics = trained(tmp_path, models, write(tmp_path / "two.parquet", rows))
    assert 0 <= metrics["pair_accuracy"] <= 1


def test_long_texts_are_cut_and_counted(tmp_path: Path, models: Models) -> None:
    rows = response_rows(words=300)
    _, metrics = trained(tmp_path, models, write(tmp_path / "long.parquet", rows), epochs=1)
    assert metrics["truncated"] == metrics["responses"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"score": 3.0}, "the votes .* are all equal"),
        (lambda row: row | {"score": 3.0 + row["score"] * 1e-14}, "the votes .* are all equal"),
        (lambda row: row | {"split": "test"}, "no training prompt"),
    ],
)
@pytest.mark.parametrize("targets", ["places", "votes"])
def test_nothing_to_learn(
    tmp_path: Path, models: Models, targets: str, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    path = write(tmp_path / "rows.parquet", [change(row) for row in response_rows()])
    with pytest.raises(InputError, match=message):
        trained(tmp_path, models, path, targets=targets)
    assert not (tmp_path / "model").exists()


def test_dropout_is_off(models: Models) -> None:
    model = load_base(models).model
    reward_module._without_dropout(model)
    model.train()
    ids = torch.arange(5, 25)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
