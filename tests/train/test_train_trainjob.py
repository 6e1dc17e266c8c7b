"""A training on two nodes: a TrainJob on an API on loopback, whose pods are processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubeflow_trainer_api import models as api
from mlflow import MlflowClient

from components.contracts import InputError
from components.models.params import Params as Models
from components.train.checkpoints import STOPPED
from components.train.nodes import SETTINGS, Settings, settings
from components.train.params import Params, Sft
from components.train.trainjob import train_on_nodes
from tests.train.kubernetes_server import Kubernetes, serve

GIVEN = Settings(
    nodes=2,
    runtime="torch-distributed",
    resources={"cpu": "4", "memory": "64G"},
    gpu="nvidia.com/gpu",
    hours=2,
    shared_memory="8Gi",
    volumes={"checkpoints": "/polyphony/.work/train", "hub": "/polyphony/.hub"},
    node_selector={"gpu": "yes"},
    tolerations=({"key": "gpu", "operator": "Exists"},),
    environment={"HF_HOME": "/polyphony/.hub"},
    poll=0.05,
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    with serve() as server:
        # Read once, when the client is imported.
        place = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
        monkeypatch.setattr(place, str(server.configuration(tmp_path)))
        monkeypatch.setenv("POLYPHONY_IMAGE", "registry/model@sha256:0")
        yield server


def train(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Whatever the pods run in place of the training."""
    (tmp_path / "in.parquet").write_bytes(b"x")
    for name in ("dorpo_released-0a1b", "model"):
        (tmp_path / name).mkdir(exist_ok=True)
    given = GIVEN.model_copy(update=changes)
    return train_on_nodes(
        *("dorpo_released", Params(processes=4, sharding="ddp"), Models(), {"pairs": tmp_path / "in.parquet"}),
        *(tmp_path / "model", tmp_path / "dorpo_released-0a1b", given),
    )


def script(code: str) -> list[str]:
    return ["python", "-c", code]


WRITES = """
import json, os, pathlib, sys
job = json.loads(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else os.environ['TASK']).read_text())
print('\\x1e' + json.dumps({'values': {'loss': 1.0}, 'step': 1, 'when': 0.0}), flush=True)
folder = pathlib.Path(job['folder'])
if os.environ['PET_NODE_RANK'] == '0':
    (folder / 'training.json').write_text(json.dumps({'metrics': {'loss': 0.5}}))
"""


def test_the_manifest(cluster: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the SDK's own models read it; and what the pods make comes out."""
    heard: list[str] = []
    monkeypatch.setattr("components.train.trainjob.hear", heard.append)
    monkeypatch.setenv("TASK", str(tmp_path / "dorpo_released-0a1b" / "job.json"))
    monkeypatch.setenv("POLYPHONY_RUN_ID", "run-1")
    cluster.command = script(WRITES)
    assert train(tmp_path) == {"loss": 0.5}
    assert json.loads(heard[0].removeprefix("\x1e"))["values"] == {"loss": 1.0}
    (made,) = cluster.made
    assert not cluster.jobs
    manifest = api.TrainerV1alpha1TrainJob.from_dict(made.manifest)
    assert manifest is not None and manifest.spec is not None and manifest.spec.trainer is not None
    assert manifest.metadata is not None and manifest.metadata.name == "polyphony-dorpo-released-0a1b"
    assert manifest.metadata.labels == {"polyphony/run": "run-1"}
    trainer = manifest.spec.trainer
    assert (trainer.num_nodes, trainer.image) == (2, "registry/model@sha256:0")
    assert trainer.command == [
        *("python", "-m", "torch.distributed.run", "--nproc-per-node=2", "--module", "components.train.worker"),
        str(tmp_path / "dorpo_released-0a1b" / "job.json"),
    ]
    assert {variable.name: variable.value for variable in trainer.env or []} == {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": "/polyphony/.hub",
    }
    spec = made.manifest["spec"]
    assert spec["trainer"]["resourcesPerNode"]["limits"] == GIVEN.resources | {"nvidia.com/gpu": "2"}
    assert (spec["runtimeRef"]["name"], spec["activeDeadlineSeconds"]) == ("torch-distributed", 7200)
    (patch,) = spec["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    claims = {volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]}
    (container,) = pod["containers"]
    mounted = {mount["mountPath"]: claims[mount["name"]] for mount in container["volumeMounts"]}
    assert mounted == {"/polyphony/.work/train": "checkpoints", "/polyphony/.hub": "hub", "/dev/shm": None}  # noqa: S108
    assert (container["name"], "env" in container) == ("node", False)
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"gpu": "yes"}, [{"key": "gpu", "operator": "Exists"}])
    assert api.TrainerV1alpha1TrainJob.from_dict(made.manifest).to_dict()["spec"] == spec  # type: ignore[union-attr]


def test_a_job_that_fails_is_quoted(cluster: Kubernetes, tmp_path: Path) -> None:
    cluster.command = script(
        "import os, sys, time\n"
        "print('all is well', flush=True)\n"
        "if os.environ['PET_NODE_RANK'] == '1': sys.exit('CUDA error: an illegal memory access')\n"
        "time.sleep(60)"
    )
    with pytest.raises(RuntimeError, match=r"(?s)node-1 \(Failed\) ended with:\nall is well\nCUDA error: an illegal"):
        train(tmp_path)
    assert not cluster.jobs


