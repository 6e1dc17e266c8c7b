"""The small tasks that only an engine needs: configure, gate, closing."""

from __future__ import annotations

import json
import os
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from components.closing.__main__ import main as closing
from components.configure.__main__ import main as configure
from components.configure.merge import TASKS, merge, part
from components.configure.source import identity
from components.gate.__main__ import main as gate
from components.lineage import step_run
from components.params import ParameterError
from components.provenance import ENGINE_RUN
from pipelines.platform.processes import free_port
from tests.json_server import Handler, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """A hub with one model, `owner/name`, whose weights are said to be as long as asked for."""

    def __init__(self, size: int) -> None:
        super().__init__(("127.0.0.1", 0), _Hub)
        self.files = {"config.json": 2, "model.safetensors": size, "original/model.safetensors": size}


class _Hub(Handler):
    server: Hub

    def do_GET(self) -> None:  # noqa: N802
        if "/tree/" in self.path:
            self.answer([{"type": "file", "path": p, "size": n, "oid": "x"} for p, n in self.server.files.items()])
        elif "/resolve/" in self.path:
            self.answer({}, **self.about())
        else:
            self.answer({"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": p} for p in self.server.files]})

    def do_HEAD(self) -> None:  # noqa: N802
        self.send_response(200)
        for name, value in self.about().items():
            self.send_header(name, value)
        self.end_headers()

    def about(self) -> dict[str, str]:
        path = self.path.partition(f"/resolve/{COMMIT}/")[2]
        return {"X-Repo-Commit": COMMIT, "ETag": f'"{path}"', "X-Linked-Size": str(self.server.files[path])}


@pytest.fixture
def call(tmp_path: Path, tiny_model: Path, store: Path) -> Any:
    """Calls `configure` with all its outputs under `out`; returns its status."""
    del store
    (tmp_path / "stories.jsonl").write_text("{}\n", encoding="utf-8")
    outputs = [f"--{name}=out/{name}" for name in (*TASKS, "source", "gpu-limit", "compared", "shards", "configuration")]
    usual = [f"--set=models.language={tiny_model}", "--set=ingest.source=stories.jsonl"]
    return lambda *words: configure([*usual, *outputs, *words])


def test_every_task_gets_its_part(call: Any, tiny_model: Path, tmp_path: Path) -> None:
    told = {"outputFile": str(tmp_path / "told.json"), "artifacts": {"configuration": {"artifacts": [{"metadata": {}}]}}}
    given = f"--executor-input={json.dumps({'outputs': told})}"
    assert call("--set=train.sft.epochs=7", "--overrides={weight: {floor: 0.2}}", given) == 0
    assert json.loads(Path("out/sft").read_text())["train"]["sft"]["epochs"] == 7
    assert json.loads(Path("out/weight").read_text())["weight"]["floor"] == 0.2
    assert "floor: 0.2" in Path("out/configuration").read_text()
    assert str(tiny_model) in Path("out/ingest").read_text()
    assert json.loads((tmp_path / "told.json").read_text())["artifacts"] == told["artifacts"]


def test_loops_go_over_what_is_asked_for(call: Any) -> None:
    assert call('--compare=["dpo", "orpo"]', "--candidate=orpo", "--embed-shards=3") == 0
    assert json.loads(Path("out/compared").read_text()) == ["dpo", "orpo"]
    assert json.loads(Path("out/shards").read_text()) == ["0", "1", "2"]
    assert call('--compare=["ddpo"]', "--overrides={register: {baseline: sft}}") == 0


def test_another_learning_rate_leaves_what_does_not_depend_on_it() -> None:
    """A cache is keyed by these texts."""
    before, after = merge([], ""), merge(["train.preference.learning_rate=5e-6"], "")
    changed = {name for name, of in TASKS.items() if part(before, of) != part(after, of)}
    assert changed == {"preference"}
    after = merge([], "{models: {semantic: other}}")
    assert {name for name, of in TASKS.items() if part(before, of) != part(after, of)} == {"embed", "evaluate"}


