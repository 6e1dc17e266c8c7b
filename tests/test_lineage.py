"""Lineage by content: digests as DVC's, runs that record them, and the walk back to the raw data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from components.lineage import RAW, digest, step_run, tracking_client
from components.origin import Origin, UntraceableError, trace

TREE = {
    "a/b": b"1",
    "a-b": b"2",
    "a.b": b"3",
    "a/b.c/d": b"4",
    "a b": b"5",
    "A": b"6",
    "z": b"",
    "same": b"1",
    "\u00fc/\u65e5\u672c\u8a9e": b"7",
    "u\u0308": "nai\u0308ve\r\n".encode(),
    '"quoted" & <tagged>': b"8",
    ".hidden/x": b"9",
    "large": bytes(range(256)) * 8192,
}


@pytest.fixture(scope="session")
def dvc_digest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """The digest that DVC writes for a file or a folder."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("dvc")
    repo = Repo.init(str(folder), no_scm=True)

    def of(path: Path) -> str:
        target = folder / f"{len(list(folder.iterdir()))}"
        path.rename(target)
        repo.add(str(target))
        recorded = yaml.safe_load(target.with_name(target.name + ".dvc").read_text(encoding="utf-8"))
        target.rename(path)
        value: str = recorded["outs"][0]["md5"]
        return value

    return of


def plant(folder: Path, tree: dict[str, bytes]) -> Path:
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_has_the_digest_that_dvc_gives_it(tmp_path: Path, dvc_digest: Callable[[Path], str]) -> None:
    folder = plant(tmp_path / "tree", TREE)
    (folder / "empty").mkdir()
    assert digest(folder) == dvc_digest(folder)


