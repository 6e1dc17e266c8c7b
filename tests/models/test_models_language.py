"""What the language model is shown, under chat templates of many manners."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.contracts import InputError
from components.models.language import context_length, conversation, load_model, load_tokenizer, prompt_text, token_ids
from components.models.params import Params
from tests.conftest import CHATML

EACH = "{% for message in messages %}"
END = "{% endfor %}"
ASK = "{% if add_generation_prompt %}"


def with_template(model: Path, folder: Path, template: str | None, **config: Any) -> Params:
    """The tiny model with another chat template, or other settings of its tokenizer."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | config
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return Params(language=str(folder))


def test_chatml(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(Params(language=str(tiny_model)))
    before, answer = conversation(tokenizer, "A door.", "It opened.")
    assert before == prompt_text(tokenizer, "A door.") == "<|im_start|>user\nA door.<|im_end|>\n<|im_start|>assistant\n"
    # The line feed behind the end of the turn is never generated.
    assert answer == "It opened.<|im_end|>"
    prompt_ids, answer_ids = token_ids(tokenizer, "A door.", "It opened.")
    assert tokenizer.decode(prompt_ids + answer_ids) == before + answer
    assert answer_ids[-1] == tokenizer.eos_token_id
    assert answer_ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer(before + answer, add_special_tokens=False)["input_ids"] == prompt_ids + answer_ids


@pytest.mark.parametrize(
    ("template", "before", "answer"),
    [
        # A system turn of its own, and a special token at the beginning.
        (
            "<|endoftext|>{{ '<|im_start|>system\nYou write.<|im_end|>\n' }}" + CHATML,
            "<|endoftext|><|im_start|>system\nYou write.<|im_end|>\n<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n",
            "R<|im_end|>",
        ),
        # The end of the turn is no end-of-sequence token, so that one is put behind it.
        (
            EACH + "[{{ message.role }}]{{ message.content }}[/]\n" + END + ASK + "[assistant]{% endif %}",
            "[user]P[/]\n[assistant]",
            "R[/]<|im_end|>",
        ),
        # Nothing at all behind the answer.
        (
            EACH + "{{ message.role }}: {{ message.content }}\n" + END + ASK + "assistant: {% endif %}",
            "user: P\nassistant: ",
            "R<|im_end|>",
        ),
        # More than white space behind the end of the sequence.
        (
            EACH + "{{ message.role }}: {{ message.content }}<|im_end|>~\n" + END + ASK + "assistant: {% endif %}",
            "user: P<|im_end|>~\nassistant: ",
            "R<|im_end|>",
        ),
        # An empty thought before the answer, which the generation prompt does not write.
        (
            EACH
            + "{{ message.role }}: {% if message.role == 'assistant' %}<think></think>{% endif %}"
            + "{{ message.content }}<|im_end|>"
            + END
            + ASK
            + "assistant: {% endif %}",
            "user: P<|im_end|>assistant: ",
            "<think></think>R<|im_end|>",
        ),
    ],
)
def test_templates_that_add_things(tiny_model: Path, tmp_path: Path, template: str, before: str, answer: str) -> None:
    tokenizer = load_tokenizer(with_template(tiny_model, tmp_path / "model", template))
    assert conversation(tokenizer, "P", "R") == (before, answer)
    ids = token_ids(tokenizer, "P", "R")
    # No token is put in front or behind by the tokenizer itself.
    assert tuple(map(tokenizer.decode, ids)) == (before, answer)


def test_the_beginning_is_not_doubled(beginning_model: Path) -> None:
    tokenizer = load_tokenizer(Params(language=str(beginning_model)))
    assert tokenizer("P")["input_ids"][0] == 0
    prompt, answer = token_ids(tokenizer, "P", "R")
    assert prompt[0] == 0
    assert (prompt + answer).count(0) == 1


def test_a_template_that_rewrites_the_prompt_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    template = EACH + "{{ message.content }}|" + END + ASK + "now: {% endif %}"
    tokenizer = load_tokenizer(with_template(tiny_model, tmp_path / "model", template))
    with pytest.raises(InputError, match="does not begin with its own prompt"):
        conversation(tokenizer, "P", "R")


def test_a_model_without_a_template_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no chat template\. Use its Instruct variant"):
        load_tokenizer(with_template(tiny_model, tmp_path / "model", None))


def test_a_model_whose_stories_never_end_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no end-of-sequence token"):
        load_tokenizer(with_template(tiny_model, tmp_path / "model", CHATML, eos_token=None))


def test_the_end_of_sequence_pads_where_nothing_else_does(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(with_template(tiny_model, tmp_path / "model", CHATML, pad_token=None))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_context_length(tiny_model: Path) -> None:
    assert context_length(Params(language=str(tiny_model), max_tokens=100)) == 100
    assert context_length(Params(language=str(tiny_model), max_tokens=1000)) == 256


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    models = Params(language=str(tmp_path / "empty"))
    for load in (load_tokenizer, context_length, load_model):
        with pytest.raises(InputError, match=r"model '.*empty': no (tokenizer|model) can be loaded from"):
            load(models)


def test_pickled_weights_are_not_loaded(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    assert load_model(Params(language=str(folder), dtype="bfloat16")).dtype == torch.bfloat16
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        load_model(Params(language=str(folder)))


def test_the_packaged_model_shows_its_own_template() -> None:
    tokenizer = load_tokenizer(Params())
    before, answer = conversation(tokenizer, "A door.", "It opened.")
    assert before.startswith("<|im_start|>system\n")
    assert before.endswith("<|im_start|>user\nA door.<|im_end|>\n<|im_start|>assistant\n")
    assert answer == "It opened.<|im_end|>"
    assert context_length(Params(max_tokens=100_000)) == 8192


def test_a_base_model_takes_the_tokenizer_of_another(tiny_model: Path, tmp_path: Path) -> None:
    base = with_template(tiny_model, tmp_path / "base", None)
    models = base.model_copy(update={"tokenizer": str(tiny_model)})
    assert load_tokenizer(models).chat_template == load_tokenizer(Params(language=str(tiny_model))).chat_template


def test_a_tokenizer_of_another_vocabulary_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    small = shutil.copytree(tiny_model, tmp_path / "small")
    config = json.loads((small / "config.json").read_text(encoding="utf-8"))
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 17}), encoding="utf-8")
    with pytest.raises(InputError, match=r"has \d+ tokens and model .* only 17: they do not belong together"):
        load_tokenizer(Params(language=str(small), tokenizer=str(tiny_model)))
