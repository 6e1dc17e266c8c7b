"""The base model of a version, as its own record names it: loaded, identified, and under which licence."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import yaml

from components.champion.versions import Version
from components.contracts import InputError
from components.lineage import digest
from components.models.params import Params as Models
from components.models.resolve import PACKAGES, resolve

_TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")


def models(version: Version, remote_code: Collection[str], dtype: str | None = None) -> Models:
    """The models of the version's training, with the version's own tokenizer.

    Args:
        remote_code: base models that may run their own code here. What the training allowed is no permission here.

    Raises:
        InputError: if a model would need such permission.
    """
    base = version.record["base_model"]
    if refused := [name for name in base["remote_code"] if name == base["language"] and name not in remote_code]:
        raise InputError(
            f"{version.name}: its base model {refused[0]!r} runs code of its own. If you trust it: --remote-code {refused[0]}"
        )
    # Four bits save memory in training; whoever reads needs them not.
    kept = "bfloat16" if base["dtype"] == "nf4" else base["dtype"]
    return Models(
        language=base["language"],
        tokenizer=str(version.folder),
        dtype=dtype or kept,
        max_tokens=base["max_tokens"],
        remote_code=tuple(name for name in base["remote_code"] if name in remote_code),
    )


@dataclass(frozen=True)
class Identity:
    """What a base model is.

    Attributes:
        revision: a hub model's commit, or a package's version; empty for a local folder.
        digest: of its whole folder, as loaded here.
        licence: its name; empty where none was found.
        terms: files to be passed on with it.
    """

    name: str
    revision: str
    digest: str
    licence: str
    terms: tuple[Path, ...]

    def lines(self) -> list[str]:
        revision = f", revision {self.revision}" if self.revision else ""
        found = self.licence or "not found beside it: look it up before you pass this on"
        return [f"base model: {self.name}{revision}, digest {self.digest}", f"licence of the base model: {found}"]


def identity(name: str) -> Identity:
    """Of the model of that name, as `resolve` finds it."""
    folder = resolve(name)
    places, licence = [folder], ""
    if name in PACKAGES:
        package = importlib.metadata.distribution(name)
        revision = package.version
        said = package.metadata.json
        licence = str(said.get("license_expression") or said.get("license") or "")
        places += sorted({Path(str(package.locate_file(file))).parent for file in package.files or [] if "LICEN" in file.name})
    elif Path(name).expanduser().is_dir():
        revision = ""
    else:
        revision = folder.name
        places.append(_hub_terms(name, folder))
    for place in places:
        licence = licence or _of_card(place / "README.md")
    terms = {
        file.name: file for place in places for pattern in _TERMS for file in sorted(place.glob(pattern)) if file.is_file()
    }
    return Identity(name, revision, digest(folder), licence, tuple(terms.values()))


def _hub_terms(name: str, folder: Path) -> Path:
    """The snapshot with its card and terms, which models are loaded without; without them where the hub is out of reach."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=["README.md", *_TERMS]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return folder


def _of_card(card: Path) -> str:
    """What a model card says in its metadata."""
    if not card.is_file():
        return ""
    _, opening, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        found = yaml.safe_load(rest.partition("\n---")[0]) if opening else None
    except yaml.YAMLError:
        return ""
    return str(found.get("license_name") or found.get("license") or "") if isinstance(found, dict) else ""
