"""Stories that DVC tracks in a git repository, from a remote that is a folder and from one that is an S3 server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.configure.source import identity
from components.contracts import InputError
from components.ingest.__main__ import STEP
from components.ingest.fetch import source_path
from components.ingest.params import Params
from components.ingest.repository import Address, authorised, explain, parse
from components.lineage import digest
from components.params import ParameterError, check
from tests.ingest.sources import as_bytes

GOOD = [
    {"prompt": f"About {p}", "response": f"Story {r} about {p}: the keeper of the lamp waits.", "score": float(r)}
    for p in range(4)
    for r in range(3)
]

SECRETS = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "of-the-test", "AWS_DEFAULT_REGION": "us-east-1"}


class Repository:
    """A repository with tracked files, one of them missing in the remote, a tracked folder, and a file that git itself has."""

    def __init__(self, folder: Path, remote: str, **settings: str) -> None:
        from dvc.repo import Repo

        self.folder = folder
        (folder / "data" / "many").mkdir(parents=True)
        self.git("init", "-q")
        with Repo.init(str(folder)) as repo, repo.config.edit() as config:
            config["core"]["remote"] = "store"
            config["remote"]["store"] = {"url": remote, **settings}
        (folder / "data" / "small.jsonl").write_bytes(as_bytes(GOOD, "jsonl"))
        (folder / "data" / "many" / "a.jsonl").write_bytes(as_bytes(GOOD[:6], "jsonl"))
        (folder / "data" / "many" / "README").write_text("About the stories.", encoding="utf-8")
        self.put("data/stories.jsonl", GOOD)
        self.track("data/stories.jsonl", "data/many", push=True)
        self.put("data/lost.jsonl", GOOD[:3])
        self.track("data/lost.jsonl", push=False)
        self.git("tag", "v1")
        # The content is left to the remote.
        shutil.rmtree(folder / ".dvc" / "cache")

    def put(self, path: str, rows: list[dict[str, Any]]) -> None:
        (self.folder / path).write_bytes(as_bytes(rows, "jsonl"))

    def track(self, *paths: str, push: bool) -> None:
        from dvc.repo import Repo

        with Repo(str(self.folder)) as repo:
            repo.add([str(self.folder / path) for path in paths])
            if push:
                repo.push()
        self.git("add", "-A")
        self.git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "data")

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=self.folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def source(self, path: str, revision: str = "v1") -> str:
        return f"git+file://{self.folder}@{revision}#{path}"

    def tracked(self, path: str, revision: str = "v1") -> str:
        return str(yaml.safe_load(self.git("show", f"{revision}:{path}.dvc"))["outs"][0]["md5"])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    folder = tmp_path_factory.mktemp("tracked")
    return Repository(folder / "repository", str(folder / "remote"))


def fetched(source: str) -> Path:
    return source_path({"ingest": Params(source=source)})


@pytest.mark.parametrize("path", ["data/stories.jsonl", "data/many"])
def test_the_digest_is_that_of_dvc(repository: Repository, path: str) -> None:
    source = repository.source(path)
    assert digest(fetched(source)) == identity(source) == repository.tracked(path)


def test_what_git_itself_has(repository: Repository) -> None:
    source = repository.source("data/small.jsonl")
    assert fetched(source).read_bytes() == as_bytes(GOOD, "jsonl")
    assert identity(source) == identity(source)


def test_a_revision_stays_and_a_branch_moves(repository: Repository) -> None:
    path = "data/stories.jsonl"
    branch = repository.git("branch", "--show-current")
    before = identity(repository.source(path, branch))
    repository.put(path, GOOD[:6])
    repository.track(path, push=True)
    assert identity(repository.source(path)) == before == digest(fetched(repository.source(path)))
    assert identity(repository.source(path, branch)) == repository.tracked(path, "HEAD") != before


@pytest.mark.parametrize(
    ("path", "revision", "told"),
    [
        ("data/nothing.jsonl", "v1", "nothing.jsonl"),
        ("data/stories.jsonl", "v9", "v9"),
        ("data/lost.jsonl", "v1", "No storage files available"),
    ],
)
def test_what_is_not_there(repository: Repository, path: str, revision: str, told: str) -> None:
    source = repository.source(path, revision)
    with pytest.raises(InputError, match=told):
        fetched(source)
    if "lost" not in path:
        with pytest.raises(InputError, match=told):
            identity(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("git+https://h/a/b.git@v1#d/s.jsonl", ("https://h/a/b.git", "v1", "d/s.jsonl")),
        ("git+https://h:8443/b@feature/x#/d/", ("https://h:8443/b", "feature/x", "d")),
        ("git+ssh://git@h/a.git#d", ("ssh://git@h/a.git", None, "d")),
        ("git+file:///srv/r@0a1b#d#1", ("file:///srv/r", "0a1b", "d#1")),
    ],
)
def test_addresses(source: str, expected: tuple[str, str | None, str]) -> None:
    assert parse(source) == Address(*expected)


@pytest.mark.parametrize(
    "source", ["git+https://h/a@v1", "git+https://h/a@#d", "git+h/a@v1#d", "git+https://h#d", "git+https://h/a#/"]
)
def test_addresses_of_another_form(source: str) -> None:
    with pytest.raises(InputError, match=r"expected git\+https"):
        parse(source)


def test_credentials_are_only_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match="holds a password"):
        check({"ingest": {"source": "git+https://me:secret@h/a@v1#d"}}, "here")
    monkeypatch.setenv("GIT_TOKEN", "se/cret")
    assert authorised("https://127.0.0.1:1/a.git") == "https://oauth2:se%2Fcret@127.0.0.1:1/a.git"
    assert authorised("ssh://git@h/a.git") == "ssh://git@h/a.git"
    with pytest.raises(InputError) as error:
        fetched("git+https://127.0.0.1:1/a.git@v1#d")
    assert "cret" not in str(error.value) and "refused" in str(error.value)
    assert explain(ValueError("se/cret se%2Fcret")) == "ValueError: *** ***"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server with a bucket; the environment has the credentials."""
    from moto.server import ThreadedMotoServer

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        import boto3

        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="stories")
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def test_from_s3_as_the_step_does_it(s3: str, tmp_path: Path, write_params: Callable[..., Path], tiny_model: Path) -> None:
    """What the step records as its raw data is what the repository's .dvc file says, and credentials stand nowhere."""
    from mlflow import MlflowClient

    repository = Repository(tmp_path / "repository", "s3://stories/dvc", endpointurl=s3)
    source = repository.source("data/stories.jsonl")
    params = write_params(ingest={"source": source}, models={"language": str(tiny_model)})
    words = ["--params", str(params), "--responses", "r.parquet", "--rejects", "x.parquet"]
    assert STEP.main(words) == 0
    (run,) = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    assert run.data.tags[f"consumed.{repository.tracked('data/stories.jsonl')}"] == "raw"
    recorded: dict[str, Any] = run.data.params | run.data.tags
    assert not any(secret in str(recorded) for secret in ("reader", "of-the-test"))
