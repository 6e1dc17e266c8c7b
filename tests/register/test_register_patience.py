"""What is tried again, for how long, and how it ends."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest
import requests
from botocore.exceptions import EndpointConnectionError
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy.exc import OperationalError

from components.contracts import InputError
from components.register import patience
from components.register.patience import patiently


def answered(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


PASSING = [
    MlflowException("a bug, or a database that is gone"),
    requests.ConnectionError("refused"),
    answered(500),
    answered(429),
    EndpointConnectionError(endpoint_url="http://s3"),
    OperationalError("SELECT", {}, sqlite3.OperationalError("database is locked")),
    RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "connection lost"}),
    RestException({"error_code": "BAD_REQUEST", "message": "(psycopg2.InterfaceError) connection already closed"}),
    ConnectionResetError("reset"),
]
LASTING = [
    RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}),
    RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}),
    RestException({"error_code": "BAD_REQUEST", "message": "no"}),
    answered(404),
    FileNotFoundError("model"),
    OSError(28, "No space left on device"),
    ZeroDivisionError(),
]


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [error] * times

    def call() -> str:
        if left:
            raise left.pop()
        return "done"

    return call


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSES", (0.001, 0.002))


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_passes_is_tried_again(error: Exception) -> None:
    assert patiently("testing", failing(3, error)) == "done"


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_lasts_is_not(error: Exception) -> None:
    call = failing(1, error)
    with pytest.raises(type(error)):
        patiently("testing", call)
    assert call() == "done"


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WHOLE", 0.01)
    with pytest.raises(
        InputError, match=r"failed while storing the model, \d+ time\(s\) in 0 s \(refused\)\. .* run it again"
    ) as told:
        patiently("storing the model", failing(10_000, requests.ConnectionError("refused\nby a long text")))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "error", [RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), answered(401)], ids=repr
)
def test_who_may_not_is_told_at_once(error: Exception) -> None:
    call = failing(1, error)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_USERNAME"):
        patiently("testing", call)
    assert call() == "done"
