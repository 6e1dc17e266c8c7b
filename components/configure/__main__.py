"""Command line of the configure task, the first of a run on Kubeflow: wrong parameters end it within seconds."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from components import kubeflow
from components.configure.fan import compared, shards
from components.configure.merge import TASKS, merge, part
from components.configure.preflight import preflight, processes
from components.configure.source import identity
from components.contracts import InputError, atomic
from components.params import ParameterError
from components.redaction import quietly, redacted


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the task from a command line; returns the exit status, as that of a step."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    quietly()
    arguments = vars(parser().parse_args(argv))
    try:
        document = merge(arguments["set"], arguments["overrides"], processes(arguments["gpus"]))
        loops = {
            "compared": compared(arguments["compare"], arguments["candidate"], document),
            "shards": shards(arguments["embed_shards"]),
        }
        # As text: the backend takes no number for a limit.
        limit = {"gpu_limit": str(arguments["gpus"])}
        source = identity(document["ingest"]["source"])
        preflight(document)
    except ParameterError as error:
        print(redacted(f"configure: {error}"), file=sys.stderr)
        return 2
    except InputError as error:
        print(redacted(f"configure: {error}"), file=sys.stderr)
        return 1
    texts = {arguments[task]: part(document, of) for task, of in TASKS.items()}
    texts |= {arguments[name]: text for name, text in (loops | limit | {"source": source}).items()}
    if arguments["configuration"]:
        page = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        texts[arguments["configuration"]] = f"All parameters of this run:\n\n```yaml\n{page}```\n"
    for path, text in texts.items():
        with atomic(path) as partial:
            partial.write_text(text, encoding="utf-8")
    if arguments["executor_input"]:
        kubeflow.report(arguments["executor_input"], {}, {})
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m components.configure",
        description="Merges and checks the parameters of a run, and gives each task its own part of them.",
        allow_abbrev=False,
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.PARAMETER=VALUE", help="one parameter")
    parser.add_argument("--overrides", default="", metavar="YAML", help="more parameters, none that --set changes")
    for task in TASKS:
        parser.add_argument(f"--{task}", type=Path, required=True, metavar="PATH", help=f"output: parameters of {task}")
    parser.add_argument("--source", type=Path, required=True, metavar="PATH", help="output: what the source is now")
    parser.add_argument("--compare", default='["dpo", "ddpo"]', metavar="JSON", help="the objectives to train")
    parser.add_argument("--candidate", default="ddpo", metavar="OBJECTIVE", help="that whose model is registered")
    parser.add_argument("--embed-shards", type=int, default=1, metavar="N", help="tasks that share the embedding")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs of a node that SFT and preference training get")
    parser.add_argument("--gpu-limit", type=Path, required=True, metavar="PATH", help="output: the same, for their tasks")
    for name, meaning in (("compared", "the objectives"), ("shards", "the numbers of the shards")):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="PATH", help=f"output: {meaning}, for the loops")
    parser.add_argument("--configuration", type=Path, metavar="PATH", help="output: all parameters, as a page to read")
    parser.add_argument("--executor-input", metavar="JSON", help="given by Kubeflow")
    return parser


if __name__ == "__main__":
    sys.exit(main())
