"""Command line of the task that puts the shards of `embed` together: the bytes of embedding all at once."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from components import kubeflow
from components.contracts import EMBEDDINGS, RESPONSES, InputError, atomic
from components.redaction import quietly, redacted


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the task from a command line; returns the exit status, as that of a step."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    quietly()
    try:
        return _call(parser().parse_args(kubeflow.expand(sys.argv[1:] if argv is None else argv)))
    except InputError as error:
        print(redacted(f"gather: {error}"), file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m components.embed.gather", description="Puts the shards of embeddings together.", allow_abbrev=False
    )
    parser.add_argument("--responses", type=Path, required=True, metavar="PATH", help="input: what was embedded")
    parser.add_argument(
        "--part", action="append", required=True, metavar="N=PATH", help="input: what a shard of embed wrote; any order"
    )
    parser.add_argument("--embeddings", type=Path, required=True, metavar="PATH", help="output: as embed writes it")
    parser.add_argument("--executor-input", metavar="JSON", help="given by Kubeflow: where to tell it digests")
    return parser


def _call(arguments: argparse.Namespace) -> int:
    from components import lineage

    parts = [Path(part.partition("=")[2]) for part in arguments.part]
    if len(parts) == 1:
        # Embedded at once: the embeddings are there already, and how they were made is recorded.
        with atomic(arguments.embeddings) as partial:
            shutil.copyfile(parts[0], partial)
        digests = {"embeddings": lineage.digest(arguments.embeddings)}
    else:
        read = {"responses": arguments.responses} | {f"embeddings-{number}": part for number, part in enumerate(parts)}
        with lineage.step_run("gather", {}, read) as run:
            gather(arguments.responses, parts, arguments.embeddings)
            digests = run.finish({"embeddings": arguments.embeddings}, {"shards": len(parts)})
    if arguments.executor_input:
        kubeflow.report(arguments.executor_input, {}, digests)
    return 0


def gather(responses: Path, parts: Sequence[Path], embeddings: Path) -> None:
    """Writes the rows of all parts in the order of `responses`, in bounded memory: each part is in that order itself.

    Raises:
        InputError: if the parts do not hold each response once, or are of different embedders.
    """
    metadata = [EMBEDDINGS.metadata(part) for part in parts]
    if differing := [part for part, found in zip(parts, metadata, strict=True) if found != metadata[0]]:
        raise InputError(f"{differing[0]}: made by other embedders than {parts[0]}. Run all shards again.")
    owner: dict[str, int] = {}
    for number, part in enumerate(parts):
        for batch in EMBEDDINGS.batches(part, ["response_id"]):
            owner |= dict.fromkeys(batch.column(0).to_pylist(), number)
    wanted, found = RESPONSES.count(responses), sum(EMBEDDINGS.count(part) for part in parts)
    if not len(owner) == found == wanted:
        raise InputError(f"{responses}: {wanted} responses; {found} in the shards, {len(owner)} of them distinct.")
    readers = [_Rows(part) for part in parts]
    widths = {column.name: readers[0].width(column.name) for column in EMBEDDINGS.columns if column.vector}
    with EMBEDDINGS.writer(embeddings, metadata=metadata[0], **widths) as writer:
        for batch in RESPONSES.batches(responses, ["response_id"]):
            ids = batch.column(0).to_pylist()
            if unknown := [name for name in ids if name not in owner]:
                raise InputError(f"{responses}: response {unknown[0]} is in no shard. Run all shards on these responses.")
            owners = np.array([owner[name] for name in ids])
            taken = [reader.take(int((owners == number).sum())) for number, reader in enumerate(readers)]
            # Where each response of the batch lies among what was taken, part after part.
            order = np.empty(len(ids), np.int64)
            order[np.argsort(owners, kind="stable")] = np.arange(len(ids))
            rows = pa.concat_tables(taken).take(pa.array(order))
            if rows.column("response_id").to_pylist() != ids:
                raise InputError(f"{responses}: the shards are in another order. Run all shards on these responses.")
            writer.write(rows)


class _Rows:
    """The rows of a table, so many at a time."""

    def __init__(self, path: Path) -> None:
        self._batches: Iterator[pa.RecordBatch] = EMBEDDINGS.batches(path)
        first = next(self._batches, None)
        self._left = EMBEDDINGS.read(path) if first is None else pa.Table.from_batches([first])

    def width(self, column: str) -> int:
        return int(self._left.schema.field(column).type.list_size)

    def take(self, count: int) -> pa.Table:
        while self._left.num_rows < count:
            self._left = pa.concat_tables([self._left, pa.Table.from_batches([next(self._batches)])])
        taken, self._left = self._left.slice(0, count), self._left.slice(count)
        return taken


if __name__ == "__main__":
    sys.exit(main())
