"""How an endpoint is asked for the stories of a prompt: each by itself, each unlike the earlier ones, or all at once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.contracts import work_folder
from components.evaluate.prompts import Prompt
from components.evaluate.stories import Story
from components.evaluate.systems import Remote
from components.models.endpoint import Chat, Reply

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedTokenizerBase

_AGAIN = "Now write another story for the same prompt. In plot and in style it must differ from every story above."
_ALL = """

Write {count} stories for this, drawn at random from all that you might write, the unlikely ones too. Give each as
<response><text>the story</text><probability>how probable it is that you would write it, from 0 to 1</probability></response>
and write nothing else."""
# Calls for what of a prompt's stories is not there yet, and tokens of each story's frame.
_CALLS, _FRAME = 3, 60


class Told(NamedTuple):
    """A story's text and how it ended (contracts.GENERATIONS)."""

    text: str
    finish_reason: str


def write_remote(
    system: Remote, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, bar: tqdm[Any]
) -> tuple[list[Story], dict[str, float]]:
    """`samples` stories for each prompt, in their order, and what they took.

    Args:
        tokenizer: counts the tokens of the stories, as it does for those of people.
        bar: moves on by `max_new_tokens` for every story.

    Raises:
        InputError: see Chat.
    """
    params = system.params
    write = {"plain": _plain, "iterative": _iterative, "verbalized": _verbalized}[system.mode]
    told: dict[str, tuple[list[Told], list[Reply]]] = {}
    with Chat(system.endpoint, store(system)) as chat:

        def of(prompt: Prompt) -> tuple[Prompt, list[Told], list[Reply]]:
            asker = _Asker(chat, system)
            return prompt, write(asker, prompt.text, params.samples, params.max_new_tokens), asker.replies

        for prompt, stories, replies in chat.each(prompts, of):
            told[prompt.id] = stories, replies
            bar.update(params.samples * params.max_new_tokens)
    made = []
    for prompt in prompts:
        for sample, (text, reason) in enumerate(told[prompt.id][0]):
            tokens = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            made.append(Story(system.name, prompt.id, sample, text, tokens, reason))
    used = [reply for prompt in prompts for reply in told[prompt.id][1]]
    read, written = sum(reply.prompt_tokens for reply in used), sum(reply.completion_tokens for reply in used)
    cost = system.endpoint.price(read, written)
    return made, {"answers": len(used), "tokens_read": read, "tokens_written": written, "cost": cost}


def store(system: Remote) -> Path:
    """Where the answers to a system's settings are kept, whatever the system is called. It is never removed."""
    told = json.dumps([system.endpoint.base_url, system.endpoint.model, system.mode, system.sampling.given()])
    return work_folder("evaluate") / "answers" / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.jsonl"


class _Asker:
    """Asks for one prompt, and remembers what was answered."""

    def __init__(self, chat: Chat, system: Remote) -> None:
        self._chat, self._seed, self.replies = chat, system.params.seed, list[Reply]()
        given = system.sampling.model_dump(exclude_none=True, exclude={"max_new_tokens"})
        self._sampling: dict[str, Any] = {key: given.pop(key) for key in ("temperature", "top_p") if key in given}
        if given:
            # Not of OpenAI's own API; vLLM and others know them.
            self._sampling["extra_body"] = given

    def ask(self, messages: Sequence[Mapping[str, str]], limit: int, number: int) -> Reply:
        """The answer to a conversation; `number` tells apart those to the same one."""
        reply = self._chat.ask(messages, max_tokens=limit, nonce=f"{self._seed} {number}", **self._sampling)
        self.replies.append(reply)
        return reply


def _plain(asker: _Asker, prompt: str, samples: int, limit: int) -> list[Told]:
    replies = [asker.ask([{"role": "user", "content": prompt}], limit, number) for number in range(samples)]
    return [Told(reply.text, reply.finish_reason) for reply in replies]


def _iterative(asker: _Asker, prompt: str, samples: int, limit: int) -> list[Told]:
    messages = [{"role": "user", "content": prompt}]
    told: list[Told] = []
    for number in range(samples):
        reply = asker.ask(messages, limit, number)
        told.append(Told(reply.text, reply.finish_reason))
        # A refusal or an empty answer is no story to differ from.
        if reply.text:
            messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": _AGAIN}]
    return told


def _verbalized(asker: _Asker, prompt: str, samples: int, limit: int) -> list[Told]:
    """Zhang et al. 2025, "Verbalized Sampling" (arXiv 2510.01171): the stories are taken in the order given."""
    told: list[Told] = []
    for number in range(_CALLS):
        missing = samples - len(told)
        messages = [{"role": "user", "content": prompt + _ALL.format(count=missing)}]
        reply = asker.ask(messages, missing * (limit + _FRAME), number)
        if reply.finish_reason == "refusal":
            return told + [Told("", "refusal")] * missing
        told += stories_in(reply.text, reply.finish_reason == "length")[:missing]
        if len(told) == samples:
            return told
    return told + [Told("", "unparsed")] * (samples - len(told))


def stories_in(answer: str, cut: bool = False) -> list[Told]:
    """The stories in an answer that should hold several: in tags, closed or not, or as JSON; none where there is neither.

    Args:
        cut: whether the answer was cut at its limit: the last story then is, unless it was closed before.
    """
    for tag in ("text", "response"):
        pattern = rf"<{tag}\b[^>]*>(.*?)(</{tag}\s*>|<probability\b|</?response\b|\Z)"
        if found := re.findall(pattern, answer, re.DOTALL | re.IGNORECASE):
            texts = [(_without_probability(text), bool(closed)) for text, closed in found]
            return [Told(text, "length" if cut and not closed else "stop") for text, closed in texts if text]
    return [Told(text, "stop") for text in _in_json(answer)]


def _without_probability(text: str) -> str:
    text = re.sub(r"<probability\b.*?(</probability\s*>|\Z)", "", text, flags=re.DOTALL | re.IGNORECASE)
    return text.strip()


def _in_json(answer: str) -> list[str]:
    """Texts in a list of objects or strings, which may be the value of a key and stand in a code block."""
    first, last = min((i for i in (answer.find("["), answer.find("{")) if i >= 0), default=-1), max(map(answer.rfind, "]}"))
    try:
        document = json.loads(answer[first : last + 1], strict=False) if 0 <= first < last else None
    except ValueError:
        return []
    if isinstance(document, dict):
        document = next((value for value in document.values() if isinstance(value, list)), [document])
    texts = []
    for item in document if isinstance(document, list) else ():
        if isinstance(item, dict):
            item = next((item[key] for key in ("text", "response", "story", "content") if key in item), None)
        if isinstance(item, str) and item.strip():
            texts.append(item.strip())
    return texts
