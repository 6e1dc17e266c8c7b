"""The reward model: any model that Transformers loads for sequence classification, with one output and a LoRA adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from components.contracts import InputError
from components.models.params import Params
from components.models.resolve import resolve, trusted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Names under which Transformers keeps the classification head.
_HEADS = ("classifier", "score")
BATCH = 32


class Scores(NamedTuple):
    """What the model thinks of some responses: (responses,) float64, and how many of the texts had to be cut."""

    values: npt.NDArray[np.float64]
    truncated: int


@dataclass(frozen=True)
class RewardModel:
    """A model with its tokenizer.

    Attributes:
        max_tokens: the longest prompt + response that it can read.
        heads: names of the modules that are to be trained and saved whole: the classification head, and with some
            architectures a pooler or a layer below it that the checkpoint has no weights for.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    heads: tuple[str, ...]

    def encode(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[dict[str, list[int]]], int]:
        """Model inputs of each prompt and response, and the number of texts that had to be cut to fit.

        With a chat template, the conversation; without one, the tokenizer's own form of a pair of texts. The response is
        cut at its end; the prompt only where it alone takes more than half of the room.
        """
        shown = {prompt: self._cut(prompt) for prompt in dict.fromkeys(prompts)}
        encoded, truncated = [], 0
        for prompt, response in zip(prompts, responses, strict=True):
            features, cut = self._encode_one(shown[prompt], response)
            encoded.append(features)
            truncated += cut or shown[prompt] != prompt
        return encoded, truncated

    def score(self, prompts: Sequence[str], responses: Sequence[str], desc: str = "score") -> Scores:
        """The reward of each response, higher is better; about [-1, 1], where the training votes lie."""
        features, truncated = self.encode(prompts, responses)
        order = sorted(range(len(features)), key=lambda index: -len(features[index]["input_ids"]))
        values = np.empty(len(features))
        self.model.eval()
        with torch.inference_mode(), tqdm(total=len(order), desc=desc, unit="text") as bar:
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                batch = self.tokenizer.pad([features[row] for row in rows], return_tensors="pt").to(self.model.device)
                values[rows] = self.model(**batch).logits[:, 0].float().cpu().numpy()
                bar.update(len(rows))
        return Scores(values, truncated)

    def _cut(self, prompt: str) -> str:
        room = self.max_tokens // 2
        offsets = self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return prompt if len(offsets) <= room else prompt[: offsets[room - 1][1]]

    def _encode_one(self, prompt: str, response: str) -> tuple[dict[str, list[int]], bool]:
        if not self.tokenizer.chat_template:
            whole = self.tokenizer(prompt, response, verbose=False)
            if len(whole["input_ids"]) <= self.max_tokens:
                return dict(whole), False
            return dict(self.tokenizer(prompt, response, truncation="only_second", max_length=self.max_tokens)), True
        from components.models.language import token_ids

        before, answer = token_ids(self.tokenizer, prompt, response)
        room = max(self.max_tokens - len(before), 1)
        cut = len(answer) > room
        # The end-of-turn token stays: it is where a decoder's head reads.
        ids = before + (answer[: room - 1] + answer[-1:] if cut else answer)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}, cut


def load_base(models: Params) -> RewardModel:
    """`models.reward` with a head of one output, fresh where the checkpoint has none, which computes in float32 throughout.

    The body keeps the precision of its checkpoint; on a GPU it is bfloat16.

    Raises:
        InputError: if there is no such model, or Transformers cannot give it a classification head.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = resolve(models.reward)
    remote = trusted(models.reward, models.remote_code)
    model: Any
    with _quiet():
        try:
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=1,
                # A checkpoint that classifies into several classes gets a fresh head, too.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.bfloat16 if torch.cuda.is_available() else "auto",
                use_safetensors=True,
                trust_remote_code=remote,
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"models.reward: {models.reward!r} does not load as a sequence classifier from safetensors: {error}"
            ) from error
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    fresh = {key.rpartition(".")[0] for key in (*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"]))}
    heads = tuple(
        name for name, _ in model.named_modules() if name in _HEADS or (name in fresh and name.split(".")[0] not in _HEADS)
    )
    for name in heads:
        model.get_submodule(name).float().register_forward_pre_hook(_in_float32)
    if torch.cuda.is_available():
        model.to("cuda")
    text_config = model.config.get_text_config()
    limit = min(getattr(text_config, "max_position_embeddings", tokenizer.model_max_length), tokenizer.model_max_length)
    return RewardModel(model, tokenizer, limit, heads)


def load_reward(models: Params, adapter: Path) -> RewardModel:
    """The reward model trained from `models.reward` and saved in the folder `adapter`.

    Raises:
        InputError: if the folder holds no adapter.
    """
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter}: no reward model here (no adapter_model.safetensors). Run the step that trains it.")
    base = load_base(models)
    return replace(base, model=PeftModel.from_pretrained(base.model, adapter).eval())


def _in_float32(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, torch.Tensor) else value for value in inputs)


class _quiet:  # noqa: N801
    """Without the warning that the head is new: it is meant to be."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level = logging.get_verbosity()
        logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
