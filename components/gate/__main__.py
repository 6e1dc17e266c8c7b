"""Command line of the gate: fails the run where the validation failed, whose report is kept, before anything asks for a GPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from components.contracts import InputError, require_passed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the gate from a command line; returns the exit status: 0 where the data passed, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m components.gate", description="Fails where a validation failed.")
    parser.add_argument("--validation", type=Path, required=True, metavar="PATH", help="input: what validate wrote")
    try:
        require_passed(parser.parse_args(argv).validation)
    except InputError as error:
        print(f"gate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
