"""An adapter's folder: the same bytes however its parts were loaded."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from components.lineage import digest
from components.train.artifact import save_tokenizer


def test_whether_the_hub_was_asked_does_not_show(tiny_model: Path, tmp_path: Path) -> None:
    """`HF_HUB_OFFLINE` differs between machines."""
    for name, offline in (("one", True), ("other", False)):
        save_tokenizer(AutoTokenizer.from_pretrained(tiny_model, local_files_only=offline), tmp_path / name)
    assert digest(tmp_path / "one") == digest(tmp_path / "other")
    assert AutoTokenizer.from_pretrained(tmp_path / "one").chat_template
