"""What must hold of scores before they stand in one table."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audio_mamba.external_sources import layout, task_files
from audio_mamba.external_sources.origin import HEAD_SETTINGS, stale_heads

log = logging.getLogger("stats_aggregation")


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


def check_seeds(runs: Sequence[Path]) -> None:
    """Refuse two folders of one model, task and seed, such as `x_r1_0` and `x_r1_00`. ValueError names both."""
    first: dict[tuple[layout.Run | None, str], Path] = {}
    for run in runs:
        if (other := first.setdefault((layout.parse_run_name(run.parent.name), run.name), run)) != run:
            raise ValueError(f"--base-dir: {other} and {run} have the same seed; remove one of them")


def check_versions(runs: Sequence[Path]) -> None:
    """Refuse scores of one task whose embeddings were made from different versions of it.

    Versions differ if metadata, vocabulary or labels do, or audio of one rate; models may read different rates.

    Args:
        runs: folders of tasks with scores. Those without a note of their files (published scripts) are accepted.

    Raises:
        ValueError: names the first two such runs and the file that differs.
    """
    first: dict[str, tuple[Path, task_files.TaskFiles]] = {}  # a run and its files, by task
    for run in {(run / task_files.NOTE).resolve(): run for run in runs}.values():  # once for all seeds
        if (noted := task_files.read_note(run)) is None:
            continue
        other, files_of_other = first.setdefault(run.name, (run, noted))
        if name := task_files.differing_file(noted, files_of_other):
            raise ValueError(
                f"TASKS_DIR: {other} and {run} are of different versions of the task, {name} differs; run "
                "extract_features.sh and downstream_experiments.sh with REDO=1 on one version"
            )


def check_grids(runs: Sequence[Path]) -> None:
    """Refuse seeds of one model and task that were trained with different grids, since their mean says nothing. A
    warning names the tasks on which models have different grids.

    Args:
        runs: folders of tasks with scores. Those of the published scripts, which note no grid, are accepted.

    Raises:
        ValueError: names the first two such runs.
    """
    first: dict[str, dict[str, tuple[Path, Any]]] = {}  # a run and its grid, by task and model
    for run in runs:
        if not (run / HEAD_SETTINGS).is_file():
            continue
        grid = task_files.read_json(run / HEAD_SETTINGS, dict).get("grid")
        model = run.parent.name.rpartition("_")[0]
        other, grid_of_other = first.setdefault(run.name, {}).setdefault(model, (run, grid))
        if grid != grid_of_other:
            raise ValueError(
                f"GRID: {other} and {run} were trained with different grids (see {HEAD_SETTINGS} there); remove the "
                "downstream folders of one grid"
            )
    for task, models in first.items():
        grids = [grid for _, grid in models.values()]
        if any(grid != grids[0] for grid in grids):
            log.warning("%s: the heads of %s were chosen from different grids", task, ", ".join(models))
