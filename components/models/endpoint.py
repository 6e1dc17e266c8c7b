"""Models behind an OpenAI-compatible endpoint: asked many times at once, within limits, and never paid for twice."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from components.contracts import InputError
from components.params import Section, hidden

if TYPE_CHECKING:
    from openai import APIError

Item = TypeVar("Item")
Result = TypeVar("Result")
Message = Mapping[str, str]

# A model that thinks aloud does so first; cut at the limit, it never came to the answer.
_THINKING = re.compile(r"\A\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_END_OF_THINKING = re.compile(r"\A(?:(?!<think).)*?</think(?:ing)?>", re.DOTALL)
# What an endpoint calls its refusal where it refuses by an error.
_REFUSALS = ("content_filter", "content_policy_violation", "moderation_blocked")
# An upper bound of the tokens of a prompt, for the money limit: no tokenizer makes more tokens than there are bytes.
_TOKENS_PER_BYTE = 1
_MILLION = 1e6
_HINTS = {401: " Is the key right?", 404: " Are address and model right?", 429: " Lower `concurrency`, or wait."}


class Endpoint(Section):
    """Where a model answers, and what asking it may cost."""

    base_url: str = Field(description="address of the API, such as https://api.openai.com/v1")
    model: str = Field(description="the model's name there")
    key: str = Field("OPENAI_API_KEY", description="environment variable that holds the key; empty: none is asked for")
    concurrency: int = Field(8, ge=1, description="requests under way at once")
    retries: int = Field(5, ge=0, description="further tries, with growing pauses, after 429, 5xx and cut connections")
    limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the API calls the longest reply; OpenAI's reasoning models know only the second"
    )
    timeout: float = Field(300.0, gt=0, description="seconds that one try may take")
    minutes: float = Field(0.0, ge=0, description="minutes after which no more is asked; 0: no limit")
    money: float = Field(0.0, ge=0, description="what may be spent, in the currency of the prices; 0: no limit")
    input_price: float = Field(0.0, ge=0, description="price of a million tokens of the prompts")
    output_price: float = Field(0.0, ge=0, description="price of a million tokens of the answers, thinking included")

    @field_validator("key", mode="before")
    @classmethod
    def _is_a_name(cls, value: Any) -> Any:
        if isinstance(value, str) and value and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            raise hidden("the NAME of an environment variable, in capitals, belongs here, never a key itself")
        return value

    @field_validator("base_url", mode="before")
    @classmethod
    def _holds_no_secret(cls, value: Any) -> Any:
        if isinstance(value, str) and not re.fullmatch(r"https?://[^\s@?#]+", value):
            raise hidden("expected http(s)://HOST/PATH without user, password, query or fragment")
        return value

    @model_validator(mode="after")
    def _has_prices(self) -> Endpoint:
        if self.money and not (self.input_price or self.output_price):
            raise ValueError("a limit of money needs `input_price` and `output_price`")
        return self

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / _MILLION


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: without the model's thinking; empty where it refused.
        finish_reason: `stop`, `length` (cut at the limit), or `refusal` (also the endpoint's content filter).
        prompt_tokens, completion_tokens: as the endpoint counts them, thinking included.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class LimitError(InputError):
    """The time or the money is spent. What was bought is kept."""


class Chat(AbstractContextManager["Chat"]):
    """Asks an endpoint. Every reply is stored at once, and the same question is never sent again while the store is there.

    `ask` may be called from several threads.
    """

    def __init__(self, endpoint: Endpoint, store: Path) -> None:
        """Opens the store, a file of JSON lines; a line that a kill cut is dropped.

        Raises:
            InputError: if the environment has no key.
        """
        from openai import OpenAI

        key = os.environ.get(endpoint.key, "") if endpoint.key else "none"
        if not key:
            raise InputError(f"{endpoint.base_url}: no key in the environment variable {endpoint.key}. Set it or name another.")
        self._endpoint, self._key = endpoint, key
        self._client = OpenAI(base_url=endpoint.base_url, api_key=key, timeout=endpoint.timeout, max_retries=endpoint.retries)
        self._until = time.monotonic() + endpoint.minutes * 60 if endpoint.minutes else float("inf")
        self._lock = threading.Lock()
        self._known = dict(_stored(store))
        self._spent = sum(endpoint.price(reply.prompt_tokens, reply.completion_tokens) for reply in self._known.values())
        self._reserved = 0.0
        self._file = store.open("a", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._client.close()

    @property
    def replies(self) -> list[Reply]:
        """All replies in the store."""
        with self._lock:
            return list(self._known.values())

    @property
    def spent(self) -> float:
        """What all replies in the store have cost, those of earlier runs included."""
        with self._lock:
            return self._spent

    def ask(self, messages: Sequence[Message], *, max_tokens: int, nonce: str = "", **settings: Any) -> Reply:
        """The reply to a conversation.

        Args:
            max_tokens: of the reply, thinking included.
            nonce: tells questions apart that are the same in words, such as the samples of one prompt.
            settings: of the sampling, as the API names them: temperature, top_p, seed, extra_body...

        Raises:
            LimitError: if the time is over, or the reply could cost more than is left.
            InputError: if the endpoint refuses the request or stays out of reach.
        """
        from openai import APIError

        request = {"model": self._endpoint.model, "messages": list(messages), self._endpoint.limit: max_tokens, **settings}
        name = hashlib.sha256(json.dumps([request, nonce], sort_keys=True).encode()).hexdigest()
        with self._lock:
            if known := self._known.get(name):
                return known
        most = sum(len(message["content"].encode()) for message in messages) * _TOKENS_PER_BYTE
        worst = self._endpoint.price(most, max_tokens)
        self._reserve(worst)
        reply = None
        try:
            completion = self._client.chat.completions.create(**request)
            if not getattr(completion, "choices", None):
                raise InputError(f"{self._where}: no answer in what it sent: {self._shown(str(completion))}")
            reply = _reply(completion, most, max_tokens)
        except APIError as error:
            if error.code not in _REFUSALS:
                raise InputError(f"{self._where}: {self._cause(error)}") from None
            reply = Reply("", "refusal", 0, 0)
        finally:
            # At once: in between, others would see what was reserved as neither reserved nor spent.
            with self._lock:
                self._reserved -= worst
                if reply:
                    self._keep(name, reply)
        return reply

    def _keep(self, name: str, reply: Reply) -> None:
        self._known[name] = reply
        self._spent += self._endpoint.price(reply.prompt_tokens, reply.completion_tokens)
        self._file.write(json.dumps({"name": name, **asdict(reply)}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def each(self, items: Iterable[Item], do: Callable[[Item], Result]) -> Iterator[Result]:
        """`do` of every item, as they come, as many at once as the endpoint allows.

        After the first error nothing more is begun; what is under way is finished, and kept, before it is raised.
        """
        waiting: set[Future[Result]] = set()
        with ThreadPoolExecutor(self._endpoint.concurrency) as pool:
            try:
                for item in items:
                    waiting.add(pool.submit(do, item))
                    if len(waiting) >= self._endpoint.concurrency:
                        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            finally:
                for future in waiting:
                    future.cancel()

    def _reserve(self, worst: float) -> None:
        limits, kept = self._endpoint, f"{len(self._known)} replies are kept; run it again to go on from them"
        if time.monotonic() > self._until:
            raise LimitError(f"{limits.model}: the {limits.minutes:g} minutes are over. {kept}.")
        with self._lock:
            if limits.money and self._spent + self._reserved + worst > limits.money:
                raise LimitError(
                    f"{limits.model}: {self._spent:.2f} of {limits.money:g} is spent, and the next reply could cost "
                    f"{worst:.2g}, more than is left. {kept}, with a higher `money`."
                )
            self._reserved += worst

    @property
    def _where(self) -> str:
        return f"{self._endpoint.base_url}, {self._endpoint.model}"

    def _shown(self, said: str) -> str:
        """What the endpoint said, short and without the key."""
        return re.sub(r"\s+", " ", said).replace(self._key, "***")[:300]

    def _cause(self, error: APIError) -> str:
        """An error in a line."""
        status = getattr(error, "status_code", 0)
        return f"{f'status {status}: ' if status else ''}{self._shown(error.message)}{_HINTS.get(status, '')}"


def _stored(path: Path) -> Iterator[tuple[str, Reply]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    whole = b""
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        entry = json.loads(line)
        whole += line
        yield entry.pop("name"), Reply(**entry)
    if len(whole) < path.stat().st_size:
        path.write_bytes(whole)


def _reply(completion: Any, most_read: int, most_written: int) -> Reply:
    """Where the endpoint counts no tokens, there were as many as there can be."""
    choice = completion.choices[0]
    text = without_thinking(choice.message.content or "")
    refused = bool(choice.message.refusal) or choice.finish_reason == "content_filter"
    reason = "refusal" if refused else "length" if choice.finish_reason == "length" else "stop"
    usage = completion.usage
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (most_read, most_written)
    return Reply("" if refused else text.strip(), reason, *tokens)


def without_thinking(text: str) -> str:
    """The text after a model's `<think>...</think>`; nothing where the thinking has no end.

    Some templates write the opening tag into the prompt, so that only the closing one is seen.
    """
    shown = _THINKING.sub("", text, count=1)
    return (_END_OF_THINKING.sub("", shown, count=1) if shown == text else shown).lstrip()