def test_overrides_win_over_defaults_and_undo_nothing() -> None:
    merged = merge(["weight.floor=0.0", "weight.gap=3", "train.sft.epochs=2"], "weight: {floor: 0.5, gap: 3.0}")
    assert (merged["weight"]["floor"], merged["weight"]["gap"], merged["train"]["sft"]["epochs"]) == (0.5, 3.0, 2)
    with pytest.raises(ParameterError) as error:
        merge(["weight.floor=0.1", "weight.gap=3"], "weight: {floor: 0.5, gap: 4}")
    assert "weight.floor: 0.1 in the form, 0.5 in overrides" in str(error.value) and "weight.gap" in str(error.value)
    with pytest.raises(ParameterError, match=r"weight\.deviation"):
        merge(["weight.deviation=stile"], "weight: {deviation: both}")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ParameterError) as error:
        merge(["weight.flor=0.1", "train.sft.epochs=0"], "{embed: {chunk: -1}}")
    told = str(error.value)
    assert "3 mistake(s)" in told and "did you mean 'floor'" in told and "train.sft.epochs" in told and "embed.chunk" in told


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--set=weight.deviation=stile"], 2, "weight.deviation"),
        (["--set=weight"], 2, "expected SECTION.PARAMETER=VALUE"),
        (["--overrides=[1]"], 2, "overrides: expected a mapping"),
        (["--compare=dpo"], 2, "'dpo' is no list"),
        (['--compare=["dpo", "ddpo", "ddpo", "tpo"]'], 2, "'tpo' is not known"),
        (['--compare=["dpo", "ddpo", "ddpo", "tpo"]'], 2, "'ddpo' twice"),
        (['--compare=["dpo"]'], 2, "registered: 'ddpo' is not one of the objectives dpo"),
        (['--compare=["ddpo"]'], 2, "register.baseline: 'dpo' is not trained"),
        (["--embed-shards=0"], 2, "embed_shards: 0"),
        (["--set=models.language=nowhere"], 1, "model 'nowhere': no such folder"),
        (["--set=ingest.source=nothing.csv"], 1, "nothing.csv: no such file"),
    ],
)
def test_what_is_wrong_ends_the_run_here(
    call: Any, words: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == status
    assert told in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("gpus", "nodes", "overrides", "trained"),
    [
        (1, 1, "", (1, "none")),
        (4, 1, "", (4, "ddp")),
        (2, 3, "{train: {sharding: fsdp2}}", (6, "fsdp2")),
        (4, 1, "{train: {processes: 4, sharding: ddp}}", (4, "ddp")),
    ],
)
def test_processes_follow_from_gpus(
    call: Any, monkeypatch: pytest.MonkeyPatch, gpus: int, nodes: int, overrides: str, trained: tuple[int, str]
) -> None:
    monkeypatch.setenv("POLYPHONY_GPU", "nvidia.com/gpu")
    monkeypatch.setenv("POLYPHONY_NODES", str(nodes))
    assert call(f"--gpus={gpus}", f"--overrides={overrides}") == 0
    for task in ("sft", "preference"):
        given = json.loads(Path(f"out/{task}").read_text())["train"]
        assert (given["processes"], given["sharding"]) == trained
    assert Path("out/gpu-limit").read_text() == str(gpus)


