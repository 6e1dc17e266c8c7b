"""The quality-diversity plane: where each system lies, with its intervals. Drawn twice: as SVG in the page, and as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.evaluate.stories import GOLD

DIVERSITIES = {"semantic_diversity": "semantic diversity", "style_diversity": "style diversity"}
# Colours of the systems in turn, for a light and for a dark page; the first of each is that of Gold.
LIGHT = ("#a87900", "#2f6db5", "#c2491d", "#23835e", "#8a4fa3", "#0f7f8a", "#b5386f", "#7d5a2e", "#5f6875")
DARK = ("#f0c24b", "#82b4f2", "#ff9469", "#62cfa2", "#cb9fe3", "#5ac8d4", "#f28cb9", "#d0a878", "#a8b0bd")
# The SVG's user units: size and the margins left, right, top, bottom.
WIDTH, HEIGHT = 460, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 18, 36, 48
_ENDS = {"": "mean", "_low": "low", "_high": "high"}
_LABEL_HEIGHT, _LETTER = 17, 8.2
# The PNG's: letters of names to a row of the legend, and marks for each round of the colours.
_LEGEND, _MARKS = 100, "os^v"


def colours(systems: Sequence[str]) -> dict[str, int]:
    """Number of each system's colour."""
    others = [name for name in systems if name != GOLD]
    return {GOLD: 0} | {name: 1 + i % (len(LIGHT) - 1) for i, name in enumerate(others)}


@dataclass
class Point:
    """A system in user units; `label_y` and `anchor` keep its name clear of other names and of the border."""

    name: str
    colour: int
    title: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True)
class Panel:
    """One plot, in user units; ticks are pairs of a place and its number."""

    heading: str
    points: list[Point]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def panels(systems: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    """One panel for each kind of diversity: diversity to the right, reward upwards."""
    return [_panel(metric, heading, systems) for metric, heading in DIVERSITIES.items()]


def _panel(metric: str, heading: str, systems: Mapping[str, Mapping[str, Any]]) -> Panel:
    x_of, x_ticks = _axis([values[metric] for values in systems.values()], _LEFT, WIDTH - _RIGHT)
    y_of, y_ticks = _axis([values["reward"] for values in systems.values()], HEIGHT - _BOTTOM, _TOP)
    number = colours(list(systems))
    points = []
    for name, values in systems.items():
        x, y = values[metric], values["reward"]
        points.append(
            Point(
                name,
                number[name],
                f"{name}: {heading} {x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}], "
                f"reward {y['mean']:.3f} [{y['low']:.3f}, {y['high']:.3f}]",
                *(round(x_of(x[end]), 1) for end in ("mean", "low", "high")),
                *(round(y_of(y[end]), 1) for end in ("mean", "low", "high")),
            )
        )
    _place_labels(points)
    return Panel(heading, points, x_ticks, y_ticks)


def _axis(intervals: Sequence[Mapping[str, float]], start: float, end: float) -> tuple[Any, list[tuple[float, str]]]:
    """The function from values to places, and the ticks."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(i["low"] for i in intervals), max(i["high"] for i in intervals)
    margin = 0.08 * (high - low) or 0.05
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    ticks = [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    digits = next(d for d in range(12) if d == 11 or abs(round(step, d) - step) < step / 1000)
    return place, [(round(place(tick), 1), f"{tick + 0.0:.{digits}f}".replace("-", "−")) for tick in ticks]


def _place_labels(points: list[Point]) -> None:
    """Right of each point, or left of it near the border; down where another name is in the way."""
    placed: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda p: p.y):
        width = _LETTER * len(point.name)
        point.anchor = "end" if point.x + 12 + width > WIDTH - _RIGHT else "start"
        point.label_x = point.x + (-11 if point.anchor == "end" else 11)
        left = point.label_x - (width if point.anchor == "end" else 0)
        y = point.y - 8
        while any(abs(y - other) < _LABEL_HEIGHT and left < end and left + width > start for start, end, other in placed):
            y += 1
        point.label_y = round(y, 1)
        placed.append((left, left + width, y))


def rows(systems: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The plane as rows, one for each system and kind of diversity: for `dvc plots`, which draws for itself."""
    return [
        {"system": name, "kind": heading}
        | {f"diversity{suffix}": values[metric][end] for suffix, end in _ENDS.items()}
        | {f"reward{suffix}": values["reward"][end] for suffix, end in _ENDS.items()}
        for metric, heading in DIVERSITIES.items()
        for name, values in systems.items()
    ]


def draw(systems: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The same two panels as a PNG on white, for places that show pictures only."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    number = colours(list(systems))
    others = [name for name in systems if name != GOLD]
    for axes, (metric, heading) in zip(figure.subplots(1, 2, sharey=True), DIVERSITIES.items(), strict=True):
        for name, values in systems.items():
            x, y = values[metric], values["reward"]
            axes.errorbar(
                x["mean"],
                y["mean"],
                xerr=_arms(x),
                yerr=_arms(y),
                # Where colours come round again, another mark tells them apart.
                fmt="D" if name == GOLD else _MARKS[others.index(name) // (len(LIGHT) - 1) % len(_MARKS)],
                markersize=7,
                color=LIGHT[number[name]],
                elinewidth=1.2,
                label=name,
            )
        axes.set_xlabel(f"{heading} →")
        axes.locator_params(nbins=6)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("reward →")
    columns = min(len(systems), max(1, _LEGEND // (6 + max(map(len, systems)))))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False)
    # Without the software's version, so that the same numbers give the same bytes.
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _arms(interval: Mapping[str, float]) -> list[list[float]]:
    return [[max(0.0, interval["mean"] - interval["low"])], [max(0.0, interval["high"] - interval["mean"])]]
