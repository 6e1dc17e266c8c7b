"""`polyphony`: the one command for people. It only calls the rooms and reads what they wrote."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.evaluate.catalogue import ARROWS, BY_KEY, METRICS
from components.evaluate.statements import statements
from components.redaction import quietly, redacted
from pipelines import ablations, ancestry, command, presets, registry, study
from pipelines.platform import command as platform

# Metrics of the table; with their intervals, more do not fit into 120 columns. All others are shown by `--all`.
_COLUMNS = ("reward", "semantic_diversity", "style_diversity", "words")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="polyphony", description="Diversified DPO: what the pipeline has made.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    results = commands.add_parser("results", help="the last run's table, the registered version, and what to open next")
    results.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR")
    results.add_argument("--all", action="store_true", help="also the means of all metrics, and what they mean")
    results.set_defaults(main=_results)
    # Each module adds its commands, and to each what runs it (`main`); heavy imports wait until one runs.
    for module in (command, presets, study, platform, registry, ancestry, ablations):
        module.add_to(commands)
    return _run(parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    """Runs a command; returns the exit status: 1 where the input or a server is at fault, 2 where the parameters are."""
    words = " ".join(filter(None, (arguments.command, getattr(arguments, "action", None))))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    quietly()
    try:
        return arguments.main(arguments)
    except KeyboardInterrupt:
        print(f"{words}: interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        from components.contracts import InputError
        from components.params import ParameterError

        if not isinstance(error, (InputError, ParameterError)):
            raise
        print(redacted(f"{words}: {error}"), file=sys.stderr)
        return 2 if isinstance(error, ParameterError) else 1


def _results(arguments: argparse.Namespace) -> int:
    artifacts: Path = arguments.artifacts
    metrics, version = artifacts / "evaluation" / "metrics.json", artifacts / "version.json"
    if not metrics.is_file():
        print(f"{metrics}: nothing there yet. `make demo` or `dvc repro` writes it.", file=sys.stderr)
        return 1
    measured = json.loads(metrics.read_text(encoding="utf-8"))
    print()
    print(results_table(measured))
    print(f"\n{measured['prompts']} test prompts x {measured['samples']} samples; 95 % bootstrap intervals over prompts.\n")
    for said in statements(measured)[:1]:
        print(f"{said}\n")
    for warning in measured["warnings"]:
        print(f"Warning: {warning}\n")
    if arguments.all:
        print(f"{metrics_table(measured)}\n")
    if version.is_file():
        registered = json.loads(version.read_text(encoding="utf-8"))
        print(f"Registered: {registered['name']} version {registered['version']}, {registered['status']}")
        for reason in registered["reasons"].split("; "):
            print(f"  {reason}")
    else:
        print("Not registered yet: `dvc repro` does that.")
    print(f"\nOpen next:\n  report     {artifacts / 'evaluation' / 'report.html'}")
    print(f"  weights    {artifacts / 'weight_report' / 'report.html'}")
    print("  runs and models: `make mlflow`, then http://127.0.0.1:5000")
    return 0


def results_table(measured: dict[str, Any]) -> str:
    """The systems and their main metrics with intervals, as aligned text."""
    rows = [["system", *(BY_KEY[key].title for key in _COLUMNS)]]
    for system, metrics in measured["systems"].items():
        rows.append([system, *(_interval(metrics[key], BY_KEY[key].digits) for key in _COLUMNS)])
    return _aligned(rows)


def metrics_table(measured: dict[str, Any]) -> str:
    """The mean of every metric, a row each, with an arrow to the better side, the unit and the meaning below."""
    systems = measured["systems"]
    shown = [metric for metric in METRICS if any(metric.key in values for values in systems.values())]
    rows = [["metric", *systems]]
    for metric in shown:
        means = (values.get(metric.key) for values in systems.values())
        cells = ["-" if mean is None else f"{mean['mean']:.{metric.digits}f}" for mean in means]
        rows.append([f"{metric.title} {ARROWS[metric.better]}".rstrip(), *cells])
    about = [line for metric in shown for line in (f"{metric.title}: {metric.meaning}", f"    ({metric.unit})")]
    return "\n".join([_aligned(rows), "", *about])


def _interval(values: dict[str, float], digits: int) -> str:
    return f"{values['mean']:.{digits}f} [{values['low']:.{digits}f}, {values['high']:.{digits}f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
