"""What happens inside one process of the downstream runs: one task, one seed."""

import json
import os
import sys
from pathlib import Path

from atomic_files import atomic_write
from folder_lock import FolderInUseError, sole_use
from workers import follow_parent

# In the folder of each task:
LOG = "downstream.log"
SETTINGS = "downstream-settings.json"  # the seed and grid of its results


def run(task: Path, seed: int, grid: str | dict[str, list], threads: int, gpu: int | None) -> None:
    """Train and test one head; everything printed goes to downstream.log in the folder of the task.

    An exception ends the process with status 1, and its traceback is in the log. Where another process works in that
    folder, only a message says so. See `predictions.predict`.
    """
    # Ctrl-C would stop pytorch-lightning's training early, and the kit would go on with a half-trained head.
    follow_parent()
    try:
        with sole_use(task):
            _train(task, seed, grid, threads, gpu)
    except FolderInUseError as error:
        sys.exit(str(error))


def _train(task: Path, seed: int, grid: str | dict[str, list], threads: int, gpu: int | None) -> None:
    with atomic_write(task / SETTINGS) as file:
        file.write(json.dumps({"seed": seed, "grid": grid}, indent=2).encode())
    with open(task / LOG, "w") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    os.environ["TQDM_DISABLE"] = "1"            # bars of the kit would fill the log

    import torch

    from external_sources.predictions import predict

    torch.set_num_threads(threads)
    predict(task, seed, grid, gpu)
