"""Generations of two systems, and a study made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.contracts import GENERATIONS
from components.study.export import export, plan

HOSTILE = "</script><script>document.title = 'taken'</script><b>bold</b> {{ 7 * 7 }}"


@pytest.fixture
def generations(tmp_path: Path) -> Path:
    rows = [
        {
            "system": system,
            "prompt_id": f"p{p}",
            "prompt": f"Prompt {p} {HOSTILE}",
            "sample": sample,
            "text": f"Story {system[::-1]} {p} {sample} {HOSTILE}",
            "tokens": 5,
            "finish_reason": "stop",
            "reward": 0.0,
            "semantic": [1.0, 0.0],
            "style": [0.0, 1.0],
        }
        for system in ("ddpo", "dpo", "gold")
        for p in range(6)
        for sample in range(2)
    ]
    path = tmp_path / "generations.parquet"
    GENERATIONS.write(path, rows, semantic=2, style=2)
    return path


@pytest.fixture
def study(tmp_path: Path, generations: Path) -> Path:
    folder = tmp_path / "study"
    export(plan(generations, ("ddpo", "dpo"), count=5, annotators=["ann", "ben"], per_task=1, seed=0), folder, 0)
    return folder
