"""The arithmetic of tokens a second and of the share of a GPU's peak."""

from __future__ import annotations

import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from components.train.throughput import Meter, Shape, peak, shape_of

CONFIG = LlamaConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def test_shape() -> None:
    model = get_peft_model(LlamaForCausalLM(CONFIG), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    layer = 16 * 16 * 2 + 16 * 8 * 2 + 16 * 24 * 3
    assert shape_of(model) == Shape(
        frozen=3 * layer, trained=3 * (2 * (16 + 16) + 2 * (16 + 8)), head=16 * 50, attention=3 * 16
    )


def test_flops_as_torch_counts_them() -> None:
    """Of a plain forward and backward pass in which all of the decoder is trained; torch counts attention without the mask."""
    from torch.utils.flop_counter import FlopCounterMode

    model = LlamaForCausalLM(CONFIG)
    model.set_attn_implementation("eager")
    ids = torch.arange(40)[None]
    with FlopCounterMode(display=False) as counter:
        model.model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
    shape = shape_of(model)
    attention = 6 * shape.attention * 40**2
    # The first layer's inputs need no gradient past the embeddings, which need one themselves here.
    assert counter.get_total_flops() == pytest.approx(shape.flops(40, 0, 0) + 2 * attention, rel=0.01)
    assert shape.flops(40, 0, 40**2) - shape.flops(40, 0, 0) == attention
    assert shape.flops(40, 7, 0) - shape.flops(40, 0, 0) == 4 * 16 * 50 * 7


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
    ],
)
def test_peaks(device: str, tera: float) -> None:
    assert peak(device) == tera * 1e12


def test_unknown_devices_have_no_peak() -> None:
    assert peak("NVIDIA L40") is None


def test_the_meter_reads_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((10.0, 14.0, 15.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    meter = Meter(LlamaForCausalLM(CONFIG))
    meter.add((100, 0, 0))
    meter.add((20, 0, 0))
    assert meter.read(2)["tokens_per_second"] == 30
    meter.add((7, 0, 0))
    assert meter.read(2)["tokens_per_second"] == 7


def test_what_goes_forward_alone_is_not_counted_as_going_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that is not trained, and of sequences too short for attention to count, that is half."""
    now = iter((0.0, 1.0, 2.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    meter = Meter(LlamaForCausalLM(CONFIG).requires_grad_(requires_grad=False))
    meter.add((100, 60, 0))
    whole = meter.read(1)["mfu"]
    meter.add((100, 60, 0), (100, 60, 0))
    assert meter.read(1)["mfu"] == pytest.approx(whole / 2)
