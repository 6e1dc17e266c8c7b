"""Named sets of parameters, `presets/*.yaml`: laid over params.yaml, whose comments stay.

A preset has `about` (for people), `parameters` (any part of params.yaml) and perhaps `then` (the command to run with them).
"""

from __future__ import annotations

import argparse
import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "presets"


def add_to(commands: Any) -> None:
    """Adds `preset` and `estimate` to a command line."""
    preset = commands.add_parser("preset", help="set params.yaml for one of the paper's runs, by name")
    preset.add_argument(
        "names", nargs="*", metavar="NAME", help="presets, laid over one another in this order; none: list them"
    )
    preset.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    preset.add_argument("--overrides", action="store_true", help="print them as YAML for `overrides` on Kubeflow, no more")
    estimate = commands.add_parser("estimate", help="memory and time of the trainings that params.yaml describes")
    for parser in (preset, estimate):
        parser.set_defaults(main=_run)
        parser.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="PATH")
        parser.add_argument(
            "--metrics", type=Path, default=Path("metrics"), metavar="DIR", help="of earlier steps: sizes of the data"
        )


def _run(arguments: argparse.Namespace) -> int:
    """Runs `preset` or `estimate`; returns the exit status."""
    from components.contracts import InputError, atomic
    from components.params import check

    if arguments.command == "preset" and not arguments.names:
        for name in names():
            print(f"{name:18} {load(name)['about']}")
        return 0
    if arguments.command == "preset" and arguments.overrides:
        print(dump(merged(arguments.names)), end="")
        return 0
    try:
        document = _yaml().load(arguments.params.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(str(error)) from None
    changes: list[str] = []
    if arguments.command == "preset":
        changes = list(lay_over(document, merged(arguments.names)))
        print("\n".join(changes) or "nothing to change")
    # As they will be read, and before anything is written.
    sections = check(_yaml("safe").load(dump(document)), str(arguments.params))
    if changes and not arguments.dry_run:
        with atomic(arguments.params) as partial:
            partial.write_text(dump(document), encoding="utf-8")
    from pipelines.estimates import estimates

    # What is known of the data holds no more where the preset changes it.
    known = None if any(change.startswith("ingest.") for change in changes) else arguments.metrics
    try:
        print("\n".join(["", *estimates(sections, known)]))
    except InputError as error:
        if arguments.command == "estimate":
            raise
        print(f"\nno estimate: {error}")
    for then in [load(name).get("then") for name in getattr(arguments, "names", ())]:
        if then:
            print(f"\nthen: {then}")
    return 0


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> dict[str, Any]:
    """A preset.

    Raises:
        InputError: if there is none of that name; says which is nearest.
    """
    from components.contracts import InputError

    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        raise InputError(f"preset {name!r}: {f'did you mean {close[0]!r}?' if close else 'known: ' + ', '.join(names())}")
    preset: dict[str, Any] = _yaml().load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return preset


def merged(chosen: Sequence[str]) -> dict[str, Any]:
    """The parameters of presets, the later ones winning."""
    document: dict[str, Any] = {}
    for name in chosen:
        list(lay_over(document, load(name)["parameters"]))
    return document


def lay_over(document: dict[str, Any], changes: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Changes `document` in place; yields a line for each value that becomes another."""
    for key, value in changes.items():
        if isinstance(value, Mapping):
            yield from lay_over(document.setdefault(key, {}), value, f"{where}{key}.")
        elif document.get(key) != value:
            yield f"{where}{key}: {_shown(document.get(key))} -> {_shown(value)}"
            document[key] = value


def _shown(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def dump(document: Mapping[str, Any]) -> str:
    text = io.StringIO()
    _yaml().dump(document, text)
    return text.getvalue()


def _yaml(kind: str = "rt") -> Any:
    # Of DVC, which writes params.yaml with it too.
    from ruamel.yaml import YAML

    yaml = YAML(typ=kind)
    yaml.width = 4096
    yaml.preserve_quotes = True
    return yaml
