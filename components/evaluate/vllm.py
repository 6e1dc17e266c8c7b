"""Stories by vLLM, where it is installed and there is a GPU: the same contract as `slots`.

Written against vLLM's documented interface (`LLM`, `SamplingParams`, `TokensPrompt`, `LoRARequest`); no test runs it, for want
of a GPU.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from components.evaluate.params import Params
from components.evaluate.slots import Progress, Request, Told
from components.models.params import Params as Models
from components.models.resolve import resolve, trusted


def usable(models: Models) -> bool:
    """Whether vLLM can be used for a model."""
    return importlib.util.find_spec("vllm") is not None and torch.cuda.is_available() and models.precision != "nf4"


class Vllm:
    """The model, with its adapter unmerged, as `slots.Slots` has it."""

    def __init__(self, models: Models, adapter: Path | None, ends: Sequence[int], params: Params) -> None:
        from vllm import LLM  # type: ignore[import-not-found, unused-ignore]
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found, unused-ignore]

        lora: dict[str, Any] = {}
        self._adapter = None
        if adapter is not None:
            rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
            lora = {"enable_lora": True, "max_lora_rank": max(8, rank)}
            self._adapter = LoRARequest("adapter", 1, str(adapter.resolve()))
        self._model = LLM(
            model=str(resolve(models.language)),
            tokenizer=str(resolve(models.tokenizer or models.language)),
            dtype=models.precision,
            trust_remote_code=trusted(models.language, models.remote_code),
            # Not the checkpoint's own defaults of sampling.
            generation_config="vllm",
            seed=params.seed,
            **lora,
        )
        self._ends, self._params = list(ends), params

    def write(self, requests: Sequence[Request], progress: Progress) -> Iterator[Told]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt  # type: ignore[import-not-found, unused-ignore]

        params = self._params
        sampling = [
            SamplingParams(
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k or -1,
                min_p=params.min_p,
                repetition_penalty=params.repetition_penalty,
                max_tokens=request.room,
                # A signed number of 64 bits there.
                seed=request.seed % 2**63,
                stop_token_ids=self._ends,
                detokenize=False,
            )
            for request in requests
        ]
        prompts = [TokensPrompt(prompt_token_ids=list(request.ids)) for request in requests]
        for request, result in zip(requests, self._model.generate(prompts, sampling, lora_request=self._adapter), strict=True):
            (story,) = result.outputs
            tokens = list(story.token_ids)
            ended = story.finish_reason == "stop"
            if tokens and tokens[-1] in self._ends:
                tokens.pop()
            progress(len(tokens))
            yield Told(request, tokens, ended)
