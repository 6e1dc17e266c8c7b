"""`polyphony`: the one command for people. It only calls the rooms and reads what they wrote."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines import ancestry, command, presets, study
from pipelines.platform import command as platform

# Metrics of the table, with their headings and digits.
_COLUMNS = (
    ("reward", "reward", 3),
    ("semantic_diversity", "semantic diversity", 3),
    ("style_diversity", "style diversity", 3),
    ("words", "words", 0),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="polyphony", description="Diversified DPO: what the pipeline has made.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    results = commands.add_parser("results", help="the last run's table, the registered version, and what to open next")
    results.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR")
    results.set_defaults(main=_results)
    # Each module adds its commands, and to each what runs it (`main`); heavy imports wait until one runs.
    for module in (command, presets, study, platform, ancestry):
        module.add_to(commands)
    arguments = parser.parse_args(argv)
    return arguments.main(arguments)


def _results(arguments: argparse.Namespace) -> int:
    artifacts: Path = arguments.artifacts
    metrics, version = artifacts / "evaluation" / "metrics.json", artifacts / "version.json"
    for path in (metrics, version):
        if not path.is_file():
            print(f"{path}: nothing there yet. `make demo` or `dvc repro` writes it.", file=sys.stderr)
            return 1
    measured = json.loads(metrics.read_text(encoding="utf-8"))
    registered = json.loads(version.read_text(encoding="utf-8"))
    print()
    print(results_table(measured))
    print(f"\n{measured['prompts']} test prompts x {measured['samples']} samples; 95 % bootstrap intervals over prompts.\n")
    print(f"Registered: {registered['name']} version {registered['version']}, {registered['status']}")
    for reason in registered["reasons"].split("; "):
        print(f"  {reason}")
    print(f"\nOpen next:\n  report     {artifacts / 'evaluation' / 'report.html'}")
    print(f"  weights    {artifacts / 'weight_report' / 'report.html'}")
    print("  runs and models: `make mlflow`, then http://127.0.0.1:5000")
    return 0


def results_table(measured: dict[str, Any]) -> str:
    """The systems and their metrics with intervals, as aligned text."""
    rows = [["system", *(heading for _, heading, _ in _COLUMNS)]]
    for system, metrics in measured["systems"].items():
        cells = [
            f"{metrics[key]['mean']:.{digits}f} [{metrics[key]['low']:.{digits}f}, {metrics[key]['high']:.{digits}f}]"
            for key, _, digits in _COLUMNS
        ]
        rows.append([system, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
