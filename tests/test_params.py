"""The one page of knobs: every mistake is found at once, in the first second, with the nearest known name."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from components.params import SECTIONS, ParameterError, Section, load, parse
from components.weight.params import Params as Weight


def model(section: str) -> type[Section]:
    declared: type[Section] = importlib.import_module(f"components.{section}.params").Params
    return declared


def fields(declared: type[BaseModel], prefix: str) -> list[tuple[str, Any]]:
    """All parameters below a section, by path; sub-sections are walked into."""
    found: list[tuple[str, Any]] = []
    for name, field in declared.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += fields(inner, f"{prefix}.{name}")
        else:
            found.append((f"{prefix}.{name}", field))
    return found


def write(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(ParameterError) as error:
        load(path)
    return str(error.value)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_parameter_is_described_and_has_a_default(section: str) -> None:
    declared = model(section)
    assert declared.__doc__
    assert not [path for path, field in fields(declared, section) if not field.description]
    declared()


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_are_valid_and_survive_yaml(tmp_path: Path, section: str) -> None:
    default = model(section)()
    assert load(write(tmp_path, {section: default.model_dump(mode="json")})) == {section: default}


def test_sections_left_out_are_left_out(tmp_path: Path) -> None:
    assert load(write(tmp_path, {"weight": {"gap": 2}})) == {"weight": Weight(gap=2.0)}


def test_numbers_as_yaml_writes_them(tmp_path: Path) -> None:
    """PyYAML reads 5e-1 as text, as it has no point."""
    assert load(write(tmp_path, "weight: {floor: 5e-1, seed: 3}\n"))["weight"] == Weight(floor=0.5, seed=3)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"weight": {"gapp": 3}}, "weight.gapp: unknown parameter; did you mean 'gap'?"),
        (
            {"weight": {"high_quality_winer": True}},
            "weight.high_quality_winer: unknown parameter; did you mean 'high_quality_winners'?",
        ),
        ({"weight": {"zzz": 3}}, "weight.zzz: unknown parameter; known: deviation, floor, over"),
        ({"wieght": {}}, "wieght: unknown section; did you mean 'weight'?"),
        ({"train": {"lora": {"alhpa": 3}}}, "train.lora.alhpa: unknown parameter; did you mean 'alpha'?"),
        (
            {"train": {"preference": {"learning-rate": 3}}},
            "train.preference.learning-rate: unknown parameter; did you mean 'learning_rate'?",
        ),
        ({"weight": {"floor": -0.1}}, "weight.floor: Input should be greater than or equal to 0 (got -0.1)"),
        ({"weight": {"floor": float("nan")}}, "weight.floor: Input should be"),
        ({"weight": {"rho": 0.6}}, "weight.rho: Input should be less than or equal to 0.5 (got 0.6)"),
        ({"weight": {"seed": "many"}}, "weight.seed: Input should be a valid integer"),
        ({"weight": {"seed": 1.5}}, "weight.seed: Input should be a valid integer"),
        ({"weight": {"pairs": "gaps"}}, "weight.pairs: Input should be 'gap', 'all' or 'divpo' (got 'gaps')"),
        ({"weight": {"high_quality_winners": "maybe"}}, "weight.high_quality_winners: Input should be a valid boolean"),
        ({"weight": None}, "weight: "),
        ({"weight": [1]}, "weight: "),
        ({3: {}}, "3: unknown section; known: models, ingest"),
        (["weight"], "expected a mapping of sections models, ingest"),
        ("", "expected a mapping of sections"),
        ("weight: {gap: 3", "not readable as YAML"),
        ("weight: !!python/object/apply:os.system ['false']\n", "not readable as YAML"),
    ],
)
def test_mistakes(tmp_path: Path, document: Any, message: str) -> None:
    path = write(tmp_path, document)
    told = refused(path)
    assert message in told
    assert told.startswith(str(path))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = refused(
        write(tmp_path, {"weight": {"gapp": 3, "floor": 2}, "embed": {"chunk": 0}, "trian": {}, "ingest": {"seed": -1}})
    )
    assert "5 mistake(s)" in told
    assert [line.split(":")[0].strip() for line in told.splitlines()[1:]] == [
        "trian",
        "ingest.seed",
        "embed.chunk",
        "weight.floor",
        "weight.gapp",
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such parameter file" in refused(tmp_path / "params.yaml")
    assert "not readable" in refused(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("weight: {deviation: é}".encode("latin-1"))
    assert "not readable" in refused(tmp_path / "latin.yaml")


def test_parameters_do_not_change_after_reading() -> None:
    with pytest.raises(ValidationError):
        Weight().gap = 3.0  # type: ignore[misc]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([path for section in SECTIONS for path, _ in fields(model(section), section)]), st.data())
def test_a_typing_error_is_told_with_the_name_that_was_meant(path: str, data: st.DataObject) -> None:
    """Of any parameter: one letter too many."""
    *parents, name = path.split(".")
    place = data.draw(st.integers(0, len(name)))
    typed = name[:place] + "x" + name[place:]
    document: dict[str, Any] = {typed: 1}
    for parent in reversed(parents):
        document = {parent: document}
    with tempfile.TemporaryDirectory() as folder:
        told = refused(write(Path(folder), document))
    assert f"{'.'.join([*parents, typed])}: unknown parameter; did you mean {name!r}?" in told


@pytest.mark.parametrize("text", ["weight: {floor: 0.1, seed: 1, floor: 0.2}", '{"weight": {"floor": 0.1, "floor": 0.2}}'])
def test_a_parameter_that_is_there_twice(text: str) -> None:
    with pytest.raises(ParameterError, match="twice in one place: floor"):
        parse(text, "params.yaml")
