"""One of many processes of a training, as `train_by_many` starts them through Accelerate."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path

# In the work folder: what is to be done, the message of an error that is the input's, and the examples for all to read.
JOB, ERROR, EXAMPLES = "job.json", "error.txt", "examples.arrow"
# Begins a line that holds measurements, as in JSON text sequences (RFC 7464).
RECORD = "\x1e"


def main(file: Path) -> None:
    """Does what the job in `file` says, together with the other processes; the first one reports and writes."""
    job = json.loads(file.read_text(encoding="utf-8"))
    if job["watched"]:
        threading.Thread(target=_end_with_the_starter, daemon=True).start()
    first = os.environ["RANK"] == "0"
    if not first:
        # Read when tqdm is imported.
        os.environ["TQDM_DISABLE"] = "1"
    logging.basicConfig(level=logging.WARNING if first else logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("polyphony").setLevel(logging.INFO if first else logging.ERROR)

    import torch
    from accelerate import PartialState

    from components import lineage
    from components.contracts import InputError, atomic
    from components.models.params import Params as Models
    from components.train.language import train_language
    from components.train.params import Params

    # Meets the others, and chooses the GPU.
    PartialState(cpu=not torch.cuda.is_available())
    if first:
        lineage.relay(lambda **entry: print(RECORD + json.dumps(entry), flush=True))
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    train, models = Params.model_validate(job["train"]), Models.model_validate(job["models"])
    try:
        train_language(job["objective"], train, models, inputs, Path(job["folder"]), Path(job["work"]))
    except InputError as error:
        with atomic(file.with_name(ERROR)) as partial:
            partial.write_text(str(error), encoding="utf-8")
        sys.exit(1)
    torch.distributed.destroy_process_group()


def _end_with_the_starter() -> None:
    """A process left alone would go on in a folder in which the next training begins."""
    # Not through sys.stdin, whose lock would be in the way when this process ends by itself.
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
