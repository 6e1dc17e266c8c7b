"""Training examples: token ids from the tables, tokenised once, each row one example."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
from tqdm import tqdm

from components.contracts import DEVIATIONS, PAIRS, REFERENCE, RESPONSES, InputError, atomic
from components.models.language import fits, token_ids
from components.models.packed import pack

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("polyphony")
_IDS = pa.list_(pa.int32())
_STORIES = pa.schema([("prompt_ids", _IDS), ("completion_ids", _IDS), ("id", pa.string())])
_PAIRS = pa.schema(
    [
        ("prompt_ids", _IDS),
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("ref_chosen_logps", pa.float64()),
        ("ref_rejected_logps", pa.float64()),
        ("weight", pa.float64()),
        ("id", pa.string()),
    ]
)


class Examples(NamedTuple):
    """A dataset; and the number and the tokens of the training rows that are not in it, as the model cannot read them whole."""

    dataset: Dataset
    rejected: int
    rejected_tokens: int


def stories(responses: Path, tokenizer: PreTrainedTokenizerBase, limit: int) -> Examples:
    """The responses of the training prompts: prompt_ids, completion_ids, id (the response's).

    Args:
        limit: tokens of prompt and completion at most.
    """
    reader = _Reader(responses, limit)

    def rows() -> Iterator[dict[str, Any]]:
        for row in _training_rows(RESPONSES, responses, ["prompt", "response", "response_id", "split"]):
            prompt, completion = token_ids(tokenizer, row["prompt"], row["response"])
            if reader.takes(prompt, completion):
                yield {"prompt_ids": prompt, "completion_ids": completion, "id": row["response_id"]}

    return reader.examples(rows(), _STORIES)


def weighted_pairs(
    pairs: Path, reference: Path | None, deviations: Path | None, tokenizer: PreTrainedTokenizerBase, limit: int
) -> Examples:
    """The training pairs with their reference log-probabilities (NaN without `reference`) and the winner's weight (1 without
    `deviations`).

    The id of a pair is those of its winner and its loser, with a slash between.

    Args:
        limit: tokens of prompt and completion at most.

    Raises:
        InputError: if a pair has no weight, or the reference is of other pairs.
    """
    weights: dict[str, float] = {}
    if deviations is not None:
        for batch in DEVIATIONS.batches(deviations, ["response_id", "weight"]):
            weights |= zip(*(column.to_pylist() for column in batch.columns), strict=True)
    reader = _Reader(pairs, limit)

    def rows() -> Iterator[dict[str, Any]]:
        columns = ["prompt", "chosen_id", "rejected_id", "chosen", "rejected", "split"]
        for row in _training_rows(PAIRS, pairs, columns, reference):
            prompt, chosen = token_ids(tokenizer, row["prompt"], row["chosen"])
            _, rejected = token_ids(tokenizer, row["prompt"], row["rejected"])
            if not reader.takes(prompt, chosen, rejected):
                continue
            if reference is not None and "chosen_logp" not in row:
                raise InputError(f"{reference}: nothing for {_name(row)}: it is of other pairs. Run reference on {pairs}.")
            if deviations is not None and row["chosen_id"] not in weights:
                raise InputError(f"{deviations}: no weight for {row['chosen_id']}, a winner in {pairs}. Run weight again.")
            yield {
                "prompt_ids": prompt,
                "chosen_ids": chosen,
                "rejected_ids": rejected,
                "ref_chosen_logps": row.get("chosen_logp", math.nan),
                "ref_rejected_logps": row.get("rejected_logp", math.nan),
                "weight": weights.get(row["chosen_id"], 1.0),
                "id": _name(row),
            }

    return reader.examples(rows(), _PAIRS)


def read_once(read: Callable[[], Examples], file: Path) -> Examples:
    """What `read` returns, called by the first process of a training alone; the others find it in `file`, which they share."""
    if os.environ["RANK"] == "0":
        examples = read()
        counts = {"rejected": str(examples.rejected), "rejected_tokens": str(examples.rejected_tokens)}
        table = examples.dataset.data.table.replace_schema_metadata(counts)
        with atomic(file) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    # Not a barrier, which gives up after some minutes. Where the first process fails, the launcher ends all.
    while not file.exists():
        time.sleep(0.1)
    from datasets import Dataset

    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    found = table.schema.metadata
    return Examples(Dataset(table.replace_schema_metadata()), int(found[b"rejected"]), int(found[b"rejected_tokens"]))


def require_made_by(reference: Path, wanted: Mapping[str, str]) -> None:
    """Refuses a reference that another model, tokenizer, template or length would make different.

    Args:
        wanted: what `reference` wrote into the table if it is the right one.

    Raises:
        InputError: saying what differs.
    """
    found = REFERENCE.metadata(reference)
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    differs = [f"{name} {found.get(name, 'unknown')} there, {wanted[name]} here" for name in differing]
    if differs:
        raise InputError(f"{reference}: made for another model than is trained: {'; '.join(differs)}. Run reference again.")


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['chosen_id']}/{row['rejected_id']}"


def _training_rows(table: Any, path: Path, columns: Sequence[str], reference: Path | None = None) -> Iterator[dict[str, Any]]:
    """Rows of the training split, with what `reference` says of them, which has the same order and may have left out some."""
    others = (row for batch in REFERENCE.batches(reference) for row in batch.to_pylist()) if reference is not None else iter(())
    other = next(others, None)
    with tqdm(total=table.count(path), desc=f"tokenise {path.name}", unit="row", mininterval=1) as bar:
        for batch in table.batches(path, columns):
            for row in batch.to_pylist():
                if other is not None and _name(other) == _name(row):
                    row |= other
                    other = next(others, None)
                if row["split"] == "train":
                    yield row
                bar.update()
    if other is not None:
        raise InputError(f"{reference}: {_name(other)} is no pair of {path}: it is of other pairs. Run reference on {path}.")


class _Reader:
    """Tells the rows of one table that the model can read from those that it cannot, and counts these."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit
        self._rejected = self._tokens = 0

    def takes(self, prompt: Sequence[int], *completions: Sequence[int]) -> bool:
        taken = fits(self._limit, prompt, *completions)
        if not taken:
            self._rejected += 1
            self._tokens += sum(len(prompt) + len(completion) for completion in completions)
        return taken

    def examples(self, rows: Iterator[dict[str, Any]], schema: pa.Schema) -> Examples:
        dataset = _dataset(rows, schema)
        left_out = f"{self._rejected} left out, longer than {self._limit} tokens or empty"
        if dataset is None:
            raise InputError(f"{self._path}: nothing to train on ({left_out}).")
        if self._rejected:
            log.warning("%s: %s; %d are trained on", self._path, left_out, len(dataset))
        return Examples(dataset, self._rejected, self._tokens)


