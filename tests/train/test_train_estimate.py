"""Estimates against what they estimate: parameters exactly, memory and what a token leaves behind as measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from components.contracts import InputError
from components.models.language import load_model
from components.models.packed import completion_logps, pack, prepare
from components.models.params import Params as Models
from components.models.resolve import resolve
from components.train import outlook
from components.train.estimate import Data, Hardware, Lengths, duration, measure_data, measure_model, memory, seconds
from components.train.outlook import check_room, count_tokens, describe, less_memory, lora, needed, plan_model
from components.train.params import Lora, Optimisation, Params

TARGETS = [("q_proj", "v_proj"), ("all-linear",)]
MACHINE = Hardware("a machine", 10**10, 1e12)


@pytest.mark.parametrize("targets", TARGETS)
def test_parameters_are_exact(tiny_model: Path, targets: tuple[str, ...]) -> None:
    train, models = Params(lora=Lora(r=3, target_modules=targets)), Models(language=str(tiny_model))
    found = plan_model(train, models)
    loaded = get_peft_model(load_model(models), lora(train))
    trained = [p.numel() for p in loaded.parameters() if p.requires_grad]
    assert found.trained == sum(trained)
    assert found.weights == sum(p.numel() for p in loaded.parameters()) - sum(trained)
    assert found == measure_model(loaded)


def test_the_packaged_models_parameters() -> None:
    found = plan_model(Params(), Models())
    assert found.weights == 134_515_008
    # Of rank 16 on q (576 to 576) and v (576 to 192), in 30 layers.
    assert found.trained == 30 * 16 * (2 * 576 + 576 + 192)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("targets", TARGETS)
def test_what_a_token_leaves_behind(targets: tuple[str, ...], dtype: Literal["bfloat16", "float32"]) -> None:
    """Of the real model, as autograd keeps it, within a tenth."""
    train, models, tokens = Params(lora=Lora(target_modules=targets)), Models(dtype=dtype), 128
    model = get_peft_model(load_model(models), lora(train))
    prepare(model)
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mixed = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
        logps = completion_logps(model, pack([([5] * 24, [7] * (tokens // 2 - 24))] * 2))
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert logps.requires_grad
    planned = plan_model(train, models)
    assert planned.kept * planned.layers * tokens == pytest.approx(found, rel=0.1)


TRAINING = """
import resource, sys, torch
from datasets import Dataset
from peft import get_peft_model
from transformers import TrainerCallback
from trl import DPOConfig
from components.models.language import load_model, load_tokenizer
from components.models.params import Params as Models
from components.train.outlook import lora
from components.train.params import Lora, Params
from components.train.trainer import DiversifiedDPOTrainer

length = int(sys.argv[1])
ids = lambda n: torch.randint(3, 40000, (n,)).tolist()
rows = [{"prompt_ids": ids(20), "chosen_ids": ids(length - 20), "rejected_ids": ids(length - 20), "ref_chosen_logps": 0.0,
         "ref_rejected_logps": 0.0, "weight": 1.0} for _ in range(8)]
mixed = Models().precision == "bfloat16"
arguments = DPOConfig("work", use_cpu=True, bf16=mixed, activation_checkpointing=sys.argv[3] == "True", max_steps=2,
                      per_device_train_batch_size=4, report_to=[], save_strategy="no", logging_steps=1)
model = get_peft_model(load_model(Models()), lora(Params(lora=Lora(target_modules=("all-linear",)))))
rows, tokenizer = Dataset.from_list(rows), load_tokenizer(Models())
trainer = DiversifiedDPOTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer,
                                lengths=[2 * length] * 8, tokens_per_pass=int(sys.argv[2]))
