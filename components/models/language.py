"""The language model: its tokenizer, its chat template, its weights with or without an adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts import InputError
from components.models.params import Params
from components.models.resolve import resolve, trusted

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(models: Params) -> PreTrainedTokenizerBase:
    """The tokenizer of `models.tokenizer`, or else of `models.language`, with a chat template and a padding token.

    Raises:
        InputError: if there is no such model, or it has no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    name = models.tokenizer or models.language
    folder = resolve(name, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted(name, models.remote_code))
    except (OSError, ValueError) as error:
        raise InputError(f"model {name!r}: no tokenizer can be loaded from {folder}: {error}") from error
    if not tokenizer.chat_template:
        raise InputError(
            f"model {name!r} has no chat template. Use its Instruct variant, or name that as models.tokenizer, or use a local "
            "folder whose tokenizer has one."
        )
    if tokenizer.eos_token is None:
        raise InputError(f"model {name!r}: its tokenizer has no end-of-sequence token, so no story could end.")
    if models.tokenizer:
        _require_room(tokenizer, models)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _require_room(tokenizer: PreTrainedTokenizerBase, models: Params) -> None:
    """Refuses a tokenizer of another vocabulary: it would read and write rubbish, or beyond the model's embeddings."""
    words = _config(models).get_text_config().vocab_size
    if len(tokenizer) > words:
        raise InputError(
            f"models.tokenizer {models.tokenizer!r} has {len(tokenizer)} tokens and model {models.language!r} only {words}: "
            "they do not belong together."
        )


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The prompt as the model is shown it, up to where the response begins."""
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def conversation(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[str, str]:
    """The templated prompt and what the model should answer, its end-of-turn token included, as texts.

    The response is followed by what the template writes after it, up to the end-of-sequence token; anything behind that
    (some templates add a line feed) is never generated and therefore not learned.

    Raises:
        InputError: if the template does not write the answer behind its own prompt.
    """
    before = prompt_text(tokenizer, prompt)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    if not whole.startswith(before):
        raise InputError(
            "the chat template writes a conversation that does not begin with its own prompt; use a model whose template "
            "adds the generation prompt as a plain prefix of the answer."
        )
    answer, _, _ = whole[len(before) :].rpartition(tokenizer.eos_token)
    return before, (answer or whole[len(before) :].rstrip()) + tokenizer.eos_token


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """Token ids of the two texts of `conversation`."""
    before, answer = conversation(tokenizer, prompt, response)
    prompt_ids: list[int] = tokenizer(before, add_special_tokens=False)["input_ids"]
    answer_ids: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return prompt_ids, answer_ids


def context_length(models: Params) -> int:
    """The longest prompt + response allowed, in tokens: `models.max_tokens`, or the model's own context where shorter."""
    return min(models.max_tokens, own_context(models) or models.max_tokens)


def own_context(models: Params) -> int | None:
    """The longest text that the model itself can read, in tokens; None where its settings do not say."""
    return getattr(_config(models).get_text_config(), "max_position_embeddings", None)


def end_tokens(models: Params, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens with which the model may end what it says: those of its settings, and the tokenizer's."""
    from transformers import GenerationConfig

    folder = resolve(models.language, weights=False)
    if (folder / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(folder)
    else:
        settings = GenerationConfig.from_model_config(_config(models))
    ends = settings.eos_token_id
    return sorted({*([ends] if isinstance(ends, int) else ends or []), tokenizer.eos_token_id})


def fits(limit: int, prompt_ids: Sequence[int], *completions: Sequence[int]) -> bool:
    """Whether the model can read the prompt with each completion, none of which is empty. Nothing is ever cut to fit."""
    return all(0 < len(completion) <= limit - len(prompt_ids) for completion in completions)


def identity(models: Params, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What else than the adapter makes the log-probabilities of a text what they are, by name; digests of what is long."""
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else tokenizer.get_vocab()
    # How the last batch happened to be made.
    vocabulary |= {"padding": None, "truncation": None}
    return {
        "language": models.language,
        "dtype": models.precision,
        "max_tokens": str(context_length(models)),
        "tokenizer": _digest([vocabulary, tokenizer.eos_token]),
        "chat_template": _digest(tokenizer.chat_template),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _config(models: Params) -> Any:
    """The settings of the language model."""
    from transformers import AutoConfig

    folder = resolve(models.language, weights=False)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted(models.language, models.remote_code))
    except (OSError, ValueError) as error:
        raise InputError(f"model {models.language!r}: no model can be loaded from {folder}: {error}") from error
    return config


def skeleton(models: Params) -> PreTrainedModel:
    """The language model without its weights, on the meta device: for its shapes, at no cost.

    Raises:
        InputError: if there is no such model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    trust = trusted(models.language, models.remote_code)
    # A packaged model is unpacked the first time, and that not on the meta device.
    config = _config(models)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=_torch_dtype(models), trust_remote_code=trust)


def load_model(
    models: Params, adapter: Path | None = None, *, trainable: bool = False, device: str | None = None
) -> PreTrainedModel:
    """The language model in `models.precision`, with the PEFT adapter found in `adapter`, its LoRA weights in float32.

    Args:
        trainable: whether the adapter's weights are to be trained.
        device: where it is to be; otherwise on the GPU, if there is one.

    Raises:
        InputError: if there is no such model, or it has no safetensors.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = resolve(models.language)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_torch_dtype(models),
            use_safetensors=True,
            trust_remote_code=trusted(models.language, models.remote_code),
            **(
                {"quantization_config": four_bits(), "device_map": {"": torch.cuda.current_device()}}
                if models.precision == "nf4"
                else {}
            ),
        )
    except (OSError, ValueError) as error:
        raise InputError(f"model {models.language!r}: no model can be loaded from {folder}: {error}") from error
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
        # An adapter names its base model as the parameters do; whenever PEFT saves it, it looks there, or asks the hub.
        model.peft_config["default"].base_model_name_or_path = str(folder)
    if models.precision != "nf4":
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model


def _torch_dtype(models: Params) -> torch.dtype:
    """What is computed in; also, with 4 bits, what the layers are kept in that are not linear."""
    import torch

    return torch.float32 if models.precision == "float32" else torch.bfloat16


def four_bits() -> Any:
    """QLoRA's storage of the linear layers (Dettmers et al. 2023, arXiv 2305.14314): NormalFloat, scales quantised too.

    The output head stays as it is.

    Raises:
        InputError: if there is no GPU or no bitsandbytes.
    """
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    missing = [] if torch.cuda.is_available() else ["a GPU"]
    missing += [] if importlib.util.find_spec("bitsandbytes") else ["bitsandbytes (pip install bitsandbytes)"]
    if missing:
        raise InputError(f"models.dtype: nf4 needs {' and '.join(missing)}, not found here. Use bfloat16.")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
