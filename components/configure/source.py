"""What the source is at this moment, so that a cache knows it from what it was before."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from components.contracts import InputError
from components.ingest import repository
from components.lineage import digest

# What stores call that which changes with the content.
_MARKS = ("ETag", "etag", "md5Hash", "blob_id", "sha", "mtime", "LastModified", "last_modified", "updated")


def identity(source: str) -> str:
    """The same text for the same content: the digest of local data, a hash of what a store says of remote data.

    Where a store does not say whether its data changed, it is a text that never comes again: rather read twice than serve
    what is out of date.

    Raises:
        InputError: if a local source does not exist, or the form of the address is wrong.
    """
    if source.startswith(repository.PREFIX):
        return _tracked(source)
    if "://" not in source:
        path = Path(source).expanduser()
        if not path.exists():
            raise InputError(f"{path}: no such file or folder. Correct ingest.source.")
        return digest(path)
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(source)
        found = system.find(root, detail=True) if system.isdir(root) else {root: system.info(root)}
    except Exception as error:
        # Stores have exceptions of their own. `ingest`, which comes next, says what is wrong.
        print(f"configure: {source}: {type(error).__name__}: {error}")
        return uuid.uuid4().hex
    marks = {name: [str(info[mark]) for mark in _MARKS if info.get(mark)] for name, info in found.items()}
    if not found or not all(marks.values()):
        return uuid.uuid4().hex
    return hashlib.sha256(repr(sorted(marks.items())).encode()).hexdigest()


def _tracked(source: str) -> str:
    """The digest that DVC keeps; the commit where git itself has the content. A branch moves, so its name does not do."""
    address = repository.parse(source)
    try:
        system = repository.files(address)
        return repository.tracked_digest(system.info(address.path)) or f"{system.repo.get_rev()} {address.path}"
    except Exception as error:
        raise InputError(
            f"{source}: cannot be read: {repository.explain(error)}. Check the address, the revision and the credentials."
        ) from error
