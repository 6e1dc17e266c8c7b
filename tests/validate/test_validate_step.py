"""The step: each fault is found, told apart from warnings, and reported the same way every time."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts import DEVIATIONS, PAIRS, RESPONSES, InputError, Table, content_id, require_passed
from components.lineage import digest
from components.params import ParameterError
from components.validate.__main__ import STEP
from components.validate.params import Params
from components.validate.step import run
from tests.conftest import response_rows, story

Rows = list[dict[str, Any]]
# Bounds that the rows of the tests keep.
LAX = Params(min_characters=50, min_responses=4, min_test_prompts=2)


def write(table: Table, path: Path, rows: Rows) -> Path:
    """Writes rows as another program might: nulls are not refused."""
    schema = pa.schema([field.with_nullable(True) for field in table.schema()])
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def validated(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def failures(results: dict[str, Any]) -> dict[str, str]:
    """What failed, and how severe it is."""
    return {e["description"]: e["severity"] for e in results["expectations"] if not e["success"]}


def of_responses(tmp_path: Path, rows: Rows, params: Params = LAX) -> dict[str, Any]:
    path, folder = write(RESPONSES, tmp_path / "responses.parquet", rows), tmp_path / "validation"
    metrics = run(validate=params, suite="responses", responses=path, deviations=None, pairs=None, validation=folder)
    results = validated(folder)
    assert metrics["passed"] == int(results["passed"])
    assert metrics["expectations"] == len(results["expectations"])
    assert sum(metrics["failed"].values()) == len(failures(results))
    return results


def tables(responses: Rows) -> tuple[Rows, Rows]:
    """Deviations and pairs as the weight step makes them: two pairs for every prompt of four."""
    deviations, pairs = [], []
    for start in range(0, len(responses), 4):
        ranked = sorted(responses[start : start + 4], key=lambda row: -row["score"])
        for row, weight in zip(responses[start : start + 4], (0.0, 1.0, 1.5, 1.5), strict=True):
            ids = {name: row[name] for name in ("response_id", "prompt_id")}
            deviations.append({**ids, "semantic": 0.4, "style": None, "weight": weight})
        for winner, loser in (ranked[:2], ranked[2:]):
            pair = {f"chosen{key}": winner[f"{name}"] for key, name in (("_id", "response_id"), ("", "response"))}
            pair |= {f"rejected{key}": loser[f"{name}"] for key, name in (("_id", "response_id"), ("", "response"))}
            pair |= {"chosen_score": winner["score"], "rejected_score": loser["score"]}
            pairs.append({**pair, **{name: winner[name] for name in ("prompt_id", "prompt", "split")}})
    return deviations, pairs


def of_weights(tmp_path: Path, responses: Rows, deviations: Rows, pairs: Rows, params: Params = LAX) -> dict[str, Any]:
    folder = tmp_path / "validation"
    run(
        validate=params,
        suite="weights",
        responses=write(RESPONSES, tmp_path / "responses.parquet", responses),
        deviations=write(DEVIATIONS, tmp_path / "deviations.parquet", deviations),
        pairs=write(PAIRS, tmp_path / "pairs.parquet", pairs),
        validation=folder,
    )
    return validated(folder)


def test_good_responses_pass(tmp_path: Path) -> None:
    results = of_responses(tmp_path, response_rows())
    assert results["passed"] is True
    assert failures(results) == {}
    assert results["inputs"] == {"responses": digest(tmp_path / "responses.parquet")}
    require_passed(tmp_path / "validation")


def other_side(row: dict[str, Any]) -> str:
    return "test" if row["split"] == "train" else "train"


# Each breaks the rows of one prompt.
BREAK_RESPONSES: dict[str, Callable[[Rows], Any]] = {
    "response_id is unique.": lambda rows: rows[1].update(rows[0]),
    "response_id is there in every row.": lambda rows: rows[3].update(response_id=None),
    "response_id is the content_id of prompt and response.": lambda rows: rows[3].update(response="Another."),
    "prompt_id is the content_id of the prompt.": lambda rows: [row.update(prompt="Another.") for row in rows],
    "prompt_id stands for one prompt.": lambda rows: rows[0].update(prompt="Yet another."),
    "prompt is there in every row.": lambda rows: rows[0].update(prompt=None),
    "response is there in every row.": lambda rows: rows[0].update(response=None),
    "The response is not blank.": lambda rows: rows[3].update(response=" \n"),
    "The prompt is not blank.": lambda rows: rows[3].update(prompt="\t"),
    "score is there in every row.": lambda rows: rows[3].update(score=float("nan")),
    "score is finite.": lambda rows: rows[3].update(score=float("-inf")),
    "split is there in every row.": lambda rows: rows[3].update(split=None),
    "split is one of train, test.": lambda rows: [row.update(split="dev") for row in rows],
    "The prompt is on one side of the split.": lambda rows: rows[2].update(split=other_side(rows[2])),
    "Rows are sorted by prompt_id, then response_id.": lambda rows: rows.reverse(),
}


def broken_responses() -> Rows:
    rows = response_rows(prompts=len(BREAK_RESPONSES))
    prompts = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    for own, break_it in zip(prompts, BREAK_RESPONSES.values(), strict=True):
        break_it(own)
    return [row for own in prompts for row in own]


def test_what_must_hold_of_responses(tmp_path: Path) -> None:
    results = of_responses(tmp_path, broken_responses())
    assert {name for name, severity in failures(results).items() if severity == "critical"} == set(BREAK_RESPONSES)
    assert results["passed"] is False
    with pytest.raises(InputError, match=r"does not hold: .*response_id is unique\..*Rows are sorted"):
        require_passed(tmp_path / "validation")


@pytest.mark.parametrize("side", ["train", "test"])
def test_both_sides_are_needed(tmp_path: Path, side: str) -> None:
    results = of_responses(tmp_path, [{**row, "split": side} for row in response_rows()])
    assert f"There are {'test' if side == 'train' else 'train'} prompts." in failures(results)
    assert results["passed"] is False


def test_no_responses(tmp_path: Path) -> None:
    results = of_responses(tmp_path, [])
    assert failures(results) == {"The table is not empty.": "critical"}
    assert results["passed"] is False


def renamed(rows: Rows) -> Rows:
    """With the ids that belong to the texts, in order."""
    for row in rows:
        row["response_id"] = content_id(row["prompt"], row["response"])
    return sorted(rows, key=lambda row: (row["prompt_id"], row["response_id"]))


def equal_scores(rows: Rows) -> None:
    for row in rows:
        row["score"] = 1.0


WARNINGS: dict[str, tuple[Callable[[Rows], Any], dict[str, Any]]] = {
    "The prompt has 5 responses or more": (len, {"min_responses": 5}),
    "The prompt has 2 responses or more": (lambda rows: rows.__delitem__(slice(1, 4)), {}),
    "The scores of the prompt differ": (equal_scores, {}),
    "No other prompt has the same": (lambda rows: [row.update(response=story(5)) for row in rows[2:12:4]], {}),
    "The response has 50 to 20000": (lambda rows: [rows[i].update(response=f"Short {i}.") for i in (0, 1)], {}),
    "The response has 50 to 500 characters": (
        lambda rows: [rows[i].update(response=story(i, 200)) for i in (0, 1)],
        {"max_characters": 500},
    ),
    "The response does not loop": (lambda rows: [rows[i].update(response=story(i, 9) * 9) for i in (0, 1)], {}),
    "There are 3 test prompts or more": (len, {"min_test_prompts": 3}),
}


@pytest.mark.parametrize("description", WARNINGS)
def test_warnings_do_not_fail(tmp_path: Path, description: str) -> None:
    rows = response_rows()
    change, bounds = WARNINGS[description]
    change(rows)
    results = of_responses(tmp_path, renamed(rows), LAX.model_copy(update=bounds))
    found = failures(results)
    assert set(found.values()) == {"warning"}, found
    assert any(failed.startswith(description) for failed in found), found
    assert results["passed"] is True
    require_passed(tmp_path / "validation")


def test_a_tolerated_share_is_counted_but_no_warning(tmp_path: Path) -> None:
    rows = response_rows()
    rows[0]["response"] = "Short."
    results = of_responses(tmp_path, renamed(rows))
    assert failures(results) == {}
    lengths = next(e for e in results["expectations"] if e["description"].startswith("The response has"))
    assert (lengths["unexpected"], lengths["checked"]) == (1, len(rows))
    assert lengths["examples"] == [{"response_id": content_id(rows[0]["prompt"], "Short."), "response_characters": 6}]


def test_good_weights_pass(tmp_path: Path) -> None:
    responses = response_rows()
    results = of_weights(tmp_path, responses, *tables(responses))
    assert failures(results) == {}
    assert results["passed"] is True
    assert set(results["inputs"]) == {"responses", "deviations", "pairs"}


def of_another_prompt(pair: dict[str, Any], rows: Rows) -> None:
    """Its loser is a response to another prompt."""
    other = rows[0]
    pair.update(rejected_id=other["response_id"], rejected=other["response"], rejected_score=other["score"])


RESPONSES_OF_ALL = response_rows(prompts=24, test=12)
# Each breaks the deviations, or the pairs, of one prompt.
BREAK_WEIGHTS: dict[str, Callable[[Rows, Rows], Any]] = {
    "response_id is unique.": lambda deviations, _: deviations.append(deviations[3]),
    "response_id is there in every row.": lambda deviations, _: deviations[0].update(response_id=None),
    "response_id is one of the responses.": lambda deviations, _: deviations[0].update(response_id="x"),
    "prompt_id is that of the response.": lambda deviations, _: deviations[3].update(prompt_id="x"),
    "semantic is finite.": lambda deviations, _: deviations[0].update(semantic=float("inf")),
    "semantic is a distance in [0, 2].": lambda deviations, _: deviations[0].update(semantic=2.1),
    "style is a distance in [0, 2].": lambda deviations, _: deviations[0].update(style=-0.1),
    "weight is finite.": lambda deviations, _: deviations[0].update(weight=float("inf")),
    "weight is there in every row.": lambda deviations, _: deviations[0].update(weight=None),
    "The weights of a prompt have mean 1 or more.": lambda deviations, _: deviations[3].update(weight=1.4),
    "weight is not negative.": lambda deviations, _: [deviations[i].update(weight=w) for i, w in ((0, -0.5), (3, 2.0))],
    "The winner has a weight.": lambda deviations, _: deviations.clear(),
    "No pair is there twice.": lambda _, pairs: pairs.append(pairs[0]),
    "Winner and loser are different texts.": lambda _, pairs: pairs[0].update(rejected=pairs[0]["chosen"]),
    "The winner has the higher score.": lambda _, pairs: pairs[0].update(chosen_score=pairs[0]["rejected_score"]),
    "chosen_score is the score of chosen_id.": lambda _, pairs: pairs[0].update(chosen_score=999.0),
    "rejected_score is the score of rejected_id.": lambda _, pairs: pairs[0].update(rejected_score=-1.0),
    "chosen_id is one of the responses.": lambda _, pairs: pairs[0].update(chosen_id="x"),
    "rejected_id is one of the responses.": lambda _, pairs: pairs[0].update(rejected_id="x"),
    "prompt_id is that of rejected_id.": lambda _, pairs: of_another_prompt(pairs[0], RESPONSES_OF_ALL),
    "prompt is that of chosen_id.": lambda _, pairs: pairs[0].update(prompt="?"),
    "chosen is the text of chosen_id.": lambda _, pairs: pairs[0].update(chosen="?"),
    "rejected is the text of rejected_id.": lambda _, pairs: pairs[0].update(rejected="?"),
    "All pairs of the prompt are on one side of the split.": lambda _, pairs: pairs[0].update(split=other_side(pairs[0])),
}
# What cannot be broken alone, and breaks with these.
BROKEN_TOO = {"prompt is that of rejected_id.", "split is that of chosen_id.", "split is that of rejected_id."}


def test_what_must_hold_of_weights(tmp_path: Path) -> None:
    deviations, pairs = tables(RESPONSES_OF_ALL)
    broken: tuple[Rows, Rows] = ([], [])
    for prompt, break_it in enumerate(BREAK_WEIGHTS.values()):
        own = deviations[4 * prompt : 4 * prompt + 4], pairs[2 * prompt : 2 * prompt + 2]
        break_it(*own)
        broken[0].extend(own[0])
        broken[1].extend(own[1])
    results = of_weights(tmp_path, RESPONSES_OF_ALL, *broken)
    found = {name for name, severity in failures(results).items() if severity == "critical"}
    assert found == set(BREAK_WEIGHTS) | BROKEN_TOO
    assert results["passed"] is False


@pytest.mark.parametrize("empty", [0, 1])
def test_no_weights_or_no_pairs(tmp_path: Path, empty: int) -> None:
    responses = response_rows()
    made = tables(responses)
    made[empty].clear()
    results = of_weights(tmp_path, responses, *made)
    assert failures(results)["The table is not empty."] == "critical"


def test_a_floor_is_a_warning(tmp_path: Path) -> None:
    responses = response_rows()
    deviations, pairs = tables(responses)
    for row in deviations:
        row["weight"] = max(row["weight"], 0.2)
    results = of_weights(tmp_path, responses, deviations, pairs)
    assert failures(results) == {"The weights of a prompt have mean 1; only weight.floor makes it more.": "warning"}


def test_many_winners_without_weight_are_a_warning(tmp_path: Path) -> None:
    responses = response_rows()
    deviations, pairs = tables(responses)
    losers = {pair["rejected_id"] for pair in pairs}
    for row in deviations:
        row["weight"] = 2.0 if row["response_id"] in losers else 0.0
    found = failures(of_weights(tmp_path, responses, deviations, pairs))
    assert list(found.values()) == ["warning"]
    assert next(iter(found)).startswith("The pair teaches something: its winner's weight is above 0; at most 50 %")


def test_a_response_in_two_pairs_is_worth_knowing(tmp_path: Path) -> None:
    responses = response_rows()
    deviations, pairs = tables(responses)
    best, second = pairs[0], pairs[1]
    pairs.append({**second, **{name: best[name] for name in ("chosen_id", "chosen", "chosen_score")}})
    results = of_weights(tmp_path, responses, deviations, pairs)
    assert failures(results) == {"Winner and loser are in no other pair.": "info"}
    assert results["passed"] is True


def test_weights_need_their_tables(tmp_path: Path, responses: Path) -> None:
    with pytest.raises(ParameterError, match="--deviations and --pairs"):
        run(validate=LAX, suite="weights", responses=responses, deviations=None, pairs=None, validation=tmp_path / "v")


def test_batches_and_order_of_runs_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = response_rows(prompts=8)
    rows[3]["score"], rows[9]["split"] = float("inf"), "dev"
    of_responses(tmp_path, rows)
    first = digest(tmp_path / "validation")
    monkeypatch.setattr("components.validate.step._BATCH", 5)
    of_responses(tmp_path, rows)
    assert digest(tmp_path / "validation") == first


def test_another_process_writes_the_same_bytes(tmp_path: Path, store: Path, write_params: Callable[..., Path]) -> None:
    """With another seed of Python's hashes, in another folder, under another clock; and it leaves nothing else behind."""
    rows = response_rows()
    rows[3]["score"] = float("inf")
    of_responses(tmp_path, rows, Params())
    away = tmp_path / "away"
    away.mkdir()
    shutil.copy(store, away)
    command = [sys.executable, "-m", "components.validate", "--params", str(write_params(validate={})), "--suite", "responses"]
    paths = ["--responses", str(tmp_path / "responses.parquet"), "--validation", "out/validation", "--metrics", "m.json"]
    root = Path(__file__).parents[2]
    clean = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root), "HOME": str(away), "TMPDIR": str(away)}
    done = subprocess.run(command + paths, cwd=away, env=clean, capture_output=True, text=True, check=True)
    assert digest(away / "out" / "validation") == digest(tmp_path / "validation")
    assert json.loads((away / "m.json").read_text())["passed"] == 0
    assert {path.name for path in away.iterdir()} <= {"out", "m.json", "mlflow.db", "mlruns"}
    assert "critical: score is finite. (1 of 24 responses" in done.stderr
    assert "Skipping registering" not in done.stderr
    assert "Calculating Metrics" not in done.stderr


