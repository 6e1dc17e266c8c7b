"""Two versions beside each other: what was measured of them, and what they wrote for the same prompts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.champion.comparison import DifferentSetsError, differences, measured, own, sides
from components.champion.tables import aligned, beside, plain, spread, wrapped
from components.champion.versions import Version
from components.pages import page

# Metrics that come first, with their digits; the others follow.
_FIRST = {"reward": 3, "semantic_diversity": 3, "style_diversity": 3, "words": 0}


def compare(one: Version, other: Version) -> dict[str, Any]:
    """All that can be said of two versions, as JSON.

    Returns:
        `versions`: who they are; `metrics`: metric -> {one, other, difference}, each {mean, low, high}, the difference paired
        by prompt and None where the two were measured on different evaluation sets, which `apart` then says; `stories`:
        [{prompt, one: [...], other: [...]}] for the prompts that both evaluations keep.
    """
    apart = ""
    paired: Mapping[str, Any] = {}
    try:
        a, b = sides(one, other)
        paired = differences(a, b)
    except DifferentSetsError as error:
        a, b = own(one), own(other)
        apart = str(error)
    means_a, means_b = measured(a), measured(b)
    names = [*_FIRST, *(name for name in means_a if name not in _FIRST)]
    metrics = {
        name: {"one": means_a[name], "other": means_b[name], "difference": paired.get(name)}
        for name in names
        if name in means_a and name in means_b
    }
    told_a, told_b = a.stories(), b.stories()
    stories = [
        {"prompt": told_a[prompt][0], "one": told_a[prompt][1], "other": told_b[prompt][1]}
        for prompt in told_a
        if prompt in told_b
    ]
    return {"versions": {"one": _who(one), "other": _who(other)}, "metrics": metrics, "apart": apart, "stories": stories}


def _who(version: Version) -> dict[str, str]:
    record = version.record
    return {
        "name": version.name,
        "short": version.short,
        "base_model": record["base_model"]["language"],
        "trained_by": record["trained_by"],
        "status": version.tags["validation_status"],
        "commit": record["code"]["commit"],
    }


def as_text(found: Mapping[str, Any], prompts: int) -> str:
    """The comparison for a terminal, with the stories for the first `prompts` prompts."""
    one, other = found["versions"]["one"], found["versions"]["other"]
    rows = [["", one["short"], other["short"], "difference, paired by prompt"]]
    for name, values in found["metrics"].items():
        digits = _FIRST.get(name, 3)
        difference = spread(values["difference"], digits, "+") if values["difference"] else "-"
        rows.append([name.replace("_", " "), spread(values["one"], digits), spread(values["other"], digits), difference])
    lines = [aligned(rows), ""]
    if found["apart"]:
        lines += [plain(found["apart"]), ""]
    width = max(30, (shutil.get_terminal_size((120, 24)).columns - 3) // 2)
    for item in found["stories"][:prompts]:
        lines += ["=" * (2 * width + 3), *wrapped(item["prompt"], 2 * width + 3), ""]
        lines += beside([one["short"]], [other["short"]], width)
        for left, right in zip(item["one"], item["other"], strict=False):
            lines += ["-" * (2 * width + 3), *beside(wrapped(left, width), wrapped(right, width), width)]
        lines.append("")
    if not found["stories"]:
        lines.append("Their evaluations keep no stories for the same prompts.")
    return "\n".join(lines)


def as_html(found: Mapping[str, Any]) -> str:
    """The comparison as a page that needs nothing but itself, with all stories that there are."""
    return page(Path(__file__).parent / "side_by_side.html.j2", {"found": found, "digits": _FIRST}, {"spread": spread})
