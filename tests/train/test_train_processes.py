"""Two processes, started as a user starts them, against one: in full precision, on CPUs, with gloo."""

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
from mlflow import MlflowClient
from pydantic import ValidationError
from safetensors.torch import load_file

from components.contracts import DEVIATIONS, PAIRS, InputError
from components.models.params import Params as Models
from components.reference.step import run as refer
from components.train.checkpoints import STOPPED
from components.train.launch import check
from components.train.params import Lora, Orpo, Params, Preference, Sft
from components.train.step import run
from tests.conftest import story

EPOCHS, PAIRS_TOGETHER = 2, 4


@pytest.fixture
def models(tiny_model: Path) -> Models:
    return Models(language=str(tiny_model), max_tokens=256, dtype="float32")


def write_pairs(folder: Path, count: int) -> dict[str, Path]:
    """Pairs of texts of every length, and weights that differ."""
    pairs, deviations = [], []
    for number in range(count):
        ids = {"chosen_id": f"{number:04d}a", "rejected_id": f"{number:04d}b"}
        prompt = f"Write about number {number}."
        texts = {"chosen": story(number, 2 + 5 * (number % 4)), "rejected": story(1000 + number, 20 - 4 * (number % 3))}
        pairs.append(
            {"prompt_id": f"p{number}", "prompt": prompt, **ids, **texts, "chosen_score": 9.0, "rejected_score": 1.0}
            | {"split": "train"}
        )
        weight = (0.0, 1.0, 2.5, 0.5)[number % 4]
        row = {"response_id": ids["chosen_id"], "prompt_id": f"p{number}", "semantic": 0.5, "style": 0.5, "weight": weight}
        deviations.append(row)
    paths = {name: folder / f"{name}.parquet" for name in ("pairs", "deviations")}
    PAIRS.write(paths["pairs"], pairs)
    DEVIATIONS.write(paths["deviations"], deviations)
    return paths


def params(processes: int, sharding: Any, minutes: float = 60, rate: float = 3e-3, **options: Any) -> Params:
    shared: dict[str, Any] = {"epochs": EPOCHS, "batch_size": PAIRS_TOGETHER // processes, "learning_rate": rate}
    return Params(
        **options,
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
    ("sharding", "objective", "count", "options"),
    [
        # The last step has one pair: one of the processes has none.
        ("ddp", "dorpo", 9, {"tokens_per_pass": 200}),
        ("fsdp2", "dorpo_released", 9, {"tokens_per_pass": 200}),
        ("fsdp2", "dorpo", 11, {"gradient_checkpointing": True}),
    ],
)
def test_two_processes_equal_one(
    models: Models, tmp_path: Path, sharding: str, objective: str, count: int, options: dict[str, Any]
) -> None:
    """Weights differ from process to process, the last step is smaller than the others, some take several passes."""
    tables = write_pairs(tmp_path, count)
    one = train(models, objective, tmp_path / "one", params(1, "none"), **tables)
    two = train(models, objective, tmp_path / "two", params(2, sharding, **options), **tables)
    assert two["steps"] == EPOCHS * -(-count // PAIRS_TOGETHER)
    assert_same(two, one, tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_the_whole_recipe_by_two(models: Models, responses: Path, tmp_path: Path) -> None:
    """SFT, then DDPO from it: the adapter that goes on is the one that was trained, also where the base is sharded."""
    tables = write_pairs(tmp_path, 6)
    # Where a gradient is next to nothing, Adam's steps are rounding times the rate, and here there are two trainings of them.
    for name, given in (("one", params(1, "none", rate=1e-3)), ("two", params(2, "fsdp2", rate=1e-3))):
        sft, reference = tmp_path / f"sft-{name}", tmp_path / f"reference-{name}.parquet"
        metrics = {"sft": train(models, "sft", sft, given, responses=responses)}
        refer(models=models, pairs=tables["pairs"], sft=sft, reference=reference)
        metrics["ddpo"] = train(models, "ddpo", tmp_path / name, given, sft=sft, reference=reference, **tables)
        if name == "one":
            expected = metrics
    assert_same(metrics["sft"], expected["sft"], tmp_path / "sft-two", tmp_path / "sft-one")
    assert_same(metrics["ddpo"], expected["ddpo"], tmp_path / "two", tmp_path / "one")


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said of the machine as torch describes it, before anything is loaded."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check(params(2, "ddp"))
    with pytest.raises(InputError, match=r"train.processes is 4, and this machine has 2 GPU\(s\).*Lower it to 2\."):
        check(params(4, "fsdp2"))


@pytest.mark.parametrize(("processes", "sharding"), [(2, "none"), (1, "ddp"), (1, "fsdp2")])
def test_processes_and_sharding_that_do_not_go_together(processes: int, sharding: Any) -> None:
    with pytest.raises(ValidationError, match=f"train.processes is {processes}"):
        Params(processes=processes, sharding=sharding)


def command(folder: Path, models: Models, given: Params, write_params: Callable[..., Path]) -> list[str]:
    """The step's command line, training dorpo on many pairs."""
    tables = write_pairs(folder, 60)
    file = write_params(train=given.model_dump(mode="json"), models=models.model_dump(mode="json"))
    paths = [f"--params={file}", f"--model={folder / 'model'}", f"--metrics={folder / 'metrics.json'}"]
    paths += [f"--{name}={path}" for name, path in tables.items()]
    return [sys.executable, "-m", "components.train", "--objective", "dorpo", *paths]


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / ".work").glob("train/*/checkpoint-*"))


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[Any]) -> None:
    while not condition():
        assert process.poll() is None, "ended before"
        os.sched_yield()


