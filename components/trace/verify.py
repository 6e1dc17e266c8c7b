"""Fetches what a tree's digests name, from every place that has it, and hashes it again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from components.origin import Origin
from components.trace.ancestry import Ancestry
from components.trace.content import Contents, File, Place, digest_of, has_commit, md5
from components.trace.store import Version

# The tag with the digest of each file of a version (JSON, by path), and where in its run its evaluation lies.
_FILES, _EVALUATION = "files", "evaluation"
# The file of a model whose place the card takes.
_CARD = "README.md"


@dataclass
class Report:
    """What was looked at.

    Attributes:
        sound: artifacts that are what their digest says, with where; in words.
        problems: what is wrong, and what to do.
        read: bytes that were read.
    """

    sound: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    read: int = 0


def verify(ancestry: Ancestry, contents: Contents, advance: Callable[[int], Any]) -> Report:
    """Checks every artifact in every place that has it, the version as registered, and every commit.

    Args:
        advance: is told how many bytes were read.
    """
    report = Report(problems=ancestry.problems())

    def count(size: int) -> None:
        report.read += size
        advance(size)

    report.problems += _commits(ancestry, contents.repository)
    readers = ancestry.readers()
    known: dict[str, dict[str, str]] = {}
    done: set[str] = set()
    for origin in ancestry.walk():
        if origin.digest not in done:
            done.add(origin.digest)
            places = list(contents.places(origin, readers.get(origin.digest)))
            if files := _artifact(origin, places, report, count):
                known[origin.digest] = files
    if ancestry.version is not None:
        _version(ancestry.version, ancestry, known, report, count)
    return report


def _commits(ancestry: Ancestry, repository: Path) -> Iterator[str]:
    commits: dict[str, list[str]] = {}
    for origin in ancestry.runs().values():
        if origin.commit != "unknown":
            commits.setdefault(origin.commit, []).append(origin.step)
    for commit, steps in commits.items():
        if not has_commit(repository, commit):
            yield (
                f"commit {commit}, of {', '.join(steps)}: not in the repository {repository.resolve()}. Fetch it "
                "(`git fetch --all`), or name the project's checkout with --repository."
            )


def _artifact(origin: Origin, places: list[Place], report: Report, count: Callable[[int], Any]) -> dict[str, str]:
    """Checks one artifact; returns the MD5 of its files, by path, from a place where it is sound."""
    what = f"{origin.name} ({origin.digest})"
    sound: list[str] = []
    files: dict[str, str] = {}
    raw = not origin.run_id
    for place in places:
        if place.trouble:
            report.problems.append(f"{what}: {place.name}: {place.trouble}.")
            continue
        found = {file.path: md5(file, count) for file in place.files}
        if not place.missing and digest_of(found) == origin.digest:
            sound.append(place.name)
            files = found
        elif place.missing:
            report.problems.append(
                f"{what}: {place.name}: {len(place.missing)} file(s) missing: {', '.join(place.missing[:5])}. Bring them there "
                "with `dvc push` (a remote) or `dvc fetch` (the cache)."
            )
        elif any(file.md5 for file in place.files) or not raw:
            wrong = [file.path or "its content" for file in place.files if file.md5 and found[file.path] != file.md5]
            told = ", ".join(wrong[:5]) or f"the whole is {digest_of(found)}"
            report.problems.append(
                f"{what}: {place.name}: differs: {told}. Remove it there, and "
                "bring it back from a sound place (`dvc fetch`, `dvc push`) or with `dvc repro --force --single-item <stage>`."
            )
        # Elsewhere, the file of that name may have become another: no copy of this one.
    if sound:
        report.sound.append(f"{what}: {', '.join(sound)}")
    elif not any(place.files or place.trouble for place in places) or raw:
        report.problems.append(f"{what}: missing: {_advice(raw)}")
    return files


def _advice(raw: bool) -> str:
    where = "in no DVC cache or remote, at no recorded address"
    if raw:
        return f"{where}, in no commit and not at ingest.source. Keep it with `dvc add` and `dvc push`."
    return f"{where}. Run `dvc push` where it was made, or make it again: `polyphony lineage reproduce`."


def _version(
    version: Version, ancestry: Ancestry, known: dict[str, dict[str, str]], report: Report, count: Callable[[int], Any]
) -> None:
    """Checks what the registry holds against the digests that the version was registered with, and against the model."""
    expected = _registered_files(version)
    if not expected:
        report.problems.append(
            f"{version}: registered without the digests of its files, so that nobody can tell whether they are what was "
            "registered. Register the model again: `dvc repro --force --single-item register`."
        )
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = {file.path: md5(file, count) for file in _registered(version.source, Path(scratch))}
        except Exception as error:
            # Each kind of store has errors of its own.
            report.problems.append(f"{version}: its files cannot be read: {type(error).__name__}: {error}.")
            return
        evaluation = ancestry.evaluation
        beside = f"{version.source.rpartition('/')[0]}/{_EVALUATION}"
        if expected and evaluation is not None:
            try:
                measured = {file.path: md5(file, count) for file in _registered(beside, Path(scratch))}
            except Exception:
                measured = {}
            if not measured:
                report.problems.append(f"{version}: its evaluation is missing from {beside}. Register the model again.")
            elif digest_of(measured) != evaluation.digest:
                report.problems.append(f"{version}: {beside}: differs from {evaluation.digest}. Register the model again.")
    wrong = sorted(path for path in expected.keys() & found.keys() if expected[path] != found[path])
    for word, paths in (
        ("differs from what was registered", wrong),
        ("missing", sorted(expected.keys() - found.keys())),
        ("was not registered", sorted(found.keys() - expected.keys()) if expected else []),
    ):
        report.problems += [
            f"{version}: {path}: {word}. Do not serve this version; register the model again, and look who can write to "
            f"{version.source}."
            for path in paths
        ]
    model = known.get(ancestry.model.digest, {})
    other = sorted(path for path, value in model.items() if path != _CARD and found.get(path, value) != value)
    lacks = sorted(path for path in model if path not in found)
    report.problems += [f"{version}: {path}: is not that of the model {ancestry.model.digest}." for path in other]
    report.problems += [f"{version}: {path}: the model {ancestry.model.digest} has it, the version does not." for path in lacks]
    if found and not (wrong or other or lacks) and expected and expected.keys() == found.keys():
        report.sound.append(f"{version}: {len(found)} files in {version.source}")


def _registered_files(version: Version) -> dict[str, str]:
    try:
        found = json.loads(version.tags.get(_FILES, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _registered(address: str, scratch: Path) -> Iterator[File]:
    """The files at an address of MLflow's, of which one at a time is copied to `scratch`, where they are not local."""
    if "://" not in address and ":/" not in address:
        root = Path(address)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder")
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            yield File(path.relative_to(root).as_posix(), _opener(path))
        return
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from components.lineage import tracking_client

    tracking_client()
    store = get_artifact_repository(address)
    waiting = [""]
    while waiting:
        for entry in store.list_artifacts(waiting.pop()) or ():
            if entry.is_dir:
                waiting.append(entry.path)
                continue
            copy = Path(store.download_artifacts(entry.path, str(scratch)))
            yield File(PurePosixPath(entry.path).as_posix(), _opener(copy))
            copy.unlink()


def _opener(path: Path) -> Callable[[], Any]:
    return lambda: path.open("rb")
