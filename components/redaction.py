"""Secrets stay out of what is written: parameters that hold one are refused, messages that quote one are changed."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

# In place of a secret.
MASK = "***"
# What stands before the host in an address: for HTTP all of it may be a token, elsewhere a name alone is no secret.
_IN_ADDRESS = re.compile(r"(https?://)[^/?#\s'\"@]+@|(\w[\w+.-]*://)[^/?#\s'\"@:]*:[^/?#\s'\"@]+@", re.IGNORECASE)
# What gives access by the address alone.
_IN_QUERY = re.compile(
    r"([?&](?:[\w-]*(?:token|signature|secret|password|api-?_?key|credential)|sig|key)=)[^&\s'\"]+", re.IGNORECASE
)
# Environment variables whose values are secrets. A shorter one is no secret worth its name, and would hide plain words.
_VARIABLE = re.compile(r"(?:PASSWORD|PASSWD|SECRET|TOKEN|KEY|KEY_ID)$", re.IGNORECASE)
_SHORTEST = 8


def redacted(text: str) -> str:
    """The text without the secrets in its addresses and without those of the environment."""
    for value in _secrets().values():
        text = text.replace(value, MASK)
    return _IN_QUERY.sub(rf"\1{MASK}", _IN_ADDRESS.sub(rf"\1\2{MASK}@", text))


def secrets_in(document: Any, where: str = "") -> Iterator[str]:
    """A line for every text of a document that holds a secret, with its place and without the secret."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield from secrets_in(value, f"{where}.{key}" if where else str(key))
    elif isinstance(document, (list, tuple)):
        for place, value in enumerate(document):
            yield from secrets_in(value, f"{where}.{place}")
    elif isinstance(document, str) and redacted(document) != document:
        names = [name for name, value in _secrets().items() if value in document]
        what = f"the value of {names[0]}" if names else "an address with a password or token in it"
        yield f"{where}: holds {what}. Parameters are recorded for all to read: leave secrets in the environment."


def quietly() -> None:
    """From here on, what this process logs, and the error that ends it, hold no secret."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Formatter("%(message)s"))
    sys.excepthook = _excepthook


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def _excepthook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    print(redacted("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr)


def _secrets() -> dict[str, str]:
    """Those of the environment, by name; a path is none."""
    found = {name: value for name, value in os.environ.items() if _VARIABLE.search(name) and len(value) >= _SHORTEST}
    return {name: value for name, value in found.items() if not os.path.exists(value)}  # noqa: PTH110 - may be no path at all