def test_what_a_process_says_is_the_inputs_fault(cluster: Kubernetes, tmp_path: Path) -> None:
    (tmp_path / "dorpo_released-0a1b").mkdir()
    error = tmp_path / "dorpo_released-0a1b" / "error.txt"
    cluster.command = script(f"open({str(error)!r}, 'w').write('pairs: too few'); raise SystemExit(1)")
    with pytest.raises(InputError, match=r"^pairs: too few$"):
        train(tmp_path)


def test_a_job_left_behind_is_ended_first(cluster: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK", str(tmp_path / "dorpo_released-0a1b" / "job.json"))
    cluster.command = script(WRITES)
    train(tmp_path)
    (first,) = cluster.made
    cluster.jobs[first.manifest["metadata"]["name"]] = first
    train(tmp_path)
    assert first.deleted and len(cluster.made) == 2 and not cluster.jobs


def test_a_service_account_that_may_not(cluster: Kubernetes, tmp_path: Path) -> None:
    cluster.refusal = "trainjobs is forbidden"
    with pytest.raises(InputError, match=r"trainjobs is forbidden.*must be allowed to create"):
        train(tmp_path)


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(SETTINGS, raising=False)
    assert settings() is None
    monkeypatch.setenv(SETTINGS, GIVEN.model_dump_json())
    assert settings() == GIVEN
    monkeypatch.setenv(SETTINGS, "{}")
    with pytest.raises(InputError, match="Compile the package again"):
        settings()
    with pytest.raises(InputError, match="which 3 nodes cannot share alike"):
        train(tmp_path, nodes=3)


def step(folder: Path, tiny_model: Path, responses: Path, **values: Any) -> list[str]:
    """The command of the train step, as the task of a pipeline runs it."""
    sft = Sft(epochs=2, batch_size=2, learning_rate=1e-3).model_dump()
    document = {
        "models": {"language": str(tiny_model), "max_tokens": 256, "dtype": "float32"},
        "train": {"processes": 2, "sharding": "ddp", "sft": sft, **values},
    }
    words = ["--params", json.dumps(document), "--objective", "sft", "--responses", str(responses)]
    return [sys.executable, "-m", "components.train", *words, "--model", str(folder / "model")]


def environment(cluster: Kubernetes, tmp_path: Path) -> dict[str, str]:
    given = GIVEN.model_copy(update={"resources": {"cpu": "1"}, "gpu": "", "environment": {"OMP_NUM_THREADS": "1"}})
    work = {"POLYPHONY_WORK": str(tmp_path / "volume"), "PYTHONPATH": str(Path(__file__).parents[2])}
    return os.environ | {SETTINGS: given.model_dump_json(), "KUBECONFIG": str(cluster.configuration(tmp_path))} | work


@pytest.mark.slow
def test_two_nodes_train_what_one_does(
    cluster: Kubernetes, tmp_path: Path, tiny_model: Path, responses: Path, store: Path
) -> None:
    """The metrics of every step are recorded in the task's run, and nothing stays on the volume."""
    from components.train.step import run
    from tests.train.test_train_processes import assert_same

    done = subprocess.run(
        step(tmp_path, tiny_model, responses), env=environment(cluster, tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = cluster.made
    assert [pod.returncode for pod in made.pods] == [0, 0]
    one = Params(sft=Sft(epochs=2, batch_size=4, learning_rate=1e-3))
    models = Models(language=str(tiny_model), max_tokens=256, dtype="float32")
    names = dict.fromkeys(("pairs", "deviations", "validation", "reference", "sft"))
    expected = run(train=one, models=models, objective="sft", responses=responses, model=tmp_path / "one", **names)
    found = json.loads((tmp_path / "model" / "training.json").read_text(encoding="utf-8"))["metrics"]
    assert_same(found, expected, tmp_path / "model", tmp_path / "one")
    client = MlflowClient(f"sqlite:///{store}")
    (recorded,) = client.search_runs(["1"])
    assert len(client.get_metric_history(recorded.info.run_id, "train/loss")) == expected["steps"]
    assert not list((tmp_path / "volume" / "train").glob("*"))


@pytest.mark.slow
def test_a_cancelled_run_ends_its_job_and_goes_on_later(
    cluster: Kubernetes, tmp_path: Path, tiny_model: Path, responses: Path, store: Path
) -> None:
    del store
    command = step(tmp_path, tiny_model, responses, checkpoint_minutes=1e-6)
    process = subprocess.Popen(command, env=environment(cluster, tmp_path), stderr=subprocess.PIPE, text=True)
    # The first checkpoint comes from pods that train.
    while not list((tmp_path / "volume" / "train").glob("*/checkpoint-*")):
        assert process.poll() is None, process.stderr and process.stderr.read()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == STOPPED
    assert not cluster.jobs and all(pod.poll() is not None for pod in cluster.made[0].pods)
    done = subprocess.run(command, env=environment(cluster, tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on from" in done.stderr
