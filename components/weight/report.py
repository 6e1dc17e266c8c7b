"""The weight report: what the weights do to the data, in numbers, pictures and examples."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.weight.deviation import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Points of the scatter plot at most.
_POINTS = 5000
_STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 Georgia,serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1,h2{font-weight:normal}table{border-collapse:collapse}td,th{padding:.2rem 1rem .2rem 0;text-align:left}
td:last-child{font-variant-numeric:tabular-nums}img{max-width:100%;background:#fff}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:1.5rem}p{white-space:pre-wrap}
small{opacity:.7}
"""


@dataclass(frozen=True)
class Example:
    """The most and the least deviant response of a prompt."""

    prompt: str
    most: str
    most_weight: float
    least: str
    least_weight: float


@dataclass
class Collected:
    """What the report is about, gathered prompt chunk by prompt chunk."""

    semantic: list[Floats] = field(default_factory=list)
    style: list[Floats] = field(default_factory=list)
    weights: list[Floats] = field(default_factory=list)
    winner_weights: list[Floats] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)


def write(folder: Path, collected: Collected, metrics: Mapping[str, Any], seed: int) -> None:
    """Writes `report.html`, readable offline, and its plots as PNG beside it."""
    folder.mkdir()
    weights = np.concatenate([*collected.weights, np.empty(0)])
    winners = np.concatenate([*collected.winner_weights, np.empty(0)])
    semantic = np.concatenate([*collected.semantic, np.empty(0)])
    style = np.concatenate([*collected.style, np.empty(0)])
    plots = {"weights": _histogram(weights, winners), "distances": _scatter(semantic, style, weights, seed)}
    for name, figure in plots.items():
        # Without the software's version, so that the same data give the same bytes.
        figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
    encoded = {name: base64.b64encode((folder / f"{name}.png").read_bytes()).decode() for name in plots}
    pictures = [f'<img alt="{name}" src="data:image/png;base64,{data}">' for name, data in encoded.items()]
    rows = "".join(f"<tr><td>{html.escape(key)}</td><td>{value:g}</td></tr>" for key, value in _flat(metrics))
    (folder / "report.html").write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Deviation weights</title><style>{_STYLE}</style><h1>Deviation weights</h1>"
        "<p>Training multiplies the loss of a pair by its winner's weight: 0 leaves it out, 1 is plain DPO, more asks the "
        "model to remember what few others wrote.</p>"
        f"<table>{rows}</table>{''.join(pictures)}<h2>Most and least deviant</h2>{_examples(collected.examples)}</html>\n",
        encoding="utf-8",
    )


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    rows: list[tuple[str, float]] = []
    for key, value in metrics.items():
        name = prefix + key.replace("_", " ")
        rows += _flat(value, f"{name}: ") if isinstance(value, Mapping) else [(name, value)]
    return rows


def _examples(examples: Sequence[Example]) -> str:
    def side(label: str, weight: float, text: str) -> str:
        return f"<div><small>{label}, weight {weight:.2f}</small><p>{html.escape(text)}</p></div>"

    return "".join(
        f"<h3>{html.escape(e.prompt)}</h3><div class=pair>{side('most deviant', e.most_weight, e.most)}"
        f"{side('least deviant', e.least_weight, e.least)}</div>"
        for e in examples
    )


def _figure() -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(7, 3.6), layout="constrained")


def _histogram(weights: Floats, winners: Floats) -> Figure:
    figure = _figure()
    axes = figure.subplots()
    edges = np.linspace(0, max(2.0, float(weights.max(initial=0))), 41).tolist()
    axes.hist(weights, edges, density=True, alpha=0.5, label="responses")
    axes.hist(winners, edges, density=True, histtype="step", linewidth=1.5, label="winners of pairs")
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="weight", ylabel="density")
    axes.legend(frameon=False)
    return figure


def _scatter(semantic: Floats, style: Floats, weights: Floats, seed: int) -> Figure:
    figure = _figure()
    axes = figure.subplots()
    chosen = np.arange(len(weights))
    if len(chosen) > _POINTS:
        chosen = np.random.default_rng(seed).choice(chosen, _POINTS, replace=False)
    points = axes.scatter(semantic[chosen], style[chosen], c=weights[chosen], s=8, cmap="viridis")
    axes.set(xlabel="semantic distance to the prompt's others", ylabel="style distance")
    figure.colorbar(points, label="weight")
    return figure
