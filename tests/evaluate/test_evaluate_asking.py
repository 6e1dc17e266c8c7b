"""Endpoints: asked in three ways, on scripted loopback servers, and on one that a small model answers behind."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm import tqdm
from transformers import GenerationConfig

from components.contracts import InputError
from components.evaluate.asking import Told, store, stories_in, write_remote
from components.evaluate.params import Params, System
from components.evaluate.prompts import Prompt
from components.evaluate.stories import Story
from components.evaluate.systems import Remote, gather
from components.models.language import load_model, load_tokenizer, prompt_text
from components.models.params import Params as Models
from tests.chat_server import said, serve

PROMPTS = [Prompt(f"p{n}", f"Write about number {n}.", ()) for n in range(3)]
KEY = "sk-a-very-secret-key"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", KEY)


def remote(
    base_url: str, models: Models, mode: str = "plain", sampling: Any = None, samples: int = 3, **endpoint: Any
) -> Remote:
    given = {"base_url": base_url, "model": "m", "key": "A_KEY", "retries": 1, **endpoint}
    system = System.model_validate({"endpoint": given, "mode": mode, "sampling": sampling or {}})
    (made,) = gather({}, Params(systems={"api": system}, samples=samples, max_new_tokens=20), models)
    assert isinstance(made, Remote)
    return made


def write(system: Remote, models: Models) -> tuple[list[Story], dict[str, float]]:
    with tqdm(total=0, disable=True) as bar:
        return write_remote(system, PROMPTS, load_tokenizer(models), bar)


class Numbered:
    """Answers that are numbered in the order of the requests."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0

    def __call__(self, _: Any) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self._count += 1
            return 200, said(f"Story {self._count}.")


def test_plain(models: Models) -> None:
    with serve(Numbered()) as server:
        system = remote(server.base_url, models, sampling={"temperature": 0.7, "min_p": 0.1}, input_price=2.0, output_price=4.0)
        stories, usage = write(system, models)
    assert [(s.prompt_id, s.sample) for s in stories] == [(p.id, n) for p in PROMPTS for n in range(3)]
    assert sorted(s.text for s in stories) == sorted(f"Story {n}." for n in range(1, 10))
    assert {s.finish_reason for s in stories} == {"stop"} and all(s.tokens > 0 for s in stories)
    assert usage == {"answers": 9, "tokens_read": 90, "tokens_written": 45, "cost": pytest.approx((90 * 2 + 45 * 4) / 1e6)}
    for request in server.requests:
        (message,) = request.pop("messages")
        assert message["role"] == "user" and message["content"] in {p.text for p in PROMPTS}
        # Nothing that was not asked for, such as top_k, which OpenAI's API refuses.
        assert request == {"model": "m", "max_tokens": 20, "temperature": 0.7, "min_p": 0.1}


