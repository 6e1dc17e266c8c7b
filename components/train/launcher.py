"""Accelerate's launcher, which ends a training by many processes with one line where it would print its own traceback."""

from __future__ import annotations

import logging
import signal
import sys

from components.train.checkpoints import STOPPED


def main() -> int:
    from accelerate.commands.launch import main as launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What it has to say of a failure is said below, or by the process that failed.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch()
    except SignalException:
        return STOPPED
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            hint = "; the kernel does that where memory runs out" if name == "SIGKILL" else ""
            print(f"process {rank} of the training was ended by {name}{hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
