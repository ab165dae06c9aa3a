"""Train and test the downstream head of one task with one seed, in this process, with the kit's own runner.

Importing this module imports and patches the kit, which takes seconds; the processes of `external_sources.downstream`
are forked from one that has already done so.
"""

import json
import shutil
from pathlib import Path

import torch

from audio_mamba.external_sources import layout
from audio_mamba.external_sources.compat import patch_device_name, patch_predictions, stand_ins
from audio_mamba.external_sources.grid import number_of_points, torch_objects

with stand_ins():
    from heareval.predictions import task_predictions
    from heareval.predictions.runner import runner

patch_predictions()
patch_device_name()


def predict(task: Path, seed: int, grid: str | dict[str, list], gpu: int | None = None) -> None:
    """Write test.predicted-scores.json and, last, prediction-done.json to the folder of a task's embeddings.

    The files of an interrupted run are removed first. Call this once per process, since seed and grid are set inside
    the kit.

    Args:
        task: absolute path, since only then does the kit write its logs below that folder.
        seed: in place of the kit's fixed 42.
        grid: of `external_sources.grid.parse_grid`.
        gpu: index of the GPU to use, or None for the CPU.
    """
    remove_unfinished(task)
    seed_everything = task_predictions.seed_everything
    task_predictions.seed_everything = lambda kits_seed, workers: seed_everything(seed, workers=workers)
    task_predictions.NUM_WORKERS = 0  # the kit would start one loader process per core in every epoch
    options = ["--gpus", json.dumps(None if gpu is None else [gpu])]
    if isinstance(grid, dict):
        task_predictions.PARAM_GRID = torch_objects(grid)
        options += ["--grid", "default", "--grid-points", str(number_of_points(grid))]
    else:
        options += ["--grid", grid]
    with torch.serialization.safe_globals(_grid_objects()):
        runner([*options, str(task)], standalone_mode=False)
    for checkpoints in task.glob("lightning_logs/*/checkpoints"):
        shutil.rmtree(checkpoints)  # 12 MB or more per head; the test predictions are kept


def remove_unfinished(task: Path) -> None:
    """Remove everything that a downstream run writes to the folder of a task."""
    shutil.rmtree(task / "lightning_logs", ignore_errors=True)
    for name in (layout.DONE_PREDICTIONS, layout.SCORES, "prediction.log"):
        (task / name).unlink(missing_ok=True)
    for file in task.glob("*.predictions.pkl"):
        file.unlink()


def _grid_objects() -> list:
    """The classes and functions of the grids, which torch must be allowed to unpickle from the kit's checkpoints."""
    grids = (task_predictions.PARAM_GRID, task_predictions.FAST_PARAM_GRID, task_predictions.FASTER_PARAM_GRID)
    return [value for grid in grids for values in grid.values() for value in values if callable(value)]
