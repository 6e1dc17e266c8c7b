"""Promotion and rollback: the gate again, the history, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from components.champion.ledger import PROMOTION, Ledger, Move
from components.lineage import tracking_client
from tests.champion.conftest import NAME, better, polyphony, register, retrain
from tests.register.conftest import Pipeline, measurements


def champion() -> str:
    return str(tracking_client().get_registered_model(NAME).aliases.get("champion", ""))


def promote(version: str, *words: str, reason: str = "better") -> int:
    return polyphony("promote", "--model", NAME, "--version", version, "--to", "champion", "--reason", reason, *words)


def rollback(reason: str = "complaints") -> int:
    return polyphony("rollback", "--model", NAME, "--reason", reason)


def history(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    capsys.readouterr()
    assert polyphony("history", "--model", NAME, "--json") == 0
    moves: list[dict[str, str]] = json.loads(capsys.readouterr().out)["moves"]
    return moves


def test_the_first_champion_is_gated_against_its_baseline(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert promote(versions[0], "--yes") == 0
    shown = capsys.readouterr().out
    assert "dpo (no champion yet)" in shown and "quality (reward)" in shown and "FAILS" not in shown
    assert champion() == versions[0]


def test_the_next_is_gated_against_the_champion(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    promote(versions[0], "--yes")
    assert promote(versions[1], "--yes", reason="more diverse") == 0
    shown = capsys.readouterr().out
    assert f"v{versions[0]} @champion" in shown
    # Paired by prompt, every difference is the same.
    assert "+0.100 [+0.100, +0.100]" in shown
    assert champion() == versions[1]
    first, second = history(capsys)
    assert (first["version"], first["before"], second["version"], second["before"]) == ("1", "", "2", "1")
    assert second["reason"] == "more diverse" and "passed against v1" in second["verdict"] and not second["forced"]
    assert " on " in second["who"] and second["when"].startswith("20")


def test_what_is_no_better_than_the_champion_is_refused(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    promote(versions[1], "--yes")
    assert promote(versions[0], "--yes") == 1
    told = capsys.readouterr()
    assert "FAILS" in told.out and "semantic_diversity: -0.100" in told.err
    assert champion() == versions[1]
    assert len(history(capsys)) == 1


def test_force_is_visible_for_ever(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    promote(versions[1], "--yes")
    assert promote(versions[0], "--yes", "--force", reason="legal wants the old one") == 0
    assert champion() == versions[0]
    version = tracking_client().get_model_version(NAME, versions[0])
    assert version.tags["forced.champion.2"].startswith("legal wants the old one (")
    move = history(capsys)[-1]
    assert move["forced"] and "the gate fails" in move["verdict"]
    polyphony("history", "--model", NAME)
    assert "promotion, FORCED" in capsys.readouterr().out
    # A promotion that nothing spoke against is not called forced, whatever was said.
    assert promote(versions[2], "--yes", "--force") == 0
    assert not history(capsys)[-1]["forced"]


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_a_reason_is_needed(versions: list[str], command: str) -> None:
    promote(versions[0], "--yes")
    assert promote(versions[1], "--yes", reason=" ") == 1
    assert rollback(reason="") == 1
    words = ["--version", versions[1], "--yes"] if command == "promote" else []
    with pytest.raises(SystemExit) as stopped:
        polyphony(command, "--model", NAME, *words)
    assert stopped.value.code == 2
    assert champion() == versions[0]


def test_without_a_terminal_it_must_be_told_yes(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert promote(versions[0]) == 1
    assert "no terminal" in capsys.readouterr().err
    assert champion() == ""


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 1), ("n", 1)])
def test_it_asks(versions: list[str], monkeypatch: pytest.MonkeyPatch, answer: str, status: int) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: answer if "Make polyphony version 1" in question else "?")
    assert promote(versions[0]) == status
    assert champion() == (versions[0] if status == 0 else "")


def test_rollback_goes_back_one_after_another(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for number in versions:
        assert promote(number, "--yes") == 0
    assert rollback("too wild") == 0
    assert champion() == versions[1]
    assert rollback() == 0
    assert champion() == versions[0]
    assert rollback() == 1
    assert "was the champion before version 1" in capsys.readouterr().err
    assert [move["kind"] for move in history(capsys)] == ["promotion"] * 3 + ["rollback"] * 2
    assert history(capsys)[3]["reason"] == "too wild"
    # And on again: what was rolled back can come back.
    assert promote(versions[2], "--yes") == 0
    assert rollback() == 0
    assert champion() == versions[0]


def test_an_alias_moved_by_other_means(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    promote(versions[1], "--yes")
    tracking_client().set_registered_model_alias(NAME, "champion", versions[0])
    capsys.readouterr()
    polyphony("history", "--model", NAME)
    assert "points to version 1: it was moved by other means" in capsys.readouterr().out
    assert rollback() == 0
    assert champion() == versions[1]
    assert history(capsys)[-1]["before"] == versions[0]


def test_different_evaluation_sets_are_refused(
    pipeline: Pipeline, versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    promote(versions[0], "--yes")
    Path("reward/training.json").write_text("another", encoding="utf-8")
    pipeline.do("train-reward", {"responses": "responses"}, {"model": "reward"}, {})
    retrain(pipeline, "later", better(0.5))
    number = register()
    assert promote(number, "--yes") == 1
    told = capsys.readouterr().err
    assert "different evaluation sets (reward model: " in told and "model: 'models:/polyphony/1'" in told
    assert champion() == versions[0]


def test_an_evaluation_that_has_the_champion_decides(pipeline: Pipeline, versions: list[str]) -> None:
    """Whatever else differs: both were measured in the same evaluation, the champion under another name."""
    promote(versions[0], "--yes")
    Path("reward/training.json").write_text("another", encoding="utf-8")
    pipeline.do("train-reward", {"responses": "responses"}, {"model": "reward"}, {})
    found = better(0.5)
    found["systems"]["champion"] = measurements()["systems"]["ddpo"]
    registered = tracking_client().get_model_version(NAME, versions[0]).tags["artifact.digest"]
    found["origins"] = {"champion": {"model": f"models:/{NAME}/1", "digest": registered}, "ddpo": {"adapter": "as trained"}}
    found["differences"]["ddpo-champion"] = found["differences"]["ddpo-dpo"]
    retrain(pipeline, "later", found)
    assert promote(register(), "--yes") == 0


def test_code_that_is_not_known(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("components.lineage.provenance", lambda: {"commit": "unknown", "dirty": "unknown"})
    retrain(pipeline, "from a folder")
    number = register()
    assert tracking_client().get_model_version(NAME, number).tags["dirty"] == "unknown"
    assert promote(number, "--yes") == 1
    assert "the code that made it is not known" in capsys.readouterr().err
    assert promote(number, "--yes", "--force") == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--version", "9"], "has no such version"),
        (["--version", "1", "--model", "nothing"], "has no such model"),
        (["--version", "latest"], "names no version"),
        (["--version", "1", "--to", "candidate"], "is no alias to promote to"),
        (["--version", "1", "--to", "v1"], "is no alias to promote to"),
        (["--version", "1", "--reason", "r" * 2001], "at most 2000 characters"),
    ],
)
def test_what_is_not_there(versions: list[str], words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    del versions
    assert polyphony("promote", "--model", NAME, "--reason", "r", "--yes", *words) == 1
    assert told in capsys.readouterr().err
    assert [model.name for model in tracking_client().search_registered_models()] == [NAME]


def test_the_champion_is_not_promoted_again(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    promote(versions[0], "--yes")
    assert promote(versions[0], "--yes", "--force") == 1
    assert "is the champion already" in capsys.readouterr().err


@pytest.mark.parametrize("call", ["set_registered_model_alias", "set_model_version_tag"])
def test_interrupted_it_is_finished_by_the_next(
    versions: list[str], monkeypatch: pytest.MonkeyPatch, call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(versions[0], "--yes")

    class KilledError(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(f"mlflow.MlflowClient.{call}", killed)
        promote(versions[1], "--yes")
    capsys.readouterr()
    polyphony("history", "--model", NAME)
    assert "Move 2 was interrupted" in capsys.readouterr().out
    assert promote(versions[2], "--yes") == 0
    assert [move["before"] for move in history(capsys)] == ["", versions[0], versions[1]]
    assert all(move["settled"] for move in history(capsys))
    assert champion() == versions[2]


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_the_same_command_again_finishes_what_was_interrupted_and_does_no_more(
    versions: list[str], monkeypatch: pytest.MonkeyPatch, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in versions[:2] if command == "promote" else versions:
        promote(number, "--yes")

    def again() -> int:
        return promote(versions[2], "--yes") if command == "promote" else rollback()

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr("components.champion.ledger.Ledger.settle", killed)
        again()
    assert again() == 0
    assert champion() == versions[2 if command == "promote" else 1]
    assert len(history(capsys)) == (3 if command == "promote" else 4)


def test_a_champion_that_was_deleted(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for number in versions:
        promote(number, "--yes")
    client = tracking_client()
    client.delete_model_version(NAME, versions[1])
    assert rollback() == 0
    assert champion() == versions[0]
    # A move that was interrupted, and whose version is gone, counts for nothing.
    ledger = Ledger(client, NAME, "champion")
    ledger._append(Move(PROMOTION, versions[2], versions[0], ledger.moves()[-1].number, "lost"), "token")
    client.delete_model_version(NAME, versions[2])
    assert rollback() == 1
    assert champion() == versions[0]
    assert history(capsys)[-1]["void"] == "its version was deleted"


def test_a_move_deleted_from_the_history_is_missed(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for number in versions:
        promote(number, "--yes")
    client = tracking_client()
    client.delete_model_version(Ledger(client, NAME, "champion").name, "2")
    capsys.readouterr()
    polyphony("history", "--model", NAME)
    assert "Deleted from the history: move 2." in capsys.readouterr().out
    assert rollback() == 0
    assert champion() == versions[1]