@pytest.mark.slow
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_the_middle_it_goes_on(
    models: Models, tmp_path: Path, write_params: Callable[..., Path], told: signal.Signals
) -> None:
    """By SIGTERM it saves first. Killed, it leaves no process behind. Then the same command ends as if nothing had been."""
    given = params(2, "fsdp2", minutes=1e-6)
    words = command(tmp_path, models, given, write_params)
    with subprocess.Popen(words, cwd=tmp_path) as process:
        wait_for(lambda: checkpoints(tmp_path), process)
        process.send_signal(told)
        status = process.wait()
    assert status == (STOPPED if told == signal.SIGTERM else -signal.SIGKILL)
    assert not (tmp_path / "model").exists()
    jobs = [file for file in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _content(file)]
    while jobs:
        jobs = [file for file in jobs if _content(file)]
    saved = checkpoints(tmp_path)
    assert saved
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    tables = {name: tmp_path / f"{name}.parquet" for name in ("pairs", "deviations")}
    expected = train(models, "dorpo", tmp_path / "one", params(1, "none"), **tables)
    assert_same(found, expected, tmp_path / "model", tmp_path / "one")
    # Sent by the first process, as they happened, into the run that the step had opened.
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (finished,) = client.search_runs([e.experiment_id for e in client.search_experiments()], "attributes.status = 'FINISHED'")
    history = client.get_metric_history(finished.info.run_id, "train/loss")
    assert [entry.step for entry in history] == list(range(1, found["steps"] + 1))


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_what_is_wrong_is_said_once(models: Models, tmp_path: Path, write_params: Callable[..., Path]) -> None:
    words = command(tmp_path, models, params(2, "ddp"), write_params)
    rows = DEVIATIONS.read(tmp_path / "deviations.parquet")
    DEVIATIONS.write(tmp_path / "deviations.parquet", rows.slice(0, 5))
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    *before, last = done.stderr.rstrip().splitlines()
    assert last.startswith("train: ") and "no weight for 0005a" in last
    assert not [line for line in before if "Traceback" in line or "no weight for" in line or "FAILED" in line], done.stderr
    # Read by one process for all.
    assert done.stderr.count("tokenise pairs.parquet: ") == done.stderr.count("tokenise pairs.parquet: ") > 0
    assert not (tmp_path / "model").exists()
