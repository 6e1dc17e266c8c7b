"""Data in a git repository, as DVC tracks it there: `git+https://host/team/stories.git@revision#path/in/it`."""

from __future__ import annotations

import os
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

from components.contracts import InputError

PREFIX = "git+"
# Where a token for `https` comes from, and the name that goes with it, so that neither stands in parameters.
_TOKEN, _USER = "GIT_TOKEN", "GIT_USERNAME"


class Address(NamedTuple):
    """Without a revision it is the repository's default branch."""

    repository: str
    revision: str | None
    path: str


def parse(source: str) -> Address:
    """
    Raises:
        InputError: if it is not of the form.
    """
    url, _, path = source.removeprefix(PREFIX).partition("#")
    parts = urlsplit(url)
    place, at, revision = parts.path.partition("@")
    path = path.strip("/")
    if not parts.scheme or not place.strip("/") or not path or (at and not revision):
        raise InputError(f"{source}: expected git+https://host/repository.git@revision#path (also git+ssh, git+file).")
    return Address(urlunsplit(parts._replace(path=place)), revision or None, path)


def files(address: Address) -> Any:
    """The repository as a file system: what DVC tracks is read from its remote, what git tracks from git.

    Credentials of the remote are those of its own kind, such as AWS_ACCESS_KEY_ID; those of git over https are in GIT_TOKEN
    and, where the server asks for a name, in GIT_USERNAME.
    """
    from dvc.api import DVCFileSystem

    return DVCFileSystem(url=authorised(address.repository), rev=address.revision)


def authorised(url: str) -> str:
    """The address with the token, where there is one; for no eyes but the server's."""
    token = os.environ.get(_TOKEN)
    if not token or not url.startswith("https://"):
        return url
    parts = urlsplit(url)
    user = quote(os.environ.get(_USER) or "oauth2", safe="")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(token, safe='')}@{parts.netloc}"))


def tracked_digest(info: dict[str, Any]) -> str | None:
    """What dvc.lock or a .dvc file says of a file or a folder; None where git itself has the content."""
    return info.get("md5")


def explain(error: BaseException | None) -> str:
    """An error and what caused it, without the token."""
    words = []
    while error is not None:
        words.append(f"{type(error).__name__}: {error}")
        error = error.__cause__
    text = ", by ".join(words)
    for secret in filter(None, (os.environ.get(_TOKEN), quote(os.environ.get(_TOKEN, ""), safe=""))):
        text = text.replace(secret, "***")
    return text
