"""What the language model computes in where the parameters leave it to the hardware."""

from __future__ import annotations

import pytest
import torch

from components.models import params
from components.models.params import Params
from components.train import nodes
from components.train.__main__ import settled

JOB = '{"nodes": 2, "runtime": "torch", "resources": {}, "gpu": "%s", "hours": 1, "shared_memory": "1Gi", "volumes": {}}'


@pytest.fixture(params=[True, False])
def has(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this machine computes in bfloat16 itself: as if it did, and as if not."""
    units = {"avx2": True, "avx512_bf16": request.param}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    monkeypatch.setattr(params, "has_bfloat16", params.has_bfloat16.__wrapped__)
    return bool(request.param)


def test_auto_is_what_the_cpu_has(has: bool) -> None:
    assert Params().dtype == "auto"
    assert Params().precision == Params().settled().dtype == ("bfloat16" if has else "float32")


def test_a_gpu_counts_before_the_cpu(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: not has)
    assert params.has_bfloat16() is not has


@pytest.mark.usefixtures("has")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "nf4"])
def test_what_is_given_stays(dtype: str) -> None:
    models = Params.model_validate({"dtype": dtype})
    assert models.settled() == models and models.precision == dtype


@pytest.mark.parametrize("gpu", ["nvidia.com/gpu", ""])
def test_many_nodes_have_gpus_of_their_own(has: bool, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the job is started from has none."""
    monkeypatch.setenv(nodes.SETTINGS, JOB % gpu)
    assert settled(Params()).dtype == ("bfloat16" if has or gpu else "float32")
    assert settled(Params(dtype="float32")).dtype == "float32"
