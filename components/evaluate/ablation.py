"""Evaluations of many trainings, laid beside one another: the paper's ablation figure and its table, for your data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.contracts import MEASUREMENTS, InputError
from components.evaluate.bootstrap import Floats, holm, intervals
from components.evaluate.catalogue import BY_KEY
from components.evaluate.plane import LIGHT
from components.evaluate.stories import GOLD

METRICS = ("reward", "semantic_diversity", "style_diversity")


@dataclass(frozen=True)
class Cell:
    """One system of one experiment: its place in the figure, and where it was measured.

    Attributes:
        method: the line it belongs to, such as ddpo-both.
        at: its place on the horizontal axis, such as the responses per prompt.
        baseline: the method it is compared with, at the same place; empty: with none.
        measurements: the evaluation's measurements.parquet.
        system: its name there.
    """

    method: str
    at: str
    baseline: str
    measurements: Path
    system: str


def measure(cells: Sequence[Cell], seed: int) -> dict[str, Any]:
    """Means with intervals, and differences from the baseline, paired by prompt across experiments.

    p-values are corrected by Holm within each metric, for all differences.

    Returns:
        `cells`: [{method, at, metric -> {mean, low, high}, difference: metric -> {mean, low, high, p, p_adjusted}}]; `gold`:
        metric -> {mean, low, high}, where the first evaluation has it; `prompts`.

    Raises:
        InputError: if an evaluation lacks its system, or the evaluations are of different prompts.
    """
    tables = {path: _by_system(path) for path in {cell.measurements: None for cell in cells}}
    prompts = _same_prompts(tables)
    values = [_values(tables, cell, prompts) for cell in cells]
    place = {(cell.method, cell.at): row for row, cell in enumerate(cells)}
    columns, names = list(values), [(row, -1) for row in range(len(cells))]
    for row, cell in enumerate(cells):
        if cell.baseline and (other := place.get((cell.baseline, cell.at), row)) != row:
            columns.append(values[row] - values[other])
            names.append((row, other))
    gold = tables[cells[0].measurements].get(GOLD)
    if gold:
        columns.append(np.array([[gold.get((p, m), np.nan) for m in METRICS] for p in prompts]))
        names.append((-1, -1))
    found = intervals(np.concatenate(columns, axis=1), seed)
    mean, low, high, p = (part.reshape(len(columns), len(METRICS)) for part in found)
    compared = [i for i, (_, other) in enumerate(names) if other >= 0]
    adjusted = {m: dict(zip(compared, holm(p[compared, m]).tolist(), strict=True)) for m in range(len(METRICS))}
    result: list[dict[str, Any]] = [{"method": cell.method, "at": cell.at} for cell in cells]
    document: dict[str, Any] = {"prompts": len(prompts), "cells": result, "gold": {}}
    for i, (row, other) in enumerate(names):
        for m, metric in enumerate(METRICS):
            entry = {"mean": float(mean[i, m]), "low": float(low[i, m]), "high": float(high[i, m])}
            if other >= 0:
                entry |= {"p": float(p[i, m]), "p_adjusted": adjusted[m][i]}
                result[row].setdefault("difference", {"from": cells[other].method})[metric] = entry
            else:
                (result[row] if row >= 0 else document["gold"])[metric] = entry
    return document


def _by_system(path: Path) -> dict[str, dict[tuple[str, str], float]]:
    systems: dict[str, dict[tuple[str, str], float]] = {}
    for batch in MEASUREMENTS.batches(path):
        for row in batch.to_pylist():
            systems.setdefault(row["system"], {})[row["prompt_id"], row["metric"]] = row["value"]
    return systems


def _same_prompts(tables: Mapping[Path, Mapping[str, Mapping[tuple[str, str], float]]]) -> list[str]:
    of_each = {
        path: sorted({prompt for name, values in systems.items() if name != GOLD for prompt, _ in values})
        for path, systems in tables.items()
    }
    (first, prompts), *rest = of_each.items()
    for path, others in rest:
        if others != prompts:
            raise InputError(
                f"{path}: measured on other prompts than {first}, so they cannot be paired. Evaluate both with the same "
                "evaluate.seed and evaluate.max_prompts, on the same responses."
            )
    return prompts


def _values(tables: Mapping[Path, Mapping[str, Mapping[tuple[str, str], float]]], cell: Cell, prompts: Sequence[str]) -> Floats:
    """(prompts, metrics)."""
    systems = tables[cell.measurements]
    if cell.system not in systems:
        raise InputError(f"{cell.measurements}: no system {cell.system}; it has {', '.join(systems)}.")
    return np.array([[systems[cell.system][prompt, metric] for metric in METRICS] for prompt in prompts])


def table(measured: Mapping[str, Any], axis: str) -> str:
    """The result as a Markdown table; `axis` heads the places."""

    def spread(entry: Mapping[str, float], sign: str = "") -> str:
        return f"{entry['mean']:{sign}.3f} [{entry['low']:{sign}.3f}, {entry['high']:{sign}.3f}]"

    titles = [BY_KEY[metric].title for metric in METRICS]
    head = [axis, "method", *titles, "compared with", *(f"{title}, difference" for title in titles)]
    rows = [head, ["---"] * len(head)]
    for cell in measured["cells"]:
        difference = cell.get("difference")
        row = [
            cell["at"],
            cell["method"],
            *(spread(cell[metric]) for metric in METRICS),
            difference["from"] if difference else "",
        ]
        for metric in METRICS:
            entry = difference[metric] if difference else None
            row.append(f"{spread(entry, '+')}{' *' if entry['p_adjusted'] < 0.05 else ''}" if entry else "")
        rows.append(row)
    if gold := measured["gold"]:
        rows.append(["", "gold", *(spread(gold[metric]) for metric in METRICS), *[""] * (1 + len(METRICS))])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    note = f"{measured['prompts']} prompts; 95 % bootstrap intervals; * p < 0.05 after Holm's correction within a metric."
    return "\n".join([*lines, "", note, ""])


def draw(measured: Mapping[str, Any], axis: str, path: Path) -> None:
    """A panel for each metric: places to the right, a line with its intervals for each method, Gold as a band."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(cell["method"] for cell in measured["cells"]))
    places = list(dict.fromkeys(cell["at"] for cell in measured["cells"]))
    figure = Figure(figsize=(4 * len(METRICS), 3.8), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        if gold := measured["gold"]:
            axes.axhspan(gold[metric]["low"], gold[metric]["high"], color=LIGHT[0], alpha=0.15, linewidth=0)
            axes.axhline(gold[metric]["mean"], color=LIGHT[0], linestyle="--", linewidth=1, label=GOLD)
        for n, method in enumerate(methods):
            cells = [cell for cell in measured["cells"] if cell["method"] == method]
            middle = np.array([cell[metric]["mean"] for cell in cells])
            arms = np.array([[c[metric]["mean"] - c[metric]["low"], c[metric]["high"] - c[metric]["mean"]] for c in cells]).T
            # Beside one another, so that intervals can be told apart.
            x = np.array([places.index(cell["at"]) for cell in cells]) + 0.08 * (n - (len(methods) - 1) / 2)
            colour = LIGHT[1 + n % (len(LIGHT) - 1)]
            axes.errorbar(
                x, middle, yerr=np.maximum(arms, 0), marker="o", markersize=4, linewidth=1.2, color=colour, label=method
            )
        axes.set_xticks(range(len(places)), places)
        axes.set_xlabel(axis)
        axes.set_title(BY_KEY[metric].title, fontsize=11)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods) + 1, frameon=False
    )
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
