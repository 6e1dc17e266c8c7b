"""Log-probabilities of every pair under the SFT model, which no weight changes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from tqdm import tqdm

from components.contracts import PAIRS, REFERENCE, work_folder
from components.lineage import digest, when_recorded
from components.models.language import context_length, fits, identity, load_model, load_tokenizer, token_ids
from components.models.packed import Tokens, completion_logps, pack, prepare
from components.models.params import Params as Models

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("polyphony")
# Pairs after which finished work is safe from a kill, and tokens that go through the model together.
_PART, _BATCH_TOKENS = 256, 8192


def run(*, models: Models, pairs: Path, sft: Path, reference: Path) -> dict[str, Any]:
    """Writes `reference`, in the order of `pairs`; every distinct completion of a part is computed once.

    Nothing is cut: a pair that the model cannot read as a whole is left out, and counted.

    Finished parts are kept in the work folder until all are done and recorded, so that a killed run goes on where it was and
    ends with the same bytes.

    Returns:
        Counts of pairs, of pairs left out and of tokens; the mean log-probability of a token, in nats.
    """
    tokenizer = load_tokenizer(models)
    model = load_model(models, sft)
    prepare(model)
    model.eval()
    # Training compares this with what it is about to do.
    made_by = {"sft": digest(sft), **identity(models, tokenizer)}
    key = f"{digest(pairs)} {sorted(made_by.items())}"
    work = work_folder("reference") / hashlib.sha256(key.encode()).hexdigest()[:16]
    limit = context_length(models)
    parts = []
    columns = ["prompt", "chosen_id", "rejected_id", "chosen", "rejected"]
    total = PAIRS.count(pairs)
    with tqdm(total=total, desc="reference", unit="pair") as bar:
        for number, batch in enumerate(PAIRS.batches(pairs, columns, _PART)):
            part = work / f"{number}.parquet"
            parts.append(part)
            if not part.exists():
                REFERENCE.write(part, _rows(model, tokenizer, limit, batch, bar))
            bar.update(min(_PART * (number + 1), total) - bar.n)
    totals = {"logp": 0.0, "tokens": 0}
    with REFERENCE.writer(reference, metadata=made_by) as writer:
        for part in parts:
            rows = REFERENCE.read(part)
            writer.write(rows)
            totals["tokens"] += sum(sum(rows.column(f"{side}_tokens").to_pylist()) for side in ("chosen", "rejected"))
            totals["logp"] += sum(sum(rows.column(f"{side}_logp").to_pylist()) for side in ("chosen", "rejected"))
    when_recorded(lambda: shutil.rmtree(work, ignore_errors=True))
    count = REFERENCE.count(reference)
    if rejected := total - count:
        log.warning("%s: %d of %d pairs left out, longer than %d tokens or empty", pairs, rejected, total, limit)
    return {
        "pairs": count,
        "rejected": rejected,
        "completion_tokens": totals["tokens"],
        "mean_token_logp": totals["logp"] / max(totals["tokens"], 1),
    }


def _rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, limit: int, batch: pa.RecordBatch, bar: tqdm[Any]
) -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = []
    texts: dict[str, tuple[list[int], list[int]]] = {}
    for row in batch.to_pylist():
        both = {row[f"{side}_id"]: token_ids(tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")}
        if all(fits(limit, *text) for text in both.values()):
            pairs.append(row)
            texts |= both
    logps: dict[str, float] = {}
    # Longest first: what does not fit shows at once, and the time left is an upper bound.
    order = sorted(texts, key=lambda name: (-len(texts[name][0]) - len(texts[name][1]), name))
    done = bar.n
    for names in _batches(order, texts):
        logps |= zip(names, _logps(model, [texts[name] for name in names]), strict=True)
        bar.update(done + int(len(pairs) * len(logps) / len(texts)) - bar.n)
    return [
        {
            "chosen_id": row["chosen_id"],
            "rejected_id": row["rejected_id"],
            **{f"{side}_logp": logps[row[f"{side}_id"]] for side in ("chosen", "rejected")},
            **{f"{side}_tokens": len(texts[row[f"{side}_id"]][1]) for side in ("chosen", "rejected")},
        }
        for row in pairs
    ]


def _batches(order: Sequence[str], texts: dict[str, tuple[list[int], list[int]]]) -> Iterator[list[str]]:
    names: list[str] = []
    tokens = 0
    for name in order:
        length = sum(map(len, texts[name]))
        if names and tokens + length > _BATCH_TOKENS:
            yield names
            names, tokens = [], 0
        names.append(name)
        tokens += length
    if names:
        yield names


def _logps(model: PreTrainedModel, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
    batch = {
        key: value.to(model.device) if isinstance(value, torch.Tensor) else value for key, value in pack(sequences).items()
    }
    # As in training, so that a policy that has not moved yet has rewards of 0. Full precision stays as it is.
    reduced = torch.autocast(model.device.type, torch.bfloat16) if model.dtype == torch.bfloat16 else contextlib.nullcontext()
    with torch.inference_mode(), reduced:
        values: list[float] = completion_logps(model, batch).tolist()
    return values
