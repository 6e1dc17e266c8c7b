"""Stories by a tiny model: batches, ends, seeds, kills."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm
from transformers import GenerationConfig

from components.contracts import InputError
from components.evaluate import generate
from components.evaluate.generate import write_stories
from components.evaluate.params import Params
from components.evaluate.prompts import Prompt
from components.evaluate.stories import Story
from components.models.language import load_tokenizer
from components.models.params import Params as Models

PROMPTS = [Prompt(f"p{i}", "Write about the sea. " * (i + 1), ()) for i in range(3)]
SETTINGS: dict[str, Any] = {"samples": 4, "max_new_tokens": 60, "top_k": 0, "top_p": 1.0, "batch_size": 5}


def write(work: Path, models: Models, adapter: Path, system: str = "dpo", bar: Any = None, **options: Any) -> list[Story]:
    params = Params(**{**SETTINGS, **options})
    with bar or tqdm(total=0, disable=True) as shown:
        return write_stories(system, adapter, PROMPTS, params, models, work, shown)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model in float64: rounding, which depends on the batch, then changes no draw."""
    original = generate.load_model
    monkeypatch.setattr(generate, "load_model", lambda *args: original(*args).double())


@pytest.mark.usefixtures("exact")
def test_the_batch_does_not_show(tmp_path: Path, models: Models, adapters: dict[str, Path]) -> None:
    stories = write(tmp_path / "a", models, adapters["dpo"])
    assert stories == write(tmp_path / "b", models, adapters["dpo"], batch_size=1)
    assert stories == write(tmp_path / "c", models, adapters["dpo"], batch_size=32)
    assert [(s.prompt_id, s.sample) for s in stories] == [(p.id, i) for p in PROMPTS for i in range(4)]


def test_ends(tmp_path: Path, models: Models, adapters: dict[str, Path]) -> None:
    stories = write(tmp_path / "a", models, adapters["dpo"], samples=8)
    assert {story.finish_reason for story in stories} == {"stop", "length"}
    for story in stories:
        assert (story.tokens == 60) if story.finish_reason == "length" else (story.tokens < 60)
        assert "<|im_end|>" not in story.text
    tokenizer = load_tokenizer(models)
    whole = next(story for story in stories if story.finish_reason == "stop")
    assert len(tokenizer(whole.text, add_special_tokens=False)["input_ids"]) == pytest.approx(whole.tokens, rel=0.5)


def test_samples_prompts_systems_and_seeds_differ(tmp_path: Path, models: Models, adapters: dict[str, Path]) -> None:
    stories = write(tmp_path / "a", models, adapters["dpo"])
    assert len({story.text for story in stories}) == len(stories)
    for name, other in {
        "system": write(tmp_path / "b", models, adapters["dpo"], system="again"),
        "adapter": write(tmp_path / "c", models, adapters["ddpo"]),
        "seed": write(tmp_path / "d", models, adapters["dpo"], seed=1),
    }.items():
        assert not {story.text for story in stories} & {story.text for story in other}, name


def test_killed_and_run_again(
    tmp_path: Path, models: Models, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write(tmp_path / "whole", models, adapters["dpo"])

    class Stops(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self.n > 450:
                raise KeyboardInterrupt
            return None

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "killed", models, adapters["dpo"], bar=Stops(total=720, disable=True))
    kept = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert kept == ["0.json"]
    again: list[int] = []
    original = generate._Writer.write
    monkeypatch.setattr(generate._Writer, "write", lambda self, rows, bar: again.append(len(rows)) or original(self, rows, bar))
    assert write(tmp_path / "killed", models, adapters["dpo"]) == expected
    assert again == [5, 2]


def test_the_bar_ends_at_its_total(tmp_path: Path, models: Models, adapters: dict[str, Path]) -> None:
    for _ in range(2):
        bar = tqdm(total=720)
        write(tmp_path / "a", models, adapters["dpo"], bar=bar)
        assert bar.n == 720
        shutil.rmtree(tmp_path / "a" / "0.json", ignore_errors=True)


def test_defaults_of_a_checkpoint_do_not_reach_the_sampling(
    tmp_path: Path, models: Models, adapters: dict[str, Path], tiny_model: Path
) -> None:
    opinionated = tmp_path / "model"
    shutil.copytree(tiny_model, opinionated)
    config = GenerationConfig.from_pretrained(opinionated)
    config.update(do_sample=True, temperature=0.05, top_k=3, repetition_penalty=3.0, max_new_tokens=4, min_new_tokens=3)
    config.save_pretrained(opinionated)
    ours = models.model_copy(update={"language": str(opinionated)})
    assert write(tmp_path / "a", ours, adapters["dpo"]) == write(tmp_path / "b", models, adapters["dpo"])


def test_the_context_bounds_a_story(tmp_path: Path, models: Models, adapters: dict[str, Path]) -> None:
    stories = write(tmp_path / "a", models, adapters["dpo"], max_new_tokens=1000, samples=2, top_k=1, top_p=0.1)
    assert max(story.tokens for story in stories) < 256
    long = [Prompt("long", "sea " * 300, ())]
    with pytest.raises(InputError, match="no room in the model's context of 256"), tqdm(total=0, disable=True) as bar:
        write_stories("dpo", adapters["dpo"], long, Params(**SETTINGS), models, tmp_path / "b", bar)
