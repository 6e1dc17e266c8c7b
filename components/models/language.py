"""The language model: its tokenizer, its chat template, its weights with or without an adapter, its log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from components.contracts import InputError
from components.models.params import Params
from components.models.resolve import resolve, trusted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(models: Params) -> PreTrainedTokenizerBase:
    """The tokenizer of `models.language`, with a chat template and a padding token.

    Raises:
        InputError: if there is no such model or it has no chat template.
    """
    from transformers import AutoTokenizer

    folder = resolve(models.language)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted(models.language, models.remote_code))
    if not tokenizer.chat_template:
        raise InputError(
            f"model {models.language!r} has no chat template. Use its Instruct variant, or a local folder whose tokenizer has one."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The prompt as the model is shown it, up to where the response begins."""
    text: str = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    return text


def conversation(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[str, str]:
    """The templated prompt and what the model should answer, its end-of-turn token included, as texts.

    The response is followed by what the template writes after it, up to the end-of-sequence token; anything behind that
    (some templates add a line feed) is never generated and therefore not learned.
    """
    before = prompt_text(tokenizer, prompt)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    whole: str = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(before):
        raise InputError(
            "the chat template writes a conversation that does not begin with its own prompt; use a model whose template "
            "adds the generation prompt as a plain prefix of the answer."
        )
    eos = tokenizer.eos_token
    answer = whole[len(before) :].rstrip()
    if not answer.endswith(eos):
        answer += eos
    return before, answer


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """Token ids of the two texts of `conversation`."""
    before, answer = conversation(tokenizer, prompt, response)
    prompt_ids: list[int] = tokenizer(before, add_special_tokens=False)["input_ids"]
    answer_ids: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return prompt_ids, answer_ids


def context_length(models: Params) -> int:
    """The longest prompt + response allowed, in tokens: `models.max_tokens`, or the model's own context where shorter."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        resolve(models.language), trust_remote_code=trusted(models.language, models.remote_code)
    )
    return min(models.max_tokens, getattr(config, "max_position_embeddings", models.max_tokens))


def load_model(models: Params, adapter: Path | None = None, *, trainable: bool = False) -> PreTrainedModel:
    """The language model in bfloat16, with the PEFT adapter found in `adapter`, its LoRA weights in float32.

    Args:
        trainable: whether the adapter's weights are to be trained.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        resolve(models.language),
        dtype=torch.bfloat16,
        use_safetensors=True,
        trust_remote_code=trusted(models.language, models.remote_code),
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
    if torch.cuda.is_available():
        model.to("cuda")
    return model


def completion_logps(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_mask: torch.Tensor
) -> torch.Tensor:
    """Log-probability of each sequence's completion, in nats.

    Only the positions that predict a completion token go through the output head, and their full logits are never held
    at once (`linear_cross_entropy` works in chunks).

    Args:
        input_ids: (sequences, tokens) int64.
        attention_mask: (sequences, tokens), 1 for real tokens.
        completion_mask: (sequences, tokens), 1 for the tokens whose log-probability counts.

    Returns:
        (sequences,) float32: sums over the completion tokens.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.get_decoder()(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    counts = completion_mask[:, 1:].bool()
    head = base.get_output_embeddings()
    nll = F.linear_cross_entropy(hidden[:, :-1][counts], head.weight, input_ids[:, 1:][counts], reduction="none")
    rows = torch.nonzero(counts)[:, 0]
    return torch.zeros(len(input_ids), device=hidden.device).index_add(0, rows, -nll.float())


def pad(sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """(sequences, longest) int64, filled up with `value` on the right."""
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[value] * (longest - len(sequence))] for sequence in sequences])
