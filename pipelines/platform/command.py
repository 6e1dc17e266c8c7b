"""`polyphony platform`: an MLflow server of the team's own, started, looked at and stopped."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Adds `platform` and what belongs under it to a command line."""
    platform = commands.add_parser("platform", help="an MLflow server on PostgreSQL, for a team that has none")
    actions = platform.add_subparsers(dest="action", required=True, metavar="ACTION")
    start = actions.add_parser("start", help="start what does not run yet, and say where everything is")
    start.add_argument("--port", type=int, default=0, metavar="N", help="of MLflow; default: 5000, or that of the last start")
    start.add_argument(
        "--artifacts",
        metavar="s3://BUCKET/PREFIX",
        help="keep artifacts there (credentials and MLFLOW_S3_ENDPOINT_URL from the environment); default: in the folder; "
        "'trial': in a stand-in for S3 that forgets them when it stops",
    )
    status = actions.add_parser("status", help="say what runs; status 1 where something does not")
    stop = actions.add_parser("stop", help="stop all of it; the data stays")
    for parser, does in ((start, _start), (status, _status), (stop, _stop)):
        parser.set_defaults(main=does)
        parser.add_argument(
            "--folder", type=Path, default=_home(), metavar="DIR", help="data, passwords and logs; default: %(default)s"
        )


def _home() -> Path:
    """Away from any checkout, whose cleaning it must outlive."""
    if os.geteuid() == 0:
        return Path("/var/lib/polyphony")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "polyphony"


def _start(arguments: argparse.Namespace) -> int:
    from pipelines.platform import accounts, services

    folder: Path = arguments.folder.resolve()
    port = arguments.port or (0 if services.started_before(folder) else 5000)
    print(f"starting PostgreSQL and MLflow in {folder}; this takes half a minute", flush=True)
    running = services.start(folder, port=port, artifacts=arguments.artifacts, with_accounts=True)
    lines = {
        "MLflow": f"{running.uri} (on this machine alone; put a proxy with TLS before it for others)",
        "PostgreSQL": f"{running.database}, in {folder / 'postgresql'}",
        "artifacts": running.artifacts + (f", at {running.s3}: LOST when it stops" if running.s3 else ""),
        "logs": str(folder / "run"),
        "to train": f"source {accounts.path(folder, accounts.TRAINER)}",
        "to promote": f"source {accounts.path(folder, accounts.PROMOTER)}",
        "to manage": f"source {accounts.path(folder, accounts.ADMIN)}",
        "to stop": "polyphony platform stop" + ("" if folder == _home().resolve() else f" --folder {folder}"),
    }
    print("\n".join(f"  {name:11} {line}" for name, line in lines.items()))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from pipelines.platform import services

    states = services.status(arguments.folder)
    for name, state in states.items():
        print(f"  {name:11} {state}")
    return 1 if "stopped" in states.values() else 0


def _stop(arguments: argparse.Namespace) -> int:
    from pipelines.platform import services

    services.stop(arguments.folder)
    print(f"stopped; the data stays in {arguments.folder.resolve()}")
    return 0
