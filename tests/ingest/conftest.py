"""What the tests of ingest share: the step as a function and as a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.contracts import REJECTS, RESPONSES
from components.ingest.__main__ import STEP
from components.ingest.params import Params
from components.models.params import Params as Models
from tests.ingest.sources import Row, as_bytes


@dataclass(frozen=True)
class Ingested:
    """What a run of the step wrote and returned."""

    metrics: dict[str, Any]
    responses: Path
    rejects: Path

    def texts(self) -> set[str]:
        return set(RESPONSES.read(self.responses).column("response").to_pylist())

    def rows(self) -> list[Row]:
        return RESPONSES.read(self.responses).to_pylist()

    def faults(self) -> list[tuple[int, str]]:
        """(row, reason) of every reject."""
        return [(row["row"], row["reason"]) for row in REJECTS.read(self.rejects).to_pylist()]

    def contents(self) -> list[Any]:
        return [json.loads(row) for row in REJECTS.read(self.rejects).column("content").to_pylist()]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    error: str
    log: str


@pytest.fixture
def models(tiny_model: Path) -> Models:
    return Models(language=str(tiny_model))


@pytest.fixture
def ingest(tmp_path: Path, models: Models) -> Callable[..., Ingested]:
    """Runs the step on rows, on bytes, or on a path, with the section's parameters as keyword arguments."""
    from components.ingest.step import run

    count = 0

    def call(source: list[Row] | bytes | Path, kind: str = "jsonl", limit: int = 1024, **params: Any) -> Ingested:
        nonlocal count
        count += 1
        folder = tmp_path / f"run{count}"
        folder.mkdir()
        if not isinstance(source, Path):
            data = source if isinstance(source, bytes) else as_bytes(source, kind)
            source = folder / f"source.{kind}"
            source.write_bytes(data)
        responses, rejects = folder / "responses.parquet", folder / "rejects.parquet"
        metrics = run(
            ingest=Params.model_validate(params),
            models=models.model_copy(update={"max_tokens": limit}),
            raw=source,
            responses=responses,
            rejects=rejects,
        )
        return Ingested(metrics, responses, rejects)

    return call


@pytest.fixture
def command(
    tmp_path: Path,
    tiny_model: Path,
    write_params: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Ended]:
    """Runs the step's command line on a source; nothing that looks finished may be left by a failure."""

    def call(source: Path | str, models: dict[str, Any] | None = None, **ingest: Any) -> Ended:
        params = write_params(ingest={"source": str(source)} | ingest, models={"language": str(tiny_model)} | (models or {}))
        outputs = {name: tmp_path / "out" / f"{name}.parquet" for name in ("responses", "rejects")}
        flags = [word for name, path in outputs.items() for word in (f"--{name}", str(path))]
        capsys.readouterr()
        status = STEP.main(["--params", str(params), *flags])
        assert all(path.exists() == (status == 0) for path in outputs.values())
        return Ended(status, capsys.readouterr().err, caplog.text)

    return call
