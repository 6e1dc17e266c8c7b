"""Checkpoints: complete or absent, and the same end after any kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from components.train import checkpoints
from components.train.batches import LikeLength
from components.train.checkpoints import Checkpoints, last_complete, train

ROWS, BATCH, EPOCHS = 22, 4, 3
STEPS = EPOCHS * 6


class Killed(BaseException):
    """Stands for SIGKILL: nothing below catches it, and what is on the disk stays as it is."""


class Net(torch.nn.Module):
    """A regression with dropout, so that the state of the random numbers matters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.layers(x)[:, 0] - labels).abs().mean()}


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self) -> None:
        self.x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[row], "labels": self.x[row].sum()}


class Own(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> LikeLength:
        del train_dataset
        return LikeLength(range(ROWS), BATCH, self.args.seed)


def make(folder: Path, kind: type[Trainer] = Own, accumulation: int = 1) -> Trainer:
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        save_strategy="no",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    return kind(model=Net(), args=arguments, train_dataset=Rows())


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [value.clone() for value in trainer.model.state_dict().values()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def kill_at(monkeypatch: pytest.MonkeyPatch, event: str, step: int, *, first: bool) -> None:
    """Has the next training killed when `event` comes at a step, `first` of all that happens then or last."""
    original: Callable[..., None] = getattr(Checkpoints, event)

    def killing(self: Checkpoints, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if first and state.global_step == step:
            raise Killed
        original(self, args, state, control, **rest)
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(Checkpoints, event, killing)


@pytest.mark.parametrize(("kind", "accumulation"), [(Own, 1), (Trainer, 2)])
def test_killed_at_any_step_it_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Trainer], accumulation: int
) -> None:
    whole = make(tmp_path / "whole", kind, accumulation)
    train(whole, minutes=60)
    folder = tmp_path / "killed"
    for step in (1, 3, 6, 7, 11, 12, 17, STEPS):
        with monkeypatch.context() as patch:
            kill_at(patch, "on_step_end", step, first=True)
            with pytest.raises(Killed):
                train(make(folder, kind, accumulation), minutes=1e-9)
        latest = last_complete(folder)
        assert (latest.name if latest else None) == (f"checkpoint-{step - 1}" if step > 1 else None)
    end = make(folder, kind, accumulation)
    train(end, minutes=1e-9)
    assert end.state.global_step == STEPS
    assert equal(weights(whole), weights(end))


@pytest.mark.parametrize("first", [True, False])
def test_killed_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    """Written but without its name, the checkpoint before it holds; after that, the new one."""
    with monkeypatch.context() as patch:
        kill_at(patch, "on_save", 5, first=first)
        with pytest.raises(Killed):
            train(make(tmp_path), minutes=1e-9)
    assert (tmp_path / "partial" / "checkpoint-5").is_dir() == first
    latest = last_complete(tmp_path)
    assert latest == tmp_path / ("checkpoint-4" if first else "checkpoint-5")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [latest.name]


def test_killed_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is half written never has a checkpoint's name, and what is written next has nothing of it."""
    trainer = make(tmp_path)

    def killed(folder: str) -> None:
        (Path(folder) / "half").touch()
        raise Killed

    monkeypatch.setattr(trainer, "_save_rng_state", killed)
    with pytest.raises(Killed):
        train(trainer, minutes=1e-9)
    assert (tmp_path / "partial" / "checkpoint-1" / "half").exists()
    assert last_complete(tmp_path) is None
    train(make(tmp_path), minutes=1e-9)
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{STEPS}"]
    assert not list(tmp_path.rglob("half"))


def test_killed_while_removing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that is half removed has no checkpoint's name any more."""

    def killed(path: Path, **_: Any) -> None:
        if (path / "checkpoint-1").exists():
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            train(make(tmp_path), minutes=1e-9)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert last_complete(tmp_path) == tmp_path / "checkpoint-2"


def test_done_there_is_nothing_to_do(tmp_path: Path) -> None:
    """What comes after the training may fail and be done again."""
    train(make(tmp_path), minutes=60)
    again = make(tmp_path)
    train(again, minutes=60)
    assert again.state.global_step == STEPS
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{STEPS}"]


def test_the_latest_is_by_number(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert last_complete(tmp_path / "none") is None


def test_saves_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes a step, a checkpoint every 25: at every third step."""
    now = 0.0
    saved: list[int] = []
    original = Checkpoints.on_step_end

    def slow(self: Checkpoints, *arguments: Any, **rest: Any) -> None:
        nonlocal now
        now += 600
        original(self, *arguments, **rest)

    def note(self: Checkpoints, args: Any, state: Any, control: Any, **rest: Any) -> None:
        saved.append(state.global_step)
        on_save(self, args, state, control, **rest)

    on_save = Checkpoints.on_save
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(Checkpoints, "on_step_end", slow)
    monkeypatch.setattr(Checkpoints, "on_save", note)
    train(make(tmp_path), minutes=25)
    assert saved == list(range(3, STEPS + 1, 3))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]
