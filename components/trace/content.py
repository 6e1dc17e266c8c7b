"""Where the content that a digest names can be read: DVC's cache and remotes, an engine's store, git, the working folder."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from components.contracts import InputError
from components.lineage import RAW, STORED, folder_digest
from components.origin import Origin

_CHUNK = 1 << 20
# Of the store that Kubeflow brings along, by the name that fsspec knows.
_SCHEMES = {"minio://": "s3://"}


@dataclass(frozen=True)
class File:
    """A file of an artifact: its path within (empty where the artifact is one file), and how to read it.

    `md5` is what it should be, where that is known before all is read.
    """

    path: str
    open: Callable[[], IO[bytes]]
    md5: str = ""


@dataclass(frozen=True)
class Place:
    """A place that has an artifact; `missing` are files that should be there and are not, `trouble` why it cannot be read."""

    name: str
    files: tuple[File, ...] = ()
    missing: tuple[str, ...] = ()
    trouble: str = ""


class Contents:
    """Finds the content of artifacts.

    Args:
        repository: folder of the git and DVC repository; what is not one holds nothing.
    """

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self._stores = list(_dvc_stores(repository))

    def places(self, origin: Origin, reader: Origin | None) -> Iterator[Place]:
        """All places that have the artifact, the nearest first.

        Args:
            reader: an artifact of the run that read it, which says where the raw data was read from.
        """
        looks: list[tuple[str, Callable[[], Place | None]]] = [
            (name, partial(_in_dvc, name, store, origin.digest)) for name, store in self._stores
        ]
        if origin.record and (address := origin.record.tags.get(STORED + origin.digest)):
            looks.append((address, partial(_at_address, address)))
        if origin.name == RAW and reader is not None and reader.record is not None:
            source = reader.record.parameters.get("ingest.source", "")
            path = self.repository / Path(source).expanduser()
            if source and "://" not in source:
                if not Path(source).is_absolute():
                    looks.append((reader.commit, partial(_in_git, self.repository, reader.commit, source)))
                looks.append((str(path), partial(folder_place, str(path), path)))
        for name, look in looks:
            try:
                place = look()
            except Exception as error:
                # Each kind of store has errors of its own.
                place = Place(
                    name, trouble=f"cannot be read: {type(error).__name__}: {error}. Check its address and credentials"
                )
            if place is not None:
                yield place


def folder_place(name: str, path: Path) -> Place | None:
    """A file or a folder of this machine as a place; None where it does not exist."""
    if not path.exists():
        return None
    if path.is_file():
        return Place(name, (File("", lambda: path.open("rb")),))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return Place(name, tuple(File(file.relative_to(path).as_posix(), _opener(file)) for file in files))


def _opener(file: Path) -> Callable[[], IO[bytes]]:
    return lambda: file.open("rb")


def md5(file: File, advance: Callable[[int], Any], copy: IO[bytes] | None = None) -> str:
    """The MD5 of a file, read a piece at a time; written to `copy` on the way.

    Args:
        advance: is told how many bytes were read.
    """
    found = hashlib.md5(usedforsecurity=False)
    with file.open() as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
            advance(len(chunk))
            if copy is not None:
                copy.write(chunk)
    return found.hexdigest()


def fetch(place: Place, digest: str, target: Path, advance: Callable[[int], Any]) -> bool:
    """Writes an artifact to `target`; returns whether it has the digest that it should."""
    found = {}
    for file in place.files:
        inside = PurePosixPath(file.path)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(f"{place.name}: {file.path}: leads out of its folder.")
        path = target / inside if file.path else target
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as copy:
            found[file.path] = md5(file, advance, copy)
    return not place.missing and digest_of(found) == digest


def digest_of(files: dict[str, str]) -> str:
    """The digest of an artifact from the MD5 of its files by path; one file with an empty path is itself the artifact."""
    return files[""] if files.keys() == {""} else folder_digest(files)


def _dvc_stores(repository: Path) -> Iterator[tuple[str, Any]]:
    """DVC's object stores: the cache, then the remotes, with what people call them."""
    if not (repository / ".dvc").is_dir():
        return
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(repository))
        yield "the DVC cache", repo.cache.local
        default = repo.config["core"].get("remote")
        for name in sorted(repo.config["remote"], key=lambda name: name != default):
            yield f"the DVC remote {name}", repo.cloud.get_remote_odb(name)
    except DvcException as error:
        raise InputError(
            f"{repository}: DVC does not open it: {error}. Correct its configuration (`dvc remote list`)."
        ) from error


def _in_dvc(name: str, store: Any, digest: str) -> Place | None:
    def opened(value: str) -> Callable[[], IO[bytes]]:
        return lambda: store.fs.open(store.oid_to_path(value), "rb")

    def has(value: str) -> bool:
        return bool(store.fs.exists(store.oid_to_path(value)))

    if not has(digest):
        return None
    if not digest.endswith(".dir"):
        return Place(name, (File("", opened(digest), digest),))
    with opened(digest)() as stream:
        listed = [(str(entry["relpath"]), str(entry["md5"])) for entry in json.loads(stream.read())]
    missing = tuple(path for path, value in listed if not has(value))
    return Place(name, tuple(File(path, opened(value), value) for path, value in listed if path not in missing), missing)


def _at_address(address: str) -> Place | None:
    """What an engine keeps at an address; None where nothing is there."""
    from fsspec.core import url_to_fs

    for scheme, known in _SCHEMES.items():
        address = known + address.removeprefix(scheme) if address.startswith(scheme) else address
    system, root = url_to_fs(address)
    if not system.exists(root):
        return None
    if system.isfile(root):
        return Place(address, (File("", _remote_opener(system, root)),))
    found = sorted(system.find(root))
    return Place(
        address, tuple(File(str(PurePosixPath(name).relative_to(root)), _remote_opener(system, name)) for name in found)
    )


def _remote_opener(system: Any, name: str) -> Callable[[], IO[bytes]]:
    return lambda: system.open(name, "rb")


def _in_git(repository: Path, commit: str, path: str) -> Place | None:
    """A file or folder as a commit has it."""
    listed = _git(repository, ["ls-tree", "-r", "-z", "--name-only", commit, "--", path])
    names = [name for name in listed.split("\0") if name]
    if not names:
        return None
    root = PurePosixPath(path)

    def opened(name: str) -> Callable[[], IO[bytes]]:
        return lambda: _blob(repository, f"{commit}:{name}")

    inside = [("" if PurePosixPath(name) == root else str(PurePosixPath(name).relative_to(root))) for name in names]
    return Place(f"git commit {commit[:12]}", tuple(File(i, opened(name)) for i, name in zip(inside, names, strict=True)))


def _blob(repository: Path, name: str) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - who reads it closes it
    subprocess.run(["git", "-C", str(repository), "cat-file", "blob", name], stdout=file, check=True)
    file.seek(0)
    return file


def _git(repository: Path, arguments: Sequence[str]) -> str:
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def has_commit(repository: Path, commit: str) -> bool:
    """Whether the repository has the commit."""
    named = ["git", "-C", str(repository), "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(named, capture_output=True).returncode == 0
