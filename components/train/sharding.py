"""FSDP2: the processes of a training share the frozen weights, and each holds the whole adapter."""

from __future__ import annotations

from typing import Any

import torch


def shard(model: Any, device: torch.device) -> None:
    """Shards the frozen weights of a PEFT model over all processes, layer by layer, onto their devices.

    A layer's weights are whole only while it computes. The adapter is small, and stays whole on every process, as do its
    gradients and its optimiser's state: a checkpoint is that of one process. (Accelerate shards adapters too, and leaves models
    on CPUs alone, so that it could not be tested without GPUs; torch itself shards there as well.)

    The outermost of its modules holds the embeddings, the last norm and the output head: they stay whole from the first forward
    pass on, as the head is read outside of its own forward pass.
    """
    from torch.distributed.fsdp import fully_shard

    adapter = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for parameter in adapter:
        parameter.data = parameter.data.to(device)
    for layer in model.get_base_model().get_decoder().layers:
        fully_shard(layer, ignored_params=adapter)
    fully_shard(model, ignored_params=adapter, reshard_after_forward=False)
