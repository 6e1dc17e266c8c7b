"""Deviation weights and preference pairs of all prompts, in one stream over responses and embeddings."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from components.contracts import DEVIATIONS, EMBEDDINGS, PAIRS, RESPONSES, InputError, atomic
from components.weight.deviation import TOLERANCE, Floats, Ints, effective_share, mean_distances, sizes, weights
from components.weight.pairs import Pair, choose, generator
from components.weight.params import Params
from components.weight.report import Collected, Example, write

log = logging.getLogger("polyphony")
# Prompts shown with their most and least deviant response.
_EXAMPLES = 5


def run(*, weight: Params, responses: Path, embeddings: Path, deviations: Path, pairs: Path, report: Path) -> dict[str, Any]:
    """Writes `deviations`, `pairs` and the report; returns counts and what the weights amount to."""
    collected = Collected()
    counts: Counter[str] = Counter()
    gaps: list[float] = []
    with (
        DEVIATIONS.writer(deviations) as deviation_rows,
        PAIRS.writer(pairs) as pair_rows,
        tqdm(total=RESPONSES.count(responses), desc="weight", unit="response", mininterval=1) as bar,
    ):
        for chunk in _whole_prompts(responses, embeddings):
            bar.update(chunk.num_rows)
            chosen = _sample(chunk, weight)
            result = _Chunk(chosen, weight)
            deviation_rows.write(result.deviations())
            pair_rows.write(result.pairs())
            result.collect(collected, counts, gaps)
    if counts["pairs_train"] == 0:
        raise InputError(
            f"{responses}: no preference pair on the train side: no prompt has two responses of different scores"
            + (" among those kept by weight.high_quality_winners." if weight.high_quality_winners else ".")
        )
    all_weights, winners = np.concatenate(collected.weights), np.concatenate(collected.winner_weights)
    metrics: dict[str, Any] = {
        "prompts": counts["prompts"],
        "responses": len(all_weights),
        "prompts_without_weights": {
            reason: counts[reason] for reason in ("single", "two_responses", "equal_distances", "products_zero")
        },
        "pairs": {"train": counts["pairs_train"], "test": counts["pairs_test"]},
        "mean_score_gap": float(np.mean(gaps)),
        "mean_winner_weight": float(winners.mean()),
        "zero_weight_share": {
            "responses": float((all_weights <= TOLERANCE).mean()),
            "pairs": float((winners <= TOLERANCE).mean()),
        },
        "effective_sample_share": {"responses": effective_share(all_weights), "pairs": effective_share(winners)},
    }
    with atomic(report) as folder:
        write(folder, collected, metrics, weight.seed)
    log.info("%d pairs; %.0f %% of them without weight", len(winners), 100 * metrics["zero_weight_share"]["pairs"])
    return metrics


def _whole_prompts(responses: Path, embeddings: Path) -> Iterator[pa.Table]:
    """Responses joined with their embeddings, in chunks that never cut a prompt in two."""
    if (found := EMBEDDINGS.count(embeddings)) != (expected := RESPONSES.count(responses)):
        raise InputError(f"{embeddings}: {found} embeddings for {expected} responses. Run embed on these responses.")
    rest: pa.Table | None = None
    for left, right in zip(RESPONSES.batches(responses), EMBEDDINGS.batches(embeddings), strict=True):
        if not left.column("response_id").equals(right.column("response_id")):
            raise InputError(f"{embeddings}: not the embeddings of {responses}: ids differ. Run embed on these responses.")
        joined = pa.Table.from_batches([left])
        for name in ("semantic", "style"):
            joined = joined.append_column(name, right.column(name))
        chunk = pa.concat_tables([rest, joined]) if rest is not None else joined
        prompts = chunk.column("prompt_id").to_pylist()
        whole = next((i + 1 for i in range(len(prompts) - 2, -1, -1) if prompts[i] != prompts[-1]), 0)
        if whole:
            yield chunk.slice(0, whole)
        rest = chunk.slice(whole)
    if rest is not None and rest.num_rows:
        yield rest


def _sample(chunk: pa.Table, params: Params) -> pa.Table:
    """At most `max_responses` responses of each prompt."""
    if not params.max_responses:
        return chunk
    ids = chunk.column("prompt_id").to_pylist()
    starts = _starts(ids)
    keep: list[int] = []
    for start, size in zip(starts, sizes(starts, len(ids)), strict=True):
        rows = np.arange(start, start + size)
        if size > params.max_responses:
            rng = generator(params.seed, ids[start], "responses")
            rows = np.sort(rng.choice(rows, params.max_responses, replace=False))
        keep += rows.tolist()
    return chunk.take(keep)


def _starts(prompt_ids: list[str]) -> Ints:
    changes = [i for i, name in enumerate(prompt_ids) if i == 0 or name != prompt_ids[i - 1]]
    return np.array(changes, dtype=np.int64)


def _matrix(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    column = table.column(name).combine_chunks()
    flat: np.ndarray[Any, np.dtype[np.float32]] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


class _Chunk:
    """The weights and pairs of some whole prompts."""

    def __init__(self, table: pa.Table, params: Params) -> None:
        self._params = params
        self._ids: list[str] = table.column("prompt_id").to_pylist()
        self._scores: Floats = table.column("score").to_numpy()
        self._weigh(table)
        self._pairs = self._choose()
        if params.over == "paired":
            inside = sorted({row for pair in self._pairs for row in pair})
            new_row = {row: i for i, row in enumerate(inside)}
            table = table.take(inside)
            self._ids = table.column("prompt_id").to_pylist()
            self._scores = table.column("score").to_numpy()
            self._pairs = [(new_row[winner], new_row[loser]) for winner, loser in self._pairs]
            self._weigh(table)

    def _weigh(self, table: pa.Table) -> None:
        self._table, self._starts = table, _starts(self._ids)
        self._semantic = mean_distances(_matrix(table, "semantic"), self._starts)
        self._style = mean_distances(_matrix(table, "style"), self._starts)
        self._weights = (
            weights(self._semantic, self._style, self._starts, self._params.deviation, self._params.floor)
            if self._ids
            else np.empty(0)
        )

    def _choose(self) -> list[Pair]:
        pairs: list[Pair] = []
        for start, size in zip(self._starts.tolist(), sizes(self._starts, len(self._ids)).tolist(), strict=True):
            rows = slice(start, start + size)
            chosen = choose(self._scores[rows], self._weights[rows], self._params, self._ids[start])
            pairs += [(start + winner, start + loser) for winner, loser in chosen]
        return sorted(pairs)

    def deviations(self) -> pa.Table:
        columns = {name: self._table.column(name) for name in ("response_id", "prompt_id")}
        # The only response of a prompt has no distance: null, not NaN.
        distances = {
            "semantic": pa.array(self._semantic, from_pandas=True),
            "style": pa.array(self._style, from_pandas=True),
            "weight": pa.array(self._weights),
        }
        return pa.table({**columns, **distances})

    def pairs(self) -> pa.Table:
        winners, losers = (pa.array([pair[side] for pair in self._pairs], pa.int64()) for side in (0, 1))
        chosen, rejected = self._table.take(winners), self._table.take(losers)
        return pa.table(
            {
                "prompt_id": chosen.column("prompt_id"),
                "prompt": chosen.column("prompt"),
                "chosen_id": chosen.column("response_id"),
                "rejected_id": rejected.column("response_id"),
                "chosen": chosen.column("response"),
                "rejected": rejected.column("response"),
                "chosen_score": chosen.column("score"),
                "rejected_score": rejected.column("score"),
                "split": chosen.column("split"),
            }
        )

    def collect(self, collected: Collected, counts: Counter[str], gaps: list[float]) -> None:
        """Adds this chunk to what the report and the metrics tell."""
        if not self._ids:
            return
        n = sizes(self._starts, len(self._ids))
        silent = np.minimum.reduceat(self._weights, self._starts) == np.maximum.reduceat(self._weights, self._starts)
        spread = [
            np.maximum.reduceat(d, self._starts) - np.minimum.reduceat(d, self._starts) > TOLERANCE
            for d, kind in ((self._semantic, "semantic"), (self._style, "style"))
            if self._params.deviation in (kind, "both")
        ]
        speaks = np.logical_or.reduce(spread)
        counts["prompts"] += len(n)
        counts["single"] += int((n == 1).sum())
        counts["two_responses"] += int((n == 2).sum())
        counts["equal_distances"] += int((silent & (n > 2) & ~speaks).sum())
        counts["products_zero"] += int((silent & (n > 2) & speaks).sum())
        splits = self._table.column("split").to_pylist()
        counts.update(f"pairs_{splits[winner]}" for winner, _ in self._pairs)
        gaps += [float(self._scores[winner] - self._scores[loser]) for winner, loser in self._pairs]
        collected.semantic.append(self._semantic)
        collected.style.append(self._style)
        collected.weights.append(self._weights)
        collected.winner_weights.append(self._weights[[winner for winner, _ in self._pairs]])
        for start, size, quiet in zip(self._starts.tolist(), n.tolist(), silent.tolist(), strict=True):
            if quiet or len(collected.examples) >= _EXAMPLES:
                continue
            own = self._weights[start : start + size]
            most, least = start + int(own.argmax()), start + int(own.argmin())
            text = self._table.column("response")
            collected.examples.append(
                Example(
                    self._table.column("prompt")[start].as_py(),
                    text[most].as_py(),
                    float(self._weights[most]),
                    text[least].as_py(),
                    float(self._weights[least]),
                )
            )