def _dataset(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> Dataset | None:
    """An in-memory dataset, filled in batches so that Python objects of few rows exist at a time; None without rows."""
    from datasets import Dataset

    batches, waiting = [], []
    for row in rows:
        waiting.append(row)
        if len(waiting) == 1024:
            batches.append(pa.RecordBatch.from_pylist(waiting, schema))
            waiting = []
    if waiting:
        batches.append(pa.RecordBatch.from_pylist(waiting, schema))
    return Dataset(pa.Table.from_batches(batches, schema)) if batches else None


def collate_stories(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of `stories`: see `_collate`; and the ids of those that have one."""
    return _collate([(example["prompt_ids"], example["completion_ids"]) for example in examples]) | {"ids": _ids(examples)}


def collate_pairs(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of `weighted_pairs`: all winners, then all losers (see `_collate`); ids; and (pairs,) float32 of each number."""
    import torch

    sides = ("chosen_ids", "rejected_ids")
    numbers = ("ref_chosen_logps", "ref_rejected_logps", "weight")
    packed = _collate([(example["prompt_ids"], example[side]) for side in sides for example in examples])
    values = {name: torch.tensor([example[name] for example in examples], dtype=torch.float32) for name in numbers}
    return packed | values | {"ids": _ids(examples)}


def _ids(examples: list[dict[str, Any]]) -> list[str]:
    return [example["id"] for example in examples if "id" in example]


def _collate(sequences: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """
    Returns:
        packed: see `pack`. Where there are no sequences, it holds one all the same: a process that has nothing to do takes
            part in the step.
        sequences: how many are to be looked at.
        completion_tokens: (sequences,) float32, number of completion tokens of each.
        size: tokens, completion tokens, sum of squared lengths.
    """
    import torch

    lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
    completions = [len(completion) for _, completion in sequences]
    return {
        "packed": pack(sequences or [([0], [0])]),
        "sequences": len(sequences),
        "completion_tokens": torch.tensor(completions, dtype=torch.float32),
        "size": [sum(lengths), sum(completions), sum(length**2 for length in lengths)],
    }
