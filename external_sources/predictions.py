"""Train and test the downstream head of one task with one seed, in this process, by the kit's own runner.

Importing this module imports the kit and fits it to today's libraries, which takes seconds; the processes of
`external_sources.downstream` are forked from one that has done so.
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
    """Leave test.predicted-scores.json and, last, prediction-done.json in the folder of a task's embeddings.

    What an interrupted run left there is removed first. Call it once in a process: the seed and the grid are set
    inside the kit.

    Args:
        task: absolute path, because the kit puts its own logs below the folder that it is given then.
        seed: in place of the kit's fixed 42.
        grid: of `external_sources.grid.parse_grid`.
        gpu: index of the GPU to use, or None for the CPU.
    """
    remove_unfinished(task)
    seed_everything = task_predictions.seed_everything
    task_predictions.seed_everything = lambda kits_seed, workers: seed_everything(seed, workers=workers)
    task_predictions.NUM_WORKERS = 0  # the kit would start one loader per core, anew each epoch
    options = ["--gpus", json.dumps(None if gpu is None else [gpu])]
    if isinstance(grid, dict):
        task_predictions.PARAM_GRID = torch_objects(grid)
        options += ["--grid", "default", "--grid-points", str(number_of_points(grid))]
    else:
        options += ["--grid", grid]
    with torch.serialization.safe_globals(_grid_objects()):
        runner([*options, str(task)], standalone_mode=False)
    for checkpoints in task.glob("lightning_logs/*/checkpoints"):
        shutil.rmtree(checkpoints)  # 12 MB and more for each of the heads; their test predictions are kept


def remove_unfinished(task: Path) -> None:
    """Remove everything that a downstream run writes into the folder of a task."""
    shutil.rmtree(task / "lightning_logs", ignore_errors=True)
    for file in (layout.DONE_PREDICTIONS, layout.SCORES, "prediction.log"):
        (task / file).unlink(missing_ok=True)
    for file in task.glob("*.predictions.pkl"):
        file.unlink()


def _grid_objects() -> list:
    """Classes and functions of the grids in the kit's checkpoints, which torch would not unpickle unless told to."""
    grids = (task_predictions.PARAM_GRID, task_predictions.FAST_PARAM_GRID, task_predictions.FASTER_PARAM_GRID)
    return [value for grid in grids for values in grid.values() for value in values if callable(value)]