def test_iterative_shows_the_earlier_stories_of_the_prompt(models: Models) -> None:
    with serve(Numbered()) as server:
        stories, _ = write(remote(server.base_url, models, "iterative", concurrency=2), models)
    shown = {tuple(m["content"] for m in r["messages"] if m["role"] == "assistant") for r in server.requests}
    for prompt in PROMPTS:
        own = tuple(story.text for story in stories if story.prompt_id == prompt.id)
        assert {own[:0], own[:1], own[:2]} <= shown
    for request in server.requests:
        roles = [message["role"] for message in request["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert request["messages"][0]["content"] in {p.text for p in PROMPTS}
        assert all("differ" in message["content"] for message in request["messages"][2::2])


def test_iterative_shows_no_refusal(models: Models) -> None:
    answers = iter([said(None, refusal="No."), said("A story."), said("<think>Hm")] * 3)
    with serve(lambda _: (200, next(answers))) as server:
        stories, _ = write(remote(server.base_url, models, "iterative", concurrency=1), models)
    assert [(s.text, s.finish_reason) for s in stories] == [("", "refusal"), ("A story.", "stop"), ("", "stop")] * 3
    assert [len(request["messages"]) for request in server.requests] == [1, 1, 3] * 3


def in_tags(*texts: str) -> str:
    return "\n".join(f"<response><text>{text}</text><probability>0.1</probability></response>" for text in texts)


def test_verbalized(models: Models) -> None:
    with serve(lambda _: (200, said(in_tags("One.", "Two.", "Three.", "Four.")))) as server:
        stories, usage = write(remote(server.base_url, models, "verbalized"), models)
    assert [s.text for s in stories] == ["One.", "Two.", "Three."] * 3
    assert usage["answers"] == len(server.requests) == 3
    assert all(request["max_tokens"] >= 60 for request in server.requests)


def test_verbalized_asks_again_for_what_is_missing_but_not_for_ever(models: Models) -> None:
    with serve(lambda _: (200, said(in_tags("One.")))) as server:
        stories, _ = write(remote(server.base_url, models, "verbalized", concurrency=1, samples=4), models)
    assert [(s.text, s.finish_reason) for s in stories[:4]] == [("One.", "stop")] * 3 + [("", "unparsed")]
    asked = [next(word for word in request["messages"][0]["content"].split() if word in "234") for request in server.requests]
    assert asked == ["4", "3", "2"] * 3
    with serve(lambda _: (200, said("A story without any frame."))) as server:
        stories, _ = write(remote(server.base_url, models, "verbalized"), models)
        assert {(s.text, s.finish_reason) for s in stories} == {("", "unparsed")} and len(server.requests) == 9
    with serve(lambda _: (200, said(None, "content_filter"))) as server:
        stories, _ = write(remote(server.base_url, models, "verbalized"), models)
        assert {(s.text, s.finish_reason) for s in stories} == {("", "refusal")} and len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        (in_tags("One.", "Two\n\nlines."), ["One.", "Two\n\nlines."]),
        ("Of course!\n```xml\n" + in_tags("One.") + "\n```", ["One."]),
        ("<RESPONSE>\n<Text>One.</Text>\n</RESPONSE>", ["One."]),
        ("<response probability='0.2'>One.</response><response>Two.</response>", ["One.", "Two."]),
        ("<response>One.<probability>0.2</probability></response>", ["One."]),
        ("<response><text>One.<probability>0.2</probability></response><response><text>Two.", ["One.", "Two."]),
        ('{"responses": [{"text": "One.", "probability": 0.1}, {"text": "Two."}]}', ["One.", "Two."]),
        ('Here:\n```json\n[{"story": "One,\ntwo."}, "Three."]\n```', ["One,\ntwo.", "Three."]),
        ('{"text": "One.", "probability": 0.1}', ["One."]),
        ("<response><text>  </text></response>", []),
        ("A story {with} [brackets].", []),
        ("", []),
    ],
)
def test_stories_in_an_answer(answer: str, texts: list[str]) -> None:
    assert [told.text for told in stories_in(answer)] == texts


def test_the_last_story_of_a_cut_answer_is_cut() -> None:
    assert stories_in(in_tags("One.") + "<response><text>Two and", cut=True) == [
        Told("One.", "stop"),
        Told("Two and", "length"),
    ]
    assert stories_in(in_tags("One."), cut=True) == [Told("One.", "stop")]


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from('<>/{}[]":,textresponse probability\n'), max_size=80))
def test_any_answer_can_be_read(answer: str) -> None:
    assert all(told.text.strip() for told in stories_in(answer))


@given(st.lists(st.text(st.characters(exclude_characters="<", exclude_categories=["Cs", "Cc"])).map(str.strip).filter(bool)))
def test_what_is_framed_is_found(texts: list[str]) -> None:
    assert [told.text for told in stories_in(in_tags(*texts))] == texts


