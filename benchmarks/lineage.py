"""How long `polyphony lineage show` and `polyphony impact` take in a store of many runs, whole commands with their imports.

    python benchmarks/lineage.py [--runs 1000] [--versions 200] [--server]

Each model has its own evaluation, preference training, SFT, reward model and reference; every ten share their data. With
`--server`, also through an MLflow server on the same file. Targets: below 2 s at 1,000 runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STEPS = {
    "ingest": ("raw", "responses"),
    "embed": ("responses", "embeddings"),
    "weight": ("responses embeddings", "pairs deviations"),
    "train-reward": ("responses", "reward"),
    "train-sft": ("responses", "sft"),
    "reference": ("pairs sft", "reference"),
    "train-dpo": ("pairs reference sft", "dpo"),
    "train-ddpo": ("pairs deviations reference sft", "ddpo"),
    "evaluate": ("responses reward sft dpo ddpo", "evaluation"),
}
SHARED = ("raw", "responses", "embeddings", "pairs", "deviations")


def value(name: str, model: int) -> str:
    """A digest of an artifact of one model."""
    key = f"{name} {model // 10 if name in SHARED else model}"
    return hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()


def fill(path: Path, runs: int, versions: int) -> int:
    """Records models until there are so many runs, and registers at least so many versions; returns the number of runs."""
    from mlflow import MlflowClient
    from mlflow.entities import Param, RunTag

    client = MlflowClient(f"sqlite:///{path}")
    experiment = client.create_experiment("polyphony")
    client.create_registered_model("polyphony")
    parameters = {f"train.p{number}": number for number in range(60)}
    made = model = 0
    while made < runs or model < versions:
        for step, (read, written) in STEPS.items():
            if step in ("ingest", "embed", "weight") and model % 10:
                continue
            run = client.create_run(experiment, start_time=1000 * made + 1)
            tags = {"step": step, "commit": "c" * 40, "dirty": "false", "parameters": json.dumps({"train": {"p": 1}})}
            tags |= {f"consumed.{value(name, model)}": name for name in read.split()}
            tags |= {f"produced.{value(name, model)}": name for name in written.split()}
            client.log_batch(
                run.info.run_id,
                params=[Param(key, str(one)) for key, one in parameters.items()],
                tags=[RunTag(key, text) for key, text in tags.items()],
            )
            client.set_terminated(run.info.run_id)
            made += 1
        digests = {"model.digest": value("ddpo", model), "evaluation.digest": value("evaluation", model)}
        client.create_model_version("polyphony", "/nowhere/model", None, tags=digests)
        model += 1
    client.set_registered_model_alias("polyphony", "champion", str(model // 2))
    return made


def seconds(folder: Path, environment: dict[str, str], *words: str) -> float:
    """The best of three."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(
            [Path(sys.executable).parent / "polyphony", *words],
            cwd=folder,
            env=os.environ | environment,
            check=True,
            capture_output=True,
        )
        best = min(best, time.perf_counter() - started)
    return best


@contextmanager
def server(path: Path) -> Iterator[str]:
    """The address of an MLflow server on the file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{path}", "--port", str(port), "--workers", "1"]
    with subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/health")  # noqa: S310
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.5)
            yield address
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--versions", type=int, default=0)
    parser.add_argument("--server", action="store_true")
    arguments = parser.parse_args()
    commands = {
        "lineage show": ("lineage", "show", "polyphony@champion"),
        "lineage show --json": ("lineage", "show", "polyphony@champion", "--json"),
        "impact --data": ("impact", "--data", value("raw", 0)),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runs = fill(folder / "mlflow.db", arguments.runs, arguments.versions)
        print(f"{runs} runs\n\ncommand                  store    seconds")
        for name, words in commands.items():
            print(f"{name:24} SQLite   {seconds(folder, {'MLFLOW_TRACKING_URI': ''}, *words):.2f}", flush=True)
        if arguments.server:
            with server(folder / "mlflow.db") as address:
                for name, words in commands.items():
                    print(f"{name:24} server   {seconds(folder, {'MLFLOW_TRACKING_URI': address}, *words):.2f}", flush=True)


if __name__ == "__main__":
    main()
