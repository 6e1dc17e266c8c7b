"""Adapters and a reward model on the tiny model, made on the fly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from components.models.language import load_model
from components.models.params import Params as Models
from components.models.reward import load_base

QUALITY = {"spearman": 0.31, "pair_accuracy": 0.64, "pair_accuracy_of_length": None, "mae": 0.4, "length_correlation": -0.2}


@pytest.fixture(scope="session")
def models(tiny_model: Path) -> Models:
    return Models(language=str(tiny_model), reward=str(tiny_model), semantic="stylometric", style="stylometric")


@pytest.fixture(scope="session")
def adapters(models: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters with different random weights, as the train step leaves them."""
    from peft import LoraConfig, get_peft_model

    folders = {}
    for seed, name in enumerate(("dpo", "ddpo")):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        folders[name] = tmp_path_factory.mktemp(name) / "model"
        get_peft_model(load_model(models), config).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def reward(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter and a head with random weights, and a record of their training."""
    from peft import LoraConfig, TaskType, get_peft_model

    folder = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(7)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=["q_proj"], modules_to_save=["score"])
    get_peft_model(load_base(models).model, config).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"objective": "reward", "metrics": QUALITY}), encoding="utf-8")
    return folder
