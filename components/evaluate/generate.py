"""Stories by a model that is run here, across prompts, kept group by group until all are there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from components.contracts import InputError, atomic, content_id, work_folder
from components.evaluate import vllm
from components.evaluate.prompts import Prompt
from components.evaluate.slots import Request, Slots, Told, require_attention
from components.evaluate.stories import Story
from components.evaluate.systems import Local
from components.models.endpoint import without_thinking
from components.models.language import end_tokens, load_model, load_tokenizer, own_context, prompt_text
from components.provenance import code_digest, packages

if TYPE_CHECKING:
    from tqdm import tqdm

# Batches of stories that are kept together. Within a group the end of one story makes room for the next; a kill costs at most
# one group. Only whole groups are kept, as rounding depends on what is computed together: so stories are always the same.
GROUP = 4
# What writes them, beside the models.
_CODE = tuple(f"evaluate/{name}.py" for name in ("generate", "sampling", "slots", "vllm"))


def requests(system: Local, prompts: Sequence[Prompt]) -> list[Request]:
    """`samples` requests for each prompt, in the order of the prompts.

    Raises:
        InputError: if a prompt leaves no room in the model's context, or the model has no usable tokenizer.
    """
    params = system.params
    tokenizer = load_tokenizer(system.models)
    context = own_context(system.models)
    made: list[Request] = []
    for prompt in prompts:
        ids = tuple(tokenizer(prompt_text(tokenizer, prompt.text), add_special_tokens=False, verbose=False)["input_ids"])
        room = min(params.max_new_tokens, (context or len(ids) + params.max_new_tokens) - len(ids))
        if room < 1:
            raise InputError(
                f"test prompt {prompt.id} takes {len(ids)} tokens and leaves no room in the context of {context} of "
                f"{system.models.language}; lower models.max_tokens, so that ingest rejects it."
            )
        for sample in range(params.samples):
            seed = int(content_id(str(params.seed), system.name, prompt.id, str(sample)), 16)
            made.append(Request(len(made), ids, room, seed))
    return made


def kept(system: Local, asked: Sequence[Request]) -> Path:
    """The folder of the stories, in a name for all that they depend on: model, requests, sampling, code, packages."""
    params = system.params.model_dump(mode="json", exclude={"systems", "metrics", "max_prompts"})
    models = system.models.model_dump(mode="json", exclude={"reward", "semantic", "style"})
    made_of = [system.name, system.identity, models, params, *map(asdict, asked)]
    made_by = [code_digest("models", *_CODE), packages(), torch.cuda.is_available()]
    name = hashlib.sha256(json.dumps([made_of, made_by]).encode()).hexdigest()[:16]
    return work_folder("evaluate") / "stories" / name


def forget(days: int = 30) -> None:
    """Removes stories that no evaluation has asked for so long."""
    for folder in work_folder("evaluate").glob("stories/*"):
        # Another evaluation may be removing it.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > days * 86400:
                shutil.rmtree(folder, ignore_errors=True)


def write_stories(
    system: Local, prompts: Sequence[Prompt], asked: Sequence[Request], work: Path, bar: tqdm[Any]
) -> list[Story]:
    """A story for each request, in their order.

    Args:
        asked: from `requests`, for the same prompts.
        work: keeps finished groups; the same call with the same folder writes none of them again, and goes on after a kill.
        bar: counts tokens; moves on by `max_new_tokens` for every story.
    """
    params = system.params
    # Prompts of like length share a group, so that little is filled up; long ones first, so that what does not fit fails soon.
    order = sorted(range(len(asked)), key=lambda index: -len(asked[index].ids))
    size = GROUP * params.batch_size
    stories: dict[int, Story] = {}
    writer: _Writer | None = None
    work.mkdir(parents=True, exist_ok=True)
    os.utime(work)
    for start in range(0, len(order), size):
        group = [asked[index] for index in order[start : start + size]]
        part = work / f"{start // size}.json"
        if part.exists():
            bar.update(len(group) * params.max_new_tokens)
        else:
            writer = writer or _Writer(system)
            written = {}
            for told in writer.write(group, bar):
                number, sample = divmod(told.request.key, params.samples)
                written[told.request.key] = asdict(writer.story(told, prompts[number], sample))
            with atomic(part) as partial:
                partial.write_text(json.dumps(dict(sorted(written.items()))), encoding="utf-8")
        stories |= {int(key): Story(**fields) for key, fields in json.loads(part.read_text(encoding="utf-8")).items()}
    return [stories[key] for key in range(len(asked))]


class _Writer:
    """The model with its adapter, by vLLM where that is to be had.

    The adapter is not merged: in bfloat16 a change of a weight by less than 1/500 of it is lost in rounding, and preference
    training changes most of them by less.
    """

    def __init__(self, system: Local) -> None:
        self._system = system
        self._tokenizer = load_tokenizer(system.models)
        ends = end_tokens(system.models, self._tokenizer)
        self._engine: Slots | vllm.Vllm
        if vllm.usable(system.models):
            self._engine = vllm.Vllm(system.models, system.adapter, ends, system.params)
        else:
            model = load_language(system)
            self._engine = Slots(model, ends, self._tokenizer.pad_token_id, system.params, system.params.batch_size)

    def write(self, asked: Sequence[Request], bar: tqdm[Any]) -> Iterator[Told]:
        for told in self._engine.write(asked, bar.update):
            bar.update(self._system.params.max_new_tokens - len(told.tokens))
            yield told

    def story(self, told: Told, prompt: Prompt, sample: int) -> Story:
        said = str(self._tokenizer.decode(told.tokens, skip_special_tokens=True)).strip()
        text, tokens = without_thinking(said), len(told.tokens)
        if text != said:
            tokens = len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return Story(self._system.name, prompt.id, sample, text, tokens, "stop" if told.ended else "length")


def load_language(system: Local) -> Any:
    """The system's model as `Slots` takes it.

    Raises:
        InputError: if it is none that `Slots` can run.
    """
    model: Any = load_model(system.models, system.adapter)
    model = (model.get_base_model() if system.adapter else model).eval()
    require_attention(model, system.models.language)
    # The model hands on a slice of its last layer, for which a processor's matmul copies the head once per sequence.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return model
