"""Stories by a tiny model: slots, ends, seeds, kills."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm
from transformers import GenerationConfig

from components.contracts import InputError
from components.evaluate import generate
from components.evaluate.generate import forget, kept, load_language, requests, write_stories
from components.evaluate.params import Params, System
from components.evaluate.prompts import Prompt
from components.evaluate.slots import Request, Slots, require_attention
from components.evaluate.stories import Story
from components.evaluate.systems import Local, gather
from components.models.language import load_tokenizer, token_ids
from components.models.params import Params as Models

PROMPTS = [Prompt(f"p{i}", "Write about the sea. " * (i + 1), ()) for i in range(3)]
SETTINGS: dict[str, Any] = {"samples": 4, "max_new_tokens": 60, "top_k": 0, "top_p": 1.0, "batch_size": 5}


def local(models: Models, adapter: Path, name: str = "dpo", **options: Any) -> Local:
    system = gather({name: adapter}, Params(**{**SETTINGS, **options}), models)[0]
    assert isinstance(system, Local)
    return system


def write(work: Path, system: Local, bar: Any = None) -> list[Story]:
    with bar or tqdm(total=0, disable=True) as shown:
        return write_stories(system, PROMPTS, requests(system, PROMPTS), work, shown)


def test_what_is_asked_is_what_was_trained_on(models: Models, adapters: dict[str, Path], beginning_model: Path) -> None:
    """The template's own beginning, once, and nothing of a story."""
    beginning = models.model_copy(update={"language": str(beginning_model)})
    tokenizer = load_tokenizer(beginning)
    asked = requests(local(beginning, adapters["dpo"]), PROMPTS)
    assert [list(request.ids) for request in asked[:: SETTINGS["samples"]]] == [
        token_ids(tokenizer, prompt.text, "R")[0] for prompt in PROMPTS
    ]
    assert all(request.ids[0] == 0 and request.ids.count(0) == 1 for request in asked)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model in float64: rounding, which depends on the batch, then changes no draw."""
    original = generate.load_model
    monkeypatch.setattr(generate, "load_model", lambda *args: original(*args).double())


@pytest.mark.usefixtures("exact")
def test_neighbours_do_not_show(tmp_path: Path, models: Models, adapters: dict[str, Path]) -> None:
    """Whether alone, in a slot that others have used before, or among all others."""
    stories = write(tmp_path / "a", local(models, adapters["dpo"]))
    assert stories == write(tmp_path / "b", local(models, adapters["dpo"], batch_size=1))
    assert stories == write(tmp_path / "c", local(models, adapters["dpo"], batch_size=32))
    assert [(s.prompt_id, s.sample) for s in stories] == [(p.id, i) for p in PROMPTS for i in range(4)]
    assert {story.finish_reason for story in stories} == {"stop", "length"}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("windowed", [False, True])
def test_the_likeliest_tokens_are_those_of_transformers(
    tmp_path: Path, models: Models, adapters: dict[str, Path], windowed: bool
) -> None:
    """Greedy, against `generate` one prompt at a time; also where some layers see no further than a window of 16 tokens."""
    model = load_language(local(models, adapters["dpo"]))
    if windowed:
        model = _windowed(tmp_path, model)
    six = requests(local(models, adapters["dpo"], samples=2), PROMPTS)
    asked = [replace(request, room=10 + 4 * number) for number, request in enumerate(six)]
    params = Params(top_k=1, repetition_penalty=1.3)
    theirs = {}
    for request in asked:
        ids = torch.tensor([request.ids])
        config = GenerationConfig(
            do_sample=False, max_new_tokens=request.room, repetition_penalty=1.3, eos_token_id=5, pad_token_id=0
        )
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        theirs[request.key] = whole[0, ids.shape[1] :].tolist()
    for size in (1, 2, 4):
        told = Slots(model, [5], 0, params, size).write(asked, lambda _: None)
        assert {one.request.key: one.tokens + [5] * one.ended for one in told} == theirs


def _windowed(folder: Path, llama: Any) -> Any:
    """A Qwen2 with random weights of which every other layer sees only a window."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    given = llama.config
    config = Qwen2Config(
        **{name: getattr(given, name) for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")},
        num_hidden_layers=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=16,
        layer_types=["full_attention", "sliding_attention"] * 2,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder / "windowed")
    return Qwen2ForCausalLM.from_pretrained(folder / "windowed").double().eval()


def test_long_generations_move_in_the_cache(models: Models, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With no room to spare, everything moves to the left again and again, and nothing changes."""
    model = load_language(local(models, adapters["dpo"], batch_size=2)).double()
    asked = requests(local(models, adapters["dpo"]), PROMPTS)

    def tokens() -> dict[int, list[int]]:
        params = Params(**SETTINGS)
        return {told.request.key: told.tokens for told in Slots(model, [5], 0, params, 2).write(asked, lambda _: None)}

    expected, moves = tokens(), []
    monkeypatch.setattr("components.evaluate.slots._SLACK", 0)
    original = Slots._move
    monkeypatch.setattr(Slots, "_move", lambda self, by: moves.append(by) or original(self, by))
    assert tokens() == expected
    assert len(moves) > 1


def test_a_model_with_a_state_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(InputError, match="not a plain transformer"):
        require_attention(model, "mamba")


def test_ends(tmp_path: Path, models: Models, adapters: dict[str, Path]) -> None:
    stories = write(tmp_path / "a", local(models, adapters["dpo"], samples=8))
    assert {story.finish_reason for story in stories} == {"stop", "length"}
    for story in stories:
        assert (story.tokens == 60) if story.finish_reason == "length" else (story.tokens < 60)
        assert "<|im_end|>" not in story.text
    tokenizer = load_tokenizer(models)
    whole = next(story for story in stories if story.finish_reason == "stop")
    again = len(tokenizer(whole.text, add_special_tokens=False)["input_ids"])
    # Bytes that are no whole character are written as one of three bytes.
    assert again - 2 * whole.text.count("\ufffd") == pytest.approx(whole.tokens, rel=0.5)


def test_samples_prompts_systems_and_seeds_differ(tmp_path: Path, models: Models, adapters: dict[str, Path]) -> None:
    stories = write(tmp_path / "a", local(models, adapters["dpo"]))
    assert len({story.text for story in stories}) == len(stories)
    for name, other in {
        "system": write(tmp_path / "b", local(models, adapters["dpo"], "again")),
        "adapter": write(tmp_path / "c", local(models, adapters["ddpo"])),
        "seed": write(tmp_path / "d", local(models, adapters["dpo"], seed=1)),
        "base": write(tmp_path / "e", replace(local(models, adapters["dpo"]), adapter=None)),
    }.items():
        assert not {story.text for story in stories} & {story.text for story in other}, name


def test_min_p_narrows(tmp_path: Path, models: Models, adapters: dict[str, Path]) -> None:
    """With min-p near 1 only the likeliest token is left, whatever the temperature."""
    system = local(models, adapters["dpo"], min_p=0.999999, temperature=5.0, samples=2)
    stories = write(tmp_path / "a", system)
    assert [story.text for story in stories[::2]] == [story.text for story in stories[1::2]]


def test_killed_and_run_again(
    tmp_path: Path, models: Models, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "GROUP", 1)
    system = local(models, adapters["dpo"])
    expected = write(tmp_path / "whole", system)

    class Stops(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self.n > 450:
                raise KeyboardInterrupt
            return None

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "killed", system, bar=Stops(total=720, disable=True))
    kept = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert kept == ["0.json"]
    again: list[int] = []
    original = generate._Writer.write
    monkeypatch.setattr(generate._Writer, "write", lambda self, rows, bar: again.append(len(rows)) or original(self, rows, bar))
    assert write(tmp_path / "killed", system) == expected
    assert again == [5, 2]


def test_the_bar_ends_at_its_total(tmp_path: Path, models: Models, adapters: dict[str, Path]) -> None:
    for _ in range(2):
        bar = tqdm(total=720)
        write(tmp_path / "a", local(models, adapters["dpo"]), bar=bar)
        assert bar.n == 720


def test_kept_stories_are_known_by_all_that_makes_them(
    models: Models, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(adapter: str = "dpo", system: str = "dpo", prompts: int = 3, **options: Any) -> Path:
        made = local(models, adapters[adapter], system, **options)
        return kept(made, requests(made, PROMPTS[:prompts]))

    before = name()
    assert before == name(systems={"other": System()}) == name(max_prompts=7)
    others = [name("ddpo"), name(system="b"), name(prompts=2), *(name(**{k: 2}) for k in ("seed", "temperature", "top_k"))]
    assert len({before, *others}) == 7
    monkeypatch.setattr(generate, "code_digest", lambda *_: "other code")
    assert name() != before


def test_stories_that_nobody_asks_for_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYPHONY_WORK", str(tmp_path))
    old, recent = (tmp_path / "evaluate" / "stories" / name for name in ("old", "recent"))
    for folder in (old, recent):
        folder.mkdir(parents=True)
        (folder / "0.json").write_text("{}", encoding="utf-8")
    month = time.time() - 31 * 86400
    os.utime(old, (month, month))
    forget()
    assert recent.exists() and not old.exists()


def test_defaults_of_a_checkpoint_do_not_reach_the_sampling(
    tmp_path: Path, models: Models, adapters: dict[str, Path], tiny_model: Path
) -> None:
    opinionated = tmp_path / "model"
    shutil.copytree(tiny_model, opinionated)
    config = GenerationConfig.from_pretrained(opinionated)
    config.update(do_sample=True, temperature=0.05, top_k=3, repetition_penalty=3.0, max_new_tokens=4, min_new_tokens=3)
    config.save_pretrained(opinionated)
    ours = models.model_copy(update={"language": str(opinionated)})
    assert write(tmp_path / "a", local(ours, adapters["dpo"])) == write(tmp_path / "b", local(models, adapters["dpo"]))


def test_the_context_bounds_a_story(tmp_path: Path, models: Models, adapters: dict[str, Path]) -> None:
    stories = write(tmp_path / "a", local(models, adapters["dpo"], max_new_tokens=1000, samples=2, top_k=1, top_p=0.1))
    assert 60 < max(story.tokens for story in stories) < 256
    long = [Prompt("long", "sea " * 300, ())]
    with pytest.raises(InputError, match="no room in the context of 256"):
        requests(local(models, adapters["dpo"]), long)


def test_every_prompt_is_read_once(models: Models, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_language(local(models, adapters["dpo"]))
    read: list[tuple[int, int]] = []
    original = Slots._forward
    monkeypatch.setattr(Slots, "_forward", lambda self, ids, *rest: read.append(tuple(ids.shape)) or original(self, ids, *rest))
    asked = [Request(number, (1, 2, 3 + number // 4), 3, number) for number in range(8)]
    list(Slots(model, [], 0, Params(), 8).write(asked, lambda _: None))
    assert read == [(2, 3), (8, 1), (8, 1)]
