"""What must hold of scores before they stand in one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audio_mamba.external_sources import layout, task_files
from audio_mamba.external_sources.origin import HEAD_SETTINGS, stale_heads


def check_fresh(runs: Sequence[Path]) -> None:
    """Refuse results whose embeddings are incomplete or have been replaced since, or whose task has changed.

    Args:
        runs: folders of tasks with scores.

    Raises:
        ValueError: names the first such run. Tasks that are no longer where they were embedded are not compared.
    """
    if folder := layout.incomplete_embeddings(runs):
        raise ValueError(f"--base-dir: {folder} is incomplete; run extract_features.sh again")
    for run in runs:
        if why := stale_heads(run):
            raise ValueError(f"{why}; REDO=1 ./downstream_experiments.sh trains it again")
    for run in {(run / task_files.NOTE).resolve(): run for run in runs}.values():  # once for all seeds
        if why := task_files.why_stale(run):
            raise ValueError(
                f"TASKS_DIR: {why} since {run} was embedded; run extract_features.sh and downstream_experiments.sh "
                "with REDO=1"
            )


def check_grids(runs: Sequence[Path]) -> None:
    """Refuse seeds of one model and task that were trained with different grids, since their mean says nothing.

    Args:
        runs: folders of tasks with scores. Those of the published scripts, which note no grid, are accepted.

    Raises:
        ValueError: names the first two such runs.
    """
    first: dict[tuple[str, str], tuple[Path, Any]] = {}  # a run and its grid, by model and task
    for run in runs:
        if not (run / HEAD_SETTINGS).is_file():
            continue
        grid = task_files.read_json(run / HEAD_SETTINGS, dict).get("grid")
        model = run.parent.name.rpartition("_")[0]
        other, grid_of_other = first.setdefault((model, run.name), (run, grid))
        if grid != grid_of_other:
            raise ValueError(
                f"GRID: {other} and {run} were trained with different grids (see {HEAD_SETTINGS} there); remove the "
                "downstream folders of one grid"
            )
