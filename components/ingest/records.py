"""Reads the files of a source row by row, in memory that does not depend on their size."""

from __future__ import annotations

import ast
import csv
import gzip
import json
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.contracts import InputError
from components.ingest.forms import form
from components.ingest.layouts import EXPECTED, PREFERENCES, Fault, as_json, columns, named

# Bytes; what is left of a longer line is skipped, and the line is malformed.
_LONGEST_LINE = 1 << 25
_ROWS = 64

Record = tuple[int, dict[str, Any] | Fault]
# Told how many bytes of the file have been read so far.
Advance = Callable[[int], None]


def records(path: Path, work: Path, advance: Advance) -> Iterator[Record]:
    """The rows of a file, each with its line (where it begins; Parquet: its row), from 1, or the fault that it has.

    Args:
        work: folder for what must be unpacked.

    Raises:
        InputError: if the file is not of a known form, damaged, or a table with columns of neither layout.
    """
    kind, gzipped = (found := form(path)).kind, found.gzipped
    if kind == "parquet":
        yield from _parquet(_unpacked(path, work) if gzipped else path, path, advance)
    else:
        read = _jsonl if kind == "jsonl" else _csv
        yield from read(_lines(path, gzipped, advance), path)


def _lines(path: Path, gzipped: bool, advance: Advance) -> Iterator[tuple[int, bytes]]:
    number = 0
    with path.open("rb") as raw:
        stream: BufferedIOBase = gzip.GzipFile(fileobj=raw) if gzipped else raw
        try:
            while line := stream.readline(_LONGEST_LINE):
                number += 1
                rest = line
                while len(rest) == _LONGEST_LINE and not rest.endswith(b"\n"):
                    rest = stream.readline(_LONGEST_LINE)
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                advance(raw.tell())
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(path, f"read up to line {number}, {stream.tell()} bytes unpacked", error) from None


def _damaged(path: Path, how_far: str, error: Exception) -> InputError:
    return InputError(f"{path}: the gzip file is damaged or cut short: {how_far}, then: {error}. Fetch it again.")


def _unpacked(path: Path, work: Path) -> Path:
    """Parquet is read from its end, gzip from its start."""
    target = work / "unpacked.parquet"
    with gzip.open(path) as packed, target.open("wb") as file:
        try:
            shutil.copyfileobj(packed, file, 1 << 20)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(path, f"{file.tell()} bytes unpacked", error) from None
    return target


def _jsonl(lines: Iterator[tuple[int, bytes]], _: Path) -> Iterator[Record]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError:
            yield number, Fault("not_utf8", as_json(line.decode(errors="replace").rstrip("\r\n")))
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        yield number, row if isinstance(row, dict) else Fault("malformed", as_json(text.rstrip("\r\n")))


def _csv(lines: Iterator[tuple[int, bytes]], path: Path) -> Iterator[Record]:
    """Where a record cannot be parsed, only its first line is at fault; reading goes on with the next line.

    A quote that is never closed thus costs its own line, not all that follow it.
    """
    csv.field_size_limit(_LONGEST_LINE)
    again: deque[tuple[int, str]] = deque()
    taken: list[tuple[int, str]] = []

    def feed() -> Iterator[str]:
        while True:
            if again:
                taken.append(again.popleft())
            elif (line := next(lines, None)) is not None:
                taken.append((line[0], line[1].decode(errors="surrogateescape")))
            else:
                return
            yield taken[-1][1]

    header: list[str] | None = None
    reader = csv.reader(feed(), strict=True)
    while True:
        taken.clear()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise InputError(
                    f"{path}: its first line, the names of the columns, is not CSV ({error}); {EXPECTED}."
                ) from None
            number, line = taken[0]
            again.extendleft(reversed(taken[1:]))
            reader = csv.reader(feed(), strict=True)
            yield number, _unreadable(line)
            continue
        number, raw = taken[0][0], "".join(line for _, line in taken)
        if not values:
            continue
        if header is None:
            header = [_replaced(name.strip()) for name in values]
            wanted = _wanted(header, path)
        elif len(values) != len(header) or _replaced(raw) != raw:
            yield number, _unreadable(raw)
        else:
            named = dict(zip(header, values, strict=True))
            yield number, {name: _cell(name, named[name]) for name in wanted}


def _unreadable(raw: str) -> Fault:
    replaced = _replaced(raw)
    return Fault("malformed" if replaced == raw else "not_utf8", as_json(replaced.rstrip("\r\n")))


def _replaced(text: str) -> str:
    """The text with bytes that are not UTF-8 replaced."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _cell(name: str, text: str) -> Any:
    """CSV has nothing but texts: a score is read as a number, lists as JSON or as Python writes them."""
    if name == "score":
        return _parsed(float, text.strip())
    return _parsed(_list, text) if name in PREFERENCES[2:] else text


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    """The value, or the text itself, for the rules to reject."""
    try:
        return parse(text) if text else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _list(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)


def _wanted(found: list[str], path: Path) -> tuple[str, ...]:
    wanted = columns(found)
    if wanted is None:
        raise InputError(f"{path}: wrong columns: found {named(found)}; {EXPECTED}.")
    return wanted


def _parquet(file: Path, path: Path, advance: Advance) -> Iterator[Record]:
    """Args: `file` to read, `path` by which messages call it."""
    size = path.stat().st_size
    number = 0
    try:
        # Buffered: otherwise a whole row group would be held.
        with pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as parquet:
            wanted = _wanted(parquet.schema_arrow.names, path)
            for batch in parquet.iter_batches(batch_size=_ROWS, columns=list(wanted), use_threads=False):
                for row in _rows(batch):
                    number += 1
                    yield number, row
                advance(size * number // parquet.metadata.num_rows)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise InputError(f"{path}: not a Parquet file, or a damaged one: read up to row {number}, then: {error}.") from None


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Fault]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield Fault("not_utf8", as_json(_with_replacements(batch.slice(index, 1))))


def _with_replacements(row: pa.RecordBatch) -> dict[str, Any]:
    """One row with the bytes that are not UTF-8 replaced."""

    def readable(column: pa.Array) -> Any:
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            return [readable(column.flatten().slice(index, 1)) for index in range(len(column.flatten()))]
        value = (column.cast(pa.binary()) if pa.types.is_string(column.type) else column)[0].as_py()
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    return {name: readable(row.column(name)) for name in row.schema.names}
