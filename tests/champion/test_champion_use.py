"""What others do with a version: compare it, try it, take it with them; and that nothing is read that was changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.champion.tables import plain
from components.evaluate.params import Sampling
from components.lineage import digest, tracking_client
from tests.champion.conftest import NAME, better, polyphony, register, retrain
from tests.register.conftest import HOSTILE, PARAMETERS, Pipeline

IDS = torch.arange(3, 40)[None]


@pytest.fixture
def usable(pipeline: Pipeline, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A version whose base model is a folder of this machine."""
    monkeypatch.setitem(PARAMETERS, "models", PARAMETERS["models"] | {"language": str(tiny_model)})
    retrain(pipeline, "usable")
    return f"{NAME}/{register()}"


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert polyphony(*words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def logits(folder: Path, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder, **options)(input_ids=IDS).logits.float()
    return found


def adapted(base: Path, adapter: Path) -> torch.Tensor:
    from peft import PeftModel

    with torch.inference_mode():
        found: torch.Tensor = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)(
            input_ids=IDS
        ).logits
    return found


def test_compare(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    del versions
    text = shown(capsys, "compare", f"{NAME}@candidate", f"{NAME}/1", "--prompts", "1")
    assert "v3 @candidate" in text and "0.676 [0.576, 0.776]" in text and "+0.200 [+0.200, +0.200]" in text
    assert "Write about 0." in text and "Write about 1." not in text
    assert "ddpo tells 0.3" in text
    found = json.loads(shown(capsys, "compare", f"{NAME}/3", f"{NAME}/1", "--json"))
    assert found["metrics"]["semantic_diversity"]["difference"]["mean"] == pytest.approx(0.2)
    assert [len(item["one"]) for item in found["stories"]] == [4, 4]
    assert found["versions"]["one"]["name"] == "polyphony version 3"


def test_compare_as_a_page(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    del versions
    shown(capsys, "compare", f"{NAME}/3", f"{NAME}/1", "--html", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)") == 2 + 2 * 2 * 4
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
    assert "+0.200 [+0.200, +0.200]" in page


def test_compare_what_was_measured_apart(pipeline: Pipeline, versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    del versions
    Path("reward/training.json").write_text("another", encoding="utf-8")
    pipeline.do("train-reward", {"responses": "responses"}, {"model": "reward"}, {})
    retrain(pipeline, "apart", better(0.3))
    text = shown(capsys, "compare", f"{NAME}/{register()}", f"{NAME}/1")
    assert "different evaluation sets (reward model: " in text and "Write about 0." in text and "+0." not in text
    shown(capsys, "compare", f"{NAME}/4", f"{NAME}/1", "--html", "page.html")


def test_a_terminal_obeys_no_story() -> None:
    assert (
        plain("a\x1b]0;b\x07\u202ec\r\n\td\n")
        == "a\N{REPLACEMENT CHARACTER}]0;b" + "\N{REPLACEMENT CHARACTER}" * 2 + "c\n    d\n"
    )
    assert plain("\U0001f469\u200d\U0001f680 é 語") == "\U0001f469\u200d\U0001f680 é 語"


def test_try(usable: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("try", usable, f"The lamp {HOSTILE}", "-k", "3", "--max-new-tokens", "12", "--seed", "1")
    told = json.loads(shown(capsys, *words, "--json"))
    assert len({story["text"] for story in told["stories"]}) == 3
    assert all(0 < story["tokens"] <= 12 for story in told["stories"])
    assert set(told["diversity"]) == {"semantic_diversity", "style_diversity"}
    assert all(0 < value <= 2 for value in told["diversity"].values())
    assert told["evaluated"]["semantic_diversity"] == pytest.approx(0.476)
    assert (told["seed"], told["sampling"]["temperature"]) == (1, 1.0)
    assert set(told["sampling"]) == set(Sampling.model_fields), "all that an evaluation samples by"
    assert json.loads(shown(capsys, *words, "--json"))["stories"] == told["stories"]
    text = shown(capsys, *words)
    assert "style diversity: " in text and plain(told["stories"][0]["text"]) in text
    alone = json.loads(shown(capsys, "try", usable, "The lamp", "-k", "1", "--max-new-tokens", "2", "--json"))
    assert (len(alone["stories"]), alone["diversity"]) == (1, {})


@pytest.mark.parametrize("prompt", [" ", "lamp " * 400])
def test_try_what_cannot_be_told(usable: str, prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert polyphony("try", usable, prompt) == 1
    assert "try: " in capsys.readouterr().err


def test_a_merged_model_is_adapter_and_base(usable: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny_model / "LICENSE").write_text("do good", encoding="utf-8")
    (tiny_model / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    text = shown(capsys, "export", usable, "--merge", "--output", "out/merged")
    folder = Path("out/merged")
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md", "LICENSE"} <= names
    assert not {"adapter_config.json", "adapter_model.safetensors"} & names
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".jinja", ".md", ""}
    torch.testing.assert_close(logits(folder), adapted(tiny_model, Path("ddpo")), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(folder), logits(tiny_model), atol=1e-3)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.count("---\n") >= 2 and 'license_name: "apache-2.0"' in card and digest(tiny_model) in card
    assert "licence of the base model: apache-2.0" in text and "rounding moves them by 0.0%" in text
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_tensors="pt", add_generation_prompt=True)
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] > ids["input_ids"].shape[1]


def test_merged_in_bfloat16(usable: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "export", usable, "--merge", "--dtype", "bfloat16", "--output", "merged")
    assert json.loads(Path("merged/config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    exact = adapted(tiny_model, Path("ddpo"))
    assert (logits(Path("merged"), dtype=torch.float32) - exact).norm() < 0.02 * exact.norm()
    assert "of what the adapter changes" in text and "by 0.0%" not in text


def test_export_as_it_is(usable: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, "export", usable, "--output", "adapter")
    assert {"README.md", "record.json", "adapter_model.safetensors"} <= {file.name for file in Path("adapter").iterdir()}
    assert polyphony("export", usable, "--output", "adapter") == 1
    assert "is there already" in capsys.readouterr().err
    version = tracking_client().get_model_version(NAME, usable.partition("/")[2])
    assert digest(Path("adapter")) == version.tags["artifact.digest"]
    for name in ("README.md", "record.json", "lineage.json"):
        (Path("adapter") / name).unlink()
    # What registration added, it added beside the training's files.
    assert digest(Path("adapter")) == version.tags["model.digest"]


def test_a_base_model_that_is_not_here(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The record names it, and not the parameters of today. Nothing half is left."""
    Path("params.yaml").write_text("models: {language: another}", encoding="utf-8")
    assert polyphony("export", f"{NAME}/{versions[0]}", "--merge", "--output", "merged") == 1
    assert "model 'tiny': no such folder" in capsys.readouterr().err
    assert not list(Path().glob("*merged*"))


def test_remote_code_needs_permission_here(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"owner/model@{'a' * 40}"
    monkeypatch.setitem(PARAMETERS, "models", PARAMETERS["models"] | {"language": name, "remote_code": (name,)})
    retrain(pipeline, "remote")
    version = f"{NAME}/{register()}"
    assert polyphony("try", version, "Hi") == 1
    assert "runs code of its own. If you trust it" in capsys.readouterr().err
    assert polyphony("try", version, "Hi", "--remote-code", name) == 1
    assert "not in the local hub cache" in capsys.readouterr().err


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def add_a_pickle(path: Path) -> None:
    (path.parent / "pytorch_model.bin").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("model/adapter_model.safetensors", append, r"adapter_model.safetensors (changed)"),
        ("model/tokenizer.json", append, "tokenizer.json (changed)"),
        ("model/README.md", append, "README.md (changed)"),
        ("model/record.json", append, "record.json (changed)"),
        ("model/adapter_config.json", Path.unlink, "adapter_config.json (missing)"),
        ("model/adapter_config.json", add_a_pickle, "pytorch_model.bin (added)"),
        ("evaluation/measurements.parquet", append, "its evaluation was changed"),
        ("model/README.md", lambda path: shutil.rmtree(path.parent), "'model'"),
    ],
)
@pytest.mark.parametrize("command", ["try", "export", "promote"])
def test_what_was_changed_is_not_read(
    usable: str, file: str, change: Callable[[Path], None], told: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = usable.partition("/")[2]
    client = tracking_client()
    run = client.get_run(client.get_model_version(NAME, number).run_id)
    change(Path(run.info.artifact_uri.removeprefix("file://")) / file)
    words = {"try": [usable, "Hi"], "export": [usable, "--output", "out"]}
    promote = ["--model", NAME, "--version", number, "--reason", "r", "--yes", "--force"]
    assert polyphony(command, *words.get(command, promote)) == 1
    assert told in capsys.readouterr().err
    assert not Path("out").exists()


def test_names() -> None:
    for name in ("polyphony", "a/b/1", "polyphony@", "polyphony/x", "@champion"):
        assert polyphony("try", name, "Hi") == 1
