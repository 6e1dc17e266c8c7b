"""Over what a run's loops go: the objectives that are compared, and the shards of the embedding."""

from __future__ import annotations

import json
from typing import Any

from components.params import ParameterError
from components.register.params import Params as Registration
from components.train.objectives import OBJECTIVES
from components.train.params import Params as Training

# Those that learn from pairs; the others are steps of every run.
_COMPARED = tuple(name for name, objective in OBJECTIVES.items() if "pairs" in objective.needs)


def compared(text: str, candidate: str, document: dict[str, Any]) -> str:
    """The objectives as a JSON list, checked; put into the document, which may have its own where the form has the default.

    Args:
        text: a JSON list of names.
        candidate: the one whose model is registered.
        document: all parameters.

    Raises:
        ParameterError: naming all mistakes.
    """
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    known = ", ".join(_COMPARED)
    default, own = list(Training().objectives), list(document["train"]["objectives"])
    if names == default:
        names = own
    if not isinstance(names, list) or not names:
        raise ParameterError(f'objectives: {text!r} is no list such as ["dpo", "ddpo"]; known: {known}.')
    mistakes = [f"objectives: {name!r} is not known; known: {known}" for name in names if name not in _COMPARED]
    mistakes += [f"objectives: {name!r} twice" for name in dict.fromkeys(map(str, names)) if names.count(name) > 1]
    if own not in (default, names):
        mistakes.append(f"train.objectives: {', '.join(own)} in overrides, {', '.join(map(str, names))} in the form")
    if document["register"]["candidate"] not in (Registration().candidate, candidate):
        mistakes.append(f"register.candidate: {document['register']['candidate']!r} in overrides; name it as `registered`")
    if candidate not in names:
        mistakes.append(f"registered: {candidate!r} is not one of the objectives {', '.join(map(str, names))}")
    baseline = document["register"]["baseline"]
    if baseline not in (*names, "sft"):
        mistakes.append(
            f"register.baseline: {baseline!r} is not trained: name it under objectives, or set it to sft or to one of those"
        )
    if mistakes:
        raise ParameterError("\n  ".join([f"objectives: {len(mistakes)} mistake(s):", *mistakes]))
    document["train"]["objectives"], document["register"]["candidate"] = names, candidate
    return json.dumps(names)


def shards(count: int) -> str:
    """The numbers of the shards as a JSON list of texts: a loop's items are texts to Kubeflow.

    Raises:
        ParameterError: if there are none.
    """
    if count < 1:
        raise ParameterError(f"embed_shards: {count}; at least 1, which embeds all at once.")
    return json.dumps([str(number) for number in range(count)])
