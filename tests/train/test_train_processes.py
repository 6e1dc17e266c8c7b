"""Two processes, started as a user starts them, against one: in full precision, on CPUs, with gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.contracts import DEVIATIONS, PAIRS, REFERENCE
from components.models.params import Params as Models
from components.train.params import Lora, Orpo, Params, Preference, Sft
from components.train.step import run
from tests.conftest import story

EPOCHS, PAIRS_TOGETHER = 2, 4


@pytest.fixture
def models(tiny_model: Path) -> Models:
    return Models(language=str(tiny_model), max_tokens=256, dtype="float32")


def write_pairs(folder: Path, count: int) -> dict[str, Path]:
    """Pairs of texts of every length, their weights, and a reference of about what the tiny model gives."""
    pairs, deviations, reference = [], [], []
    for number in range(count):
        ids = {"chosen_id": f"{number:04d}a", "rejected_id": f"{number:04d}b"}
        prompt = f"Write about number {number}."
        texts = {"chosen": story(number, 2 + 5 * (number % 4)), "rejected": story(1000 + number, 20 - 4 * (number % 3))}
        pairs.append(
            {"prompt_id": f"p{number}", "prompt": prompt, **ids, **texts, "chosen_score": 9.0, "rejected_score": 1.0}
            | {"split": "train"}
        )
        weight = (0.0, 1.0, 2.5, 0.5)[number % 4]
        deviations.append({"response_id": ids["chosen_id"], "prompt_id": f"p{number}", "semantic": 0.5, "style": 0.5})
        deviations[-1]["weight"] = weight
        reference.append({**ids, "chosen_logp": -190.0 - number, "rejected_logp": -150.0 + number})
        reference[-1] |= {"chosen_tokens": 30, "rejected_tokens": 30}
    paths = {name: folder / f"{name}.parquet" for name in ("pairs", "deviations", "reference")}
    PAIRS.write(paths["pairs"], pairs)
    DEVIATIONS.write(paths["deviations"], deviations)
    REFERENCE.write(paths["reference"], reference)
    return paths


def params(processes: int, sharding: Any, accumulation: int = 1, minutes: float = 60) -> Params:
    shared: dict[str, Any] = {
        "epochs": EPOCHS,
        "batch_size": PAIRS_TOGETHER // processes // accumulation,
        "accumulation": accumulation,
        "learning_rate": 3e-3,
    }
    return Params(
        processes=processes,
        sharding=sharding,
        lora=Lora(r=4, target_modules=("q_proj", "v_proj", "down_proj")),
        sft=Sft(**shared),
        orpo=Orpo(**shared),
        preference=Preference(**shared),
        checkpoint_minutes=minutes,
    )


def train(models: Models, objective: str, model: Path, given: Params, **inputs: Path) -> dict[str, Any]:
    names = ("responses", "pairs", "deviations", "validation", "reference", "sft")
    return run(train=given, models=models, objective=objective, model=model, **{name: inputs.get(name) for name in names})


def assert_same(found: dict[str, Any], expected: dict[str, Any], model: Path, other: Path) -> None:
    assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (model, other))
    assert mine.keys() == theirs.keys() != set()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-5, rtol=1e-5)
    assert (model / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "objective", "count", "accumulation"),
    [
        # The last step has one pair: one of the processes has none.
        ("ddp", "dorpo", 9, 1),
        ("fsdp2", "dorpo_released", 9, 2),
        ("fsdp2", "dorpo", 11, 1),
    ],
)
def test_two_processes_equal_one(
    models: Models, tmp_path: Path, sharding: str, objective: str, count: int, accumulation: int
) -> None:
    """Weights differ from process to process, and the last step is smaller than the others."""
    tables = write_pairs(tmp_path, count)
    one = train(models, objective, tmp_path / "one", params(1, "none"), **tables)
    two = train(models, objective, tmp_path / "two", params(2, sharding, accumulation), **tables)
    assert two["steps"] == EPOCHS * -(-count // PAIRS_TOGETHER)
    assert_same(two, one, tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_the_whole_recipe_by_two(models: Models, responses: Path, tmp_path: Path) -> None:
    """SFT, then DDPO from it: the adapter that goes on is the one that was trained, also where the base is sharded."""
    tables = write_pairs(tmp_path, 6)
    for name, given in (("one", params(1, "none")), ("two", params(2, "fsdp2"))):
        sft = tmp_path / f"sft-{name}"
        metrics = {"sft": train(models, "sft", sft, given, responses=responses)}
        metrics["ddpo"] = train(models, "ddpo", tmp_path / name, given, sft=sft, **tables)
        if name == "one":
            expected = metrics
    assert_same(metrics["sft"], expected["sft"], tmp_path / "sft-two", tmp_path / "sft-one")
    assert_same(metrics["ddpo"], expected["ddpo"], tmp_path / "two", tmp_path / "one")
