"""One process of the downstream runs: one task, one seed."""

import json
import os
import sys
from pathlib import Path

from audio_mamba.external_sources import layout
from audio_mamba.external_sources.origin import HEAD_SETTINGS, read_note
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.system.folder_lock import FolderInUseError, lock_folder
from audio_mamba.system.workers import exit_with_parent

# In the folder of each task:
LOG = "downstream.log"
SETTINGS = HEAD_SETTINGS

IN_USE = 3  # exit status
PATIENCE = 2.0  # seconds to wait for another process to leave the folder


def run(task: Path, seed: int, grid: str | dict[str, list], threads: int, gpu: int | None) -> None:
    """Train and test one head, with all output in downstream.log in the folder of the task.

    An exception ends the process with status 1 and its traceback is in the log. If another process works in that
    folder, the status is IN_USE; if one has just finished the head, nothing is done. See `predictions.predict`.
    """
    # Ctrl-C would stop pytorch-lightning's training early, and the kit would continue with a half-trained head.
    exit_with_parent()
    try:
        with lock_folder(task, patience=PATIENCE):
            if not layout.is_done(task):
                _train(task, seed, grid, threads, gpu)
    except FolderInUseError:
        sys.exit(IN_USE)


def _train(task: Path, seed: int, grid: str | dict[str, list], threads: int, gpu: int | None) -> None:
    with atomic_write(task / SETTINGS) as file:
        file.write(json.dumps({"seed": seed, "grid": grid, "embeddings": read_note(task)}, indent=2).encode())
    with open(task / LOG, "w") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    os.environ["TQDM_DISABLE"] = "1"  # progress bars of the kit would fill the log

    import torch

    from audio_mamba.external_sources.predictions import predict

    torch.set_num_threads(threads)
    predict(task, seed, grid, gpu)
