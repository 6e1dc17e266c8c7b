"""`polyphony ablate ...`: the paper's ablations as DVC experiments, and the figure of what came out.

Each experiment changes parameters alone, so DVC takes from its cache whatever they do not touch: cleaned responses,
embeddings, the reward model, SFT.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.repro import dvc

RESPONSES = (2, 4, 6, 8, 12)
# The released code's floor.
FLOOR = 0.2
_MEASUREMENTS = "artifacts/evaluation/measurements.parquet"


@dataclass(frozen=True)
class Experiment:
    """One DVC experiment.

    Attributes:
        name: as DVC knows it.
        at: its place on the figure's axis.
        methods: what it trains and compares: objective -> the line of the figure that it belongs to.
        parameters: what it sets, beside the objectives.
    """

    name: str
    at: str
    methods: dict[str, str]
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> list[str]:
        """The experiment's parameters, as `dvc exp run -S` takes them."""
        values = {**self.parameters, "train.objectives": f"[{','.join(self.methods)}]"}
        return [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()]


@dataclass(frozen=True)
class Ablation:
    """Experiments that make one figure."""

    axis: str
    baseline: str
    experiments: tuple[Experiment, ...]


def ablation(name: str, responses: Sequence[int] = RESPONSES) -> Ablation:
    """The experiments of an ablation: `responses` (per prompt) or `deviation`."""
    if name == "deviation":
        kinds = ("semantic", "style", "both")
        return Ablation(
            "deviation",
            "ddpo",
            tuple(
                Experiment(f"deviation-{kind}", kind, {"ddpo": "ddpo", "dorpo": "dorpo"}, {"weight.deviation": kind})
                for kind in kinds
            ),
        )
    made = []
    for count in responses:
        both = {"weight.max_responses": count, "weight.deviation": "both"}
        for variant, methods, more in (
            ("plain", {"dpo": "dpo", "ddpo": "ddpo-both"}, {}),
            ("divpo", {"dpo": "divpo"}, {"weight.pairs": "divpo"}),
            ("floor", {"ddpo": "ddpo-both, floor"}, {"weight.floor": FLOOR}),
            ("winners", {"ddpo": "ddpo-both, best winners"}, {"weight.high_quality_winners": True}),
        ):
            made.append(Experiment(f"responses-{count}-{variant}", str(count), methods, both | more))
    return Ablation("responses per prompt", "dpo", tuple(made))


def add_to(commands: Any) -> None:
    """Adds `ablate` and what belongs under it to a command line."""
    ablate = commands.add_parser("ablate", help="the paper's ablations as DVC experiments: queue, run, figure")
    actions = ablate.add_subparsers(dest="action", required=True, metavar="ACTION")
    queue = actions.add_parser("queue", help="queue the experiments of an ablation")
    figure = actions.add_parser("figure", help="the figure and the table of the experiments that were run")
    for parser in (queue, figure):
        parser.add_argument("ablation", choices=("responses", "deviation"))
        counts = ",".join(map(str, RESPONSES))
        parser.add_argument("--responses", default=counts, metavar="N,N", help=f"responses per prompt; default {counts}")
    queue.set_defaults(main=_queue)
    queue.add_argument("--set", "-S", action="append", default=[], metavar="NAME=VALUE", help="a parameter of all experiments")
    figure.set_defaults(main=_figure)
    figure.add_argument("--output", type=Path, default=Path("ablations"), metavar="DIR")
    run = actions.add_parser(
        "run", help="run what is queued, one experiment after the other; each in a copy, with the same cache"
    )
    run.set_defaults(main=_run)


def _chosen(arguments: argparse.Namespace) -> Ablation:
    from components.contracts import InputError

    try:
        responses = [int(count) for count in arguments.responses.split(",")]
    except ValueError:
        raise InputError(f"--responses {arguments.responses}: expected numbers with commas between them.") from None
    if min(responses) < 2 or len(set(responses)) < len(responses):
        raise InputError(f"--responses {arguments.responses}: expected different numbers from 2 on.")
    return ablation(arguments.ablation, responses)


def _queue(arguments: argparse.Namespace) -> int:
    experiments = _chosen(arguments).experiments
    for experiment in experiments:
        settings = [word for setting in (*arguments.set, *experiment.settings) for word in ("-S", setting)]
        # `evaluate` and what it needs: ablations are looked at, not registered.
        if dvc("exp", "run", "--queue", "--name", experiment.name, *settings, "evaluate"):
            return 1
    print(f"{len(experiments)} experiments are queued. `polyphony ablate run` runs them.")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    del arguments
    # Experiments run in copies of this folder, which are removed: runs and unfinished work are kept here.
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path('mlflow.db').resolve()}")
    os.environ.setdefault("POLYPHONY_WORK", str(Path(".work").resolve()))
    return dvc("exp", "run", "--run-all")


def _figure(arguments: argparse.Namespace) -> int:
    from components.contracts import atomic
    from components.evaluate.ablation import Cell, draw, measure, table

    chosen = _chosen(arguments)
    with tempfile.TemporaryDirectory() as folder:
        cells = []
        for experiment in chosen.experiments:
            path = _fetch(experiment.name, Path(folder))
            for objective, method in experiment.methods.items():
                baseline = chosen.baseline if method != chosen.baseline else ""
                cells.append(Cell(method, experiment.at, baseline, path, objective))
        measured = measure(cells, seed=0)
    text = table(measured, chosen.axis)
    with atomic(arguments.output / f"{arguments.ablation}.json") as partial:
        partial.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    with atomic(arguments.output / f"{arguments.ablation}.md") as partial:
        partial.write_text(text, encoding="utf-8")
    with atomic(arguments.output / f"{arguments.ablation}.png") as partial:
        draw(measured, chosen.axis, partial)
    print(text)
    return 0


def _fetch(experiment: str, folder: Path) -> Path:
    """An experiment's measurements, from DVC's cache or remote."""
    from dvc.api import read
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    from components.contracts import InputError

    path = folder / f"{experiment}.parquet"
    try:
        content = read(_MEASUREMENTS, rev=experiment, mode="rb")
    except (DvcException, SCMError, OSError) as error:
        raise InputError(f"no result of the experiment {experiment} ({error}). Queue it and run what is queued.") from None
    path.write_bytes(content)
    return path