def parsed(page: str) -> tuple[set[str], set[str]]:
    """The names of all tags and attributes."""
    tags, attributes = set(), set()

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            attributes.update(name for name, _ in attrs)

    Parser().feed(page)
    return tags, attributes


def test_the_report_is_safe_and_needs_no_network(tmp_path: Path) -> None:
    rows = response_rows()
    evil = "<script>alert('x')</script><img src=https://evil.example/x>"
    rows[0]["response"] = rows[1]["response"] = rows[0]["response"] + evil
    rows[2]["split"] = rows[3]["prompt_id"] = rows[4]["response_id"] = evil
    of_responses(tmp_path, rows)
    page = (tmp_path / "validation" / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page
    tags, attributes = parsed(page)
    assert not tags & {"script", "img", "link", "iframe", "object", "base"}
    assert not attributes & {"src", "href"} and not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import", page)
    # What Great Expectations marks with an icon from a font of the network.
    assert '.fa-times::before{content:"\\2718"}' in page
    assert page.count("fa-times ") == sum(not e["success"] for e in validated(tmp_path / "validation")["expectations"])


def test_no_story_is_in_the_report(tmp_path: Path) -> None:
    rows = [{**row, "split": row["response"], "response_id": row["response"]} for row in response_rows(words=200)]
    of_responses(tmp_path, rows)
    for file in (tmp_path / "validation").iterdir():
        text = file.read_text(encoding="utf-8")
        assert not any(row["response"][:200] in text for row in rows), file


def test_failures_are_told_where_they_happen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = response_rows()
    rows[3]["score"] = float("inf")
    with caplog.at_level(logging.INFO, logger="polyphony"):
        of_responses(tmp_path, rows, LAX.model_copy(update={"min_test_prompts": 9}))
    told = {record.levelname: record.getMessage() for record in caplog.records}
    assert "index.html" in told["ERROR"]
    assert told["WARNING"] == "warning: There are 9 test prompts or more: with few, every interval is wide. (found 2)"


def test_bounds_that_contradict_each_other(responses: Path, write_params: Callable[..., Path]) -> None:
    params = write_params(validate={"min_characters": 9, "max_characters": 8})
    arguments = ["--params", str(params), "--suite", "responses", "--responses", str(responses), "--validation", "v"]
    assert STEP.main(arguments) == 2
