"""The model card: Markdown from the record of a version."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from components.params import SECTIONS
from components.register.gate import Check
from components.register.record import UNKNOWN, Record, status

PLANE = "plane.png"
# Metrics of the evaluation in the order of the card's table of all systems.
_COLUMNS = ("reward", "semantic_diversity", "style_diversity", "words")
# Metrics of the reward model that tell whether to trust it.
_AGREEMENT = (
    "spearman",
    "pair_accuracy",
    "pair_accuracy_of_length",
    "pair_accuracy_gain",
    "pair_accuracy_gain_error",
    "length_correlation",
    "mae",
)
_CHECKS = ("validate-responses", "validate-weights")


def render(record: Record, *, plane: bool = True) -> str:
    """The card, with the hub's metadata block.

    Args:
        plane: whether the picture of the plane lies beside the card.
    """
    base, system = _code(record["base_model"]["language"]), _code(record["system"])
    parameters, metrics = record["parameters"], record["metrics"]
    measured = record["measured"]
    sections = [
        _front_matter(record["base_model"]["language"]),
        f"# {record['name']} ({_text(record['system'])})",
        f"A LoRA adapter of {base}, post-trained to write stories that are good and different each time "
        "(Diversified DPO, Chung et al. 2025, arXiv 2503.17126).",
        *_warnings(record),
        "## Gate",
        verdict(record),
        "## Measured",
        _systems(measured),
        f"{measured['prompts']} test prompts, {measured['samples']} samples each; 95 % bootstrap intervals over prompts. "
        "`gold` are the people's stories.",
        f"All that was measured of {system}:",
        _metrics(measured, record["system"]),
        *([f"![Reward against diversity, with intervals]({PLANE})"] if plane else []),
        "## Data",
        _table(["what", "value"], _sources(parameters.get("ingest", {}))),
        _numbers({step: metrics[step] for step in ("ingest", *_CHECKS) if step in metrics}, "metric"),
        "## Weights",
        _numbers({"weight": metrics.get("weight", {})}, "metric"),
        "## Reward model",
        "How well it agrees with the votes of prompts that it was not trained on.",
        _numbers(
            {"train-reward": {key: value for key, value in metrics.get("train-reward", {}).items() if key in _AGREEMENT}},
            "metric",
        ),
        "## Recipe",
        _table(["parameter", "value", "of the steps"], _recipe(parameters)),
        "## Lineage",
        _lineage(record),
        "## Limits",
        "The reward model measures what the voters of the training data liked, no more. Diversity is measured by two "
        "embedders, and short texts score higher. The stories that trained this model are people's, with their biases. "
        f"The licence of {base} holds for what is made with it.",
        "## Use",
        "```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, folder)\n```",
        f"where `base` is {base} as Transformers loads it, and `folder` this one.",
    ]
    return "\n\n".join(sections) + "\n"


def verdict(record: Record) -> str:
    """What the gate found when the version was registered."""
    found = record["verdict"]
    state = "passed" if found["passed"] else "did not pass"
    lines = [f"Against {_code(found['baseline'])}, by the 95 % intervals of paired differences, it **{state}**.", ""]
    lines += [f"- {Check(**check)}" for check in found["checks"]]
    return "\n".join(lines)


def page(record: Record, version: str) -> str:
    """The card as a page of Kubeflow's, which has no picture beside it and shows no metadata."""
    card = render(record, plane=False).partition("\n\n# ")[2]
    return f"# {record['name']} version {version}: {status(record)}\n\n# {card}"


def _front_matter(base: str) -> str:
    # JSON's strings are YAML's.
    return f"---\nbase_model: {json.dumps(base)}\nlibrary_name: peft\ntags: [dpo, diversity, creative-writing]\n---"


def _warnings(record: Record) -> list[str]:
    code, base = record["code"], record["base_model"]["language"]
    found = [f"**{_text(warning)}**" for warning in record["measured"]["warnings"]]
    if UNKNOWN in code.values():
        found.append(
            "**By which code it was made is not known:** a step ran outside a checkout and without `POLYPHONY_COMMIT`."
        )
    elif code["dirty"] != "false":
        found.append("**The code that made it is not that of its commit:** a step ran with changes that were not committed.")
    if "/" in base and not base.startswith(("/", ".", "~")) and "@" not in base:
        found.append(f"**{_code(base)} names no revision:** what the hub has under that name may change.")
    return found


def _sources(ingest: Mapping[str, str]) -> list[Sequence[str]]:
    chosen = {
        "ingest.source": "source",
        "ingest.test_share": "share of prompts kept for the test",
        "ingest.seed": "seed of the split",
    }
    return [[heading, _text(ingest[key])] for key, heading in chosen.items() if key in ingest]


def _recipe(parameters: Mapping[str, Mapping[str, str]]) -> list[Sequence[str]]:
    """Every parameter once, without what libraries log beside them; where steps were given different values, each value."""
    steps: dict[tuple[str, str], list[str]] = {}
    for step, given in parameters.items():
        for key, value in given.items():
            if key.split(".")[0] in SECTIONS and "." in key:
                steps.setdefault((key, value), []).append(step)
    keys = [key for key, _ in steps]
    return [
        [_text(key), _text(value), ", ".join(sorted(names)) if keys.count(key) > 1 else "all"]
        for (key, value), names in sorted(steps.items())
    ]


def _systems(measured: Mapping[str, Any]) -> str:
    rows = [[_code(system), *(_interval(values[key]) for key in _COLUMNS)] for system, values in measured["systems"].items()]
    return _table(["system", *(measured["metrics"][key]["title"] for key in _COLUMNS)], rows)


def _metrics(measured: Mapping[str, Any], system: str) -> str:
    values = measured["systems"][system]
    rows = [
        [about["title"], _interval(values[key]), about["better"], f"{about['meaning']} ({about['unit']})"]
        for key, about in measured["metrics"].items()
        if key in values
    ]
    return _table(["metric", "value", "better", "meaning"], rows)


def _interval(values: Mapping[str, float]) -> str:
    return f"{values['mean']:.3f} [{values['low']:.3f}, {values['high']:.3f}]"


def _numbers(runs: Mapping[str, Mapping[str, Any]], what: str) -> str:
    rows = [
        [step, key, _number(value) if isinstance(value, float) else str(value)]
        for step, values in runs.items()
        for key, value in sorted(values.items())
    ]
    return _table(["step", what, "value"], rows)


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else f"{value:.4g}"


def _lineage(record: Record) -> str:
    rows = [
        [
            item["artifact"],
            f"`{digest}`",
            item["step"],
            f"`{item['run_id']}`",
            f"`{item['commit'][:12]}`" + _dirt(item["dirty"]),
        ]
        if item["run_id"]
        else [item["artifact"], f"`{digest}`", "the raw data", "", ""]
        for digest, item in record["lineage"].items()
    ]
    return _table(["artifact", "digest (MD5, as DVC's)", "made by", "MLflow run", "commit"], rows)


def _dirt(dirty: str) -> str:
    return " (dirty)" if dirty == "true" else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _text(value: str) -> str:
    """A value as text on one line, whatever it holds: a card is read in viewers that know Markdown, and some HTML."""
    return re.sub(r"[\\`\[\]]", r"\\\g<0>", " ".join(value.split())).replace("&", "&amp;").replace("<", "&lt;")


def _code(value: str) -> str:
    """A value as code, in which nothing but a backtick means anything."""
    return f"`{' '.join(value.split()).replace('`', chr(39))}`"
