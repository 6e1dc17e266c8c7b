"""Calls of MLflow that may fail for a while: made again with growing pauses, then given up with one clear line."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from mlflow.exceptions import MlflowException

from components.contracts import InputError
from components.live import short

log = logging.getLogger("polyphony")
# Seconds: the first pause, doubled up to the last; after the whole no new try is made. A try over HTTP has tries of its own
# (MLFLOW_HTTP_REQUEST_MAX_RETRIES), which may take longer than that.
PAUSES, WHOLE = (0.5, 16.0), 120.0
# What waiting cures, as MLflow's errors name it. A database's restart also comes as a bad request, with the driver's words.
_PASSING = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "ABORTED"}
_DRIVERS = ("psycopg", "pymysql", "sqlite3.")
# Whose errors come from the network or a database.
_LIBRARIES = {"boto3", "botocore", "requests", "sqlalchemy", "urllib3"}
T = TypeVar("T")


def patiently(what: str, call: Callable[[], T]) -> T:
    """Makes a call that may be made twice, until it succeeds or waiting does not help.

    Args:
        what: what it does, as the middle of a sentence: "while ...".

    Raises:
        InputError: if it never succeeded, or MLflow says that this account may not.
        MlflowException: if MLflow refuses for any other reason.
    """
    began, pause, tries = time.monotonic(), PAUSES[0], 1
    while True:
        try:
            return call()
        except Exception as error:
            if denied(error):
                raise InputError(
                    f"MLflow does not let this account do it, while {what} ({short(error)}). Use another: "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
                ) from error
            if not passing(error):
                raise
            if time.monotonic() - began > WHOLE:
                raise InputError(
                    f"MLflow or its storage failed while {what}, {tries} time(s) in {time.monotonic() - began:.0f} s "
                    f"({short(error)}). Nothing is half done that the same command does not finish: run it again."
                ) from error
            log.warning("MLflow or its storage failed while %s (%s); trying again in %.1f s", what, short(error), pause)
        # Not all at once that failed at once.
        time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
        pause, tries = min(2 * pause, PAUSES[1]), tries + 1


def passing(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, MlflowException):
        driver = error.error_code == "BAD_REQUEST" and any(name in str(error) for name in _DRIVERS)
        return driver or error.error_code in _PASSING
    if status := _status(error):
        return status >= 500 or status in (408, 429)
    return isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0] in _LIBRARIES


def denied(error: Exception) -> bool:
    """Whether MLflow answers that it does not know this account, or that it may not."""
    return _status(error) in (401, 403)


def _status(error: Exception) -> int | None:
    """The status of an answer over HTTP, where the error is one."""
    if isinstance(error, MlflowException):
        return error.get_http_status_code()
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status
