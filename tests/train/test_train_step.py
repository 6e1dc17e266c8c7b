"""The steps train and reference on a tiny model: from tables to adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from peft import PeftModel
from transformers import TrainerCallback

from components.contracts import DEVIATIONS, EMBEDDINGS, PAIRS, REFERENCE, RESPONSES, InputError
from components.lineage import digest
from components.models.params import Params as Models
from components.models.resolve import PACKAGES
from components.reference.step import run as refer
from components.train.checkpoints import Checkpoints
from components.train.params import Lora, Orpo, Params, Preference, Sft
from components.train.step import run
from components.weight.params import Params as Weight
from components.weight.step import run as weigh
from tests.conftest import response_rows, story

PARAMS = Params(
    lora=Lora(r=4),
    sft=Sft(epochs=2, batch_size=4, learning_rate=1e-3),
    preference=Preference(epochs=2, batch_size=2, learning_rate=1e-3),
    checkpoint_minutes=60,
)


def train(models: Models, objective: str, model: Path, params: Params = PARAMS, **inputs: Path) -> dict[str, Any]:
    names = ("responses", "pairs", "deviations", "validation", "reference", "sft")
    given: dict[str, Path | None] = {name: inputs.get(name) for name in names}
    return run(train=params, models=models, objective=objective, model=model, **given)


@pytest.fixture
def models(tiny_model: Path) -> Models:
    return Models(language=str(tiny_model), max_tokens=256)


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    """Pairs of neighbours in score, with weights 0, 1, 2, ... in turn."""
    rows = response_rows(prompts=5, responses=4, test=1)
    pairs, deviations = [], []
    for number, row in enumerate(rows):
        deviations.append(
            {"response_id": row["response_id"], "prompt_id": row["prompt_id"], "semantic": 0.5, "style": 0.5}
            | {"weight": float(number % 3)}
        )
        losers = [r for r in rows if r["prompt_id"] == row["prompt_id"] and r["score"] == row["score"] - 10]
        pairs += [
            {
                **{key: row[key] for key in ("prompt_id", "prompt", "split")},
                "chosen_id": row["response_id"],
                "chosen": row["response"],
                "chosen_score": row["score"],
                "rejected_id": r["response_id"],
                "rejected": r["response"],
                "rejected_score": r["score"],
            }
            for r in losers
        ]
    paths = {"pairs": tmp_path / "pairs.parquet", "deviations": tmp_path / "deviations.parquet"}
    PAIRS.write(paths["pairs"], pairs)
    DEVIATIONS.write(paths["deviations"], deviations)
    return paths


@pytest.fixture
def inputs(models: Models, responses: Path, tables: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """All that preference training reads."""
    sft, reference = tmp_path / "sft", tmp_path / "reference.parquet"
    train(models, "sft", sft, responses=responses)
    refer(models=models, pairs=tables["pairs"], sft=sft, reference=reference)
    return {**tables, "sft": sft, "reference": reference}


def test_from_stories_to_a_preference_model(models: Models, inputs: dict[str, Path], tmp_path: Path) -> None:
    rows = REFERENCE.read(inputs["reference"]).to_pylist()
    assert all(row["chosen_logp"] < 0 and row["chosen_tokens"] > 0 for row in rows)
    ddpo = train(models, "ddpo", tmp_path / "ddpo", **inputs)
    dpo = train(models, "dpo", tmp_path / "dpo", **{k: v for k, v in inputs.items() if k != "deviations"})
    assert (
        ddpo["examples"] == dpo["examples"] == sum(row["split"] == "train" for row in PAIRS.read(inputs["pairs"]).to_pylist())
    )
    assert ddpo["zero_weight_share"] > 0 == dpo["zero_weight_share"]
    assert digest(tmp_path / "ddpo") != digest(tmp_path / "dpo")
    recorded = json.loads((tmp_path / "ddpo" / "training.json").read_text(encoding="utf-8"))
    assert recorded["metrics"] == ddpo
    # PEFT keeps these in a set, whose order differs between processes.
    assert json.loads((tmp_path / "ddpo" / "adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]
    files = {path.suffix for path in (tmp_path / "ddpo").iterdir()}
    config = json.loads((tmp_path / "ddpo" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == models.language
    assert ".safetensors" in files and not files & {".bin", ".pt", ".pth", ".pkl"}
    assert not list(Path(".work/train").glob("*"))
    from components.models.language import load_model

    assert isinstance(load_model(models, tmp_path / "ddpo"), PeftModel)


@pytest.mark.filterwarnings("error:Unable to fetch remote file", "error:Could not find a config file")
def test_a_base_model_by_name_is_not_asked_for_at_the_hub(
    models: Models, inputs: dict[str, Path], responses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by checkpoints nor at the end, for a name that is no folder and no hub id."""
    monkeypatch.setitem(PACKAGES, "packaged", ("none", "."))
    monkeypatch.setattr("components.models.resolve._from_package", lambda _: Path(models.language))
    named = models.model_copy(update={"language": "packaged"})
    often = PARAMS.model_copy(update={"checkpoint_minutes": 1e-9})
    train(named, "sft", tmp_path / "sft-named", often, responses=responses)
    reference = tmp_path / "reference-named.parquet"
    refer(models=named, pairs=inputs["pairs"], sft=tmp_path / "sft-named", reference=reference)
    given = inputs | {"sft": tmp_path / "sft-named", "reference": reference}
    train(named, "ddpo", tmp_path / "ddpo", often, **given)
    config = json.loads((tmp_path / "ddpo" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "packaged"


def test_a_policy_that_has_not_moved_has_no_rewards(models: Models, inputs: dict[str, Path], tmp_path: Path) -> None:
    """The reference artifact equals the log-probabilities that training computes for itself."""
    still = PARAMS.model_copy(update={"preference": Preference(learning_rate=1e-30, batch_size=3)})
    metrics = train(models, "ddpo", tmp_path / "still", still, **inputs)
    assert metrics["rewards/chosen"] == pytest.approx(0, abs=2e-3)
    assert metrics["rewards/rejected"] == pytest.approx(0, abs=2e-3)


def test_orpo_starts_from_the_base_model(models: Models, tables: dict[str, Path], tmp_path: Path) -> None:
    """It reads neither the SFT model nor the reference, and the same seed gives the same adapter."""
    params = PARAMS.model_copy(update={"orpo": Orpo(epochs=1, batch_size=3, learning_rate=1e-3)})
    plain = {"pairs": tables["pairs"]}
    orpo = train(models, "orpo", tmp_path / "orpo", params, **plain)
    assert {"nll_per_token", "log_odds_ratio", "rewards/margins", "unweighted_loss", "grad_norm"} <= orpo.keys()
    assert orpo["unweighted_loss"] == pytest.approx(orpo["loss"], rel=1e-4)
    train(models, "orpo", tmp_path / "again", params, **plain)
    assert digest(tmp_path / "again") == digest(tmp_path / "orpo")
    weighted = {name: train(models, name, tmp_path / name, params, **tables) for name in ("dorpo", "dorpo_released")}
    assert all(metrics["zero_weight_share"] > 0 for metrics in weighted.values())
    assert len({digest(tmp_path / name) for name in ("orpo", "dorpo", "dorpo_released")}) == 3
    with pytest.raises(InputError, match="--objective dorpo needs --deviations"):
        train(models, "dorpo", tmp_path / "none", params, **plain)


def test_dpo_on_divpo_pairs(models: Models, tmp_path: Path) -> None:
    """The baseline DivPO is DPO on pairs that `weight` chose otherwise: from its tables to a model, unweighted."""
    rows = response_rows(prompts=4, responses=8, test=1)
    responses, embeddings = tmp_path / "many.parquet", tmp_path / "embeddings.parquet"
    RESPONSES.write(responses, rows)
    vectors = np.random.default_rng(0).normal(size=(2, len(rows), 4))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    named = [
        {"response_id": row["response_id"], "semantic": semantic.tolist(), "style": style.tolist()}
        for row, semantic, style in zip(rows, *vectors, strict=True)
    ]
    EMBEDDINGS.write(embeddings, named, semantic=4, style=4)
    tables = {name: tmp_path / f"divpo-{name}.parquet" for name in ("deviations", "pairs")}
    weigh(weight=Weight(pairs="divpo"), responses=responses, embeddings=embeddings, report=tmp_path / "report", **tables)
    sft, reference = tmp_path / "sft", tmp_path / "reference.parquet"
    train(models, "sft", sft, responses=responses)
    refer(models=models, pairs=tables["pairs"], sft=sft, reference=reference)
    metrics = train(models, "dpo", tmp_path / "divpo", pairs=tables["pairs"], reference=reference, sft=sft)
    pairs = PAIRS.read(tables["pairs"]).to_pylist()
    assert metrics["examples"] == sum(pair["split"] == "train" for pair in pairs) > 0
    assert metrics["effective_sample_share"] == 1
    deviation = {
        row["response_id"]: row["semantic"] + row["style"] for row in DEVIATIONS.read(tables["deviations"]).to_pylist()
    }
    gains = [deviation[pair["chosen_id"]] - deviation[pair["rejected_id"]] for pair in pairs]
    assert np.mean(gains) > 0


class KilledError(Exception):
    pass


@pytest.mark.parametrize("objective", ["sft", "ddpo"])
def test_interrupted_training_ends_with_the_same_bytes(
    models: Models,
    inputs: dict[str, Path],
    responses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:
    given = {"responses": responses} if objective == "sft" else inputs
    train(models, objective, tmp_path / "whole", **given)
    train(models, objective, tmp_path / "again", **given)
    assert digest(tmp_path / "again") == digest(tmp_path / "whole")

    often = PARAMS.model_copy(update={"checkpoint_minutes": 1e-9})
    saved = Checkpoints.on_save

    def save_and_die(self: Checkpoints, args: Any, state: Any, control: Any, **_: Any) -> None:
        saved(self, args, state, control)
        if state.global_step == 3:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_save", save_and_die)
        with pytest.raises(KilledError):
            train(models, objective, tmp_path / "killed", often, **given)
    assert not (tmp_path / "killed").exists()
    started: list[int] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *positional: Any, **_: Any) -> None:
            started.append(positional[1].global_step)

    original = Checkpoints.__init__
    monkeypatch.setattr(Checkpoints, "__init__", lambda self, minutes: original(self, minutes))
    monkeypatch.setattr(Checkpoints, "on_step_begin", Watch().on_step_begin)
    train(models, objective, tmp_path / "killed", often, **given)
    assert started[0] == 3
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


def test_what_is_missing_is_named(models: Models, tables: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--objective ddpo needs --reference, --sft"):
        train(models, "ddpo", tmp_path / "model", **tables)


def test_a_pair_whose_loss_is_not_finite_is_named(models: Models, inputs: dict[str, Path], tmp_path: Path) -> None:
    table, made_by = REFERENCE.read(inputs["reference"]), REFERENCE.metadata(inputs["reference"])
    rows, trained = (
        table.to_pylist(),
        {p["chosen_id"] for p in PAIRS.read(inputs["pairs"]).to_pylist() if p["split"] == "train"},
    )
    bad = next(row for row in rows if row["chosen_id"] in trained)
    bad["chosen_logp"] = float("nan")
    REFERENCE.write(tmp_path / "bad.parquet", rows, metadata=made_by)
    params = PARAMS.model_copy(update={"preference": Preference(batch_size=4), "tokens_per_pass": 1})
    with pytest.raises(InputError, match=rf"is not finite .*Examples: {bad['chosen_id']}/{bad['rejected_id']} \(all in"):
        train(models, "dpo", tmp_path / "model", params, **{**inputs, "reference": tmp_path / "bad.parquet"})
    assert not (tmp_path / "model").exists()
    assert len(list(Path(".work/train").glob("*/not-finite-0.json"))) == 1


def test_a_reference_of_other_pairs_is_refused(models: Models, inputs: dict[str, Path], tmp_path: Path) -> None:
    rows, made_by = REFERENCE.read(inputs["reference"]), REFERENCE.metadata(inputs["reference"])
    last = PAIRS.read(inputs["pairs"]).to_pylist()[-1]
    assert last["split"] == "train"
    named = f"nothing for {last['chosen_id']}/{last['rejected_id']}: it is of other pairs"
    others = {
        "few": (rows.slice(0, len(rows) - 1), named),
        "shuffled": (rows.take([1, 0, *range(2, len(rows))]), "of other pairs"),
        "more": (pa.concat_tables([rows, rows.slice(0, 1)]), "is no pair of"),
    }
    for name, (other, message) in others.items():
        path = tmp_path / f"{name}.parquet"
        REFERENCE.write(path, other, metadata=made_by)
        with pytest.raises(InputError, match=message):
            train(models, "ddpo", tmp_path / "model", **{**inputs, "reference": path})


def test_a_reference_of_another_model_is_refused(
    models: Models, inputs: dict[str, Path], responses: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """By what differs: the SFT model, the chat template, the tokenizer, the longest text."""

    def refused(models: Models, **other: Path) -> str:
        with pytest.raises(InputError) as error:
            train(models, "dpo", tmp_path / "model", **{**inputs, **other})
        return str(error.value)

    train(models, "sft", tmp_path / "other", PARAMS.model_copy(update={"seed": 1}), responses=responses)
    told = refused(models, sft=tmp_path / "other")
    assert f"sft {digest(inputs['sft'])} there, {digest(tmp_path / 'other')} here" in told
    assert "max_tokens" not in told and "Run reference again" in told
    assert "max_tokens 256 there, 200 here" in refused(models.model_copy(update={"max_tokens": 200}))
    here, there = models.precision, "float32" if models.precision == "bfloat16" else "bfloat16"
    assert f"dtype {here} there, {there} here" in refused(models.model_copy(update={"dtype": there}))
    edits = {
        "chat_template": ("chat_template.jinja", "assistant", "writer"),
        "tokenizer": ("tokenizer.json", '"normalizer": null', '"normalizer": {"type": "Lowercase"}'),
    }
    for changed, (file, old, new) in edits.items():
        folder = tmp_path / changed
        shutil.copytree(tiny_model, folder)
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text
        (folder / file).write_text(text.replace(old, new), encoding="utf-8")
        told = refused(models.model_copy(update={"tokenizer": str(folder)}))
        assert f"trained: {changed} " in told and ";" not in told


def test_what_is_too_long_is_left_out_and_counted(
    models: Models, tables: dict[str, Path], responses: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By SFT, by reference and by training alike: nothing is cut, and the pairs that stay have their own reference."""
    rows = PAIRS.read(tables["pairs"]).to_pylist()
    of_train = [number for number, row in enumerate(rows) if row["split"] == "train"]
    for number in (of_train[1], of_train[-1]):
        rows[number]["rejected"] = story(7, 300)
    PAIRS.write(tmp_path / "long.parquet", rows)
    sft, reference = tmp_path / "sft", tmp_path / "reference.parquet"
    train(models, "sft", sft, responses=responses)
    made = refer(models=models, pairs=tmp_path / "long.parquet", sft=sft, reference=reference)
    assert (made["pairs"], made["rejected"]) == (len(rows) - 2, 2)
    assert "2 of 15 pairs left out, longer than 256 tokens" in caplog.text
    given = {"pairs": tmp_path / "long.parquet", "reference": reference, "sft": sft}
    still = PARAMS.model_copy(update={"preference": Preference(learning_rate=1e-30, batch_size=3)})
    metrics = train(models, "dpo", tmp_path / "dpo", still, **given)
    assert (metrics["examples"], metrics["rejected"]) == (len(of_train) - 2, 2)
    assert metrics["rejected_tokens"] > 2 * 300
    assert f"2 left out, longer than 256 tokens or empty; {len(of_train) - 2} are trained on" in caplog.text
    assert metrics["rewards/chosen"] == pytest.approx(0, abs=2e-3)
    assert metrics["rewards/rejected"] == pytest.approx(0, abs=2e-3)

    short = models.model_copy(update={"max_tokens": 82})
    metrics = train(short, "sft", tmp_path / "short", responses=responses)
    assert metrics["rejected"] > 0 < metrics["examples"]
    with pytest.raises(InputError, match=r"nothing to train on \(16 left out, longer than 20 tokens"):
        train(models.model_copy(update={"max_tokens": 20}), "sft", tmp_path / "none", responses=responses)


def test_a_winner_without_a_weight_is_refused(models: Models, inputs: dict[str, Path], tmp_path: Path) -> None:
    DEVIATIONS.write(tmp_path / "few.parquet", DEVIATIONS.read(inputs["deviations"]).slice(0, 1))
    with pytest.raises(InputError, match="no weight for"):
        train(models, "ddpo", tmp_path / "model", **{**inputs, "deviations": tmp_path / "few.parquet"})


def test_layers_that_do_not_exist_are_named(models: Models, responses: Path, tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"lora": Lora(target_modules=("nothing",))})
    with pytest.raises(InputError, match=r"target_modules: nothing do not fit"):
        train(models, "sft", tmp_path / "model", params, responses=responses)
