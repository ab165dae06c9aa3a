"""The scores that xares left in a folder, as a table of models and tasks."""

import math
from pathlib import Path

import pandas as pd

from audio_mamba.system.atomic_files import atomic_write

SCORES = ("MLP", "kNN")
TABLE = "xares.csv"
AVERAGE = "weighted average"


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


def write_table(output_dir: Path) -> str | None:
    """Write all scores below OUTPUT_DIR to `xares.csv` there.

    Returns:
        A markdown table in percent, or None without any score. Its last column weights each task by its number of test
        clips, as xares does; a model that lacks a task has no such average.
    """
    scores = read_scores(output_dir)
    if scores.empty:
        return None
    with atomic_write(output_dir / TABLE) as file:
        file.write(scores.to_csv(index=False).encode())
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
