"""From `ingest.source` to a local path; what lies elsewhere is copied first."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from components.contracts import InputError, atomic
from components.ingest import repository
from components.ingest.forms import in_folder
from components.ingest.params import Params
from components.lineage import digest
from components.params import Section

# Holds the copy of a remote source and the rows under way; removed when the step ends.
WORK = Path(".work/ingest")
_CHUNK = 1 << 20


def source_path(sections: Mapping[str, Section]) -> Path:
    """The file or folder that `ingest.source` names, copied to the working directory where it is not local.

    Raises:
        InputError: if there is no such source or it cannot be read.
    """
    ingest = sections["ingest"]
    assert isinstance(ingest, Params)  # noqa: S101 - the section named ingest is this class
    if ingest.source.startswith(repository.PREFIX):
        return _fetch_tracked(ingest.source)
    if "://" in ingest.source:
        return _fetch(ingest.source)
    path = Path(ingest.source).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder. Correct ingest.source, or give the file as --raw.")
    return path


def _fetch(url: str) -> Path:
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    with _remote(url):
        system, root = url_to_fs(url)
        try:
            # Not isdir, which for HTTP reads the whole file, to look for links in it.
            info: dict[str, Any] = system.info(root)
        except FileNotFoundError:
            raise InputError(f"{url}: no such file or folder. Correct ingest.source.") from None
        if isinstance(system, LocalFileSystem):
            return Path(root)
        folder = info["type"] == "directory"
        found: dict[str, dict[str, Any]] = system.find(root, detail=True) if folder else {root: info}
    target = WORK / "raw" / (PurePosixPath(urlsplit(url).path).name or "source")
    if not folder:
        with atomic(target) as partial:
            _copy(url, system, root, found[root].get("size"), partial)
        return target
    names = {name: PurePosixPath(name).relative_to(root) for name in found}
    wanted = {name: inside for name, inside in sorted(names.items()) if in_folder(inside) and ".." not in inside.parts}
    if not wanted:
        raise InputError(
            f"{url}: no .jsonl, .csv or .parquet file in it (also .gz), only {sorted(map(str, names.values()))[:10]}."
        )
    with atomic(target) as partial:
        for name, inside in wanted.items():
            _copy(f"{url}: {inside}", system, name, found[name].get("size"), partial / inside)
    return target


def _fetch_tracked(source: str) -> Path:
    """A file or a folder of a git repository, whole: its digest is the one that DVC keeps of it."""
    address = repository.parse(source)
    target = WORK / "raw" / PurePosixPath(address.path).name
    with _remote(source):
        system = repository.files(address)
        try:
            info: dict[str, Any] = system.info(address.path)
        except FileNotFoundError:
            raise InputError(f"{source}: no such file or folder at that revision. Correct ingest.source.") from None
        folder = info["type"] == "directory"
        found: dict[str, dict[str, Any]] = system.find(address.path, detail=True) if folder else {address.path: info}
    with atomic(target) as partial:
        for name in sorted(found):
            inside = PurePosixPath(name).relative_to(address.path)
            _copy(f"{source}: {inside}" if folder else source, system, name, found[name].get("size"), partial / inside)
    expected = repository.tracked_digest(info)
    if expected and digest(target) != expected:
        raise InputError(
            f"{source}: what was fetched is not what DVC keeps there ({digest(target)}, not {expected}). Run again."
        )
    return target


def _copy(label: str, system: Any, name: str, size: int | None, target: Path) -> None:
    from tqdm import tqdm

    target.parent.mkdir(parents=True, exist_ok=True)
    with _remote(label):
        stream: BinaryIO = system.open(name, "rb")
    with stream, target.open("wb") as file, tqdm(desc=f"fetch {target.name}", total=size, unit="B", unit_scale=True) as bar:
        while True:
            with _remote(label):
                chunk = stream.read(_CHUNK)
            if not chunk:
                break
            file.write(chunk)
            bar.update(len(chunk))


@contextmanager
def _remote(url: str) -> Iterator[None]:
    """Every store has exceptions of its own; all say that the source cannot be read."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise InputError(
            f"{url}: cannot be read: {repository.explain(error)}. Check the address, the network and the credentials."
        ) from error
