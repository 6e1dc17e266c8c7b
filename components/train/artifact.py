"""An adapter as an artifact: the same training gives the same bytes, in any process and on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


def save_adapter(model: PeftModel, folder: Path, base_model: str, *, writes: bool = True) -> None:
    """Saves the adapter to `folder`, safetensors only.

    Args:
        base_model: what the parameters call its base model; the folder that it was loaded from is this machine's own.
        writes: whether this process is the one that writes; all must call.
    """
    config: Any = model.peft_config["default"]
    # A set has no order, and would give other bytes in another process.
    config.target_modules = sorted(config.target_modules)
    config.base_model_name_or_path = base_model
    # Embeddings are never trained; told to find out, PEFT would ask the hub for the base model.
    model.save_pretrained(str(folder), save_embedding_layers=False, is_main_process=writes)
    if writes:
        # PEFT's card is a form to be filled in; the registry adds a card to the folder, which must lose nothing by it.
        (folder / "README.md").unlink(missing_ok=True)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Saves the tokenizer to `folder`, without how it was loaded: whether this machine asks the hub is no part of the model."""
    tokenizer.init_kwargs.pop("local_files_only", None)
    tokenizer.save_pretrained(folder)
