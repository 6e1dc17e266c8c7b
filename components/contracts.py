"""The tables that steps exchange, declared once, and the way every artifact is written.

Writers write through `Table.writer`, readers check through `Table.read` and `Table.batches`, and the Great Expectations
suites are built on the same declarations.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Rows of one Parquet row group: fixed, so that the same rows give the same bytes however they were batched.
ROW_GROUP = 4096


class InputError(Exception):
    """The input is at fault. The message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Column:
    """One column: its type and what its values mean. `vector` columns are fixed_size_list<float32>, unit length.

    `values` are all that there may be, where they can be listed.
    """

    name: str
    type: pa.DataType
    meaning: str
    nullable: bool = False
    vector: bool = False
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A declared Parquet table."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    def column_names(self) -> list[str]:
        return [column.name for column in self.columns]

    def schema(self, **widths: int) -> pa.Schema:
        """The Arrow schema; `widths` gives the dimension of each vector column."""
        return pa.schema(
            [
                pa.field(c.name, pa.list_(pa.float32(), widths[c.name]) if c.vector else c.type, nullable=c.nullable)
                for c in self.columns
            ]
        )

    @contextmanager
    def writer(self, path: Path, *, metadata: dict[str, str] | None = None, **widths: int) -> Iterator[TableWriter]:
        """Writes rows in order, in bounded memory; the file appears under its name only when complete.

        `metadata` is kept in the file's schema and read back by `metadata()`.
        """
        schema = self.schema(**widths).with_metadata(metadata) if metadata else self.schema(**widths)
        with atomic(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as parquet:
            writer = TableWriter(self, schema, parquet)
            yield writer
            writer.flush()

    def write(
        self, path: Path, rows: pa.Table | list[dict[str, Any]], *, metadata: dict[str, str] | None = None, **widths: int
    ) -> None:
        """Writes a whole table at once."""
        with self.writer(path, metadata=metadata, **widths) as writer:
            writer.write(rows)

    def read(self, path: Path, columns: Sequence[str] | None = None) -> pa.Table:
        """The table, or the named columns of it, checked against its declaration."""
        with self._open(path) as file:
            return file.read(columns=list(columns) if columns else None)

    def batches(self, path: Path, columns: Sequence[str] | None = None, rows: int = ROW_GROUP) -> Iterator[pa.RecordBatch]:
        """The table in batches of at most `rows` rows."""
        with self._open(path) as file:
            yield from file.iter_batches(batch_size=rows, columns=list(columns) if columns else None)

    def count(self, path: Path) -> int:
        """The number of rows, from the file's footer."""
        with self._open(path) as file:
            return int(file.metadata.num_rows)

    def metadata(self, path: Path) -> dict[str, str]:
        """What the writer was given as `metadata`."""
        with self._open(path) as file:
            return {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}

    def _open(self, path: Path) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(path)
        except FileNotFoundError:
            raise InputError(f"{path}: no such {self.name} table. Run the step that writes it.") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: not a Parquet file ({error}). Run the step that writes it again.") from None
        found = file.schema_arrow
        for column in self.columns:
            index = found.get_field_index(column.name)
            actual = found.field(index).type if index >= 0 else "missing"
            if index < 0 or not _matches(column, found.field(index).type):
                wanted = "fixed_size_list<float>" if column.vector else column.type
                file.close()
                raise InputError(
                    f"{path}: not a {self.name} table: column {column.name!r} is {actual}, expected {wanted}; "
                    f"found columns {found.names}."
                )
        return file


class TableWriter:
    """Collects rows into row groups of `ROW_GROUP`."""

    def __init__(self, table: Table, schema: pa.Schema, parquet: pq.ParquetWriter) -> None:
        self._table, self._schema, self._parquet = table, schema, parquet
        self._pending: list[pa.Table] = []
        self._rows = 0

    def write(self, rows: pa.Table | list[dict[str, Any]]) -> None:
        if isinstance(rows, list):
            rows = pa.Table.from_pylist(rows, schema=self._schema)
        else:
            rows = rows.select(self._schema.names).cast(self._schema)
        for column in self._table.columns:
            if not column.nullable and rows.column(column.name).null_count:
                raise ValueError(f"{self._table.name}.{column.name} must not be null")
        self._pending.append(rows)
        self._rows += rows.num_rows
        if self._rows >= ROW_GROUP:
            self._drain(self._rows - self._rows % ROW_GROUP)

    def flush(self) -> None:
        self._drain(self._rows)

    def _drain(self, count: int) -> None:
        if count == 0:
            return
        whole = pa.concat_tables(self._pending)
        self._parquet.write_table(whole.slice(0, count), row_group_size=ROW_GROUP)
        rest = whole.slice(count)
        self._pending, self._rows = ([rest] if rest.num_rows else []), rest.num_rows


def _matches(column: Column, actual: pa.DataType) -> bool:
    if column.vector:
        return pa.types.is_fixed_size_list(actual) and actual.value_type == pa.float32()
    return bool(actual == column.type)


def work_folder(step: str) -> Path:
    """Where a step keeps finished parts of its work, from which it goes on after a kill: in `$POLYPHONY_WORK`, or in `.work`.

    That must outlive the process: locally no output of DVC, on a cluster a volume.
    """
    return Path(os.environ.get("POLYPHONY_WORK") or ".work") / step


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file or a folder, which takes the name `path` only when all went well.

    The place has one fixed name per target, so what a killed run left behind is removed by the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
    except BaseException:
        _remove(partial)
        raise
    if path.is_dir() or partial.is_dir():
        _remove(path)
    partial.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_passed(validation: Path | None) -> None:
    """Refuses to go on from data whose validation failed; None where there is no validation to look at.

    Raises:
        InputError: if the validation's `results.json` does not say that it passed.
    """
    if validation is None:
        return
    try:
        results = json.loads((validation / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{validation}: not a validation ({error}). Run validate again.") from None
    if not results["passed"]:
        failed = [e["description"] for e in results.get("expectations", ()) if e["severity"] == "critical" and not e["success"]]
        raise InputError(
            f"{validation}: the data did not pass validation: {' '.join(['does not hold:', *failed]) if failed else ''} "
            "See index.html there, and mend the source."
        )


def content_id(*parts: str) -> str:
    """A 16-digit hexadecimal id of texts: the same texts have the same id, wherever and whenever they are read."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


_TEXT, _INT, _REAL = pa.string(), pa.int32(), pa.float64()
SPLITS = ("train", "test")

RESPONSES = Table(
    "responses",
    "Clean responses, sorted by prompt_id, then response_id.",
    (
        Column("prompt_id", _TEXT, "content_id(prompt)"),
        Column("prompt", _TEXT, "what the writers were asked"),
        Column("response_id", _TEXT, "content_id(prompt, response)"),
        Column("response", _TEXT, "the story"),
        Column("score", _REAL, "votes or rating; higher is better; comparable within a prompt"),
        Column("split", _TEXT, "`train` or `test`, the same for all responses of a prompt", values=SPLITS),
    ),
)
REJECTS = Table(
    "rejects",
    "What of the source did not become responses, sorted by file, row, reason.",
    (
        Column("file", _TEXT, "file of the source: its name, or its path within the source where that is a folder"),
        Column("row", pa.int64(), "line in that file (row where it is Parquet), from 1"),
        Column("reason", _TEXT, "name of the rule"),
        Column(
            "content", _TEXT, "what was read, as JSON: prompt, response and score, or the whole row where it has no such form"
        ),
    ),
)
EMBEDDINGS = Table(
    "embeddings",
    "One row per response, in the order of `responses`.",
    (
        Column("response_id", _TEXT, "see responses"),
        Column("semantic", pa.list_(pa.float32()), "what the story is about; unit length", vector=True),
        Column("style", pa.list_(pa.float32()), "how it is written; unit length", vector=True),
    ),
)
DEVIATIONS = Table(
    "deviations",
    "How far each response is from the others of its prompt (METHOD: deviation), in the order of `responses`.",
    (
        Column("response_id", _TEXT, "see responses"),
        Column("prompt_id", _TEXT, "see responses"),
        Column("semantic", _REAL, "mean cosine distance to the prompt's other responses, in [0, 2]", nullable=True),
        Column("style", _REAL, "the same under the style embedder", nullable=True),
        Column("weight", _REAL, "delta: >= 0, mean 1 over the prompt's responses"),
    ),
)
PAIRS = Table(
    "pairs",
    "Preference pairs, without weights: training joins `deviations` on chosen_id.",
    (
        Column("prompt_id", _TEXT, "see responses"),
        Column("prompt", _TEXT, "see responses"),
        Column("chosen_id", _TEXT, "response_id of the winner"),
        Column("rejected_id", _TEXT, "response_id of the loser"),
        Column("chosen", _TEXT, "the winner"),
        Column("rejected", _TEXT, "the loser"),
        Column("chosen_score", _REAL, "see responses"),
        Column("rejected_score", _REAL, "see responses"),
        Column("split", _TEXT, "see responses", values=SPLITS),
    ),
)
REFERENCE = Table(
    "reference",
    "Log-probabilities under the reference (SFT) model, in the order of `pairs`, of those that it can read as a whole.",
    (
        Column("chosen_id", _TEXT, "see pairs"),
        Column("rejected_id", _TEXT, "see pairs"),
        Column("chosen_logp", _REAL, "sum over the winner's completion tokens, nats"),
        Column("rejected_logp", _REAL, "sum over the loser's completion tokens, nats"),
        Column("chosen_tokens", _INT, "number of completion tokens"),
        Column("rejected_tokens", _INT, "number of completion tokens"),
    ),
)
GENERATIONS = Table(
    "generations",
    "Stories written by the systems under evaluation, and the people's own (system `gold`).",
    (
        Column("system", _TEXT, "name of the system"),
        Column("prompt_id", _TEXT, "see responses"),
        Column("prompt", _TEXT, "see responses"),
        Column("sample", _INT, "number of the sample for this prompt, from 0"),
        Column("text", _TEXT, "the story"),
        Column("tokens", _INT, "length in tokens of the language model"),
        Column(
            "finish_reason",
            _TEXT,
            "`stop` (ended by itself), `length` (cut at the limit), `human` (gold); of endpoints also `refusal` (refused or "
            "filtered) and `unparsed` (not found in an answer that should hold several)",
        ),
        Column("reward", _REAL, "score by the reward model, about [-1, 1]"),
        Column("semantic", pa.list_(pa.float32()), "see embeddings; all 0 for an empty story", vector=True),
        Column("style", pa.list_(pa.float32()), "see embeddings; all 0 for an empty story", vector=True),
    ),
)
MEASUREMENTS = Table(
    "measurements",
    "What was measured of each system's stories for each prompt: what means, intervals and paired differences are made of.",
    (
        Column("system", _TEXT, "name of the system"),
        Column("prompt_id", _TEXT, "see responses"),
        Column("metric", _TEXT, "as in metrics.json"),
        Column("value", _REAL, "over the system's stories for the prompt"),
    ),
)
EXAMPLES = Table(
    "examples",
    "All stories for the first prompts of an evaluation, to be read side by side.",
    tuple(column for column in GENERATIONS.columns if not column.vector),
)
TABLES = (RESPONSES, REJECTS, EMBEDDINGS, DEVIATIONS, PAIRS, REFERENCE, GENERATIONS, MEASUREMENTS, EXAMPLES)