trainer.train()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, trainer.state.log_history[-2]["tokens_per_second"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "tokens_per_pass", "checkpointing"),
    [(64, 9999, False), (256, 9999, False), (256, 1024, False), (256, 9999, True)],
)
def test_peak_memory(length: int, tokens_per_pass: int, checkpointing: bool, tmp_path: Path) -> None:
    """Of a real training, within a factor of 1.5."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    call = [sys.executable, "-c", TRAINING, str(length), str(tokens_per_pass), str(checkpointing)]
    done = subprocess.run(call, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = float(done.stdout.split()[-2])
    model = plan_model(Params(lora=Lora(target_modules=("all-linear",))), Models())
    estimate = sum(memory(model, min(8 * length, tokens_per_pass), checkpointing=checkpointing).values())
    assert 1 / 1.5 < estimate / found < 1.5, (estimate, found)


def test_data() -> None:
    """Three pairs and their sums by hand; the largest pass is made of the longest examples."""
    lengths = Lengths(np.array([2, 3, 1]), np.array([[4, 6], [1, 1], [1, 2]]))
    data = measure_data(lengths, 2, 100)
    assert data == Data(3, 27, 15, 36 + 64 + 16 + 16 + 4 + 9, 14, 14 + 8)
    assert measure_data(lengths, 2, 16).largest == 16
    assert measure_data(lengths, 2, 7).largest == 14
    pairs = [
        {"prompt_ids": [1] * p, "chosen_ids": [1] * c, "rejected_ids": [1] * r} for p, c, r in ((2, 4, 6), (3, 1, 1), (1, 1, 2))
    ]
    assert measure_data(count_tokens(Dataset.from_list(pairs)), 2, 100) == data
    stories = Dataset.from_list(
        [{"prompt_ids": [1, 2], "completion_ids": [3]}, {"prompt_ids": [1], "completion_ids": [2, 3, 4]}]
    )
    assert measure_data(count_tokens(stories), 1, 100) == Data(2, 7, 4, 9 + 16, 4, 4)


def test_time_grows_with_what_is_computed(tiny_model: Path) -> None:
    model = plan_model(Params(), Models(language=str(tiny_model)))
    data = Data(10, 1000, 800, 100_000, 100, 300)
    once = seconds(model, data, 1, MACHINE)
    assert seconds(model, data, 3, MACHINE) == pytest.approx(3 * once)
    assert seconds(model, data, 1, MACHINE, processes=4) == pytest.approx(once / 4)
    assert once == pytest.approx(model.shape.flops(1000, 800, 100_000) / (1e12 * 0.4))
    assert 1.2 * once < seconds(model, data, 1, MACHINE, checkpointing=True) < 1.5 * once


def test_memory_grows_with_the_largest_pass_and_not_with_the_data(tiny_model: Path) -> None:
    model = plan_model(Params(), Models(language=str(tiny_model)))
    small, large = memory(model, 1000), memory(model, 2000)
    assert large["activations"] == pytest.approx(2 * small["activations"])
    assert {name for name in small if small[name] != large[name]} == {"activations"}
    assert needed(model, 1000, Params(processes=4, sharding="fsdp2"))["weights"] == small["weights"] / 4
    assert needed(model, 1000, Params(gradient_checkpointing=True))["activations"] < 0.7 * small["activations"]


def test_it_is_said_in_words(tiny_model: Path) -> None:
    model = plan_model(Params(), Models(language=str(tiny_model)))
    data = Data(10, 1000, 800, 100_000, 100, 300)
    said = describe(model, data, Optimisation(epochs=3, batch_size=4), Params(), MACHINE)
    assert said.startswith("10 examples, 1,000 tokens, 3 times, in 9 steps: about 0 s; at most about 0.8 GB a process")
    assert [duration(s) for s in (5, 600, 36_000)] == ["5 s", "10 min", "10.0 h"]


def test_what_to_do_where_memory_is_short() -> None:
    """Smaller passes, down to one example; then checkpointing; then less of everything."""

    def said(largest: int, **settings: Any) -> str:
        return less_memory(Params(**settings), Data(10, 10_000, 8000, 100_000, 1000, largest))

    assert "lower train.tokens_per_pass from 4096 to 1500" in said(3000, tokens_per_pass=4096)
    assert "lower train.tokens_per_pass from 1100 to 1000" in said(1100, tokens_per_pass=1100)
    assert "set train.gradient_checkpointing to true" in said(1000)
    assert "the longest example alone, 1000 tokens" in said(1000, gradient_checkpointing=True)


def test_a_model_that_cannot_fit_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One of 87 billion parameters, of which there is nothing but the settings."""
    config: dict[str, Any] = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": 8192, "intermediate_size": 65536, "num_hidden_layers": 54, "num_attention_heads": 64}
    (tmp_path / "huge").mkdir()
    (tmp_path / "huge" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    models = Models(language=str(tmp_path / "huge"))
    monkeypatch.setattr(outlook, "_memory", lambda: ("a machine", 10**11))
    model = plan_model(Params(), models)
    assert model.weights > 8e10
    with pytest.raises(InputError, match=r"needs \d+\.\d GB a process for its weights alone, and a machine has 100\.0"):
        check_room(model, Params(), models)
    check_room(plan_model(Params(), Models(language=str(tiny_model))), Params(), models)


def test_four_bits(tiny_model: Path) -> None:
    """A quarter of the linear layers, and a little for scales; refused, before anything is loaded, where it cannot be."""
    models = Models(language=str(tiny_model), dtype="nf4")
    few, all_bits = plan_model(Params(), models), plan_model(Params(), models.model_copy(update={"dtype": "bfloat16"}))
    assert all_bits.stored - few.stored == pytest.approx(few.shape.frozen * (2 - 4.127 / 8))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="nf4 needs a GPU"):
            check_room(few, Params(), models)
        with pytest.raises(InputError, match="nf4 needs a GPU"):
            load_model(models)


def test_layers_that_do_not_exist(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="nothing do not fit"):
        plan_model(Params(lora=Lora(target_modules=("nothing",))), Models(language=str(tiny_model)))


def test_this_machine(tiny_model: Path) -> None:
    found = outlook.hardware(plan_model(Params(), Models(language=str(tiny_model))))
    assert found.memory > 2**28 and found.speed > 1e8


def test_a_model_is_not_unpacked_on_the_meta_device(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a packaged one is, the first time."""

    def unpacked(name: str, **options: bool) -> Path:
        assert torch.empty(0).device.type == "cpu"
        return resolve(name, **options)

    monkeypatch.setattr("components.models.language.resolve", unpacked)
    plan_model(Params(), Models(language=str(tiny_model)))
