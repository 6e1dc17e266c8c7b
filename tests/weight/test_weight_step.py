"""The step: from responses and embeddings to deviations, pairs and the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.contracts import DEVIATIONS, EMBEDDINGS, PAIRS, RESPONSES, InputError
from components.lineage import digest
from components.weight.__main__ import STEP
from components.weight.params import Params
from components.weight.step import run
from tests.conftest import response_rows

OUTPUTS = ("deviations", "pairs", "report")


def write_inputs(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Path]:
    """Responses and random embeddings that depend on the text alone."""
    folder.mkdir(exist_ok=True)
    paths = {"responses": folder / "responses.parquet", "embeddings": folder / "embeddings.parquet"}
    RESPONSES.write(paths["responses"], rows)

    def unit(text: str, width: int) -> list[float]:
        raw = np.random.default_rng(int(text, 16)).normal(size=width)
        return (raw / np.linalg.norm(raw)).astype(np.float32).tolist()

    vectors = [
        {"response_id": r["response_id"], "semantic": unit(r["response_id"], 6), "style": unit(r["response_id"][::-1], 4)}
        for r in rows
    ]
    EMBEDDINGS.write(paths["embeddings"], vectors, semantic=6, style=4)
    return paths


def weigh(folder: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[dict[str, Any], dict[str, Path]]:
    inputs = write_inputs(folder, rows)
    outputs = {name: folder / name for name in OUTPUTS}
    return run(weight=Params(**options), **inputs, **outputs), outputs


def test_same_inputs_same_bytes_in_any_folder(tmp_path: Path) -> None:
    rows = response_rows(prompts=8, responses=7)
    (_, a), (_, b) = weigh(tmp_path / "a", rows), weigh(tmp_path / "b", rows)
    assert [digest(a[name]) for name in OUTPUTS] == [digest(b[name]) for name in OUTPUTS]


@pytest.mark.parametrize("options", [{"deviation": "style"}, {"floor": 0.3}])
@pytest.mark.parametrize("pairs", ["gap", "all"])
def test_other_weights_leave_the_pairs_alone(tmp_path: Path, options: dict[str, Any], pairs: str) -> None:
    rows = response_rows(prompts=8, responses=7)
    (_, a), (_, b) = weigh(tmp_path / "a", rows, pairs=pairs), weigh(tmp_path / "b", rows, pairs=pairs, **options)
    assert digest(a["pairs"]) == digest(b["pairs"])
    assert digest(a["deviations"]) != digest(b["deviations"])


def test_the_floor_reaches_what_training_reads(tmp_path: Path) -> None:
    rows = response_rows(prompts=8, responses=7)
    least = [
        DEVIATIONS.read(weigh(tmp_path / str(f), rows, floor=f)[1]["deviations"])["weight"].to_numpy().min() for f in (0.0, 0.3)
    ]
    assert least == pytest.approx([0.0, 0.3])


def test_batches_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that straddle the batches of the tables are put together again."""
    rows = response_rows(prompts=9, responses=5)
    _, whole = weigh(tmp_path / "a", rows)
    for table in (RESPONSES, EMBEDDINGS):
        original = table.batches
        monkeypatch.setattr(type(table), "batches", lambda self, path, columns=None: _small(self, path, columns))
        assert original is not None
    _, small = weigh(tmp_path / "b", rows)
    assert [digest(whole[name]) for name in OUTPUTS] == [digest(small[name]) for name in OUTPUTS]


def _small(table: Any, path: Path, columns: Any) -> Any:
    return table.read(path, columns).to_batches(max_chunksize=7)


def test_tables(tmp_path: Path) -> None:
    rows = response_rows(prompts=6, responses=6)
    metrics, out = weigh(tmp_path / "a", rows)
    deviations, pairs = DEVIATIONS.read(out["deviations"]).to_pylist(), PAIRS.read(out["pairs"]).to_pylist()
    assert [d["response_id"] for d in deviations] == [r["response_id"] for r in rows]
    by_id = {r["response_id"]: r for r in rows}
    for pair in pairs:
        winner, loser = by_id[pair["chosen_id"]], by_id[pair["rejected_id"]]
        assert (pair["chosen"], pair["rejected"]) == (winner["response"], loser["response"])
        assert winner["prompt_id"] == loser["prompt_id"] == pair["prompt_id"]
        assert pair["chosen_score"] > pair["rejected_score"]
        assert pair["split"] == winner["split"]
    assert metrics["pairs"]["train"] + metrics["pairs"]["test"] == len(pairs) == 18


def test_over_paired_leaves_the_others_out(tmp_path: Path) -> None:
    rows = response_rows(prompts=4, responses=5)
    _, out = weigh(tmp_path / "a", rows, over="paired")
    paired = {pair[key] for pair in PAIRS.read(out["pairs"]).to_pylist() for key in ("chosen_id", "rejected_id")}
    deviations = DEVIATIONS.read(out["deviations"])
    assert set(deviations.column("response_id").to_pylist()) == paired
    assert np.mean(deviations.column("weight").to_numpy()) == pytest.approx(1)


def test_max_responses(tmp_path: Path) -> None:
    metrics, out = weigh(tmp_path / "a", response_rows(prompts=5, responses=9), max_responses=4)
    assert metrics["responses"] == 20
    assert DEVIATIONS.count(out["deviations"]) == 20


def test_a_prompt_of_one_response_has_null_distances(tmp_path: Path) -> None:
    rows = response_rows(prompts=3, responses=4)
    single = [r for r in rows if r["prompt_id"] != rows[0]["prompt_id"]] + rows[:1]
    metrics, out = weigh(tmp_path / "a", sorted(single, key=lambda r: (r["prompt_id"], r["response_id"])))
    alone = [d for d in DEVIATIONS.read(out["deviations"]).to_pylist() if d["prompt_id"] == rows[0]["prompt_id"]]
    assert [(d["semantic"], d["style"], d["weight"]) for d in alone] == [(None, None, 1.0)]
    assert metrics["prompts_without_weights"]["single"] == 1


def test_the_report_shows_stories_as_text(tmp_path: Path) -> None:
    rows = response_rows(prompts=3, responses=4)
    for row in rows:
        row["response"] += "<script>alert(1)</script>"
    _, out = weigh(tmp_path / "a", rows)
    page = (out["report"] / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page


def test_no_pair_is_an_error(tmp_path: Path) -> None:
    rows = [{**row, "score": 1.0} for row in response_rows()]
    with pytest.raises(InputError, match="no preference pair on the train side"):
        weigh(tmp_path / "a", rows)


def test_embeddings_of_other_responses_are_refused(tmp_path: Path) -> None:
    mine, other = write_inputs(tmp_path / "a", response_rows()), write_inputs(tmp_path / "b", response_rows(words=20))
    outputs = {name: tmp_path / name for name in OUTPUTS}
    with pytest.raises(InputError, match="ids differ"):
        run(weight=Params(), responses=mine["responses"], embeddings=other["embeddings"], **outputs)
    assert not any(path.exists() for path in outputs.values())


def test_command_line(tmp_path: Path, write_params: Callable[..., Path]) -> None:
    inputs = write_inputs(tmp_path / "a", response_rows())
    paths = inputs | {name: tmp_path / "out" / name for name in OUTPUTS} | {"metrics": tmp_path / "metrics.json"}
    flags = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    assert STEP.main(["--params", str(write_params(weight={"seed": 3})), *flags]) == 0
    assert all(path.exists() for path in paths.values())
    assert STEP.main(["--params", str(write_params(weight={"gapp": 3})), *flags]) == 2
