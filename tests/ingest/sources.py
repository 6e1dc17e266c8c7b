"""Sources for the tests of ingest, in all layouts and forms."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import story

Row = dict[str, Any]


def good_rows(prompts: int = 4, responses: int = 3) -> list[Row]:
    """Rows of the long layout that nothing is wrong with."""
    return [
        {"prompt": f"Write about number {p}.", "response": story(100 * p + r, 20), "score": 10 * r + p}
        for p in range(prompts)
        for r in range(responses)
    ]


def by_prompt(rows: Iterable[Row]) -> list[Row]:
    """The same in the layout of WritingPrompts_preferences."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["prompt"]].append(row)
    return [
        {
            "post_title": prompt,
            "post_text": "",
            "comment_texts": [row["response"] for row in group],
            "comment_scores": [row["score"] for row in group],
        }
        for prompt, group in groups.items()
    ]


def as_bytes(rows: list[Row], kind: str) -> bytes:
    """The rows as a file of that kind: jsonl, csv or parquet, with .gz at its end where it is to be gzipped."""
    kind, _, packed = kind.partition(".")
    if kind == "jsonl":
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
        data = text.getvalue().encode()
    else:
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        data = sink.getvalue()
    return gzip.compress(data) if packed else data
