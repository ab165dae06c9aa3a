"""The scores that xares left in a folder, as a table of models and tasks."""

import itertools
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from audio_mamba.external_sources import task_files
from audio_mamba.system.atomic_files import atomic_write

SCORES = ("MLP", "kNN")
TABLE = "xares.csv"
AVERAGE = "weighted average"

log = logging.getLogger("evaluate_xares")


def read_score(path: Path) -> tuple[float, int] | None:
    """Score and weight of a task in a file of xares; None if it was not written to its end."""
    try:
        score, weight = path.read_text().split()
        return float(score), int(weight)
    except ValueError:
        return None


def read_scores(output_dir: Path) -> pd.DataFrame:
    """All scores below OUTPUT_DIR, with columns model, kind (MLP or kNN), task, score (0 to 1) and weight."""
    rows = []
    for kind in SCORES:
        for path in sorted(output_dir.glob(f"*/checkpoints/*Encoder/{kind.lower()}_score.txt")):
            if found := read_score(path):
                rows.append((path.parent.name.removesuffix("Encoder"), kind, path.parents[2].name, *found))
    return pd.DataFrame(rows, columns=["model", "kind", "task", "score", "weight"])


def of_one_version(scores: pd.DataFrame, output_dir: Path) -> pd.DataFrame:
    """The scores without tasks of which models were evaluated on different versions; a warning names each."""
    for task, of_task in scores.groupby("task"):
        weights = of_task.drop_duplicates("model").set_index("model").weight
        if why := _why_mixed({output_dir / task / f"checkpoints/{model}Encoder": n for model, n in weights.items()}):
            log.warning("%s is left out of the table: %s; evaluate it with REDO=1 on one version", task, why)
            scores = scores[scores.task != task]
    return scores


def _why_mixed(weights: Mapping[Path, int]) -> str | None:
    """Why scores of a task cannot stand side by side, in words; None if they can.

    Args:
        weights: of the task, by folder of results. Those of earlier versions of this project lack a note of its files.
    """
    try:
        noted = {folder: task_files.read_note(folder) for folder in weights}
    except task_files.TaskError as error:
        return str(error)
    for one, other in itertools.combinations(weights, 2):
        files, others = noted[one], noted[other]
        name = task_files.differing_file(files, others) if files and others else None
        if name or weights[one] != weights[other]:
            what = f"{name} differs" if name else f"it has {weights[one]} and {weights[other]} test clips"
            return f"{one} and {other} are of different versions of it, {what}"
    return None


def write_table(output_dir: Path) -> str | None:
    """Write all scores below OUTPUT_DIR to `xares.csv` there, of tasks in one version (see `of_one_version`).

    Returns:
        A markdown table in percent, or None if there is nothing to show. Its last column weights each task by its
        number of test clips, as xares does; a model that lacks a task has no such average.
    """
    scores = read_scores(output_dir)
    if scores.empty:
        return None
    scores = of_one_version(scores, output_dir)
    with atomic_write(output_dir / TABLE) as file:
        file.write(scores.to_csv(index=False).encode())
    if scores.empty:
        return None
    lines = []
    tasks = sorted(scores.task.unique())
    for kind, of_kind in scores.groupby("kind", sort=False):
        means, weights = of_kind.pivot(index="model", columns="task", values="score"), of_kind.groupby("task").weight
        weight = weights.first().reindex(means.columns)
        average = (means * weight).sum(axis="columns", skipna=False) / weight.sum()
        for model, row in means.iterrows():
            cells = [_percent(row.get(task, math.nan)) for task in tasks]
            lines.append(f"| {model} | {kind} | " + " | ".join([*cells, _percent(average[model])]) + " |")
    header = f"| model | score | {' | '.join(tasks)} | {AVERAGE} |"
    return "\n".join([header, "|---" * (len(tasks) + 3) + "|", *lines]) + "\n"


def _percent(score: float) -> str:
    return "-" if math.isnan(score) else f"{100 * score:.1f}"
