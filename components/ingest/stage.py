"""Rows under way, kept on disk: to find duplicates, count per prompt, split, and read back in order, in bounded memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from components.contracts import content_id
from components.ingest.layouts import Candidate
from components.ingest.split import draw

_CACHE_KIB = 16 * 1024
_SCHEMA = """
CREATE TABLE candidates (
    id INTEGER PRIMARY KEY, file INTEGER, row INTEGER, tokens INTEGER, content TEXT, prompt_id TEXT, prompt TEXT,
    response_id TEXT, response TEXT, score REAL, prompt_repairs INTEGER, response_repairs INTEGER
);
CREATE TABLE rejects (id INTEGER PRIMARY KEY, file INTEGER, row INTEGER, reason TEXT, content TEXT);
"""
# Of equal responses the one with the highest score stays. The rest of the order makes the choice the same however the rows
# are ordered; rows that are equal in all of it give the same bytes.
_DUPLICATES = """
CREATE INDEX by_id ON candidates (prompt_id, response_id, score DESC, response_repairs, prompt_repairs, file, row);
CREATE TABLE surplus AS SELECT id FROM (
    SELECT id, ROW_NUMBER() OVER (
        PARTITION BY prompt_id, response_id ORDER BY score DESC, response_repairs, prompt_repairs, file, row, id
    ) AS place FROM candidates
) WHERE place > 1;
"""
_PROMPTS = """
CREATE TABLE prompts (prompt_id TEXT PRIMARY KEY, place REAL, test INTEGER DEFAULT 0) WITHOUT ROWID;
INSERT INTO prompts (prompt_id, place) SELECT DISTINCT prompt_id, draw('split', prompt_id) FROM candidates;
"""
_REJECT = """
INSERT INTO rejects (file, row, reason, content)
SELECT file, row, ?, coalesce(content, content_of(prompt, response, score)) FROM candidates WHERE id IN surplus ORDER BY id
"""


class Staged(NamedTuple):
    """A clean row. `content` is the row as it was read, None where cleaning changed nothing."""

    file: int
    row: int
    tokens: int | None
    content: str | None
    prompt: str
    response: str
    score: float
    prompt_repairs: int
    response_repairs: int


class Accepted(NamedTuple):
    """A row of the responses table, with what the metrics count."""

    prompt_id: str
    prompt: str
    response_id: str
    response: str
    score: float
    split: str
    tokens: int
    prompt_repairs: int
    response_repairs: int


class Rejection(NamedTuple):
    """How many rows broke a rule, and where the first is."""

    times: int
    file: int
    row: int


class Stage:
    """A throw-away database in `path`, never read again by another process."""

    def __init__(self, path: Path, seed: int) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.create_function("draw", 2, lambda purpose, key: draw(seed, purpose, key), deterministic=True)
        self._db.create_function("content_of", 3, lambda *row: Candidate(*row).content(), deterministic=True)
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN")

    def close(self) -> None:
        self._db.close()

    def add(self, rows: Iterable[Staged]) -> None:
        self._db.executemany(
            "INSERT INTO candidates VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    *(row.file, row.row, row.tokens, row.content, content_id(row.prompt), row.prompt),
                    *(content_id(row.prompt, row.response), row.response, row.score),
                    *(row.prompt_repairs, row.response_repairs),
                )
                for row in rows
            ),
        )

    def reject(self, file: int, row: int, reason: str, content: str) -> None:
        self._db.execute("INSERT INTO rejects VALUES (NULL, ?, ?, ?, ?)", (file, row, reason, content))

    def settle(self, min_responses: int, max_prompts: int, test_share: float) -> int:
        """Rejects duplicates and prompts with too few responses, chooses prompts, splits. Call once, after all rows.

        A side without a prompt gets the one whose number is nearest to it.

        Returns:
            The number of prompts that are left out because of `max_prompts`.
        """
        self._script(_DUPLICATES)
        self._reject_surplus("duplicate")
        self._db.execute(
            "INSERT INTO surplus SELECT id FROM candidates WHERE prompt_id IN "
            "(SELECT prompt_id FROM candidates GROUP BY prompt_id HAVING count(*) < ?)",
            (min_responses,),
        )
        self._reject_surplus("too_few")
        self._script(_PROMPTS)
        left_out = 0
        if max_prompts:
            left_out = self._db.execute(
                "DELETE FROM prompts WHERE prompt_id NOT IN "
                "(SELECT prompt_id FROM prompts ORDER BY draw('choice', prompt_id), prompt_id LIMIT ?)",
                (max_prompts,),
            ).rowcount
        self._db.execute("UPDATE prompts SET test = place < ?", (test_share,))
        for side, order in ((1, "place, prompt_id"), (0, "place DESC, prompt_id DESC")):
            self._db.execute(
                f"UPDATE prompts SET test = ? WHERE (SELECT count(*) FROM prompts WHERE test = ?) = 0 "  # noqa: S608
                f"AND prompt_id = (SELECT prompt_id FROM prompts ORDER BY {order} LIMIT 1)",
                (side, side),
            )
        return left_out

    def prompts(self) -> tuple[int, int]:
        """The numbers of prompts for training and for testing."""
        total, test = self._db.execute("SELECT count(*), coalesce(sum(test), 0) FROM prompts").fetchone()
        return total - test, test

    def responses(self) -> int:
        """The number of rows that `accepted` gives."""
        return self._db.execute("SELECT count(*) FROM candidates JOIN prompts USING (prompt_id)").fetchone()[0]

    def rejections(self) -> dict[str, Rejection]:
        """The rules that were broken."""
        query = "SELECT reason, count(*), min(file << 40 | row) FROM rejects GROUP BY reason"
        return {rule: Rejection(n, first >> 40, first & (1 << 40) - 1) for rule, n, first in self._db.execute(query)}

    def example(self, reason: str) -> str | None:
        """The content of the first row met that broke the rule."""
        found = self._db.execute("SELECT content FROM rejects WHERE reason = ? ORDER BY id LIMIT 1", (reason,)).fetchone()
        return found[0] if found else None

    def rejected(self) -> Iterator[tuple[int, int, str, str]]:
        """(file, row, reason, content), sorted."""
        self._db.execute("CREATE INDEX IF NOT EXISTS by_row ON rejects (file, row, reason)")
        yield from self._db.execute("SELECT file, row, reason, content FROM rejects ORDER BY file, row, reason, id")

    def accepted(self) -> Iterator[Accepted]:
        """The rows of the responses table, sorted."""
        query = """
            SELECT prompt_id, prompt, response_id, response, score, iif(test, 'test', 'train'), tokens, prompt_repairs,
                response_repairs
            FROM candidates INDEXED BY by_id JOIN prompts USING (prompt_id) ORDER BY prompt_id, response_id
        """
        yield from map(Accepted._make, self._db.execute(query))

    def _script(self, script: str) -> None:
        # Not executescript, which would commit.
        for statement in filter(str.strip, script.split(";")):
            self._db.execute(statement)

    def _reject_surplus(self, reason: str) -> None:
        self._db.execute(_REJECT, (reason,))
        self._db.execute("DELETE FROM candidates WHERE id IN surplus")
        self._db.execute("DELETE FROM surplus")
