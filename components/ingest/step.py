"""Raw stories in; clean responses, split by prompt, and rejects out."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from components.contracts import REJECTS, RESPONSES, InputError
from components.ingest.cleaning import RULES, Clean, Cleaner
from components.ingest.fetch import WORK
from components.ingest.forms import source_files
from components.ingest.layouts import EXPECTED, Candidate, Fault, candidates, named
from components.ingest.lengths import Lengths
from components.ingest.params import Params
from components.ingest.records import records
from components.ingest.repairs import REPAIRS
from components.ingest.stage import Accepted, Rejection, Stage, Staged
from components.models.language import context_length, load_tokenizer
from components.models.params import Params as Models

log = logging.getLogger("polyphony")
_BATCH_ROWS, _BATCH_CHARACTERS = 256, 1 << 20
_WRITE_ROWS = 256


def run(*, ingest: Params, models: Models, raw: Path, responses: Path, rejects: Path) -> dict[str, Any]:
    """Reads the source, cleans it, splits it by prompt.

    Args:
        raw: the source: a file, or a folder of files, in any of the raw forms.
        responses: where the responses table goes.
        rejects: where the rejects table goes.

    Returns:
        Counts of rows, responses, prompts and tokens; of rejections by rule and repairs by name.

    Raises:
        InputError: if the source cannot be read, or if fewer than two prompts remain.
    """
    files = source_files(raw)
    tokenizer = load_tokenizer(models)
    limit = context_length(models) if ingest.rules.too_long else None
    folder = WORK / "stage"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with closing(Stage(folder / "rows.sqlite", ingest.seed)) as stage:
            intake = _Intake(stage, Cleaner(ingest), Lengths(tokenizer, limit), limit)
            intake.read(files, folder)
            min_responses = ingest.min_responses if ingest.rules.too_few else 1
            left_out = stage.settle(min_responses, ingest.max_prompts, ingest.test_share)
            train, test = stage.prompts()
            rejections = stage.rejections()
            names = [name for name, _ in files]
            summary = _summary(rejections, names)
            if train + test < 2:
                raise InputError(_too_little(raw, train + test, intake, summary, stage.example("malformed")))
            log.info("ingest: %d rows read; rejected: %s", intake.rows, summary)
            tally = _Tally()
            with RESPONSES.writer(responses) as good, REJECTS.writer(rejects) as bad:
                for chunk in _chunks(tally.seen(stage.accepted()), "write responses", stage.responses()):
                    good.write([{name: getattr(row, name) for name in RESPONSES.column_names()} for row in chunk])
                for faults in _chunks(stage.rejected(), "write rejects", sum(found.times for found in rejections.values())):
                    bad.write([dict(zip(REJECTS.column_names(), (names[row[0]], *row[1:]), strict=True)) for row in faults])
                # On a full disk, neither takes its name.
                good.flush()
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    return {
        "files": len(files),
        "rows": intake.rows,
        "responses": tally.responses,
        "prompts": {"all": train + test, "train": train, "test": test, "left_out": left_out},
        "responses_of": {"train": tally.responses - tally.test, "test": tally.test},
        "tokens": tally.token_metrics(),
        "rejected": {rule: rejections[rule].times if rule in rejections else 0 for rule in RULES},
        "first_rejected_row": {rule: found.row for rule, found in sorted(rejections.items())},
        "repaired": {name: {"prompts": tally.prompts_of[name], "responses": tally.responses_of[name]} for name in REPAIRS},
    }


class _Intake:
    """From the files to the stage."""

    def __init__(self, stage: Stage, clean: Cleaner, lengths: Lengths, limit: int | None) -> None:
        self._stage, self._clean, self._lengths, self._limit = stage, clean, lengths, limit
        self._waiting: list[Staged] = []
        self._characters = 0
        self.rows = 0
        self.first_columns: list[str] = []

    def read(self, files: list[tuple[str, Path]], work: Path) -> None:
        sizes = [path.stat().st_size for _, path in files]
        before = 0

        def advance(done: int) -> None:
            bar.update(before + done - bar.n)

        with tqdm(desc="ingest", total=sum(sizes), unit="B", unit_scale=True) as bar:
            for index, (_, path) in enumerate(files):
                for number, row in records(path, work, advance):
                    self.rows += 1
                    self._take(index, number, row)
                before += sizes[index]
            self._flush()
            advance(0)

    def _take(self, file: int, number: int, row: dict[str, Any] | Fault) -> None:
        if isinstance(row, Fault):
            self._stage.reject(file, number, *row)
            return
        self.first_columns = self.first_columns or list(row)
        for found in candidates(row):
            if isinstance(found, Fault):
                self._stage.reject(file, number, *found)
                continue
            clean = self._clean(found)
            if isinstance(clean, Clean) and (self._lengths.forges(clean.prompt) or self._lengths.forges(clean.response)):
                clean = "special_tokens"
            if isinstance(clean, str):
                self._stage.reject(file, number, clean, found.content())
                continue
            changed = (found.prompt, found.response, found.score) != clean[:3]
            self._waiting.append(Staged(file, number, None, found.content() if changed else None, *clean))
            self._characters += len(clean.prompt) + len(clean.response)
            if len(self._waiting) >= _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
                self._flush()

    def _flush(self) -> None:
        counts = self._lengths.count([(row.prompt, row.response) for row in self._waiting])
        fitting = []
        for row, tokens in zip(self._waiting, counts, strict=True):
            if tokens is None or (self._limit and tokens > self._limit):
                content = row.content or Candidate(row.prompt, row.response, row.score).content()
                self._stage.reject(row.file, row.row, "too_long", content)
            else:
                fitting.append(row._replace(tokens=tokens))
        self._stage.add(fitting)
        self._waiting, self._characters = [], 0


class _Tally:
    """What the metrics count of the rows that are written."""

    def __init__(self) -> None:
        self.responses = self.test = 0
        self.prompts_of: Counter[str] = Counter()
        self.responses_of: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()

    def seen(self, rows: Iterable[Accepted]) -> Iterator[Accepted]:
        """The same rows, counted as they pass; sorted by prompt. A prompt is repaired where any of its rows was."""
        prompt_id, repairs = "", 0
        for row in rows:
            if row.prompt_id != prompt_id:
                self.prompts_of.update(_names(repairs))
                prompt_id, repairs = row.prompt_id, 0
            repairs |= row.prompt_repairs
            self.responses += 1
            self.test += row.split == "test"
            self.responses_of.update(_names(row.response_repairs))
            self._lengths[row.tokens] += 1
            yield row
        self.prompts_of.update(_names(repairs))

    def token_metrics(self) -> dict[str, int]:
        """Prompt + response, chat template included."""
        return {
            "sum": sum(length * count for length, count in self._lengths.items()),
            **{f"p{percent}": self._quantile(percent / 100) for percent in (50, 95)},
            "max": max(self._lengths),
        }

    def _quantile(self, share: float) -> int:
        """The least length that at least this share of the responses does not exceed."""
        lengths = sorted(self._lengths)
        below = accumulate(self._lengths[length] for length in lengths)
        return next(length for length, count in zip(lengths, below, strict=True) if count >= share * self.responses)


def _names(mask: int) -> list[str]:
    return [name for bit, name in enumerate(REPAIRS) if mask >> bit & 1]


def _chunks(rows: Iterable[Any], what: str, total: int) -> Iterator[list[Any]]:
    rows = iter(tqdm(rows, desc=what, total=total, unit=" rows"))
    while chunk := list(islice(rows, _WRITE_ROWS)):
        yield chunk


def _summary(rejections: dict[str, Rejection], names: list[str]) -> str:
    return (
        ", ".join(
            f"{rule} {found.times} (first: {names[found.file]} row {found.row})"
            for rule, found in sorted(rejections.items(), key=lambda item: -item[1].times)
        )
        or "none"
    )


def _too_little(raw: Path, prompts: int, intake: _Intake, summary: str, malformed: str | None) -> str:
    if intake.rows == 0:
        return f"{raw}: empty, it holds no rows; {EXPECTED}."
    what = "nothing usable is left" if prompts == 0 else "one prompt is left, and the other side of the split would have none"
    message = f"{raw}: {what}; at least two prompts are needed. {intake.rows} rows read; rejected: {summary}."
    if intake.first_columns:
        message += f" Columns of the first row: {named(intake.first_columns)}; {EXPECTED}."
    if prompts == 0 and (malformed or "").startswith('"['):
        message += " It looks like a JSON array; write one object per line."
    return message
