"""The step on a tiny model: its table, its metrics, its page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest import MonkeyPatch
from safetensors.torch import load_file, save_file

from components.contracts import EXAMPLES, GENERATIONS, MEASUREMENTS, RESPONSES, InputError, content_id
from components.evaluate.__main__ import STEP
from components.evaluate.catalogue import METRICS
from components.evaluate.diversity import mean_pairwise_distance
from components.evaluate.params import Metrics, Params
from components.evaluate.report import COLUMNS
from components.evaluate.statements import number, statements
from components.evaluate.step import run
from components.lineage import digest
from components.models.embedders import encode, load_embedder
from components.models.params import Params as Models
from components.models.reward import load_reward
from components.params import ParameterError
from pipelines.front_door import results_table
from tests.chat_server import said, serve
from tests.conftest import response_rows
from tests.evaluate.conftest import QUALITY

EVIL = "</p><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} & 'quoted' \"too\" https://example.org/a"
SETTINGS = Params(samples=3, max_new_tokens=24, top_k=0, batch_size=16, metrics=Metrics(matched_words=10))
OUTPUTS = ("generations", "evaluation")


def rows() -> list[dict[str, Any]]:
    """Three test prompts; the stories of one are hostile, and another has too few for Gold."""
    made = response_rows(prompts=4, responses=4, test=3)
    evil, poor = sorted({row["prompt_id"] for row in made if row["split"] == "test"})[:2]
    kept = [row for row in made if row["prompt_id"] != poor]
    kept += [row for row in made if row["prompt_id"] == poor][:2]
    for row in kept:
        if row["prompt_id"] == evil:
            row["prompt"] += EVIL
            row["prompt_id"] = content_id(row["prompt"])
            row["response"] += EVIL
    return sorted(kept, key=lambda row: (row["prompt_id"], row["response_id"]))


@pytest.fixture(scope="module")
def inputs(models: Models, adapters: dict[str, Path], reward: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    responses = tmp_path_factory.mktemp("inputs") / "responses.parquet"
    RESPONSES.write(responses, rows())
    return {"models": models, "responses": responses, "reward": reward, "system": adapters}


@pytest.fixture(scope="module")
def done(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished evaluation, with its returned metrics beside it."""
    folder = tmp_path_factory.mktemp("done")
    with MonkeyPatch.context() as patch:
        patch.chdir(folder)
        metrics = run(evaluate=SETTINGS, **inputs, **{name: folder / name for name in OUTPUTS})
        (folder / "returned.json").write_text(json.dumps(metrics), encoding="utf-8")
        yield folder


