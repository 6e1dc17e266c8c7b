"""What ends a training early: SIGTERM, numbers that are not finite, too little memory, checkpoints of something else."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from components.contracts import RESPONSES, InputError
from components.lineage import digest
from components.models.params import Params as Models
from components.train import manifest as manifests
from components.train.checkpoints import last_complete
from components.train.fit import Watched, fit
from components.train.manifest import claim, difference, manifest
from components.train.params import Params, Preference, Reward, Sft
from components.train.reward import _collate, less_memory
from components.train.step import run
from tests.conftest import response_rows

ROOT = Path(__file__).parents[2]


def until(arguments: list[str], sign: str, number: int) -> tuple[int, str]:
    """Runs a command on a terminal, sends it a signal as soon as its output shows `sign`; its exit status and output."""
    ours, theirs = pty.openpty()
    # Bars need some width to be shown at all.
    termios.tcsetwinsize(theirs, (24, 100))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, sent = "", False
    try:
        while chunk := os.read(ours, 4096).decode(errors="replace"):
            seen += chunk
            if not sent and re.search(sign, seen):
                sent = True
                process.send_signal(number)
    except OSError:
        # The terminal closes with its last process.
        pass
    finally:
        os.close(ours)
    assert sent, seen
    return process.wait(), seen


def test_told_to_stop_it_saves_leaves_and_goes_on(
    responses: Path, tiny_model: Path, write_params: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """SIGTERM as a cluster sends it, in the middle; then the same training again, which ends as if nothing had been."""
    sections = {
        "models": {"language": str(tiny_model), "max_tokens": 256},
        "train": {"sft": {"epochs": 20, "batch_size": 4}, "lora": {"r": 4}, "checkpoint_minutes": 60.0},
    }
    call = ["-m", "components.train", "--params", str(write_params(**sections)), "--objective", "sft"]
    call += ["--responses", str(responses), "--model", "model"]
    status, printed = until(call, r"\b[2-9]/80 \[", signal.SIGTERM)
    assert status == 143, printed
    saved = re.search(r"told to stop \(SIGTERM\): step (\d+) of 80 is saved in", printed)
    assert saved and not Path("model").exists()
    (work,) = Path(".work/train").iterdir()
    latest = last_complete(work)
    assert latest == work / f"checkpoint-{saved[1]}"
    assert {found.info.status for found in runs()} == {"KILLED"}

    def again(model: Path) -> str:
        models, params = Models(**sections["models"]), Params.model_validate(sections["train"])
        nothing = dict.fromkeys(("pairs", "deviations", "validation", "reference", "sft"))
        run(train=params, models=models, objective="sft", responses=responses, model=model, **nothing)
        return digest(model)

    caplog.set_level("INFO", "polyphony")
    continued = again(Path("model"))
    assert f"going on from {latest}" in caplog.messages
    assert not work.exists()
    assert again(Path("whole")) == continued


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(
    responses: Path, tiny_model: Path, write_params: Callable[..., Path]
) -> None:
    """SIGKILL at three moments by chance; with a checkpoint after every step, most of them fall into the writing of one."""
    sections = {
        "models": {"language": str(tiny_model), "max_tokens": 256},
        "train": {"sft": {"epochs": 20, "batch_size": 4}, "lora": {"r": 4}, "checkpoint_minutes": 1e-9},
    }
    params = str(write_params(**sections))
    call = ["-m", "components.train", "--params", params, "--objective", "sft", "--responses", str(responses), "--model"]
    for step in sorted(random.Random(0).sample(range(2, 70), 3)):
        # Bars skip numbers, so at this step or a later one.
        later = "|".join(str(number) for number in range(step, 80))
        status, printed = until([*call, "model"], rf"\b({later})/80 \[", signal.SIGKILL)
        assert status == -signal.SIGKILL, printed
        assert not Path("model").exists()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for model in ("model", "whole"):
        done = subprocess.run([sys.executable, *call, model], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("going on from" in done.stderr) == (model == "model")
    assert digest(Path("model")) == digest(Path("whole"))


def runs() -> list[Any]:
    from components.lineage import tracking_client

    client = tracking_client()
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


class Net(torch.nn.Module):
    """Predicts x; its loss is NaN at row `bad`, the gradient infinite at row `steep`."""

    def __init__(self, bad: int = -1, steep: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.bad, self.steep = bad, steep

    def forward(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = ((self.weight - 2) ** 2).expand(len(row)).mean()
        if (row == self.bad).any():
            loss = loss * float("nan")
        if (row == self.steep).any():
            loss = loss + ((self.weight - self.weight).abs() + 0).sqrt().sum()
        return {"loss": loss}


class Rows(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"row": row, "id": f"id{row}"}


class Own(Watched, Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        del train_dataset
        return torch.utils.data.SequentialSampler(self.train_dataset)


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"row": torch.tensor([e["row"] for e in examples]), "ids": [e["id"] for e in examples]}


def trainer(folder: Path, net: Net) -> Own:
    arguments = TrainingArguments(
        output_dir=str(folder), save_strategy="no", per_device_train_batch_size=2, gradient_accumulation_steps=2,
        num_train_epochs=1, use_cpu=True, report_to="none", remove_unused_columns=False, logging_steps=1,
    )  # fmt: skip
    return Own(model=net, args=arguments, train_dataset=Rows(), data_collator=collate)


def parameters(**sft: Any) -> Params:
    return Params(sft=Sft(**{"batch_size": 4, "learning_rate": 3e-4} | sft), checkpoint_minutes=1e-9)


@pytest.mark.parametrize(("net", "ids"), [(Net(bad=6), ["id6", "id7"]), (Net(steep=6), ["id4", "id5", "id6", "id7"])])
def test_not_finite(tmp_path: Path, net: Net, ids: list[str]) -> None:
    """The batch at fault is named, or all of the step where only the gradient tells; the checkpoint before it stays."""
    with pytest.raises(InputError) as raised:
        fit(trainer(tmp_path, net), parameters(), "sft", "")
    message = str(raised.value)
    assert "step 2 is not finite" in message and ", ".join(ids) in message
    assert "Lower train.sft.learning_rate, 0.0003 now, to 0.0001" in message
    record = json.loads((tmp_path / "not-finite-0.json").read_text(encoding="utf-8"))
    assert record["ids"] == ids and record["step"] == 2
    kept = last_complete(tmp_path)
    assert kept == tmp_path / "checkpoint-1" and str(kept) in message
    assert net.weight.isfinite().all()


def test_not_finite_at_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There was no checkpoint yet"):
        fit(trainer(tmp_path, Net(bad=0)), parameters(), "sft", "")


def test_all_is_well(tmp_path: Path) -> None:
    made = trainer(tmp_path, Net())
    fit(made, parameters(), "sft", "")
    assert made.state.global_step == 3
    # A second call has nothing left to do: the last step has its checkpoint.
    weight = made.model.weight.clone()
    again = trainer(tmp_path, Net())
    fit(again, parameters(), "sft", "")
    assert again.state.global_step == 3 and torch.equal(again.model.weight, weight)


@pytest.mark.parametrize("huge", [lambda: torch.empty(2**60), lambda: bytearray(2**60)])
def test_out_of_memory(tmp_path: Path, huge: Callable[[], Any]) -> None:
    """What the CPU's allocator, and Python's, say."""
    made = trainer(tmp_path, Net())
    made.model.forward = lambda **_: huge()
    with pytest.raises(InputError, match=r"^out of memory: buy some \("):
        fit(made, parameters(), "sft", "buy some")


def test_other_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    made = trainer(tmp_path, Net())
    made.model.forward = lambda **_: torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="size"):
        fit(made, parameters(), "sft", "")


@pytest.mark.parametrize(("size", "accumulation"), [(2, 1), (3, 2), (9, 1), (12, 5), (49, 1)])
def test_advice_keeps_the_examples_of_a_step(size: int, accumulation: int) -> None:
    said = less_memory(Reward(batch_size=size, accumulation=accumulation))
    (before, after), (earlier, later) = re.findall(r"from (\d+) to (\d+)", said)
    assert (int(before), int(earlier)) == (size, accumulation)
    assert int(after) < size and int(after) * int(later) == size * accumulation


def test_advice_where_no_batch_can_be_smaller() -> None:
    assert "gradient_checkpointing" in less_memory(Reward(batch_size=1))


def made_of(tiny_model: Path, responses: Path, **sft: Any) -> Any:
    params = Params(sft=Sft(**sft))
    return manifest("sft", "sft", params, Models(language=str(tiny_model)), {"responses": responses})


def claimed(wanted: Any) -> Path:
    with claim(wanted) as folder:
        return folder


def with_checkpoint(folder: Path, step: int = 7) -> Path:
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    return folder


def test_the_same_training_has_the_same_folder(tiny_model: Path, responses: Path) -> None:
    folder = with_checkpoint(claimed(made_of(tiny_model, responses)))
    assert claimed(made_of(tiny_model, responses)) == folder
    often = Params(checkpoint_minutes=1.0, preference=Preference(beta=0.7))
    assert claimed(manifest("sft", "sft", often, Models(language=str(tiny_model)), {"responses": responses})) == folder


def test_one_at_a_time(tiny_model: Path, responses: Path) -> None:
    wanted = made_of(tiny_model, responses)
    with claim(wanted) as folder, pytest.raises(InputError, match=f"{folder}: .* in another process"):
        claimed(wanted)
    assert claimed(wanted) == folder


def test_another_trainings_checkpoint_is_told_of_and_left_alone(
    tiny_model: Path, responses: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_checkpoint(claimed(made_of(tiny_model, responses)))
    assert not caplog.messages
    other = tmp_path / "other.parquet"
    RESPONSES.write(other, response_rows(prompts=7))
    assert claimed(made_of(tiny_model, other, learning_rate=5e-5)) != folder
    assert last_complete(folder) is not None
    (message,) = caplog.messages
    assert str(folder) in message
    assert "train.sft.learning_rate: 0.0001 there, 5e-05 here" in message
    assert f"--responses: {digest(responses)} there, {digest(other)} here" in message
    # Of another objective nothing is said.
    caplog.clear()
    claimed(manifest("dpo", "preference", Params(), Models(language=str(tiny_model)), {}))
    assert not caplog.messages


@pytest.mark.parametrize("change", ["code", "package", "file"])
def test_a_checkpoint_of_other_code_is_refused(
    tiny_model: Path, responses: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    wanted = made_of(tiny_model, responses)
    folder = with_checkpoint(claimed(wanted))
    file = folder / "manifest.json"
    expected = ""
    if change == "code":
        monkeypatch.setattr(manifests, "_code_digest", lambda: "0" * 16)
        expected = f"code of components/train and components/models: .* there, {'0' * 16} here"
    elif change == "package":
        file.write_text(file.read_text().replace(f'"torch": "{wanted["made_by"]["torch"]}"', '"torch": "1.0"'))
        expected = "torch: 1.0 there"
    else:
        file.unlink()
        expected = "does not say what made it"
    with pytest.raises(InputError, match=expected) as raised:
        claimed(made_of(tiny_model, responses))
    assert f"rm -r {folder}" in str(raised.value)
    assert last_complete(folder) is not None


def test_difference_names_what_is_on_one_side_only() -> None:
    there, here = {"made_of": {"a": "1"}, "made_by": {}}, {"made_of": {}, "made_by": {"b": "2"}}
    assert difference(there, here) == "a: 1 there, nothing here; b: nothing there, 2 here"


def test_the_code_of_this_room_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train/step.py", "models/language.py", "weight/step.py"):
        (tmp_path / "components" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "components" / name).write_text("x = 1\n")
    monkeypatch.setattr("components.provenance.__file__", str(tmp_path / "components" / "provenance.py"))
    before = manifests._code_digest()
    (tmp_path / "components/weight/step.py").write_text("x = 2\n")
    assert manifests._code_digest() == before
    (tmp_path / "components/models/language.py").write_text("x = 2\n")
    assert manifests._code_digest() != before


def test_the_work_folder_can_lie_elsewhere(
    tmp_path: Path, tiny_model: Path, responses: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYPHONY_WORK", str(tmp_path / "volume"))
    assert claimed(made_of(tiny_model, responses)).parent == tmp_path / "volume" / "train"


def test_ids_pass_the_reward_models_collator(tiny_model: Path) -> None:
    from transformers import AutoTokenizer, DataCollatorWithPadding

    pad = DataCollatorWithPadding(AutoTokenizer.from_pretrained(tiny_model))
    batch = _collate(pad, [{"input_ids": [5, 6], "id": "a", "labels": 0.5}, {"input_ids": [7], "id": "b", "labels": 0.1}])
    assert batch["ids"] == ["a", "b"] and batch["input_ids"].shape == (2, 2)
