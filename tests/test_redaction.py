"""Secrets stay out of what steps write: planted everywhere they may come from, and looked for in everything that is written."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from components.params import ParameterError, check
from components.redaction import MASK, redacted, secrets_in
from pipelines.front_door import main as polyphony

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED00",
    "AWS_SECRET_ACCESS_KEY": "plantedAwsSecret/with+signs0123456789",
    "AWS_SESSION_TOKEN": "plantedSessionToken0123456789",
    "MLFLOW_TRACKING_PASSWORD": "plantedMlflowPassword",
    "OPENAI_API_KEY": "sk-plantedOpenAiKey",
    "HF_TOKEN": "hf_plantedHubToken",
    "PGPASSWORD": "plantedDatabasePassword",
}
IN_ADDRESS = "plantedInAddress"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def leaks(*texts: str | bytes) -> list[str]:
    """The names of the secrets that are in any of these, as they are or as HTTP sends them."""
    values = SECRETS | {"in an address": IN_ADDRESS}
    values |= {f"{name}, encoded": base64.b64encode(f"user:{value}".encode()).decode() for name, value in values.items()}
    data = b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts)
    return [name for name, value in values.items() if value.encode() in data]


def written(folder: Path) -> list[bytes]:
    return [str(path).encode() for path in folder.rglob("*")] + [p.read_bytes() for p in folder.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host/x", "https://***@host/x"),
        ("at https://token@host:80/x?a=1.", "at https://***@host:80/x?a=1."),
        ("postgresql+psycopg2://me:pa%40ss@db/x", "postgresql+psycopg2://***@db/x"),
        ("s3://b/k?X-Amz-Signature=abc&x=1&sig=q", "s3://b/k?X-Amz-Signature=***&x=1&sig=***"),
        ("sftp://user@host/x", "sftp://user@host/x"),
        ("hf://datasets/owner/name@v1/file.csv", "hf://datasets/owner/name@v1/file.csv"),
        ("owner/name@" + "a" * 40, "owner/name@" + "a" * 40),
        ("write to a@b.c: https://host/x", "write to a@b.c: https://host/x"),
        ("key sk-plantedOpenAiKey.", "key ***."),
    ],
)
@pytest.mark.usefixtures("planted")
def test_what_is_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert bool(list(secrets_in({"ingest": {"source": text}}))) == (MASK in shown)


def test_short_values_and_paths_are_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SORT_KEY", "score")
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    assert redacted(f"{tmp_path}/score") == f"{tmp_path}/score"


@pytest.mark.usefixtures("planted")
def test_parameters_hold_no_secret() -> None:
    from components.ingest.params import Params

    source = f"https://user:{IN_ADDRESS}@host/stories.csv"
    token = SECRETS["HF_TOKEN"]
    with pytest.raises(ParameterError) as told:
        check(
            {"ingest": Params().model_dump() | {"source": source}, "models": {"language": token, "semantic": [token]}}, "here"
        )
    message = str(told.value)
    assert (
        "ingest.source: holds an address with a password" in message
        and "models.language: holds the value of HF_TOKEN" in message
    )
    assert not leaks(message)


@pytest.fixture
def ingest(
    planted: None, tmp_path: Path, tiny_model: Path, write_params: Callable[..., Path]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the step as an engine does, on a small source and with the given variables."""
    del planted
    from tests.ingest.sources import as_bytes, good_rows

    (tmp_path / "stories.jsonl").write_bytes(as_bytes(good_rows(), "jsonl"))

    def run(source: str = "stories.jsonl", **variables: str) -> subprocess.CompletedProcess[str]:
        params = write_params(ingest={"source": source}, models={"language": str(tiny_model)})
        command = [sys.executable, "-m", "components.ingest", f"--params={params}", "--responses=responses.parquet"]
        command += ["--rejects=rejects.parquet", "--metrics=metrics.json"]
        environment = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", **os.environ, **variables}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_a_finished_step_has_written_no_secret(ingest: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = ingest()
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["responses"]
    assert not leaks(done.stdout, done.stderr, *written(tmp_path))


def test_a_tracking_server_is_asked_with_a_password_that_nobody_sees(
    ingest: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = ingest(MLFLOW_TRACKING_URI=f"http://user:{IN_ADDRESS}@127.0.0.1:9")
    assert done.returncode == 1
    assert "MLflow is out of reach" in done.stderr and "127.0.0.1" in done.stderr
    assert not leaks(done.stdout, done.stderr, *written(tmp_path))


def test_a_store_that_fails_is_named_without_its_password(
    ingest: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = ingest("s3://bucket/stories.jsonl", AWS_ENDPOINT_URL=f"http://user:{IN_ADDRESS}@127.0.0.1:9", AWS_MAX_ATTEMPTS="1")
    assert done.returncode == 1
    assert "s3://bucket/stories.jsonl: cannot be read" in done.stderr
    assert not leaks(done.stdout, done.stderr, *written(tmp_path))


@pytest.mark.usefixtures("planted")
def test_the_first_task_of_a_run_on_kubeflow_says_no_secret(capfd: pytest.CaptureFixture[str]) -> None:
    from components.configure.__main__ import main as configure
    from components.configure.merge import TASKS

    outputs = [f"--{name}=out" for name in (*TASKS, "source", "gpu-limit", "compared", "shards")]
    assert configure([*outputs, f"--set={SECRETS['HF_TOKEN']}"]) == 2
    shown = capfd.readouterr()
    assert shown.err.startswith("configure: --set ***: expected") and not leaks(*shown)


def test_the_last_words_of_a_process_hold_no_secret(planted: None) -> None:
    del planted
    program = """
import logging, os
logging.basicConfig(format="%(message)s")
from components.redaction import quietly
quietly()
logging.warning("at %s with %s", "https://user:plantedInAddress@host/", os.environ["HF_TOKEN"])
raise RuntimeError("no " + os.environ["OPENAI_API_KEY"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "RuntimeError: no ***" in done.stderr and "at https://***@host/ with ***" in done.stderr
    assert not leaks(done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lineage", "show", f"https://user:{IN_ADDRESS}@host/model"], "lineage show: https://***@host/model: expected"),
        (["compare", f"{SECRETS['HF_TOKEN']}@champion", "m/1"], "compare: ***@champion"),
        (
            ["promote", "--model=m", "--version=1", "--reason=r", "--yes"],
            "promote: MLflow or its storage failed while reading the model",
        ),
    ],
)
@pytest.mark.usefixtures("planted")
def test_commands_for_people_say_no_secret(
    words: list[str], told: str, store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if words[0] == "promote":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{IN_ADDRESS}@127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setattr("components.register.patience.WHOLE", 0.0)
    assert store.exists() and polyphony(words) == 1
    shown = capfd.readouterr()
    assert told in shown.err and not leaks(*shown)


@pytest.mark.usefixtures("planted")
def test_the_error_that_ends_a_command_for_people_says_no_secret() -> None:
    program = """
import argparse, os
from pipelines import front_door
def fail(_):
    raise RuntimeError("no " + os.environ["OPENAI_API_KEY"])
front_door._run(argparse.Namespace(command="results", main=fail))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "RuntimeError: no ***" in done.stderr and not leaks(done.stdout, done.stderr)
