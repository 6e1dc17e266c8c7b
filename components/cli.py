"""The command line of every step: `python -m components.<step> --params params.yaml --<input> PATH --<output> PATH ...`.

Engines call it as people do. Kubeflow adds `--executor-input`, from which it learns metrics and digests of the outputs.

Exit status: 0 done; 1 the input is at fault; 2 the call or the parameters are at fault; 130 interrupted; 143 told to stop
(SIGTERM), which an engine should retry: the same command goes on. Heavy imports wait until the arguments and the parameters
have been checked.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components import kubeflow
from components.contracts import InputError, atomic
from components.params import ParameterError, Section, load
from components.redaction import quietly, redacted

log = logging.getLogger("polyphony")


@dataclass(frozen=True)
class Step:
    """A step's declaration: `components.<name>.step.run` is called with what is declared here, by keyword.

    Attributes:
        sections: sections of the parameters that `run` takes, each under its own name.
        inputs: artifacts that it reads, name -> meaning; each becomes `--name PATH` and a `Path`.
        optional: inputs that may be left out; `run` then gets None, or what `defaults` says.
        settled: sections in which something depends on the machine, name -> function that settles it; `run` gets, and the
            lineage records, what it returns.
        defaults: where an optional input comes from when left out, name -> function of the sections.
        outputs: artifacts that it writes, likewise; `run` writes each through `contracts.atomic`.
        collections: inputs given as `--name KEY=PATH`, any number of times; `run` gets a dict of `Path`.
        folders: collections that also take `--name FOLDER`, for FOLDER/KEY of all keys that a parameter lists: name -> that
            parameter, as `section.parameter`.
        choices: words to choose from, name -> choices; each becomes `--name WORD` and a `str`.
        counts: whole numbers that an engine sets where it divides the work, name -> default; each becomes an optional
            `--name N` and an `int`.
        pages: what a person reads of the outputs, as one HTML or Markdown file each, name -> function of the outputs that
            returns its text; each becomes an optional `--name PATH`.
    """

    name: str
    about: str
    sections: tuple[str, ...]
    outputs: Mapping[str, str]
    inputs: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    settled: Mapping[str, Callable[[Any], Section]] = field(default_factory=dict)
    defaults: Mapping[str, Callable[[Mapping[str, Section]], Path]] = field(default_factory=dict)
    collections: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    pages: Mapping[str, Callable[[Mapping[str, Path]], str]] = field(default_factory=dict)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs the step from a command line; returns the exit status."""
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        log.setLevel(logging.INFO)
        quietly()
        # What libraries will change in their next version is no news to who runs a step.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate)\.")
        arguments = sys.argv[1:] if argv is None else argv
        try:
            return self._call(self.parser().parse_args(kubeflow.expand(arguments)))
        except ParameterError as error:
            print(redacted(f"{self.name}: {error}"), file=sys.stderr)
            return 2
        except InputError as error:
            print(redacted(f"{self.name}: {error}"), file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"{self.name}: interrupted; the same command continues.", file=sys.stderr)
            return 130
        except Exception as error:
            if not _disk_full(error):
                raise
            print(f"{self.name}: no space left on the device ({error}). Free some and run again.", file=sys.stderr)
            return 1

    def parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"python -m components.{self.name}", description=self.about, allow_abbrev=False)
        parser.add_argument(
            "--params", required=True, metavar="PATH", help="the parameter file, params.yaml, or its content as a JSON object"
        )
        for name, words in self.choices.items():
            parser.add_argument(_flag(name), choices=words, required=True)
        for name, count in self.counts.items():
            parser.add_argument(_flag(name), type=int, default=count, metavar="N", help=f"default: {count}")
        for name, meaning in self.inputs.items():
            parser.add_argument(_flag(name), type=Path, required=True, metavar="PATH", help=f"input: {meaning}")
        for name, meaning in self.optional.items():
            parser.add_argument(_flag(name), type=Path, metavar="PATH", help=f"input: {meaning}")
        for name, meaning in self.collections.items():
            parser.add_argument(
                _flag(name),
                type=_folder_or_key_and_path if name in self.folders else _key_and_path,
                action="append",
                default=[],
                metavar="KEY=PATH",
                help=f"input: {meaning}",
            )
        for name, meaning in self.outputs.items():
            parser.add_argument(_flag(name), type=Path, required=True, metavar="PATH", help=f"output: {meaning}")
        parser.add_argument("--metrics", type=Path, metavar="PATH", help="output: the step's metrics as JSON")
        for name in self.pages:
            parser.add_argument(_flag(name), type=Path, metavar="PATH", help="output: a page to read in a UI")
        parser.add_argument("--executor-input", metavar="JSON", help="given by Kubeflow: where to tell it metrics and digests")
        return parser

    def _call(self, arguments: argparse.Namespace) -> int:
        given = vars(arguments)
        sections = load(arguments.params)
        if missing := [name for name in self.sections if name not in sections]:
            raise ParameterError(f"--params: section(s) missing: {', '.join(missing)}.")
        parameters: dict[str, Section] = {name: sections[name] for name in self.sections}
        words: dict[str, str] = {name: given[name] for name in self.choices}
        numbers: dict[str, int] = {name: given[name] for name in self.counts}
        inputs: dict[str, Path | None] = {name: given[name] for name in (*self.inputs, *self.optional)}
        inputs |= {name: default(parameters) for name, default in self.defaults.items() if inputs[name] is None}
        collections: dict[str, dict[str, Path]] = {
            name: dict(self._members(name, given[name], sections)) for name in self.collections
        }
        outputs: dict[str, Path] = {name: given[name] for name in self.outputs}
        read = {name: path for name, path in inputs.items() if path is not None}
        read |= {key: path for collection in collections.values() for key, path in collection.items()}
        for name, path in read.items():
            if not path.exists():
                raise InputError(f"{path}: no such file or folder, given as {name}. Run the step that writes it.")

        from components import lineage

        started = time.monotonic()
        label = "-".join([self.name, *words.values()])
        as_given = {name: section.model_dump(mode="json", exclude_unset=True) for name, section in parameters.items()}
        parameters |= {name: settle(parameters[name]) for name, settle in self.settled.items()}
        recorded = {name: section.model_dump() for name, section in parameters.items()}
        with lineage.step_run(label, recorded, read, as_given) as run:
            step = importlib.import_module(f"components.{self.name}.step")
            metrics: dict[str, Any] = step.run(**parameters, **words, **numbers, **inputs, **collections, **outputs)
            stored = kubeflow.addresses(arguments.executor_input) if arguments.executor_input else {}
            digests = run.finish(outputs, metrics, stored)
        pages = {given[name]: page(outputs) for name, page in self.pages.items() if given[name]}
        if arguments.metrics:
            pages[arguments.metrics] = json.dumps(metrics, indent=2, sort_keys=True) + "\n"
        for path, text in pages.items():
            with atomic(path) as partial:
                partial.write_text(text, encoding="utf-8")
        if arguments.executor_input:
            kubeflow.report(arguments.executor_input, lineage.scalars(metrics), digests)
        log.info("%s: done in %.1f s", label, time.monotonic() - started)
        return 0

    def _members(
        self, collection: str, entries: Sequence[tuple[str, Path]], sections: Mapping[str, Section]
    ) -> Iterator[tuple[str, Path]]:
        """A collection's keys and paths, with folders opened.

        Raises:
            ParameterError: if a key is there twice: the second must not silently take the place of the first.
        """
        seen: set[str] = set()
        for key, path in self._opened(collection, entries, sections):
            if key in seen:
                raise ParameterError(f"{_flag(collection)} {key}=...: given twice. Give each its own name.")
            seen.add(key)
            yield key, path

    def _opened(
        self, collection: str, entries: Sequence[tuple[str, Path]], sections: Mapping[str, Section]
    ) -> Iterator[tuple[str, Path]]:
        for key, path in entries:
            if key:
                yield key, path
                continue
            section, _, parameter = self.folders[collection].partition(".")
            if section not in sections:
                raise ParameterError(f"--params: section(s) missing: {section}.")
            yield from ((name, path / name) for name in getattr(sections[section], parameter))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _key_and_path(text: str) -> tuple[str, Path]:
    key, separator, path = text.partition("=")
    if not (key and separator and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=PATH")
    return key, Path(path)


def _folder_or_key_and_path(text: str) -> tuple[str, Path]:
    """A folder has no key."""
    return _key_and_path(text) if "=" in text else ("", Path(text))


def _disk_full(error: BaseException | None) -> bool:
    """Whether the disk is full, as the libraries in use say it: not all of them raise OSError(ENOSPC)."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or any(
            words in str(error) for words in ("No space left on device", "database or disk is full")
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
