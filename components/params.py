"""The one page of knobs, `params.yaml`: read, checked as a whole, and handed out by section.

A section belongs to the package of its name, which declares it as the pydantic model `Params` in its `params.py`.
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from components.redaction import redacted, secrets_in

SECTIONS = ("models", "ingest", "validate", "embed", "weight", "train", "evaluate", "register")
_HIDDEN = "hidden"


class ParameterError(Exception):
    """The parameters are at fault. The message lists every mistake and, for an unknown name, the nearest known one."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _unlike([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return super().construct_mapping(node, deep)


def _unlike(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ParameterError(f"the parameters name twice in one place: {', '.join(twice)}. Keep one of each.")
    return dict(pairs)


def hidden(message: str) -> PydanticCustomError:
    """A mistake in a value that may be a secret: it is told without the value."""
    return PydanticCustomError(_HIDDEN, "{message}", {"message": message})


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def load(given: Path | str) -> dict[str, Section]:
    """All sections of a file, or of the document itself where it is given as a JSON object, as engines do.

    All are checked, each by its own model, whichever step asks: a mistake in the last step's section must not wait for the
    last step. Sections that the document does not hold are left out.

    Raises:
        ParameterError: naming all mistakes at once.
    """
    if str(given).lstrip().startswith("{"):
        return check(parse(str(given), "--params"), "--params")
    try:
        text = Path(given).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParameterError(f"{given}: no such parameter file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{given}: not readable: {error}") from None
    return check(parse(text, str(given)), str(given))


def parse(text: str, where: str) -> dict[str, Any]:
    """A mapping from YAML or JSON text; `where` names it in errors.

    Raises:
        ParameterError: if it is neither.
    """
    try:
        # JSON is not all YAML to PyYAML, which reads the pair of escapes of one character as two.
        document = json.loads(text, object_pairs_hook=_unlike)
    except ValueError:
        try:
            document = yaml.load(text, _Loader)  # noqa: S506 - one of the safe ones
        except yaml.YAMLError as error:
            raise ParameterError(f"{where}: not readable as YAML: {error}") from None
    if not isinstance(document, dict):
        raise ParameterError(f"{where}: expected a mapping of sections {', '.join(SECTIONS)}.")
    return document


def check(document: Mapping[str, Any], where: str) -> dict[str, Section]:
    """The sections of a document, each checked by its own model; `where` names the document in errors.

    Raises:
        ParameterError: naming all mistakes at once.
    """
    mistakes = [f"{name}: unknown section{_nearest(str(name), SECTIONS)}" for name in document if name not in SECTIONS]
    mistakes += secrets_in(document)
    sections: dict[str, Section] = {}
    for name in SECTIONS:
        if name not in document:
            continue
        model: type[Section] = importlib.import_module(f"components.{name}.params").Params
        try:
            sections[name] = model.model_validate(document[name])
        except ValidationError as error:
            mistakes += [_describe(name, model, detail) for detail in error.errors()]
    if mistakes:
        raise ParameterError("\n  ".join([f"{where}: {len(mistakes)} mistake(s) in the parameters:", *mistakes]))
    return sections


def _describe(section: str, model: type[BaseModel], detail: ErrorDetails) -> str:
    where = ".".join([section, *(str(part) for part in detail["loc"])])
    if detail["type"] == "extra_forbidden":
        known = _keys_at(model, detail["loc"][:-1])
        return f"{where}: unknown parameter{_nearest(str(detail['loc'][-1]), known)}"
    return f"{where}: {detail['msg']}" + ("" if detail["type"] == _HIDDEN else redacted(f" (got {detail['input']!r})"))


def _keys_at(model: Any, location: tuple[int | str, ...]) -> Iterable[str]:
    """The field names of the model found by walking down `location`."""
    for part in location:
        if get_origin(model) is dict:
            model = get_args(model)[1]
            continue
        field = model.model_fields.get(str(part)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field else None
        if get_origin(model) is UnionType:
            model = get_args(model)[0]
    return model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else ()


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
