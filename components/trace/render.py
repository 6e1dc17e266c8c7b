"""An ancestry as text for a terminal and as a page that needs nothing else."""

from __future__ import annotations

import html
import json
import textwrap
import time
from collections.abc import Iterator, Mapping
from typing import Any

from components.lineage import RAW
from components.origin import Origin
from components.trace.ancestry import Ancestry, about
from components.trace.parameters import relevant

_WIDTH = 120


def text(ancestry: Ancestry) -> str:
    """The tree, then what each run says, then what is wrong."""
    numbers = _numbers(ancestry)
    lines = [ancestry.label, ""]
    if ancestry.version:
        tags = ancestry.version.tags
        told = [
            f"{name} {tags[key]}" for name, key in (("status", "validation_status"), ("gate", "gate.reasons")) if key in tags
        ]
        lines[1:1] = [f"  {line}" for line in told]
    shown: set[tuple[str, str]] = set()
    for root in _roots(ancestry):
        lines += [*_branch(root, numbers, shown), ""]
    lines.append("Runs")
    packages: dict[str, int] = {}
    for number, origin in enumerate(ancestry.runs().values(), 1):
        lines += _run(number, origin, packages)
    if problems := ancestry.problems():
        lines += ["", f"{len(problems)} problem(s):", *(f"  {problem}" for problem in problems)]
    return "\n".join(lines)


def _roots(ancestry: Ancestry) -> list[Origin]:
    if ancestry.registration:
        return [ancestry.registration]
    return [ancestry.model, *([ancestry.evaluation] if ancestry.evaluation else [])]


def _numbers(ancestry: Ancestry) -> dict[str, int]:
    return {run_id: number for number, run_id in enumerate(ancestry.runs(), 1)}


def _branch(
    origin: Origin, numbers: Mapping[str, int], shown: set[tuple[str, str]], indent: str = "", mark: str = ""
) -> Iterator[str]:
    key = (origin.digest, origin.run_id)
    line = f"{indent}{mark}{origin.name} {origin.digest}".rstrip()
    if key in shown:
        yield f"{line} (above)" if origin.inputs else f"{line}{_made(origin, numbers)}"
        return
    shown.add(key)
    yield line + _made(origin, numbers)
    if mark:
        indent += "   " if mark == "└─ " else "│  "
    for index, source in enumerate(origin.inputs, 1):
        yield from _branch(source, numbers, shown, indent, "└─ " if index == len(origin.inputs) else "├─ ")


def _made(origin: Origin, numbers: Mapping[str, int]) -> str:
    if origin.gap:
        return "  << UNKNOWN ORIGIN"
    if origin.name == RAW:
        return "  << raw data"
    return f"  << {origin.step} [{numbers[origin.run_id]}] {_commit(origin)}"


def _commit(origin: Origin) -> str:
    if origin.commit == "unknown":
        return "UNKNOWN COMMIT"
    return f"commit {origin.commit[:12]}" + ("" if origin.dirty == "false" else " DIRTY")


def _run(number: int, origin: Origin, told: dict[str, int]) -> Iterator[str]:
    """What a run says; `told` are the lists of packages that earlier runs have shown, and which run did."""
    yield f"  [{number}] {origin.step}  {_commit(origin)}"
    for name, value in _facts(origin).items():
        if name == "packages" and told.setdefault(value, number) != number:
            value = f"as in [{told[value]}]"
        yield from textwrap.wrap(
            f"{name}: {value}",
            _WIDTH,
            initial_indent=" " * 6,
            subsequent_indent=" " * 8,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _facts(origin: Origin) -> dict[str, str]:
    """What a run says of itself, as people read it."""
    found = about(origin)
    engine = " ".join(part for part in (found["engine"], found["engine_run"]) if part)
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found["started"] / 1000))
    facts = {
        "run": f"{origin.run_id}, started {started}",
        "engine": engine or "not recorded",
        "DVC stage": found["dvc_stage"],
        "image": found["image"] or ("none" if engine else "not recorded"),
        "packages": ", ".join(f"{name} {version}" for name, version in found["packages"].items()) or "not recorded",
        "parameters": "  ".join(f"{name}={_shown(value)}" for name, value in sorted(relevant(origin).items())),
    }
    return {name: value for name, value in facts.items() if value}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


_STYLE = """
:root { color-scheme: light dark; --faint: #666; --line: #ccc; --bad: #b00020; --box: #f6f6f6 }
@media (prefers-color-scheme: dark) { :root { --faint: #aaa; --line: #444; --bad: #ff8a80; --box: #1e1e1e } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
ul { list-style: none; margin: 0; padding-left: .9rem; border-left: 1px solid var(--line) }
body > ul { border: 0; padding: 0 }
summary { cursor: pointer } li { margin: .3rem 0 }
code { font-size: .85em } .faint { color: var(--faint); font-size: .9em }
.bad { color: var(--bad); font-weight: 600 } .problems { border: 1px solid var(--bad); border-radius: 6px; padding: .6rem 1rem }
dl { background: var(--box); border-radius: 6px; margin: .3rem 0; padding: .5rem .8rem } dd { margin: 0 0 .3rem }
dt { color: var(--faint); font-size: .85em }
"""


def page(ancestry: Ancestry) -> str:
    """The same as a page; everything that others wrote is escaped."""
    problems = ancestry.problems()
    shown: set[tuple[str, str]] = set()
    title = _escape(ancestry.label)
    head = (
        f"<!doctype html>\n<html lang='en'>\n<head><meta charset='utf-8'><title>Where {title} comes from</title>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"
    )
    version = _list(ancestry.version.tags) if ancestry.version else ""
    told = "".join(f"<li>{_escape(problem)}</li>" for problem in problems)
    trouble = f"<section class='problems'><h2 class='bad'>{len(problems)} problem(s)</h2><ul>{told}</ul></section>\n"
    trees = "".join(_node(root, shown) for root in _roots(ancestry))
    details = f"<details><summary>Tags of the version</summary>{version}</details>\n" if version else ""
    return f"{head}{trouble if problems else ''}{details}<ul>{trees}</ul>\n</body>\n</html>\n"


def _node(origin: Origin, shown: set[tuple[str, str]]) -> str:
    key = (origin.digest, origin.run_id)
    name = f"<b>{_escape(origin.name)}</b> <code>{_escape(origin.digest)}</code>"
    if origin.gap:
        return f"<li>{name} <span class='bad'>unknown origin</span><div class='faint'>{_escape(origin.gap)}</div></li>\n"
    if origin.name == RAW:
        return f"<li>{name} <span class='faint'>raw data</span></li>\n"
    bad = " class='bad'" if origin.dirty != "false" else ""
    made = f"<span class='faint'>by {_escape(origin.step)}</span> <span{bad}>{_escape(_commit(origin))}</span>"
    if key in shown:
        return f"<li>{name} {made} <span class='faint'>(shown above)</span></li>\n"
    shown.add(key)
    inputs = "".join(_node(source, shown) for source in origin.inputs)
    run = f"<details><summary class='faint'>run of {_escape(origin.step)}</summary>{_list(_facts(origin))}</details>"
    return f"<li><details open><summary>{name} {made}</summary>{run}<ul>{inputs}</ul></details></li>\n"


def _list(values: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{_escape(key)}</dt><dd>{_escape(value)}</dd>" for key, value in values.items()) + "</dl>"


def _escape(value: str) -> str:
    return html.escape(value, quote=True)
