"""A training by many processes: started through Accelerate, ended with the process that started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from components import lineage
from components.contracts import InputError, atomic
from components.models.params import Params as Models
from components.train.checkpoints import STOPPED
from components.train.params import Params
from components.train.worker import ERROR, EXAMPLES, JOB, RECORD


def check(train: Params) -> None:
    """Looks before anything is loaded whether this machine can run the processes.

    Raises:
        InputError: if it cannot.
    """
    found = torch.cuda.device_count()
    if torch.cuda.is_available() and train.processes > found:
        raise InputError(
            f"train.processes is {train.processes}, and this machine has {found} GPU(s): every process needs one of its own. "
            f"Lower it to {found}{' and set train.sharding to none' if found == 1 else ''}."
        )


def train_by_many(
    objective: str, train: Params, models: Models, inputs: Mapping[str, Path], folder: Path, work: Path
) -> dict[str, Any]:
    """`train_language` by `train.processes` processes on this machine; takes and returns the same.

    Raises:
        InputError: what a process raised as one.
        SystemExit: with `STOPPED`, after a checkpoint, if this process got SIGTERM.
    """
    task = job(objective, train, models, inputs, folder, work, watched=True)
    for name, content in ((JOB, task), ("accelerate.json", _configuration(train.processes))):
        with atomic(work / name) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")
    for left in (ERROR, EXAMPLES):
        (work / left).unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    launcher = [sys.executable, "-m", "components.train.launcher", "--config_file", str(work / "accelerate.json")]
    process = subprocess.Popen(
        [*launcher, "--module", "components.train.worker", str(work / JOB)],
        env=os.environ | _environment(train.processes),
        # The processes read nothing from it, but notice when it is closed: with this process, however it ends.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with _passing_sigterm_on(process) as told:
        try:
            for line in process.stdout or ():
                hear(line)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if told():
        raise SystemExit(STOPPED)
    if (work / ERROR).exists():
        raise InputError((work / ERROR).read_text(encoding="utf-8"))
    if status:
        raise RuntimeError(f"a process of the training failed (status {status}); what it said stands above")
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))["metrics"]


def job(
    objective: str,
    train: Params,
    models: Models,
    inputs: Mapping[str, Path],
    folder: Path,
    work: Path,
    *,
    watched: bool,
) -> dict[str, Any]:
    """What the processes are told.

    Args:
        watched: whether they end with what started them, which holds their standard input open.
    """
    return {
        "objective": objective,
        "train": train.model_dump(mode="json"),
        "models": models.model_dump(mode="json"),
        "inputs": {name: str(path.resolve()) for name, path in inputs.items()},
        "folder": str(folder.resolve()),
        "work": str(work.resolve()),
        "watched": watched,
    }


def _configuration(processes: int) -> dict[str, Any]:
    """What `accelerate config` would ask for. Sharding is not of it: see `shard`."""
    return {
        "compute_environment": "LOCAL_MACHINE",
        # On CPUs too: so it calls the launcher that starts the processes itself. They choose gloo there.
        "distributed_type": "MULTI_GPU",
        "num_machines": 1,
        "num_processes": processes,
        "machine_rank": 0,
        "main_process_ip": "127.0.0.1",
        # Any that is free.
        "main_process_port": 0,
        "mixed_precision": "no",
        "use_cpu": False,
    }


def _environment(processes: int) -> dict[str, str]:
    settings = {} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"}
    if "OMP_NUM_THREADS" not in os.environ:
        settings["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    return settings


def hear(line: str) -> None:
    """Measurements go to the run that is open here; anything else is for people."""
    # A progress bar, which ends no line, may stand before them where both go to one log.
    words, mark, record = line.partition(RECORD)
    if words:
        sys.stderr.write(words)
    if mark:
        lineage.live(**json.loads(record))


@contextmanager
def _passing_sigterm_on(process: subprocess.Popen[str]) -> Iterator[Callable[[], bool]]:
    """The processes save and stop at SIGTERM; yields whether there was one."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may say what signals do.
        yield told.is_set
        return

    def stop(*_: Any) -> None:
        told.set()
        process.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield told.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
