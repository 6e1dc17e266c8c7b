"""Fused LoRA layers against PEFT's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from components.models.adapters import fuse


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 20, bias=True), nn.Linear(20, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x).tanh())
        return result


def adapted(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["first", "second"], init_lora_weights=False, **options)
    return get_peft_model(Two().to(dtype), config)


def fused(model: Any) -> int:
    fuse(model)
    return sum("forward" in module.__dict__ for module in model.modules())


def outputs(model: Any, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """What the model computes, and the gradients of its input and of the adapter."""
    torch.manual_seed(1)
    x = torch.randn(2, 9, 12).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = model(x)
    wanted = [p for p in model.parameters() if p.requires_grad]
    assert len(wanted) == 4 and all(p.dtype == torch.float32 for p in wanted)
    return [y.detach(), *torch.autograd.grad(y, [x, *wanted], torch.randn(y.shape).to(y.dtype))]


def test_equals_pefts() -> None:
    model = adapted()
    expected = outputs(model)
    assert fused(model) == 2
    for found, wanted in zip(outputs(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        without = outputs_of(model)
    plain = outputs_of(model.unload())
    torch.testing.assert_close(without, plain)


def outputs_of(model: Any) -> torch.Tensor:
    torch.manual_seed(2)
    with torch.no_grad():
        result: torch.Tensor = model(torch.randn(3, 12))
    return result


def test_in_bfloat16_it_rounds_no_worse_than_pefts() -> None:
    exact = outputs(adapted(torch.bfloat16).float())
    model = adapted(torch.bfloat16)
    theirs = outputs(model, torch.bfloat16)
    assert fused(model) == 2
    ours = outputs(model, torch.bfloat16)
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == other.dtype
        assert (mine.float() - true).norm() <= 1.5 * (other.float() - true).norm() < 0.05 * true.norm()


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_stays(options: dict[str, Any]) -> None:
    assert fused(adapted(**options)) == 0
