"""Command line of the task that Kubeflow runs last, however the run went."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from components.provenance import ENGINE_RUN


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the task from a command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m components.closing", description="Closes what a run left open in MLflow.")
    parser.add_argument("--status", required=True, metavar="JSON", help="how the run ended, as Kubeflow says it")
    status = json.loads(parser.parse_args(argv).status) or {}
    state, reason = status.get("state", "unknown"), (status.get("error") or {}).get("message", "")
    print(f"The run ended: {state}. {reason}".rstrip())
    if not (run_id := os.environ.get(ENGINE_RUN)):
        print(f"{ENGINE_RUN} is not set: no run to look for in MLflow.")
        return 0
    from components.closing.close import close

    for closed in close(run_id, state, reason):
        print(f"MLflow run {closed}: not finished; tagged with the reason.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
