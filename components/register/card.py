"""The model card: Markdown from what the runs of the lineage recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.lineage import Origin
from components.params import SECTIONS
from components.register.gate import Verdict

# Metrics of the evaluation in the order of the card's table, with their headings.
_COLUMNS = {
    "reward": "reward",
    "semantic_diversity": "semantic diversity",
    "style_diversity": "style diversity",
    "words": "words",
}
# Metrics of the reward model that tell whether to trust it.
_AGREEMENT = ("spearman", "pair_accuracy", "pair_accuracy_of_length", "length_correlation", "mae")


@dataclass(frozen=True)
class Record:
    """What a card tells.

    Attributes:
        measured: the evaluation's `metrics.json`.
        model, evaluation: where the model and its evaluation come from.
        parameters, metrics: what the run of each step of the lineage recorded, by step.
    """

    name: str
    base_model: str
    measured: Mapping[str, Any]
    verdict: Verdict
    model: Origin
    evaluation: Origin
    parameters: Mapping[str, Mapping[str, str]]
    metrics: Mapping[str, Mapping[str, float]]


def render(record: Record) -> str:
    """The card, with the hub's metadata block."""
    verdict = record.verdict
    state = "passed" if verdict.passed else "did not pass"
    sections = [
        _front_matter(record),
        f"# {record.name} ({verdict.candidate})",
        f"A LoRA adapter of `{record.base_model}`, post-trained to write stories that are good and different each time "
        "(Diversified DPO, Chung et al. 2025, arXiv 2503.17126).",
        "## Gate",
        f"Against `{verdict.baseline}`, by the 95 % intervals of paired differences, it **{state}**.",
        "\n".join(f"- {check}" for check in verdict.checks),
        "## Measured",
        _systems(record.measured),
        f"{record.measured['prompts']} test prompts, {record.measured['samples']} samples each; 95 % bootstrap intervals "
        "over prompts. `gold` are the people's stories.",
        "## Data",
        _numbers({step: record.metrics[step] for step in ("ingest", "weight") if step in record.metrics}, "metric"),
        "## Reward model",
        "How well it agrees with the votes of prompts that it was not trained on.",
        _numbers({"train-reward": _agreement(record.metrics.get("train-reward", {}))}, "metric"),
        "## Recipe",
        _numbers({record.model.step: _given(record.parameters[record.model.step])}, "parameter"),
        "## Lineage",
        _lineage(record.evaluation),
        "## Limits",
        "The reward model measures what the voters of the training data liked, no more. Diversity is measured by two "
        "embedders, and short texts score higher. The stories that trained this model are people's, with their biases.",
        "## Use",
        "```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, folder)\n```",
        f"where `base` is `{record.base_model}` as Transformers loads it, and `folder` this one.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(record: Record) -> str:
    # JSON's strings are YAML's.
    return (
        f"---\nbase_model: {json.dumps(record.base_model)}\nlibrary_name: peft\ntags: [dpo, diversity, creative-writing]\n---"
    )


def _given(parameters: Mapping[str, str]) -> dict[str, str]:
    """The step's own parameters, without those that libraries log beside them."""
    return {key: value for key, value in parameters.items() if key.split(".")[0] in SECTIONS and "." in key}


def _agreement(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: metrics[key] for key in _AGREEMENT if key in metrics}


def _systems(evaluation: Mapping[str, Any]) -> str:
    def cell(values: Mapping[str, float]) -> str:
        return f"{values['mean']:.3f} [{values['low']:.3f}, {values['high']:.3f}]"

    rows = [[f"`{system}`", *(cell(metrics[key]) for key in _COLUMNS)] for system, metrics in evaluation["systems"].items()]
    return _table(["system", *_COLUMNS.values()], rows)


def _numbers(runs: Mapping[str, Mapping[str, Any]], what: str) -> str:
    rows = [
        [step, key, _number(value) if isinstance(value, float) else str(value)]
        for step, values in runs.items()
        for key, value in sorted(values.items())
    ]
    return _table(["step", what, "value"], rows)


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else f"{value:.4g}"


def _lineage(origin: Origin) -> str:
    rows = [
        [o.name, f"`{o.digest}`", o.step, f"`{o.run_id}`", f"`{o.commit[:12]}`" + (" (dirty)" if o.dirty == "true" else "")]
        if o.run_id
        else [o.name, f"`{o.digest}`", "the raw data", "", ""]
        for o in origin.walk()
    ]
    return _table(["artifact", "digest (MD5, as DVC's)", "made by", "MLflow run", "commit"], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