@pytest.mark.parametrize("content", [b"", b"a\r\nb\r\n", bytes(range(256)) * 8192])
def test_a_file_has_the_digest_that_dvc_gives_it(tmp_path: Path, content: bytes, dvc_digest: Callable[[Path], str]) -> None:
    (tmp_path / "file").write_bytes(content)
    assert digest(tmp_path / "file") == dvc_digest(tmp_path / "file")


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.text("abAB.-_ é日", min_size=1, max_size=4).filter(lambda name: name.strip(". ") != ""), min_size=1, max_size=6)
)
def test_names_in_any_script_and_order(tmp_path_factory: Any, dvc_digest: Callable[[Path], str], names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("names") / "tree"
    for number, name in enumerate(names):
        plant(folder, {f"{name}/{number % 3}/{name}": name.encode()})
    assert digest(folder) == dvc_digest(folder)


def test_a_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    one, other = plant(tmp_path / "one", TREE), plant(tmp_path / "other", dict(reversed(TREE.items())))
    assert digest(one) == digest(other)
    (other / "a" / "b").rename(other / "a" / "c")
    assert digest(one) != digest(other)


def do(step: str, inputs: dict[str, str], outputs: dict[str, str], fail: bool = False) -> str:
    """A step that writes its outputs; returns the id of its run. Artifacts are given as name -> content."""
    paths = {}
    for name, content in (inputs | outputs).items():
        paths[name] = Path(f"{name}.txt")
        paths[name].write_text(content, encoding="utf-8")
    with step_run(step, {step: {"seed": 1}}, {name: paths[name] for name in inputs}) as run:
        active = mlflow.active_run()
        run.finish({name: paths[name] for name in outputs}, {"rows": 3, "by": {"reason": 2}, "name": "not a number"})
        if fail:
            raise RuntimeError("torn")
    assert active is not None
    run_id: str = active.info.run_id
    return run_id


def of(content: str) -> str:
    path = Path("content.tmp")
    path.write_text(content, encoding="utf-8")
    return digest(path)


def steps(origin: Origin) -> list[tuple[str, str]]:
    return sorted((item.name, item.step) for item in origin.walk())


@pytest.mark.usefixtures("store")
def test_a_chain_is_walked_back_to_the_raw_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHONY_COMMIT", "c" * 40)
    first = do("ingest", {RAW: "raw"}, {"responses": "r", "rejects": "x"})
    second = do("embed", {"responses": "r"}, {"embeddings": "e"})
    third = do("weight", {"responses": "r", "embeddings": "e"}, {"pairs": "p"})
    origin = trace("pairs", of("p"))
    assert (origin.run_id, origin.commit, origin.dirty) == (third, "c" * 40, "false")
    assert steps(origin) == [("embeddings", "embed"), ("pairs", "weight"), (RAW, ""), ("responses", "ingest")]
    by_name = {item.name: item for item in origin.walk()}
    assert [by_name[name].run_id for name in ("responses", "embeddings", RAW)] == [first, second, ""]
    assert by_name[RAW].digest == of("raw")


@pytest.mark.usefixtures("store")
def test_what_a_run_records() -> None:
    data = tracking_client().get_run(do("weight", {"responses": "r"}, {"pairs": "p"})).data
    assert data.tags["step"] == "weight"
    assert data.tags[f"consumed.{of('r')}"] == "responses"
    assert data.tags[f"produced.{of('p')}"] == "pairs"
    assert data.params == {"weight.seed": "1"}
    assert data.metrics == {"rows": 3.0, "by.reason": 2.0}


@pytest.mark.usefixtures("store")
def test_folders_are_traced_like_files() -> None:
    folder = plant(Path("model"), TREE)
    with step_run("train", {}, {}) as run:
        run.finish({"model": folder}, {})
    assert trace("model", digest(folder)).step == "train"


@pytest.mark.usefixtures("store")
def test_a_step_that_a_cache_spared_is_still_found() -> None:
    """The data changes and changes back; nothing runs for what was there before."""
    first = do("ingest", {RAW: "monday"}, {"responses": "r"})
    do("ingest", {RAW: "tuesday"}, {"responses": "other"})
    do("embed", {"responses": "r"}, {"embeddings": "e"})
    origin = trace("embeddings", of("e"))
    assert origin.inputs[0].run_id == first
    assert origin.inputs[0].inputs[0].digest == of("monday")


@pytest.mark.usefixtures("store")
def test_the_run_before_the_reader_is_the_one() -> None:
    """The same artifact, made again from other data after it was read."""
    do("ingest", {RAW: "older"}, {"responses": "r"})
    first = do("ingest", {RAW: "raw"}, {"responses": "r"})
    do("embed", {"responses": "r"}, {"embeddings": "e"})
    last = do("ingest", {RAW: "later"}, {"responses": "r"})
    assert trace("embeddings", of("e")).inputs[0].run_id == first
    assert trace("responses", of("r")).run_id == last


@pytest.mark.usefixtures("store")
def test_the_maker_of_long_ago_is_found_behind_many_later_ones() -> None:
    do("ingest", {RAW: "older"}, {"responses": "r"})
    first = do("ingest", {RAW: "raw"}, {"responses": "r"})
    do("embed", {"responses": "r"}, {"embeddings": "e"})
    for number in range(7):
        do("ingest", {RAW: f"later {number}"}, {"responses": "r"})
    assert trace("embeddings", of("e")).inputs[0].run_id == first


@pytest.mark.usefixtures("store")
def test_a_maker_recorded_after_its_reader_is_better_than_none() -> None:
    do("embed", {"responses": "r"}, {"embeddings": "e"})
    later = do("ingest", {RAW: "raw"}, {"responses": "r"})
    assert trace("embeddings", of("e")).inputs[0].run_id == later


@pytest.mark.usefixtures("store")
def test_a_source_that_needed_no_cleaning() -> None:
    """Raw data and responses are then the same bytes."""
    do("ingest", {RAW: "r"}, {"responses": "r"})
    origin = trace("responses", of("r"))
    assert [(item.name, bool(item.run_id)) for item in origin.walk()] == [("responses", True), (RAW, False)]


@pytest.mark.usefixtures("store")
def test_a_broken_chain_is_told() -> None:
    do("embed", {"responses": "r"}, {"embeddings": "e"})
    with pytest.raises(UntraceableError, match=rf"no recorded run produced responses \({of('r')}\), which embed read"):
        trace("embeddings", of("e"))
    with pytest.raises(UntraceableError, match="which the caller read"):
        trace("embeddings", of("unknown"))


@pytest.mark.usefixtures("store")
def test_a_run_that_failed_made_nothing() -> None:
    do("ingest", {RAW: "raw"}, {"responses": "r"})
    do("embed", {"responses": "r"}, {"embeddings": "e"})
    with pytest.raises(RuntimeError, match="torn"):
        do("embed", {"responses": "r"}, {"embeddings": "f"}, fail=True)
    assert trace("embeddings", of("e")).step == "embed"
    with pytest.raises(UntraceableError):
        trace("embeddings", of("f"))


@pytest.mark.usefixtures("store")
def test_an_engines_run_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    client = tracking_client()
    theirs = client.create_run(client.create_experiment("theirs")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    assert do("ingest", {RAW: "raw"}, {"responses": "r"}) == theirs
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    assert [run.info.run_id for run in client.search_runs(everywhere)] == [theirs]
    assert client.get_run(theirs).info.status == "FINISHED"
    assert trace("responses", of("r")).run_id == theirs


def test_the_store_stays_where_the_step_began(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with step_run("train", {}, {}) as run:
        monkeypatch.chdir(plant(tmp_path / "elsewhere", {"model": b"m"}))
        run.finish({"model": Path("model")}, {})
    assert not Path("mlflow.db").exists()
    monkeypatch.chdir(store.parent)
    assert trace("model", digest(tmp_path / "elsewhere" / "model")).step == "train"


def test_a_named_store(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    monkeypatch.chdir(plant(tmp_path / "elsewhere", {"x": b""}))
    do("ingest", {RAW: "raw"}, {"responses": "r"})
    assert not Path("mlflow.db").exists()
    assert trace("responses", of("r")).step == "ingest"


@pytest.mark.usefixtures("store")
def test_long_parameters_are_cut_and_not_refused() -> None:
    with step_run("train", {"train": {"names": ["x" * 10_000]}}, {}):
        active = mlflow.active_run()
    assert active is not None
    kept = tracking_client().get_run(active.info.run_id).data.params["train.names"]
    assert len(kept) == 6000


@pytest.mark.usefixtures("store")
def test_each_reader_has_the_maker_that_it_read_from() -> None:
    """The same artifact made twice: what one run read is not told as what the other did."""
    first = do("ingest", {RAW: "older"}, {"responses": "r"})
    do("embed", {"responses": "r"}, {"embeddings": "e"})
    second = do("ingest", {RAW: "raw"}, {"responses": "r"})
    do("weight", {"responses": "r", "embeddings": "e"}, {"pairs": "p"})
    by_name = {item.name: item for item in trace("pairs", of("p")).inputs}
    assert by_name["responses"].run_id == second
    assert by_name["embeddings"].inputs[0].run_id == first


@pytest.mark.usefixtures("store")
def test_a_gap_can_be_told_instead_of_raised() -> None:
    do("ingest", {RAW: "raw"}, {"responses": "r"})
    do("weight", {"responses": "r", "embeddings": "e"}, {"pairs": "p"})
    by_name = {item.name: item for item in trace("pairs", of("p"), gaps=True).walk()}
    assert "no recorded run produced embeddings" in by_name["embeddings"].gap
    assert (by_name["embeddings"].run_id, by_name["responses"].gap, by_name[RAW].gap) == ("", "", "")


@pytest.mark.usefixtures("store")
def test_a_step_that_only_its_own_output_feeds() -> None:
    """It changed nothing, and what it read was made nowhere."""
    do("clean", {"before": "x"}, {"after": "x"})
    with pytest.raises(UntraceableError, match="only runs that were made from it produced before"):
        trace("after", of("x"))


@pytest.mark.usefixtures("store")
def test_given_parameters_and_addresses_are_kept_whole() -> None:
    Path("p").write_text("p", encoding="utf-8")
    with step_run("weight", {"weight": {"floor": 0.2, "cap": 32}}, {}, {"weight": {"floor": 0.2}}) as run:
        run.finish({"pairs": Path("p")}, {}, {"pairs": "s3://bucket/p", "metrics": "s3://bucket/m"})
    record = trace("pairs", digest(Path("p"))).record
    assert record is not None
    assert json.loads(record.tags["parameters"]) == {"weight": {"floor": 0.2}}
    assert record.parameters == {"weight.floor": "0.2", "weight.cap": "32"}
    assert {key: value for key, value in record.tags.items() if key.startswith("stored.")} == {
        f"stored.{digest(Path('p'))}": "s3://bucket/p"
    }
