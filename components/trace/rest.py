"""MLflow's server asked directly: importing MLflow takes longer than all that is asked of it here."""

from __future__ import annotations

import base64
import configparser
import json
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import Any

from components.live import short
from components.origin import AT_ONCE, NEWEST, NEWEST_FIRST, Record, SearchedRecords
from components.trace.store import ABSENT, AwayError, Version, none, with_aliases

# Experiments, versions and runs that one answer brings, and runs that are read ahead at most: some 10 kB each.
_PAGE, _AHEAD = 1000, 10_000
# Seconds before another try, and what may be another answer then.
_PAUSES, _PASSING = (0.5, 1.0, 2.0, 4.0), (408, 429)
# What may go wrong on the way; a page that is no JSON is a ValueError.
_TROUBLE = (OSError, HTTPException, ValueError)
_REFUSED, _ACCOUNT = (401, 403), "Look at MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ask who may."


class RestStore(SearchedRecords):
    """The store of a server, with the credentials and certificates in MLflow's own environment variables.

    Raises:
        OSError: if the server does not answer, or not to this account.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._authorization = _authorization()
        self._tls = _tls() if address.startswith("https:") else None
        # Who cannot be reached at once is MLflow's to wait for.
        self._pauses: tuple[float, ...] = ()
        self._experiments = [str(one["experiment_id"]) for one in self._all("experiments/search", "experiments", body={})]
        self._pauses = _PAUSES
        self._ahead: dict[str, Record] = {}
        super().__init__(self._runs, AT_ONCE)

    def record(self, run_id: str) -> Record | None:
        if run_id in self._ahead:
            return self._ahead[run_id]
        found = self._one("runs/get", {"run_id": run_id})
        return _record(found["run"]) if found and found["run"]["info"]["lifecycle_stage"] == "active" else None

    def version(self, name: str, version: str = "", alias: str = "") -> Version:
        wanted = {"name": name, "version": version}
        if alias:
            pointed = self._one("registered-models/alias", {"name": name, "alias": alias})
            wanted["version"] = str(pointed["model_version"]["version"]) if pointed else ""
        # A version that was looked up by its alias does not tell its aliases.
        found = self._one("model-versions/get", wanted) if wanted["version"] else None
        if not found:
            raise none(name, version, alias)
        return _version(found["model_version"])

    def versions(self) -> list[Version]:
        try:
            models = self._all("registered-models/search", "registered_models")
            aliases = [(model["name"], one["version"], one["alias"]) for model in models for one in model.get("aliases", ())]
            found = with_aliases(map(_version, self._all("model-versions/search", "model_versions")), aliases)
            self._read_ahead()
        except _TROUBLE as error:
            raise self._failed(error) from error
        return found

    def _read_ahead(self) -> None:
        """The last runs, in a few answers: a look-up for each digest of each version would take the server long."""
        condition = "attributes.status = 'FINISHED' AND tags.step LIKE '%'"
        asked = {"experiment_ids": self._experiments, "filter": condition, "order_by": [NEWEST_FIRST]}
        runs = self._all("runs/search", "runs", asked)
        ahead = [_record(run) for run in islice(runs, _AHEAD)]
        self.remember(ahead, all_there_are=next(runs, None) is None)
        self._ahead = {record.run_id: record for record in ahead}

    def _runs(self, condition: str) -> list[Record]:
        asked = {"experiment_ids": self._experiments, "filter": condition, "max_results": NEWEST, "order_by": [NEWEST_FIRST]}
        try:
            found = self._answer("runs/search", body=asked).get("runs", ())
        except _TROUBLE as error:
            raise self._failed(error) from error
        return [_record(run) for run in found]

    def _all(self, call: str, what: str, body: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """What a search finds, page by page."""
        token = ""
        while True:
            asked = {"max_results": _PAGE} | ({"page_token": token} if token else {})
            page = self._get(call, asked) if body is None else self._answer(call, body={**body, **asked})
            yield from page.get(what, ())
            token = page.get("next_page_token", "")
            if not token:
                return

    def _one(self, call: str, asked: Mapping[str, Any]) -> Any:
        """What is called so; None where there is no such thing."""
        try:
            return self._get(call, asked)
        except urllib.error.HTTPError as error:
            if _code(error) in ABSENT:
                return None
            raise self._failed(error) from error
        except _TROUBLE as error:
            raise self._failed(error) from error

    def _get(self, call: str, asked: Mapping[str, Any]) -> Any:
        return self._answer(f"{call}?{urllib.parse.urlencode(asked)}")

    def _answer(self, call: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._address}/api/2.0/mlflow/{call}", data)  # noqa: S310 - see open_store
        request.add_header("Content-Type", "application/json")
        if self._authorization:
            # Not for whom the server may send us on to.
            request.add_unredirected_header("Authorization", self._authorization)
        timeout = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or 120)
        for pause in (*self._pauses, None):
            try:
                with urllib.request.urlopen(request, timeout=timeout, context=self._tls) as answer:  # noqa: S310
                    return json.load(answer)
            except _TROUBLE as error:
                status = error.code if isinstance(error, urllib.error.HTTPError) else 500
                if pause is None or (status < 500 and status not in _PASSING):
                    raise
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                time.sleep(pause)
        raise AssertionError

    def _failed(self, error: Exception) -> AwayError:
        if isinstance(error, urllib.error.HTTPError) and error.code in _REFUSED:
            return AwayError(f"MLflow at {self._address} does not let this account see it ({short(error)}). {_ACCOUNT}")
        return AwayError(f"MLflow at {self._address} does not answer what it is asked ({short(error)}). Try again.")


def _authorization() -> str:
    """What MLflow says of itself: name and password, else a token."""
    kept = configparser.ConfigParser(interpolation=None)
    kept.read(Path("~/.mlflow/credentials").expanduser())
    found = dict(kept["mlflow"]) if "mlflow" in kept else {}
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    user, password = (os.environ.get(name) or found.get(name.lower()) for name in names)
    if user and password:
        return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return f"Bearer {token}" if token else ""


def _tls() -> ssl.SSLContext:
    authority = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or os.environ.get("REQUESTS_CA_BUNDLE")
    folder = bool(authority) and Path(str(authority)).is_dir()
    context = ssl.create_default_context(cafile=None if folder else authority, capath=authority if folder else None)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if own := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(own)
    return context


def _code(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error).get("error_code", ""))
    except (ValueError, AttributeError):
        return ""


def _record(run: Mapping[str, Any]) -> Record:
    return Record(
        run["info"]["run_id"], int(run["info"]["start_time"]), _pairs(run["data"], "tags"), _pairs(run["data"], "params")
    )


def _version(found: Mapping[str, Any]) -> Version:
    return Version(
        *(found["name"], str(found["version"]), found.get("run_id", ""), found.get("source", "")),
        tuple(sorted(found.get("aliases", ()))),
        _pairs(found, "tags"),
    )


def _pairs(found: Mapping[str, Any], what: str) -> dict[str, str]:
    return {one["key"]: one.get("value", "") for one in found.get(what, ())}
