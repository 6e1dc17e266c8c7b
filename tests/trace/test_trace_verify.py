"""`polyphony lineage verify`: what is sound is found, and every kind of damage is named."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.lineage import digest, tracking_client
from components.trace.ancestry import find
from components.trace.content import Contents
from components.trace.store import open_store
from components.trace.verify import Report, verify
from pipelines.front_door import main as polyphony
from tests.platform.fixtures import KEYS, client
from tests.platform.proxy import Proxy
from tests.trace.conftest import Project, git


def check(target: str = "polyphony@champion", repository: Path | None = None) -> Report:
    return verify(find(target, open_store()), Contents(repository or Path()), lambda _: None)


def blob(root: str, value: str) -> Path:
    return Path(root, "files", "md5", value[:2], value[2:])


def spoil(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.usefixtures("project")
def test_what_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    report = check()
    assert report.problems == []
    # Raw data, tables, models, the evaluation; and the version.
    assert len(report.sound) == 8 + 1
    stored = next(line for line in report.sound if line.startswith("pairs"))
    assert "the DVC cache, the DVC remote store" in stored
    assert "git commit" in next(line for line in report.sound if line.startswith("raw"))
    assert report.read > 0
    assert polyphony(["lineage", "verify", "polyphony@champion"]) == 0
    assert "0 problem(s)" in capsys.readouterr().out


def of_pairs(place: str) -> Path:
    return blob(place, digest(Path("pairs.parquet")))


def of_adapter(place: str) -> Path:
    return blob(place, digest(Path("models/sft/adapter_model.safetensors")))


def list_of_sft(place: str) -> Path:
    return blob(place, digest(Path("models/sft")))


DAMAGE: dict[str, tuple[Callable[[], object], str]] = {
    "cache spoiled": (lambda: spoil(of_pairs(".dvc/cache")), r"pairs .*: the DVC cache: differs: its content"),
    "remote spoiled": (lambda: spoil(of_pairs("remote")), r"pairs .*: the DVC remote store: differs"),
    "file of a folder spoiled": (
        lambda: spoil(of_adapter("remote")),
        r"sft .*: the DVC remote store: differs: adapter_model.safetensors",
    ),
    "file of a folder missing": (
        lambda: of_adapter("remote").unlink(),
        r"sft .*: the DVC remote store: 1 file\(s\) missing: adapter_model.safetensors",
    ),
    "list of a folder spoiled": (lambda: list_of_sft(".dvc/cache").write_text("[{]"), r"sft .*: the DVC cache: cannot be read"),
    "list of a folder shortened": (
        lambda: list_of_sft(".dvc/cache").write_text("[]"),
        r"sft .*: the DVC cache: differs: the whole",
    ),
    "gone everywhere": (
        lambda: (of_pairs("remote").unlink(), of_pairs(".dvc/cache").unlink()),
        r"pairs .*: missing: .*dvc push",
    ),
    "raw data gone": (
        lambda: (shutil.rmtree(".git"), git(Path(), "init", "-q"), Path("stories.jsonl").write_text("others")),
        r"raw .*: missing: .*dvc add",
    ),
    "registered adapter spoiled": (
        lambda: spoil(Path("registry/0/model/adapter_model.safetensors")),
        r"polyphony version 1: adapter_model.safetensors: differs from what was registered",
    ),
    "registered file gone": (
        lambda: Path("registry/0/model/adapter_config.json").unlink(),
        r"polyphony version 1: adapter_config.json: missing",
    ),
    "registered file added": (
        lambda: Path("registry/0/model/code.py").write_text("evil"),
        r"polyphony version 1: code.py: was not registered",
    ),
    "registered card spoiled": (
        lambda: spoil(Path("registry/0/model/README.md")),
        r"README.md: differs from what was registered",
    ),
    "registry gone": (lambda: shutil.rmtree("registry"), r"polyphony version 1: its files cannot be read"),
    "evaluation spoiled": (
        lambda: spoil(Path("registry/0/evaluation/metrics.json")),
        r"polyphony version 1: .*evaluation: differs",
    ),
    "evaluation gone": (lambda: shutil.rmtree("registry/0/evaluation"), r"polyphony version 1: its evaluation is missing"),
}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    do, expected = DAMAGE[damage]
    do()
    assert polyphony(["lineage", "verify", "polyphony@champion"]) == 1
    assert re.search(expected, capsys.readouterr().out)


def test_an_exchanged_model_is_found_by_its_lineage(project: Project) -> None:
    """Another adapter, registered with digests that are its own."""
    shutil.copy("models/dpo/adapter_model.safetensors", "exchanged")
    shutil.copytree("models/ddpo", "other")
    shutil.move("exchanged", "other/adapter_model.safetensors")
    version = project.register("polyphony", "other", "")
    tracking_client().set_model_version_tag("polyphony", version, "model.digest", digest(Path("models/ddpo")))
    assert any("adapter_model.safetensors: is not that of the model" in line for line in check(f"polyphony/{version}").problems)


def test_a_commit_that_is_not_here(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHONY_COMMIT", "a" * 40)
    project.do("train-ddpo", {"pairs": "pairs.parquet", "sft": "models/sft"}, {"model": "models/ddpo"})
    (problem,) = check("models/ddpo").problems
    assert problem.startswith(f"commit {'a' * 40}, of train-ddpo: not in the repository")


@pytest.mark.parametrize("dirty", ["true", "unknown"])
def test_unclean_code_is_a_problem(project: Project, dirty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from components import provenance

    commit = project.commit if dirty == "true" else "unknown"
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": commit, "dirty": dirty})
    project.do("train-ddpo", {"pairs": "pairs.parquet", "sft": "models/sft"}, {"model": "models/ddpo"})
    (problem,) = check("models/ddpo").problems
    assert problem.startswith("train-ddpo")


def test_raw_data_that_was_added_to_dvc(project: Project) -> None:
    """The stories may have become others since; DVC has those of then."""
    value = digest(Path("stories.jsonl"))
    kept = blob("remote", value)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("stories.jsonl", kept)
    shutil.rmtree(".git")
    git(project.folder, "init", "-q")
    Path("stories.jsonl").write_text("others", encoding="utf-8")
    report = check()
    assert any(line.startswith("raw") and line.endswith("the DVC remote store") for line in report.sound)
    assert [line for line in report.problems if not line.startswith("commit")] == []


@pytest.mark.usefixtures("project")
def test_an_engines_store_is_looked_at(tmp_path: Path) -> None:
    """As with Kubeflow: no DVC, the outputs at addresses that the runs recorded."""
    from components.lineage import step_run

    kept = tmp_path / "bucket" / "model"
    shutil.copytree("models/dpo", kept)
    (kept / "more").write_text("more", encoding="utf-8")
    with step_run("train-dpo", {"train": {}}, {}) as run:
        run.finish({"model": kept}, {}, {"model": f"file://{kept}"})
    value = digest(kept)
    report = check(value)
    assert (report.problems, len(report.sound)) == ([], 1)
    spoil(kept / "more")
    (problem,) = check(value).problems
    assert "differs: the whole is" in problem


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_a_remote_in_s3_is_hashed_again(s3_proxy: Proxy) -> None:
    from dvc.repo import Repo

    repo = Repo()
    keys = {"access_key_id": KEYS["AWS_ACCESS_KEY_ID"], "secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"]}
    with repo.config.edit() as config:
        config["remote"] = {"bucket": {"url": "s3://mlflow/dvc", "endpointurl": s3_proxy.target, "region": "us-east-1", **keys}}
        config["core"]["remote"] = "bucket"
    Repo().push()
    shutil.rmtree(".dvc/cache")
    report = check()
    assert report.problems == []
    assert next(line for line in report.sound if line.startswith("pairs")).endswith("the DVC remote bucket")
    bucket = client(s3_proxy)
    changed, gone = (blob("dvc", digest(Path(of))).as_posix() for of in ("pairs.parquet", "models/sft/README.md"))
    bucket.put_object(Bucket="mlflow", Key=changed, Body=b"others")
    bucket.delete_object(Bucket="mlflow", Key=gone)
    told = "\n".join(check().problems)
    assert re.search(r"pairs .*: the DVC remote bucket: differs: its content", told)
    assert re.search(r"sft .*: the DVC remote bucket: 1 file\(s\) missing: README.md", told)
