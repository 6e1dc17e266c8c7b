"""Who may change the registry: MLflow's server asks `authorize`, which its own permissions alone could not answer.

In MLflow, who may register versions may also move aliases: both need EDIT of the model. Here moving one, and anything else
that changes what a registered version is or says, needs the role `promotion` too. Without it one may read, create models and
versions, name a version the candidate, and take back the second of two versions of the same content. Roles are MLflow's own:
an admin gives and takes them.
"""

from __future__ import annotations

import re
from typing import Any

from flask import Response, jsonify, request
from mlflow.exceptions import MlflowException
from mlflow.server import auth
from mlflow.server.handlers import _get_model_registry_store
from werkzeug.datastructures import Authorization

PROMOTION = "promotion"
CANDIDATE = "candidate"
# All that changes registered models goes through these two, in every version of MLflow's REST API.
_REGISTRY = re.compile(r"/(?:ajax-)?api/\d+\.\d+/mlflow/(?:registered-models|model-versions)/(?P<call>.*)")
# Of these POST is asked by everyone who may register.
_CREATE = ("create", "get-latest-versions")


def authorize() -> Authorization | Response:
    """The caller, by name and password, or the answer that refuses them: 401 for who is unknown, 403 for who may not."""
    caller = auth.authenticate_request_basic_auth()
    if isinstance(caller, Response) or not _promotes() or _has_role(str(caller.username)):
        return caller
    answer = jsonify(
        error_code="PERMISSION_DENIED", message=f"{caller.username} may register versions; to change them or move their "
        f"aliases, other than {CANDIDATE!r}, takes the role {PROMOTION!r}."
    )  # fmt: skip
    answer.status_code = 403
    return answer


def _promotes() -> bool:
    """Whether this request changes what is registered, beyond adding to it."""
    found = _REGISTRY.search(request.path)
    if found is None or request.method in ("GET", "HEAD", "OPTIONS"):
        return False
    call = found["call"].rstrip("/")
    if request.method == "POST" and call == "alias":
        return _body().get("alias") != CANDIDATE
    if request.method == "DELETE" and call == "delete" and "model-versions" in request.path:
        return not _is_twin(_body().get("name"), _body().get("version"))
    if "@" in str(_body().get("name")):
        # The history of an alias: what stands in it is done.
        return True
    return not (request.method == "POST" and call in _CREATE)


def _body() -> dict[str, Any]:
    body = request.get_json(force=True, silent=True)
    return body if isinstance(body, dict) else {}


def _is_twin(name: object, version: object) -> bool:
    """Whether there is an earlier version of the same content, and nobody uses this one: `register` made it twice at once."""
    store = _get_model_registry_store()
    try:
        twin = store.get_model_version(str(name), str(version))
        content = twin.tags.get("content", "")
        found = store.search_model_versions(f"name = '{name}' AND tags.content = '{content}'")
    except MlflowException:
        return False
    return bool(content) and not twin.aliases and any(int(other.version) < int(twin.version) for other in found)


def _has_role(username: str) -> bool:
    user = auth.store.get_user(username)
    return user.is_admin or any(role.name == PROMOTION for role in auth.store.list_user_roles(user.id))