@pytest.fixture
def measured(done: Path) -> dict[str, Any]:
    return json.loads((done / "evaluation" / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def page(done: Path) -> str:
    return (done / "evaluation" / "report.html").read_text(encoding="utf-8")


def test_generations(done: Path) -> None:
    table = GENERATIONS.read(done / "generations").to_pylist()
    keys = [(row["system"], row["prompt_id"], row["sample"]) for row in table]
    assert len(set(keys)) == len(keys) == 2 * 3 * 3 + 2 * 3
    assert list(dict.fromkeys(row["system"] for row in table)) == ["dpo", "ddpo", "gold"]
    people = {row["response"] for row in rows()}
    for row in table:
        assert (row["finish_reason"] == "human") == (row["system"] == "gold") == (row["text"] in people)
        for kind in ("semantic", "style"):
            assert np.linalg.norm(row[kind]) == pytest.approx(1, abs=1e-5)


def test_everyone_is_scored_by_the_same_model(done: Path, inputs: dict[str, Any]) -> None:
    table = GENERATIONS.read(done / "generations").to_pandas()
    again = load_reward(inputs["models"], inputs["reward"]).score(list(table["prompt"]), list(table["text"]), "again")
    np.testing.assert_allclose(table["reward"], again.values, rtol=1e-3, atol=1e-5)
    assert "gold" in set(table["system"])


def test_metrics_follow_from_the_generations(done: Path, measured: dict[str, Any]) -> None:
    table = GENERATIONS.read(done / "generations").to_pandas()
    assert (measured["prompts"], measured["samples"], measured["gold_prompts"]) == (3, 3, 2)
    assert list(measured["systems"]) == ["dpo", "ddpo", "gold"]
    assert set(measured["differences"]) == {f"{a}-{b}" for a in measured["systems"] for b in measured["systems"] if a != b}
    for name, own in table.groupby("system"):
        values = measured["systems"][name]
        assert values["reward"]["mean"] == pytest.approx(own["reward"].mean())
        assert values["words"]["mean"] == pytest.approx(own["text"].str.split().str.len().mean())
        told = [np.stack(vectors.tolist()).astype(float) for _, vectors in own.groupby("prompt_id")["style"]]
        pairs = [1 - (v @ v.T)[np.triu_indices(3, 1)].mean() for v in told]
        assert values["style_diversity"]["mean"] == pytest.approx(np.mean(pairs), abs=1e-5)
        assert measured["stories"][name]["stories"] == len(own)
        assert measured["stories"][name]["length"] == (own["finish_reason"] == "length").sum()
    assert measured["reward_model"] == QUALITY
    assert measured["warnings"] == []
    people = np.sort(table["reward"][table["system"] == "gold"])
    assert measured["quality_bar"] == {"reward": pytest.approx(np.median(people)), "of": "gold", "stories": len(people)}


def test_every_metric_is_told_of(measured: dict[str, Any]) -> None:
    assert list(measured["metrics"]) == [metric.key for metric in METRICS]
    for values in measured["systems"].values():
        assert set(values) == set(measured["metrics"])
    for difference in measured["differences"].values():
        assert set(difference) == set(measured["metrics"])
        for interval in difference.values():
            assert 0 < interval["p"] <= interval["p_adjusted"] <= 1


def test_matched_length_is_measured_on_beginnings(done: Path, measured: dict[str, Any]) -> None:
    """As if the stories had been so short."""
    table = GENERATIONS.read(done / "generations").to_pandas()
    words = SETTINGS.metrics.matched_words
    short = [found[0].rstrip() if (found := re.match(rf"\s*(\S+\s*){{1,{words}}}", text)) else "" for text in table["text"]]
    vectors = encode(load_embedder("stylometric"), short, "again").vectors
    for name, rows in table.groupby("system").indices.items():
        told = vectors[rows].reshape(-1, 3, vectors.shape[1])
        found = measured["systems"][name]["style_diversity_matched"]["mean"]
        assert found == pytest.approx(mean_pairwise_distance(told).mean(), abs=1e-5)
        assert measured["stories"][name]["shorter"] == sum(len(table["text"][row].split()) < words for row in rows)
    assert any(len(text.split()) > words for text in table["text"])
    assert measured["matched_words"] == words


def test_what_others_read(done: Path, measured: dict[str, Any]) -> None:
    returned = json.loads((done / "returned.json").read_text(encoding="utf-8"))
    assert returned["ddpo"]["reward"] == measured["systems"]["ddpo"]["reward"]["mean"]
    assert results_table(measured).count("[") == 3 * 4
    assert set(measured["differences"]["ddpo-dpo"]) >= {"reward", "semantic_diversity", "style_diversity"}


def test_measurements_and_examples(done: Path, measured: dict[str, Any]) -> None:
    """What others pair and show is what the means were made of, and what was written."""
    values = MEASUREMENTS.read(done / "evaluation" / "measurements.parquet").to_pandas()
    means = values.groupby(["system", "metric"])["value"].mean()
    for system, metrics in measured["systems"].items():
        for metric, interval in metrics.items():
            assert means[system, metric] == pytest.approx(interval["mean"], abs=1e-12)
    told = GENERATIONS.read(done / "generations").drop_columns(["semantic", "style"]).to_pylist()
    assert EXAMPLES.read(done / "evaluation" / "examples.parquet").to_pylist() == told


def test_again_after_a_kill_gives_the_same(done: Path, inputs: dict[str, Any], tmp_path: Path) -> None:
    """All outputs, byte for byte, and nothing is written twice."""
    outputs = {name: tmp_path / name for name in OUTPUTS}
    with MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("components.evaluate.step.load_reward", _interrupted)
        run(evaluate=SETTINGS, **inputs, **outputs)
    assert not any(path.exists() for path in outputs.values())
    written = sorted(Path(".work/evaluate/stories").glob("*/*"))
    assert len({part.parent for part in written}) == 2
    with MonkeyPatch.context() as patch:
        patch.setattr("components.evaluate.generate.load_model", _interrupted)
        run(evaluate=SETTINGS, **inputs, **outputs)
    assert [digest(outputs[name]) for name in OUTPUTS] == [digest(done / name) for name in OUTPUTS]
    assert sorted(Path(".work/evaluate/stories").glob("*/*")) == written


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


class Page(HTMLParser):
    """Tags, attributes, texts of elements with class `text`, and the cells of tables by id, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[tuple[str, bool]] = []
        self._rows: list[list[str]] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        given = dict(attrs)
        if tag == "table":
            self._rows = self.tables.setdefault(given.get("id") or "", [])
        if self._rows is not None and tag == "tr":
            self._rows.append([])
        if self._rows is not None and tag in ("td", "th"):
            self._rows[-1].append("")
        if "text" in (given.get("class") or "").split():
            self.texts.append("")
            self._open.append((tag, True))
        elif tag == "div":
            self._open.append((tag, False))

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._rows = None
        if self._open and self._open[-1][0] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][1]:
            self.texts[-1] += data
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] += data.strip()


def test_stories_are_shown_as_text(done: Path, page: str) -> None:
    read = Page(page)
    assert not read.tags & {"img", "iframe", "object", "embed", "link", "base", "form"}
    assert page.count("<script") == 1
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    table = GENERATIONS.read(done / "generations").to_pylist()
    assert any(EVIL in row["text"] for row in table)
    assert any(EVIL in row["prompt"] for row in table)
    assert sorted(read.texts) == sorted([row["text"] for row in table] + list({row["prompt"] for row in table}))


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    read = Page(page)
    assert not [pair for pair in read.attributes if pair[0] in ("src", "href", "srcset", "action") or "//" in pair[1]]
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"url\(|@import|//", style)
    own = hashlib.sha256(page[page.index("<script>") + 8 : page.index("</script>")].encode()).digest()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{base64.b64encode(own).decode()}'"
    assert ("content", policy) in read.attributes


def test_numbers_on_the_page_are_those_of_the_metrics(page: str, measured: dict[str, Any]) -> None:
    read = Page(page)
    _, *shown = read.tables["systems"]
    expected = [
        [name]
        + [
            "{}[{}, {}]".format(*(number(values[key][part], digits) for part in ("mean", "low", "high")))
            for key, _, digits in COLUMNS
        ]
        for name, values in measured["systems"].items()
    ]
    assert shown == expected
    endings = [row[0] for row in read.tables["endings"][1:]]
    assert endings == list(measured["stories"])
    assert [row[1] for row in read.tables["quality"][1:]] == ["0.310", "0.640", "0.400", "−0.200"]
    for text in statements(measured):
        assert text in page


def test_plot(done: Path) -> None:
    picture = (done / "evaluation" / "plane.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) > 5000


def test_empty_stories_are_kept_and_counted(inputs: dict[str, Any], tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """A model that says nothing: no crash, no diversity."""
    monkeypatch.setattr("components.evaluate.generate._Writer.story", _nothing)
    only = {**inputs, "system": {"dpo": inputs["system"]["dpo"]}}
    outputs = {name: tmp_path / name for name in OUTPUTS}
    run(evaluate=SETTINGS, **only, **outputs)
    measured = json.loads((tmp_path / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert measured["stories"]["dpo"]["empty"] == 9
    assert measured["systems"]["dpo"]["semantic_diversity"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert measured["systems"]["dpo"]["words"]["mean"] == 0
    assert measured["systems"]["dpo"]["distinct_k"]["mean"] == measured["systems"]["dpo"]["utility_k"]["mean"] == 0
    assert "compression_ratio" not in measured["systems"]["dpo"]
    assert "(empty)" in (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")


def _nothing(writer: Any, _told: Any, prompt: Any, sample: int) -> Any:
    from components.evaluate.stories import Story

    return Story(writer._system.name, prompt.id, sample, "", 0, "stop")


def test_a_reward_model_that_has_diverged(inputs: dict[str, Any], tmp_path: Path) -> None:
    """A score that is not a number is no missing value."""
    broken = tmp_path / "reward"
    shutil.copytree(inputs["reward"], broken)
    weights = load_file(broken / "adapter_model.safetensors")
    save_file({name: value * np.nan for name, value in weights.items()}, broken / "adapter_model.safetensors")
    only = {**inputs, "system": {"dpo": inputs["system"]["dpo"]}, "reward": broken}
    outputs = {name: tmp_path / name for name in OUTPUTS}
    with pytest.raises(InputError, match="15 of 15 stories no finite score"):
        run(evaluate=SETTINGS, **only, **outputs)
    assert not any(path.exists() for path in outputs.values())


def test_without_gold_and_without_known_quality(
    inputs: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = tmp_path / "reward"
    shutil.copytree(inputs["reward"], bare)
    (bare / "training.json").unlink()
    only = {**inputs, "system": {"dpo": inputs["system"]["dpo"]}, "reward": bare}
    outputs = {name: tmp_path / name for name in OUTPUTS}
    metrics = run(evaluate=SETTINGS.model_copy(update={"samples": 5, "max_prompts": 1}), **only, **outputs)
    assert metrics["gold_prompts"] == 0
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "gold is missing" in page
    assert "Nothing is known of how well the reward model agrees with votes" in page
    assert "Nothing is known" in caplog.text
    measured = json.loads((tmp_path / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert len(measured["warnings"]) == 1
    assert measured["quality_bar"]["of"] == "all systems"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": {}}, "no system to evaluate"),
        ({"system": {"gold": Path()}}, "--system gold="),
        ({"system": {"a b": Path()}}, "--system a b="),
        ({"system": {"dpo": Path()}}, "no adapter here"),
        ({"reward": Path()}, "no reward model here"),
        ({"models": Models(style="no-such-model")}, "no-such-model"),
    ],
)
def test_what_is_missing_is_said_at_once(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("components.evaluate.step.choose_prompts", _interrupted)
    with pytest.raises((InputError, ParameterError), match=re.escape(message)):
        run(evaluate=SETTINGS, **{**inputs, **change}, **{name: tmp_path / name for name in OUTPUTS})


def test_systems_beside_the_pipeline_s_own(inputs: dict[str, Any], tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """A trained one, the base model, a sweep and an endpoint in one run; what they are and cost is in metrics and report."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    answers = iter(range(1000))
    with serve(lambda _: (200, said(f"A story of {next(answers)} words."))) as server:
        endpoint = {"base_url": server.base_url, "model": "far", "input_price": 1.0, "output_price": 2.0}
        systems = {
            "base": {},
            "hot": {"like": "dpo", "sampling": {"temperature": 2.0, "max_new_tokens": 5}},
            "far": {"endpoint": endpoint, "mode": "iterative", "sampling": {"temperature": 0.5}},
        }
        params = Params.model_validate(SETTINGS.model_dump() | {"systems": systems})
        only = {**inputs, "system": {"dpo": inputs["system"]["dpo"]}}
        metrics = run(evaluate=params, **only, **{name: tmp_path / name for name in OUTPUTS})
        assert len(server.requests) == 9
    measured = json.loads((tmp_path / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert list(measured["systems"]) == list(measured["stories"]) == ["dpo", "base", "hot", "far", "gold"]
    assert {name: origin["model"] for name, origin in measured["origins"].items()} == {
        "dpo": inputs["models"].language,
        "base": inputs["models"].language,
        "hot": inputs["models"].language,
        "far": "far",
    }
    assert measured["origins"]["far"]["sampling"] == {"temperature": 0.5}
    assert measured["origins"]["far"]["usage"]["answers"] == 9
    assert metrics["far"]["cost"] == pytest.approx(9 * (10 + 2 * 5) / 1e6)
    table = GENERATIONS.read(tmp_path / "generations").to_pylist()
    assert max(row["tokens"] for row in table if row["system"] == "hot") <= 5
    assert "iterative" in (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")


def test_command_line(inputs: dict[str, Any], tmp_path: Path, write_params: Callable[..., Path]) -> None:
    params = write_params(evaluate=SETTINGS.model_dump() | {"max_prompts": 1}, models=inputs["models"].model_dump(mode="json"))
    paths = {name: tmp_path / "out" / name for name in (*OUTPUTS, "metrics")} | {k: inputs[k] for k in ("responses", "reward")}
    flags = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    systems = [word for name, path in inputs["system"].items() for word in ("--system", f"{name}={path}")]
    assert STEP.main(["--params", str(params), *flags, *systems]) == 0
    assert json.loads(paths["metrics"].read_text(encoding="utf-8"))["prompts"] == 1
    assert STEP.main(["--params", str(params), *flags, "--system", f"dpo={tmp_path}"]) == 1
