"""The client of an endpoint, against a scripted one on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from components.contracts import InputError
from components.models.endpoint import Chat, Endpoint, LimitError, without_thinking
from tests.chat_server import said, serve

HELLO = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-very-secret")


def chat(base_url: str, store: Path, **settings: Any) -> Chat:
    return Chat(Endpoint(**{"base_url": base_url, "model": "m", "key": "A_KEY", "retries": 2} | settings), store)


def test_replies_and_how_they_ended(tmp_path: Path) -> None:
    script = {
        "plain": said(" A story. "),
        "cut": said("A sto", "length"),
        "thinking": said("<think>Hm, a sea.\n</think>\n\nThe sea."),
        "lost in thought": said("<think>Hm, a sea", "length"),
        "filtered": said("A bad st", "content_filter"),
        "refused": said(None, refusal="I can't."),
        "empty": said(None),
    }
    answer = serve(lambda request: (200, script[request["messages"][0]["content"]]))
    with answer as server, chat(server.base_url, tmp_path / "store") as asked:
        replies = {name: asked.ask([{"role": "user", "content": name}], max_tokens=9) for name in script}
    assert {name: (reply.text, reply.finish_reason) for name, reply in replies.items()} == {
        "plain": ("A story.", "stop"),
        "cut": ("A sto", "length"),
        "thinking": ("The sea.", "stop"),
        "lost in thought": ("", "length"),
        "filtered": ("", "refusal"),
        "refused": ("", "refusal"),
        "empty": ("", "stop"),
    }


def test_nothing_is_paid_for_twice(tmp_path: Path) -> None:
    with serve(lambda _: (200, said("A story."))) as server:
        for _ in range(2):
            with chat(server.base_url, tmp_path / "store", input_price=1e6, output_price=2e6) as asked:
                for nonce in ("0", "1", "0"):
                    asked.ask(HELLO, max_tokens=9, nonce=nonce, temperature=1.0)
                assert len(server.requests) == 2
                assert asked.spent == 2 * (10 + 2 * 5)
        with (tmp_path / "store").open("a") as file:
            file.write('{"name": "cut by a ki')
        with chat(server.base_url, tmp_path / "store") as asked:
            asked.ask(HELLO, max_tokens=9, nonce="0", temperature=1.0)
            asked.ask(HELLO, max_tokens=9, nonce="0", temperature=0.5)
        assert len(server.requests) == 3
        assert (tmp_path / "store").read_text().count("\n") == 3


@pytest.mark.parametrize("failure", [(429, {"error": {"message": "slow down"}}), (500, {}), None])
def test_tries_again_but_not_for_ever(tmp_path: Path, failure: Any) -> None:
    answers = [failure, failure, (200, said("A story."))]
    with serve(lambda _: answers.pop(0)) as server, chat(server.base_url, tmp_path / "store") as asked:
        assert asked.ask(HELLO, max_tokens=9).text == "A story."
    with serve(lambda _: failure) as server, chat(server.base_url, tmp_path / "other") as asked:
        with pytest.raises(InputError, match="m: "):
            asked.ask(HELLO, max_tokens=9)
        assert len(server.requests) == 3


def test_a_wrong_key_is_told_without_the_key(tmp_path: Path) -> None:
    denied = {"error": {"message": "Incorrect API key provided: sk-very-secret"}}
    with serve(lambda _: (401, denied)) as server, chat(server.base_url, tmp_path / "store") as asked:
        with pytest.raises(InputError, match=r"status 401.*Is the key right") as error:
            asked.ask(HELLO, max_tokens=9)
        assert "sk-very-secret" not in str(error.value)
        assert len(server.requests) == 1
    with pytest.raises(InputError, match="no key in the environment variable NO_SUCH_KEY"):
        chat("http://127.0.0.1:1/v1", tmp_path / "store", key="NO_SUCH_KEY")


def test_the_limit_of_money_is_never_passed(tmp_path: Path) -> None:
    """Each reply costs 20, and could cost 16 for its prompt and 18 for its answer."""
    limits = {"money": 100, "input_price": 1e6, "output_price": 2e6, "concurrency": 4}
    with serve(lambda _: (200, said("A story."))) as server:
        with chat(server.base_url, tmp_path / "store", **limits) as asked:
            with pytest.raises(LimitError, match="of 100 is spent"):
                list(asked.each(range(9), lambda nonce: asked.ask(HELLO, max_tokens=9, nonce=str(nonce))))
            assert 0 < asked.spent <= 100
            bought = len(asked.replies)
        with chat(server.base_url, tmp_path / "store", **limits | {"money": 1000}) as asked:
            assert len(list(asked.each(range(9), lambda nonce: asked.ask(HELLO, max_tokens=9, nonce=str(nonce))))) == 9
        assert len(server.requests) == 9 >= bought
    with pytest.raises(ValidationError, match="needs `input_price`"):
        chat("http://127.0.0.1:1/v1", tmp_path / "store", money=5)


def test_the_limit_of_time(tmp_path: Path) -> None:
    with serve(lambda _: (200, said("A story."))) as server:
        with chat(server.base_url, tmp_path / "store", minutes=1e-9) as asked, pytest.raises(LimitError, match="are over"):
            asked.ask(HELLO, max_tokens=9)
        assert not server.requests


def test_not_more_at_once_than_allowed(tmp_path: Path) -> None:
    with serve(lambda _: (200, said("A story."))) as server, chat(server.base_url, tmp_path / "store", concurrency=3) as asked:
        begun: list[int] = []
        answered = 0
        for _ in asked.each((begun.append(n) or n for n in range(10)), lambda n: asked.ask(HELLO, max_tokens=9, nonce=str(n))):
            answered += 1
            assert len(begun) - answered <= 3
        assert answered == 10


def test_without_thinking() -> None:
    assert without_thinking("No thoughts. <think>shown</think>") == "No thoughts. <think>shown</think>"
    assert without_thinking("<thinking>a</thinking>b") == "b"
    assert without_thinking("Let me see.</think>\nA story.") == "A story."
    assert without_thinking("They wrote <think> and </think> on a wall.") == "They wrote <think> and </think> on a wall."


def test_a_refusal_by_error_is_an_answer(tmp_path: Path) -> None:
    refused = {"error": {"message": "The prompt was filtered.", "code": "content_filter"}}
    with serve(lambda _: (400, refused)) as server:
        for _ in range(2):
            with chat(server.base_url, tmp_path / "store", input_price=1e6) as asked:
                assert (asked.ask(HELLO, max_tokens=9).finish_reason, asked.spent) == ("refusal", 0)
        assert len(server.requests) == 1


@pytest.mark.parametrize("document", [{"error": {"message": "upstream sk-very-secret", "code": 502}}, {"choices": []}])
def test_what_is_no_answer_is_an_error_and_not_kept(tmp_path: Path, document: dict[str, Any]) -> None:
    with serve(lambda _: (200, document)) as server, chat(server.base_url, tmp_path / "store") as asked:
        with pytest.raises(InputError, match="no answer in what it sent") as error:
            asked.ask(HELLO, max_tokens=9)
        assert "sk-very-secret" not in str(error.value)
        assert not asked.replies


def test_tokens_that_nobody_counted_cost_the_most_they_can(tmp_path: Path) -> None:
    """The 16 bytes of the prompt, and all that the answer may hold."""
    uncounted = {key: value for key, value in said("A story.").items() if key != "usage"}
    prices = {"input_price": 1e6, "output_price": 2e6}
    with serve(lambda _: (200, uncounted)) as server, chat(server.base_url, tmp_path / "store", **prices) as asked:
        asked.ask(HELLO, max_tokens=9)
        assert asked.spent == 16 + 2 * 9
