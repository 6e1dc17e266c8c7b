"""What tests share: tiny models built on the fly, rows of stories, a working directory of its own for every test."""

from __future__ import annotations

import os

# Before anything imports them: no hub, no telemetry, no thread pools fighting over two cores.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", DVC_NO_ANALYTICS="1", GX_ANALYTICS_ENABLED="false")

import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.contracts import RESPONSES, content_id
from tests.platform.fixtures import mlflow_proxy, reachable, s3_proxy, trial

__all__ = ["mlflow_proxy", "reachable", "s3_proxy", "trial"]

WORDS = (
    "the lamp sea night keeper ship letter door garden snow machine river clock stone bird voice train winter "
    "salt bread ghost dragon map king daughter storm silence window moon captain road quiet old small never again"
).split()
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: a file's tests share a process, and so do all fast ones that share the finished workspace."""
    for item in items:
        shared = "finished" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("slow")
        item.add_marker(pytest.mark.xdist_group("finished" if shared else str(item.path)))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test writes by a relative path (MLflow's store, work folders) lands in the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    if fluent := sys.modules.get("mlflow.tracking.fluent"):
        # A step that ran in this process has left its experiment there, which is of another store.
        monkeypatch.setattr(fluent, "_active_experiment_id", None)


def story(seed: int, words: int = 30) -> str:
    """A text of some words, the same for the same seed."""
    chooser = random.Random(seed)
    return " ".join(chooser.choice(WORDS) for _ in range(words)) + "."


def response_rows(prompts: int = 6, responses: int = 4, test: int = 2, words: int = 30) -> list[dict[str, Any]]:
    """Rows of the responses table, sorted; the first `test` prompts are on the test side."""
    rows = []
    for p in range(prompts):
        prompt = f"Write about number {p}: {story(1000 + p, 5)}"
        for r in range(responses):
            text = story(p * 100 + r, words + 3 * r)
            rows.append(
                {
                    "prompt_id": content_id(prompt),
                    "prompt": prompt,
                    "response_id": content_id(prompt, text),
                    "response": text,
                    "score": float(10 * r + p),
                    "split": "test" if p < test else "train",
                }
            )
    return sorted(rows, key=lambda row: (row["prompt_id"], row["response_id"]))


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    """A responses table of 6 prompts x 4 responses, 2 prompts on the test side."""
    path = tmp_path / "responses.parquet"
    RESPONSES.write(path, response_rows())
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of 2 layers and random weights, a byte-level tokenizer and a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[0], chat_template=CHATML)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=fast.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id)
    folder = tmp_path_factory.mktemp("tiny-model")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def beginning_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with a template and a tokenizer that both put <|endoftext|> (0) in front of a text, as Llama's do."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("beginning") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text("<|endoftext|>" + CHATML)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs, made once: its tables take seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Path:
    """The store that a step finds in the test's folder."""
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


@pytest.fixture
def write_params(tmp_path: Path, store: Path) -> Callable[..., Path]:  # noqa: ARG001
    """Writes a parameter file from sections given as keyword arguments; a store lies ready for the step that reads it."""
    import yaml

    def write(**sections: dict[str, Any]) -> Path:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A workspace in which DVC has run the whole graph once, with secrets in its environment; who changes it copies it first.

    `repro.log` there has what was printed.
    """
    from tests.e2e import workspace
    from tests.test_redaction import SECRETS

    folder = workspace.make(tmp_path_factory.mktemp("finished"), tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        # MLflow passes on to other processes what a test before told it in this one.
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        (folder / "repro.log").write_text(workspace.dvc(folder, "repro"), encoding="utf-8")
    return folder
