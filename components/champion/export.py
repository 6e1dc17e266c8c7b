"""A version as a folder that others load: the adapter as it is, or merged into its base model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.champion.base import Identity, identity, models
from components.champion.versions import ADDED, Version

if TYPE_CHECKING:
    import torch

# Of a training's files, those that say nothing once the adapter is merged.
_OF_THE_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "training.json")


def adapter(version: Version, folder: Path) -> list[str]:
    """Copies the version as it was registered; returns what to say of it."""
    shutil.copytree(version.folder, folder)
    return [f"base model: {version.record['base_model']['language']}"]


def merged(version: Version, folder: Path, *, dtype: str | None, remote_code: Collection[str]) -> list[str]:
    """Writes base model and adapter as one: safetensors, tokenizer, card and the base model's terms.

    The sum is made in float32 and rounded once. In bfloat16 that loses what is smaller than 1/256 of a weight, which is much
    of what preference training changes; how much is measured and said.

    Returns:
        What to say of it.
    """
    import torch

    from components.models.language import load_model

    wanted = models(version, remote_code)
    kept = dtype or wanted.dtype
    model: Any = load_model(wanted.model_copy(update={"dtype": "float32"}), version.folder, device="cpu")
    number = torch.float32 if kept == "float32" else torch.bfloat16
    lost = _lost(model, number)
    whole = model.merge_and_unload(safe_merge=True).to(number)
    folder.mkdir()
    whole.save_pretrained(folder)
    for file in version.folder.iterdir():
        if file.name not in (*ADDED, *_OF_THE_ADAPTER) and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)
    base = identity(version.record["base_model"]["language"])
    for terms in base.terms:
        shutil.copy(terms, folder / terms.name)
    shutil.copy(version.folder / "record.json", folder / "record.json")
    notes = [*base.lines(), f"weights in {kept}: rounding moves them by {lost:.1%} of what the adapter changes"]
    if lost > 0.1:
        notes.append("for the model as it was evaluated, use --dtype float32, or serve the adapter (vLLM: --enable-lora)")
    (folder / "README.md").write_text(_card(version, base, notes), encoding="utf-8")
    if (version.folder / "plane.png").is_file():
        shutil.copy(version.folder / "plane.png", folder / "plane.png")
    return notes


def _lost(model: Any, dtype: torch.dtype) -> float:
    """Size of the error of rounding the merged weights, relative to the size of the change that is merged (L2 norms)."""
    import torch

    error = change = 0.0
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "get_delta_weight"):
                delta = module.get_delta_weight("default")
                exact = module.get_base_layer().weight + delta
                error += float((exact.to(dtype).float() - exact).square().sum())
                change += float(delta.square().sum())
    return float((error / change) ** 0.5) if change else 0.0


def _card(version: Version, base: Identity, notes: list[str]) -> str:
    licence = f"license: other\nlicense_name: {json.dumps(base.licence)}\n" if base.licence else ""
    # JSON's strings are YAML's.
    head = f"---\nbase_model: {json.dumps(base.name)}\nlibrary_name: transformers\npipeline_tag: text-generation\n{licence}---"
    _, _, card = (version.folder / "README.md").read_text(encoding="utf-8").partition("\n\n")
    about = "\n".join(f"- {note}" for note in notes)
    return (
        f"{head}\n\n# {version.name}, merged\n\nThe adapter described below, merged into its base model.\n\n{about}\n\n{card}"
    )
