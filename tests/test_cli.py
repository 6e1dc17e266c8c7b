"""The command line of every step: what it asks for, what it answers, and how it ends."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from components.cli import Step
from components.contracts import InputError, atomic
from components.params import ParameterError
from components.weight.params import Params as Weight

ROOT = Path(__file__).parents[1]
STEPS = sorted(path.parent.name for path in (ROOT / "components").glob("*/step.py"))
# A step of every kind of argument, run by `do`.
STEP = Step(
    name="sketch",
    about="Draws a sketch.",
    sections=("weight",),
    inputs={"old_picture": "what is drawn after"},
    optional={"frame": "what goes around", "paper": "what is drawn on"},
    defaults={"paper": lambda sections: Path(f"seed-{sections['weight'].seed}")},
    collections={"colour": "a colour and where it is"},
    choices={"tool": ("pen", "brush")},
    outputs={"picture": "what is drawn"},
)
Call = Callable[..., int]


def draw(**given: Any) -> dict[str, Any]:
    with atomic(given["picture"]) as partial:
        partial.write_text("drawn", encoding="utf-8")
    return {"lines": 3, "of": {"pen": 2}, "colours": sorted(given["colour"])}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_params: Callable[..., Path]) -> Iterator[Call]:
    """Calls STEP with all it needs, and `do` as its `run`."""
    for name in ("old", "seed-3", "red"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    before = logging.getLogger("polyphony").level

    def call(*words: str, do: Callable[..., dict[str, Any]] = draw, params: Path | None = None) -> int:
        monkeypatch.setitem(sys.modules, "components.sketch.step", SimpleNamespace(run=do))
        given = ["--params", str(params or write_params(weight={"seed": 3})), "--old-picture", "old", "--tool", "pen"]
        return STEP.main([*given, "--picture", "out/picture", *words])

    yield call
    logging.getLogger("polyphony").setLevel(before)


def test_run_gets_what_was_declared(call: Call) -> None:
    got: dict[str, Any] = {}
    assert call("--colour", "red=red", "--metrics", "m/m.json", do=lambda **given: got.update(given) or draw(**given)) == 0
    assert got == {
        "weight": Weight(seed=3),
        "old_picture": Path("old"),
        "frame": None,
        "paper": Path("seed-3"),
        "colour": {"red": Path("red")},
        "tool": "pen",
        "picture": Path("out/picture"),
    }
    assert Path("out/picture").read_text() == "drawn"
    assert json.loads(Path("m/m.json").read_text()) == {"lines": 3, "of": {"pen": 2}, "colours": ["red"]}


def test_what_depends_on_the_machine_is_settled_before_it_is_recorded(
    call: Call, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, Any] = {}
    settled = {"weight": lambda section: section.model_copy(update={"seed": section.seed + 1})}
    monkeypatch.setattr(sys.modules[__name__], "STEP", replace(STEP, settled=settled))
    assert call("--colour", "red=red", do=lambda **given: got.update(given) or draw(**given)) == 0
    assert got["weight"].seed == 4
    (run,) = MlflowClient(f"sqlite:///{store}").search_runs(["1"])
    assert run.data.params["weight.seed"] == "4"
    # What `lineage reproduce` writes is what was asked for.
    assert json.loads(run.data.tags["parameters"])["weight"] == {"seed": 3}


def test_the_run_is_recorded(call: Call, store: Path) -> None:
    assert call("--colour", "red=red") == 0
    client = MlflowClient(f"sqlite:///{store}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.run_name == run.data.tags["step"] == "sketch-pen"
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"lines": 3.0, "of.pen": 2.0}
    assert run.data.params["weight.seed"] == "3"
    assert {value for key, value in run.data.tags.items() if key.startswith("consumed.")} == {"old_picture", "paper", "red"}


@pytest.mark.parametrize(
    "words",
    [
        ["--tool", "pencil"],
        ["--colour", "red"],
        ["--colour", "=red"],
        ["--old-pict", "old"],
        ["--unknown", "x"],
    ],
)
def test_a_wrong_call_ends_with_2(call: Call, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        call(*words)
    assert end.value.code == 2
    assert "usage: python -m components.sketch" in capsys.readouterr().err


def test_a_key_given_twice_is_an_error(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--colour", "x=red", "--colour", "x=old") == 2
    assert "--colour x=...: given twice" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["--params", "--old-picture", "--tool", "--picture"])
def test_what_is_needed_is_asked_for(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"--params": "p", "--old-picture": "o", "--tool": "pen", "--picture": "q"}
    with pytest.raises(SystemExit) as end:
        STEP.main([word for flag, value in given.items() if flag != missing for word in (flag, value)])
    assert end.value.code == 2
    assert missing in capsys.readouterr().err


def fails(error: BaseException) -> Callable[..., dict[str, Any]]:
    def run(**_: Any) -> dict[str, Any]:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("row 3 is torn"), 1, "sketch: row 3 is torn\n"),
        (ParameterError("two of these contradict"), 2, "sketch: two of these contradict\n"),
        (KeyboardInterrupt(), 130, "sketch: interrupted; the same command continues.\n"),
    ],
)
def test_how_a_step_ends(
    call: Call, store: Path, error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--metrics", "m.json", do=fails(error)) == status
    assert capsys.readouterr().err.endswith(message)
    assert not Path("m.json").exists()
    client = MlflowClient(f"sqlite:///{store}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == ("KILLED" if status == 130 else "FAILED")


def test_a_bug_is_not_hidden(call: Call) -> None:
    with pytest.raises(ZeroDivisionError):
        call(do=fails(ZeroDivisionError()))


def onto_a_full_disk(**given: Any) -> dict[str, Any]:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    with atomic(given["picture"]) as partial:
        partial.symlink_to("/dev/full")
        partial.write_text("drawn", encoding="utf-8")
    return {}


def test_a_full_disk_ends_with_1(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(do=onto_a_full_disk) == 1
    assert "no space left on the device" in capsys.readouterr().err
    assert list(Path("out").iterdir()) == []


def wrapped() -> Exception:
    error = RuntimeError("could not save")
    error.__cause__ = OSError("write failed: No space left on device (os error 28)")
    return error


@pytest.mark.parametrize("error", [wrapped(), RuntimeError("(sqlite3.OperationalError) database or disk is full")])
def test_a_full_disk_as_libraries_tell_it(call: Call, error: Exception) -> None:
    """safetensors and SQLite raise errors of their own; here a real full disk cannot be had without mounting one."""
    assert call(do=fails(error)) == 1


@pytest.mark.parametrize("words", [["--old-picture", "nowhere"], ["--frame", "nowhere"], ["--colour", "x=nowhere"]])
def test_an_input_that_is_not_there(call: Call, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words, do=fails(AssertionError("not to be run"))) == 1
    assert "nowhere: no such file or folder" in capsys.readouterr().err


def test_parameters_are_checked_before_anything_else(
    call: Call, write_params: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    never = fails(AssertionError("not to be run"))
    assert call("--old-picture", "nowhere", do=never, params=write_params(weight={"sede": 3}, train={"seed": -1})) == 2
    told = capsys.readouterr().err
    assert "weight.sede: unknown parameter; did you mean 'seed'?" in told
    assert "train.seed" in told
    assert call(do=never, params=write_params(embed={})) == 2
    assert "section(s) missing: weight" in capsys.readouterr().err
    assert call(do=never, params=Path("none.yaml")) == 2


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_the_same_door(step: str) -> None:
    """Names as in the contracts; the wrapper holds nothing but the declaration."""
    import importlib

    declared = importlib.import_module(f"components.{step}.__main__").STEP
    assert declared.name == step
    assert declared.about
    assert declared.outputs
    assert set(declared.defaults) <= set(declared.optional)
    assert all([*declared.inputs.values(), *declared.optional.values(), *declared.outputs.values()])


def test_help_loads_nothing_heavy() -> None:
    """That it answers within a second rests on this."""
    program = (
        "import runpy, sys\n"
        f"for step in {STEPS}:\n"
        "    sys.argv = [step, '--help']\n"
        "    try: runpy.run_module(f'components.{step}', run_name='__main__')\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'trl', 'mlflow', 'great_expectations', 'pandas', 'matplotlib', 'scipy', 'kfp',\n"
        "         'sentence_transformers', 'datasets', 'dvc'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"usage: python -m components.{step}" in done.stdout for step in STEPS)


def test_interrupted_from_outside(tmp_path: Path, store: Path, write_params: Callable[..., Path]) -> None:
    """Ctrl-C reaches a real process in the middle of its work."""
    program = (
        "import sys, time, types; from components.cli import Step\n"
        "def run(**_): print('at work', flush=True); time.sleep(600)\n"
        "sys.modules['components.sketch.step'] = types.SimpleNamespace(run=run)\n"
        "sys.exit(Step('sketch', '', ('weight',), {'picture': ''}).main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "--params", str(write_params(weight={})), "--picture", "p"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=store.parent, env={"PYTHONPATH": str(ROOT)}, **pipes) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130
    assert told.endswith("sketch: interrupted; the same command continues.\n")
    assert not (tmp_path / "p").exists()
