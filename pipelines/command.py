"""`polyphony pipeline ...`: the pipeline on Kubeflow, compiled, run here, and sent to a cluster."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.api import Api


def add_to(commands: Any) -> None:
    """Adds `pipeline` and what belongs under it to a command line."""
    pipeline = commands.add_parser("pipeline", help="the same graph on Kubeflow: compile, run, submit, schedule, versions")
    actions = pipeline.add_subparsers(dest="action", required=True, metavar="ACTION")

    compiled = actions.add_parser("compile", help="write the package that Kubeflow takes, after checking it")
    compiled.set_defaults(main=_compile)
    _cluster(compiled)
    compiled.add_argument("--output", type=Path, metavar="FILE", help="default: the project's own pipelines/polyphony.yaml")
    compiled.add_argument("--release", action="store_true", help="insist on images by digest")

    run = actions.add_parser("run", help="run the graph on this machine, as processes or in containers")
    run.set_defaults(main=_run)
    run.add_argument("--runner", choices=("subprocess", "docker"), default="subprocess")
    _inputs(run)
    run.add_argument("--root", type=Path, default=Path("artifacts/runs"), metavar="DIR", help="where the outputs go")
    run.add_argument(
        "--mount", action="append", default=[], type=Path, metavar="DIR",
        help="docker: a folder of stories or models outside this one, which containers may read too",
    )  # fmt: skip

    submit = actions.add_parser("submit", help="upload a version named by commit, start a run and follow it to its end")
    submit.set_defaults(main=_submit)
    _remote(submit)
    _inputs(submit)
    submit.add_argument("--name", metavar="TEXT", help="name of the run; default: that of the version")
    submit.add_argument("--no-wait", action="store_true", help="start the run and do not follow it")
    submit.add_argument("--poll", type=float, default=10, metavar="SECONDS", help="time between two looks")

    schedule = actions.add_parser("schedule", help="upload a version named by commit, and run it by the clock")
    schedule.set_defaults(main=_schedule)
    _remote(schedule)
    _inputs(schedule)
    schedule.add_argument(
        "--cron", required=True, metavar="WHEN", help="six fields, seconds first: '0 0 2 * * *' is 2:00 daily"
    )
    schedule.add_argument("--name", metavar="TEXT", help="name of the schedule; default: that of the version")

    versions = actions.add_parser("versions", help="list what was uploaded")
    versions.set_defaults(main=_versions)
    _cluster(versions)


def _remote(parser: argparse.ArgumentParser) -> None:
    _cluster(parser)
    parser.add_argument("--dirty", action="store_true", help="upload code that differs from its commit")
    parser.add_argument("--release", action="store_true", help="insist on images by digest")


def _cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster", default="plain", metavar="NAME", help="profile of the cluster: a file, or a name in pipelines/clusters"
    )


def _inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", action="append", default=[], metavar="NAME=VALUE", help="an input of the pipeline's form")
    parser.add_argument("--overrides", default="", metavar="YAML", help="more parameters, as text or as a file (params.yaml)")


def _compile(arguments: argparse.Namespace) -> int:
    from pipelines.package import PACKAGE, write_package

    path = arguments.output or PACKAGE
    write_package(_checked(arguments.cluster, release=arguments.release), path)
    print(path)
    return 0


def _checked(cluster: str, *, release: bool) -> str:
    """The package for a cluster, without problems."""
    from components.contracts import InputError
    from pipelines.check import problems
    from pipelines.cluster import load_cluster
    from pipelines.package import compile_package

    package = compile_package(load_cluster(cluster))
    if found := problems(package, release=release):
        raise InputError("\n  ".join([f"{len(found)} problem(s) in the package:", *found]))
    return package


def _run(arguments: argparse.Namespace) -> int:
    from pipelines.cluster import Cluster, Retries
    from pipelines.local import run

    inputs = given_inputs(arguments.input, arguments.overrides)
    # One training at a time: they would share this machine's memory.
    here = Cluster(parallel=1, retries=Retries(first_wait="1s"))
    if not run(here, inputs, arguments.runner, arguments.root, arguments.mount):
        return 1
    print(f"Outputs: {max(arguments.root.glob('polyphony-*'))}")
    return 0


def _upload(arguments: argparse.Namespace) -> tuple[Api, str, str, str]:
    """The API, the ids of pipeline and version, and the version's name."""
    from pipelines.api import Api, version_name
    from pipelines.cluster import load_cluster

    package = _checked(arguments.cluster, release=arguments.release)
    name = version_name(package, dirty=arguments.dirty)
    api = Api(load_cluster(arguments.cluster))
    return api, *api.upload(package, name), name


def _submit(arguments: argparse.Namespace) -> int:
    inputs = given_inputs(arguments.input, arguments.overrides)
    api, pipeline, version, name = _upload(arguments)
    run_id = api.start(pipeline, version, arguments.name or name, inputs)
    if arguments.no_wait:
        return 0
    try:
        return 0 if api.follow(run_id, arguments.poll) else 1
    except KeyboardInterrupt:
        print(f"Not followed any more; run {run_id} goes on.", file=sys.stderr)
        return 130


def _schedule(arguments: argparse.Namespace) -> int:
    inputs = given_inputs(arguments.input, arguments.overrides)
    api, pipeline, version, name = _upload(arguments)
    made = api.schedule(pipeline, version, arguments.name or name, arguments.cron, inputs)
    print(f"Schedule {made}: version {name}, {arguments.cron}")
    return 0


def _versions(arguments: argparse.Namespace) -> int:
    from pipelines.api import Api
    from pipelines.cluster import load_cluster

    for version in Api(load_cluster(arguments.cluster)).versions():
        print(f"{version.created_at:%Y-%m-%d %H:%M}  {version.display_name}  {version.pipeline_version_id}")
    return 0


def given_inputs(settings: list[str], overrides: str) -> dict[str, Any]:
    """The pipeline's inputs by name, as the types of its form.

    Raises:
        ParameterError: if there is no such input, its value is not of its type, or the overrides cannot be read.
    """
    from components.params import ParameterError
    from pipelines.cluster import Cluster
    from pipelines.graph import pipeline

    declared: Mapping[str, Any] = pipeline(Cluster()).component_spec.inputs if settings else {}
    types: dict[str, Callable[[str], Any]] = {"Integer": int, "Float": float, "String": str, "List": json.loads}
    inputs: dict[str, Any] = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or name not in declared:
            raise ParameterError(f"--input {setting}: expected NAME=VALUE with one of {', '.join(declared)}.")
        kind = declared[name].type
        try:
            inputs[name] = types[kind](value)
        except ValueError:
            raise ParameterError(f"--input {setting}: expected {_MEANT[kind]}.") from None
    if overrides:
        path = Path(overrides)
        try:
            inputs["overrides"] = path.read_text(encoding="utf-8") if path.suffix in (".yaml", ".yml", ".json") else overrides
        except (OSError, UnicodeDecodeError) as error:
            raise ParameterError(f"--overrides {overrides}: {error}") from None
    return inputs


_MEANT = {"Integer": "a whole number", "Float": "a number", "List": 'a JSON list, such as ["dpo", "ddpo"]'}