@pytest.mark.parametrize(
    ("gpu", "words", "told"),
    [
        ("nvidia.com/gpu", ["--gpus=2", "--overrides={train: {processes: 4}}"], "train.processes: 4 in overrides"),
        ("nvidia.com/gpu", ["--gpus=1", "--overrides={train: {processes: 2, sharding: ddp}}"], "each of 1 GPU(s) has one"),
        ("nvidia.com/gpu", ["--gpus=0"], "gpus: 0, and trainings ask for nvidia.com/gpu here"),
        ("", ["--gpus=2"], "gpus: 2, where there are none"),
    ],
)
def test_gpus_that_do_not_fit(
    call: Any, monkeypatch: pytest.MonkeyPatch, gpu: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLYPHONY_GPU", gpu)
    assert call(*words) == 2
    assert told in capsys.readouterr().err
    assert not Path("out").exists()


def test_processes_that_nodes_cannot_share(
    call: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLYPHONY_NODES", "2")
    assert call("--overrides={train: {processes: 3, sharding: ddp}}") == 1
    assert "trainings are on 2 nodes here, which share them alike: make it 2" in capsys.readouterr().err


def test_an_mlflow_that_does_not_answer(call: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    assert call() == 1
    assert f"MLflow at MLFLOW_TRACKING_URI='{address}' does not answer" in capsys.readouterr().err


def test_artifacts_that_cannot_be_reached(
    call: Any, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    MlflowClient(f"sqlite:///{store}").create_experiment("polyphony", artifact_location="s3://bucket/runs")
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert call() == 1
    assert "keeps artifacts at s3://bucket/runs, which cannot be read" in capsys.readouterr().err


def test_keys_that_are_not_there(call: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All that are missing are told at once; what needs no key is not asked for one."""
    systems = {
        name: {"endpoint": {"base_url": "http://x/v1", "model": "m", "key": key}}
        for name, key in (("one", "ONE_KEY"), ("two", "TWO_KEY"), ("free", ""))
    }
    words = f"--overrides={json.dumps({'evaluate': {'systems': systems}})}"
    assert call(words) == 1
    told = capsys.readouterr().err
    assert "2 key(s) missing" in told and "evaluate.systems.one.endpoint.key" in told and "TWO_KEY is not set" in told
    monkeypatch.setenv("ONE_KEY", "x")
    monkeypatch.setenv("TWO_KEY", "x")
    assert call(words) == 0


def test_a_model_that_is_none(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a system that is only compared with, too; a version of the registry or a folder is looked for when it is its turn."""
    systems = {"one": {"model": "llm-smolm2"}, "two": {"model": "polyphony@champion"}, "three": {"model": "/models/mine"}}
    words = f"--overrides={json.dumps({'evaluate': {'systems': systems}})}"
    assert call(words) == 1
    assert "model 'llm-smolm2': no such folder" in capsys.readouterr().err
    del systems["one"]
    assert call(f"--overrides={json.dumps({'evaluate': {'systems': systems}})}") == 0


@pytest.mark.parametrize("size", [1000, 10**18])
def test_room_for_what_the_hub_has_yet_to_send(
    call: Any, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are counted, once, and not fetched."""
    with serving(hub := Hub(size)):
        address = f"http://127.0.0.1:{hub.server_port}"
        constants = {"HF_HUB_OFFLINE": False, "ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub")}
        constants["HUGGINGFACE_CO_URL_TEMPLATE"] = address + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        status = call("--overrides={models: {reward: owner/name}}")
    assert status == (0 if size == 1000 else 1), capsys.readouterr().err
    assert ("owner/name 1000000000.0 GB" in capsys.readouterr().err) == (size > 1000)
    assert not list((tmp_path / "hub").rglob("*.safetensors"))


def test_the_identity_of_a_source_follows_its_content(tmp_path: Path) -> None:
    import fsspec

    path = tmp_path / "data.csv"
    path.write_text("a", encoding="utf-8")
    before = identity(str(path))
    path.write_text("b", encoding="utf-8")
    assert identity(str(path)) != before
    path.write_text("a", encoding="utf-8")
    os.utime(path, (1, 1))
    assert identity(str(path)) == before
    assert identity(f"file://{path}") == identity(f"file://{path}")
    # A store that says nothing of changes: never the same.
    with fsspec.open("memory://stories/one.csv", "w") as file:
        file.write("a")
    system = fsspec.filesystem("memory")
    system.store["/stories/one.csv"].modified = None
    assert identity("memory://stories") != identity("memory://stories")
    assert identity("nothing://x") != identity("nothing://x")


@pytest.mark.parametrize("passed", [True, False])
def test_the_gate(tmp_path: Path, passed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"description": "Scores are finite.", "severity": "critical", "success": False}
    (tmp_path / "results.json").write_text(json.dumps({"passed": passed, "expectations": [failed]}), encoding="utf-8")
    assert gate([f"--validation={tmp_path}"]) == (0 if passed else 1)
    assert ("Scores are finite." in capsys.readouterr().err) != passed


def test_closing_ends_what_was_left_open_and_tells_why(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_RUN, "run-1")
    with step_run("weight", {}, {}):
        pass
    with pytest.raises(ZeroDivisionError), step_run("embed", {}, {}):
        raise ZeroDivisionError
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("polyphony").experiment_id
    killed = client.create_run(experiment, tags={"step": "train-sft", "engine.run": "run-1"}).info.run_id
    other = client.create_run(experiment, tags={"step": "train-sft", "engine.run": "run-2"}).info.run_id
    status = {"state": "FAILED", "error": {"code": 9, "message": "OOMKilled"}, "pipelineTaskName": "Polyphony"}
    assert closing([f"--status={json.dumps(status)}"]) == 0
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}
    assert (runs[killed].info.status, runs[killed].data.tags["failure"]) == ("FAILED", "OOMKilled")
    assert (runs[other].info.status, "failure" in runs[other].data.tags) == ("RUNNING", False)
    told = {run.data.tags["step"]: run.data.tags.get("failure") for run in runs.values()}
    assert (told["weight"], told["embed"]) == (None, "OOMKilled")


@pytest.mark.parametrize("status", ["{}", "null", '{"state": "SUCCEEDED"}'])
def test_closing_where_there_is_nothing_to_close(
    status: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(ENGINE_RUN, raising=False)
    assert closing([f"--status={status}"]) == 0
    assert "no run to look for" in capsys.readouterr().out
