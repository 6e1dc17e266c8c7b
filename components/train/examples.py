"""Training examples: token ids from the tables, tokenised once, each row one example."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from tqdm import tqdm

from components.contracts import DEVIATIONS, PAIRS, REFERENCE, RESPONSES, InputError
from components.models.language import token_ids
from components.models.packed import pack

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

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


def stories(responses: Path, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The responses of the training prompts: prompt_ids, completion_ids, id (the response's)."""

    def rows() -> Iterator[dict[str, Any]]:
        for row in _training_rows(RESPONSES, responses, ["prompt", "response", "response_id", "split"]):
            prompt, completion = token_ids(tokenizer, row["prompt"], row["response"])
            yield {"prompt_ids": prompt, "completion_ids": completion, "id": row["response_id"]}

    return _dataset(rows(), _STORIES, f"{responses}: no training response.")


def weighted_pairs(pairs: Path, reference: Path | None, deviations: Path | None, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The training pairs with their reference log-probabilities (NaN without `reference`) and the winner's weight (1 without
    `deviations`).

    The id of a pair is those of its winner and its loser, with a slash between.

    Raises:
        InputError: if a pair has no weight, or the reference is of other pairs.
    """
    weights: dict[str, float] = {}
    if deviations is not None:
        for batch in DEVIATIONS.batches(deviations, ["response_id", "weight"]):
            weights |= zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def rows() -> Iterator[dict[str, Any]]:
        columns = ["prompt", "chosen_id", "rejected_id", "chosen", "rejected", "split"]
        beside = _reference_rows(pairs, reference) if reference is not None else None
        for row in _training_rows(PAIRS, pairs, columns, beside):
            prompt, chosen = token_ids(tokenizer, row["prompt"], row["chosen"])
            if deviations is not None and row["chosen_id"] not in weights:
                raise InputError(f"{deviations}: no weight for {row['chosen_id']}, a winner in {pairs}. Run weight again.")
            yield {
                "prompt_ids": prompt,
                "chosen_ids": chosen,
                "rejected_ids": token_ids(tokenizer, row["prompt"], row["rejected"])[1],
                "ref_chosen_logps": row.get("chosen_logp", math.nan),
                "ref_rejected_logps": row.get("rejected_logp", math.nan),
                "weight": weights.get(row["chosen_id"], 1.0),
                "id": f"{row['chosen_id']}/{row['rejected_id']}",
            }

    return _dataset(rows(), _PAIRS, f"{pairs}: no training pair.")


def _reference_rows(pairs: Path, reference: Path) -> Iterator[dict[str, Any]]:
    if (found := REFERENCE.count(reference)) != (expected := PAIRS.count(pairs)):
        raise InputError(f"{reference}: {found} rows for {expected} pairs. Run reference on these pairs.")
    for batch in REFERENCE.batches(reference):
        yield from batch.to_pylist()


def _training_rows(
    table: Any, path: Path, columns: Sequence[str], beside: Iterator[dict[str, Any]] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of the training split, joined with the row of `beside` at the same place."""
    with tqdm(total=table.count(path), desc=f"tokenise {path.name}", unit="row", mininterval=1) as bar:
        for batch in table.batches(path, columns):
            for row in batch.to_pylist():
                other = next(beside) if beside is not None else {}
                for key in other.keys() & row.keys():
                    if other[key] != row[key]:
                        raise InputError(
                            f"{path}: the reference is of other pairs ({key} {other[key]} for {row[key]}). Run reference."
                        )
                if row["split"] == "train":
                    yield row | other
                bar.update()


def _dataset(rows: Iterator[dict[str, Any]], schema: pa.Schema, nothing: str) -> Dataset:
    """An in-memory dataset, filled in batches so that Python objects of few rows exist at a time."""
    from datasets import Dataset

    batches, waiting = [], []
    for row in rows:
        waiting.append(row)
        if len(waiting) == 1024:
            batches.append(pa.RecordBatch.from_pylist(waiting, schema))
            waiting = []
    if waiting:
        batches.append(pa.RecordBatch.from_pylist(waiting, schema))
    if not batches:
        raise InputError(nothing)
    return Dataset(pa.Table.from_batches(batches, schema))


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
