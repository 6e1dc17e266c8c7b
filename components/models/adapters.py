"""LoRA in few operations: PEFT's arithmetic without its copies."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


def fuse(model: nn.Module) -> None:
    """Has the plain LoRA layers of a PEFT model compute in the type of their frozen weights, keeping their input once.

    PEFT turns each layer's input into float32 for the adapter's weights and autocast turns it back, and each layer keeps a copy
    of its own. Layers with dropout, variants of LoRA, several adapters or quantised weights stay as they are.
    """
    from peft.tuners.lora import Linear

    for module in model.modules():
        if type(module) is Linear and _plain(module):
            module.forward = types.MethodType(_forward, module)  # type: ignore[method-assign]


def _plain(layer: Any) -> bool:
    weight = layer.base_layer.weight
    return bool(
        layer.active_adapters == ["default"]
        and not layer.merged
        and not layer.lora_variant
        and isinstance(layer.lora_dropout["default"], torch.nn.Identity)
        and not layer.lora_bias["default"]
        and not weight.requires_grad
        and weight.is_floating_point()
    )


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if self.disable_adapters or self.merged or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    a, b = self.lora_A["default"].weight, self.lora_B["default"].weight
    base = self.base_layer
    result: torch.Tensor = _Lora.apply(x, base.weight, base.bias, a, b, self.scaling["default"])
    return result


class _Lora(torch.autograd.Function):
    """y = x W^T + c + s (x A^T) B^T, with W and c frozen (Hu et al. 2021, arXiv 2106.09685).

    x: (..., inputs), W: (outputs, inputs), A: (r, inputs), B: (outputs, r).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows = x.to(weight.dtype).flatten(0, -2)
        a, b = a.to(weight.dtype), (scale * b).to(weight.dtype)
        hidden = rows @ a.T
        y = torch.nn.functional.linear(rows, weight, bias).addmm_(hidden, b.T)
        ctx.save_for_backward(rows, hidden, weight, a, b)
        ctx.scale, ctx.dtype = scale, x.dtype
        return y.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, hidden, weight, a, b = ctx.saved_tensors
        dy = gradients[0].flatten(0, -2)
        d_hidden = dy @ b
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(d_hidden, a).unflatten(0, gradients[0].shape[:-1]).to(ctx.dtype)
        # In float32, as the adapter's weights are.
        return dx, None, None, (d_hidden.T @ rows).float(), ctx.scale * (dy.T @ hidden).float(), None
