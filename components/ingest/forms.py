"""Which files a source consists of, and what form each has."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from components.contracts import InputError

log = logging.getLogger("polyphony")
Kind = Literal["jsonl", "csv", "parquet"]
_KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_HEAD = 1 << 16
_GZIP = b"\x1f\x8b"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\xff\xfe": "text in UTF-16 or UTF-32",
    b"\xfe\xff": "text in UTF-16",
    b"\0\0\xfe\xff": "text in UTF-32",
}


@dataclass(frozen=True)
class Form:
    kind: Kind
    gzipped: bool


def in_folder(path: PurePath) -> bool:
    """Whether a file of a folder belongs to the source: one of the known kinds, not hidden."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return name.suffix.lower() in _KINDS and not any(part.startswith(".") for part in path.parts)


def source_files(source: Path) -> list[tuple[str, Path]]:
    """The files of a source, sorted, each with the name by which rejects call it. Others in its folder are named in the log.

    Raises:
        InputError: if the folder has no file of a known kind.
    """
    if not source.is_dir():
        return [(source.name, source)]
    inside = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    files = [(path.as_posix(), source / path) for path in inside if in_folder(path)]
    if not files:
        raise InputError(f"{source}: no .jsonl, .csv or .parquet file in it (also .gz), only {[str(p) for p in inside[:10]]}.")
    if others := [path.as_posix() for path in inside if not in_folder(path)]:
        log.info("%s: %d other file(s) not read: %s", source, len(others), ", ".join(others[:10]))
    return files


def form(path: Path) -> Form:
    """The form of a file: by its name, and by its first bytes where the name does not tell.

    Raises:
        InputError: if the first bytes show that it is none of the known forms.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    gzipped = head.startswith(_GZIP) or path.suffix.lower() == ".gz"
    if gzipped and head:
        try:
            head = zlib.decompressobj(31).decompress(head, _HEAD)
        except zlib.error as error:
            raise InputError(f"{path}: not a gzip file, or a damaged one ({error}). Fetch it again.") from None
    kind = _KINDS.get(name.suffix.lower())
    if kind == "parquet" or (kind is None and head.startswith(b"PAR1")):
        return Form("parquet", gzipped)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise InputError(f"{path}: {what}. Expected JSONL, CSV or Parquet, plain or gzip; text in UTF-8.")
    if head.count(0) * 20 > len(head):
        raise InputError(
            f"{path}: binary data, or text in UTF-16. Expected JSONL, CSV or Parquet, plain or gzip; text in UTF-8."
        )
    if kind is None:
        kind = "jsonl" if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") else "csv"
    return Form(kind, gzipped)