def test_a_run_that_was_stopped_goes_on_without_paying_twice(models: Models) -> None:
    """The endpoint fails for good after five answers; what these said is among the stories in the end."""
    count = iter(range(100))
    with serve(lambda _: (200, said(f"Story {n}.")) if (n := next(count)) < 5 else (500, {})) as server:
        system = remote(server.base_url, models, concurrency=1)
        with pytest.raises(InputError, match="status 500"):
            write(system, models)
        answered = len(server.requests) - 2
    assert answered == 5
    port = int(server.base_url.split(":")[2].split("/")[0])
    with serve(Numbered(), port) as again:
        stories, usage = write(system, models)
        assert len(again.requests) == 9 - 5
        assert [s.text for s in stories[:5]] == [f"Story {n}." for n in range(5)]
        assert write(system, models) == (stories, usage)
        assert len(again.requests) == 4


def test_the_money_limit_stops_cleanly(models: Models) -> None:
    with serve(Numbered()) as server:
        limited = remote(server.base_url, models, input_price=1e6, output_price=1e6, money=90.0, concurrency=2)
        with pytest.raises(InputError, match="more than is left"):
            write(limited, models)
        bought = len(server.requests)
        assert 0 < bought < 9
        assert store(limited).read_text(encoding="utf-8").count("\n") == bought
        stories, usage = write(remote(server.base_url, models, input_price=1e6, output_price=1e6, money=1000.0), models)
        assert (len(stories), len(server.requests), usage["cost"]) == (9, 9, 9 * 15)


def test_the_key_is_nowhere(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with (
        serve(
            lambda r: (401, {"error": {"message": f"{KEY} is wrong"}}) if "1" in str(r["messages"]) else (200, said("A."))
        ) as server,
        pytest.raises(InputError) as error,
    ):
        write(remote(server.base_url, models), models)
    assert KEY not in str(error.value) and KEY not in caplog.text
    assert all(KEY not in file.read_text(errors="replace") for file in Path(".work").rglob("*") if file.is_file())


def test_other_settings_are_other_answers(models: Models) -> None:
    names = {
        store(remote("http://127.0.0.1:1/v1", models, **options)).name
        for options in ({}, {"mode": "iterative"}, {"sampling": {"temperature": 0.5}}, {"model": "n"}, {"input_price": 1.0})
    }
    assert len(names) == 4


def test_a_small_model_behind_an_endpoint(tiny_model: Path, models: Models) -> None:
    """A server of the tests' own; `transformers serve`, which takes longer to start, is in the slow test below."""
    import torch

    tokenizer, model = load_tokenizer(models), load_model(models)
    lock = threading.Lock()

    def generate(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with lock, torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=request["max_tokens"], top_k=0
            )[0, ids.shape[1] :]
        ended = bool(out[-1] == tokenizer.eos_token_id)
        answer = tokenizer.decode(out, skip_special_tokens=True)
        return 200, said(answer, "stop" if ended else "length", (ids.shape[1], len(out)))

    assert tiny_model.is_dir()
    with serve(generate) as server:
        stories, usage = write(remote(server.base_url, models, "iterative", samples=2), models)
    assert len({story.text for story in stories}) == 6
    assert "length" in {story.finish_reason for story in stories}
    templated = len(tokenizer(prompt_text(tokenizer, PROMPTS[0].text), add_special_tokens=False)["input_ids"])
    assert usage["answers"] == 6 and usage["tokens_read"] > 6 * templated
    assert json.dumps(usage)


@pytest.mark.slow
def test_transformers_serve(tiny_model: Path, models: Models) -> None:
    """The same model behind the server that Transformers brings, which samples where the checkpoint says so."""
    served = shutil.copytree(tiny_model, Path("served").resolve())
    defaults = GenerationConfig.from_pretrained(served)
    defaults.update(do_sample=True)
    defaults.save_pretrained(served)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", str(served), "--host", "127.0.0.1", "--port", str(port)]
    with Path("serve.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            while True:
                assert process.poll() is None, Path("serve.log").read_text()
                with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=60):
                    break
                time.sleep(0.2)
            system = remote(f"http://127.0.0.1:{port}/v1", models, model=str(served), sampling={"temperature": 1.0}, samples=2)
            stories, usage = write(system, models)
        finally:
            process.kill()
    assert len({story.text for story in stories}) > 3
    assert {story.finish_reason for story in stories} <= {"stop", "length"}
    assert usage["answers"] == 6 and usage["tokens_written"] >= 6
