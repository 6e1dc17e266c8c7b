"""How long `polyphony lineage show` and `polyphony impact` take in a store of many runs, whole commands with their imports.

    python benchmarks/lineage.py [--runs 1000] [--versions 200] [--server]

Each model has its own evaluation, preference training, SFT, reward model and reference; every ten share their data. With
`--server`, also through a platform of its own (`polyphony platform`): MLflow's server on PostgreSQL, with accounts. Targets:
below 2 s at 1,000 runs. Seconds are of the clock, in brackets the command's own of CPU: of three calls, the best.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
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


def fill(uri: str, runs: int, versions: int) -> int:
    """Records models until there are so many runs, and registers at least so many versions; returns the number of runs."""
    from mlflow import MlflowClient
    from mlflow.entities import Param, RunTag

    client = MlflowClient(uri, uri)
    known = client.get_experiment_by_name("polyphony")
    experiment = known.experiment_id if known else client.create_experiment("polyphony")
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


def seconds(folder: Path, environment: dict[str, str], *words: str) -> tuple[float, float]:
    """Of the clock, and of the command's CPU: the best of three."""
    found = []
    for _ in range(3):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [Path(sys.executable).parent / "polyphony", *words],
            cwd=folder,
            env=os.environ | environment,
            check=True,
            capture_output=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((time.perf_counter() - started, used))
    return min(found)


@contextmanager
def server(runs: int, versions: int) -> Iterator[dict[str, str]]:
    """What one who trains sets to ask an MLflow server on PostgreSQL, filled behind its back."""
    from pipelines import platform
    from pipelines.platform import accounts

    folder = Path(tempfile.mkdtemp(prefix="polyphony-"))
    # PostgreSQL's own user must get in.
    folder.chmod(0o711)
    try:
        with platform.start(folder, with_accounts=True) as running:
            os.environ["PGPASSFILE"] = str(running.password_file)
            fill(running.database, runs, versions)
            yield accounts.environment(folder, accounts.TRAINER)
    finally:
        shutil.rmtree(folder)


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
        runs = fill(f"sqlite:///{folder}/mlflow.db", arguments.runs, arguments.versions)
        print(f"{runs} runs\n\ncommand                  store       seconds (CPU)")
        table("SQLite", folder, {"MLFLOW_TRACKING_URI": ""}, commands)
        if arguments.server:
            with server(arguments.runs, arguments.versions) as environment:
                table("PostgreSQL", folder, environment, commands)


def table(store: str, folder: Path, environment: dict[str, str], commands: dict[str, tuple[str, ...]]) -> None:
    for name, words in commands.items():
        clock, used = seconds(folder, environment, *words)
        print(f"{name:24} {store:11} {clock:.2f} ({used:.2f})", flush=True)


if __name__ == "__main__":
    main()
