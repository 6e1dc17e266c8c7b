"""Accounts of the platform: an admin, one that trains and registers, one that promotes. Passwords lie in files of mode 600."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.lineage import EXPERIMENT

ADMIN, TRAINER, PROMOTER = "admin", "trainer", "promoter"
# What MLflow's permissions give each role; `access.authorize` asks for `promotion` beyond them.
_ROLES = {
    "training": {"experiment": "EDIT", "registered_model": "EDIT", "registered_model_version": "MANAGE"},
    "promotion": {"experiment": "EDIT", "registered_model": "EDIT"},
}
_MEMBERS = {TRAINER: "training", PROMOTER: "promotion"}
_CONFIG = """\
[mlflow]
default_permission = READ
database_uri = {database}
admin_username = {admin}
authorization_function = pipelines.platform.access:authorize
# A password is proven once in so many seconds: each proof takes a tenth of a second of CPU. A changed one holds as long.
auth_cache_ttl_seconds = 30
"""


def server_settings(folder: Path, uri: str, database: str) -> dict[str, str]:
    """Environment variables by which the server at `uri` asks for names and passwords, kept in `database`."""
    config = folder / "run" / "basic_auth.ini"
    config.write_text(_CONFIG.format(database=database, admin=ADMIN), encoding="utf-8")
    for name in (ADMIN, TRAINER, PROMOTER):
        _write(folder, name, uri)
    password = environment(folder, ADMIN)["MLFLOW_TRACKING_PASSWORD"]
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        # The same after every start, and not the password itself.
        "MLFLOW_FLASK_SERVER_SECRET_KEY": hashlib.sha256(f"sessions {password}".encode()).hexdigest(),
    }


def path(folder: Path, name: str) -> Path:
    """The file to `source` for acting as `name`."""
    return folder / "secrets" / f"{name}.env"


def environment(folder: Path, name: str) -> dict[str, str]:
    """The environment variables in that file."""
    lines = path(folder, name).read_text(encoding="utf-8").splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def create(folder: Path) -> None:
    """Makes what the running server lacks: accounts, roles, and the experiment, so that no trainer owns it."""
    server = _Server(environment(folder, ADMIN))
    for member, role in _MEMBERS.items():
        password = environment(folder, member)["MLFLOW_TRACKING_PASSWORD"]
        server.create("2.0/mlflow/users/create", {"username": member, "password": password})
        _give(server, member, role)
    server.create("2.0/mlflow/experiments/create", {"name": EXPERIMENT})


def _give(server: _Server, member: str, name: str) -> None:
    """Makes the role complete and gives it to `member`, where either was not done yet."""
    server.create("3.0/mlflow/roles/create", {"workspace": "default", "name": name})
    role = next(r["id"] for r in server.call("GET", "3.0/mlflow/roles/list?workspace=default")["roles"] if r["name"] == name)
    listed = server.call("GET", f"3.0/mlflow/roles/permissions/list?role_id={role}")["role_permissions"]
    granted = {permission["resource_type"] for permission in listed}
    for kind, permission in _ROLES[name].items():
        if kind not in granted:
            grant = {"role_id": role, "resource_type": kind, "resource_pattern": "*", "permission": permission}
            server.call("POST", "3.0/mlflow/roles/permissions/add", grant)
    if all(known["id"] != role for known in server.call("GET", f"3.0/mlflow/users/roles/list?username={member}")["roles"]):
        server.call("POST", "3.0/mlflow/roles/assign", {"username": member, "role_id": role})


class _Server:
    """MLflow's REST API. Its own client of it loads the whole server into this process."""

    def __init__(self, account: Mapping[str, str]) -> None:
        self._uri = account["MLFLOW_TRACKING_URI"]
        pair = f"{account['MLFLOW_TRACKING_USERNAME']}:{account['MLFLOW_TRACKING_PASSWORD']}"
        self._headers = {
            "Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}",
            "Content-Type": "application/json",
        }

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer. Raises `urllib.error.HTTPError` where it is not 200."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - http, to this machine
            f"{self._uri}/api/{path}", data, self._headers, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)

    def create(self, path: str, body: Mapping[str, Any]) -> None:
        """Unless there is one."""
        try:
            self.call("POST", path, body)
        except urllib.error.HTTPError as error:
            if "RESOURCE_ALREADY_EXISTS" not in error.read().decode():
                raise


def _write(folder: Path, name: str, uri: str) -> None:
    """The file of an account, with the password it has, or a new one."""
    file = path(folder, name)
    password = environment(folder, name)["MLFLOW_TRACKING_PASSWORD"] if file.exists() else secrets.token_urlsafe(24)
    values = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.writelines(f"export {key}={value}\n" for key, value in values.items())
    partial.replace(file)
