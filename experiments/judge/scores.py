"""Accuracies of embeddings on tasks, their intervals, and their means over tasks."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio_mamba.hear_api.probe.classify import LOGISTIC_REGRESSION, bootstrap, central_interval, classify, metric
from audio_mamba.hear_api.probe.clips import Clips
from audio_mamba.system.atomic_files import atomic_write

Choice = tuple[str, str, str]  # model, layer, pooling


@dataclass(frozen=True)
class Judged:
    """What the embeddings of one task gave.

    Attributes:
        choices: the rows.
        widths: of the embeddings, by row.
        accuracy: by part ("valid", "test"), float64 [rows].
        resampled: likewise for the same resamples of the clips, float64 [resamples, rows].
    """

    task: str
    choices: list[Choice]
    widths: list[int]
    accuracy: dict[str, np.ndarray]
    resampled: dict[str, np.ndarray]


@dataclass(frozen=True)
class Scored:
    """What logistic regression made of one kind of embeddings of a task: float64 [n, classes] of each clip when it was
    validated and when it was tested (NaN for clips that never were), and the width of the embeddings."""

    width: int
    valid: np.ndarray
    test: np.ndarray


def score(clips: Clips, embeddings: np.ndarray) -> Scored:
    """Logistic regression on the embeddings [n, width] of a task, C chosen on the validation clips.

    The validation scores are those of the chosen C after training on the training clips alone, so their accuracy is
    higher than it would be without the choice, for all embeddings alike.
    """
    (result,) = classify(embeddings, clips.targets(), clips.rounds(), clips.multi_label, (LOGISTIC_REGRESSION,))
    return Scored(embeddings.shape[1], result.valid_scores, result.scores)


def compare(task: str, clips: Clips, choices: Mapping[Choice, Scored]) -> Judged:
    """Accuracies of a task by row, on the same resamples of its clips."""
    targets, accuracy, resampled = clips.targets(), {}, {}
    for part, scores in (
        ("valid", [scored.valid for scored in choices.values()]),
        ("test", [scored.test for scored in choices.values()]),
    ):
        seen = ~np.isnan(scores[0][:, 0])
        rows = [row[seen] for row in scores]
        accuracy[part] = np.array([metric(row, targets[seen], clips.multi_label) for row in rows])
        resampled[part] = bootstrap(rows, targets[seen], clips.multi_label)
    return Judged(task, list(choices), [scored.width for scored in choices.values()], accuracy, resampled)


def write(folder: Path, judged: Sequence[Judged]) -> None:
    """Write tasks.csv (a line for each task and row) and summary.md, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(
        [
            "task",
            "model",
            "layer",
            "pooling",
            "width",
            *("valid", "valid_low", "valid_high"),
            "test",
            "test_low",
            "test_high",
        ]
    )
    for task in judged:
        for row, choice in enumerate(task.choices):
            cells = []
            for part in ("valid", "test"):
                cells += [task.accuracy[part][row], *central_interval(task.resampled[part][:, row])]
            table.writerow([task.task, *choice, task.widths[row], *(f"{cell:.4f}" for cell in cells)])
    for name, text in (("tasks.csv", lines.getvalue()), ("summary.md", summary(judged))):
        with atomic_write(folder / name) as file:
            file.write(text.encode())


def summary(judged: Sequence[Judged]) -> str:
    """A table of the means over tasks, in percent, with 95% bootstrap intervals over clips and paired differences."""
    lines = [
        "| model | layer | pooling | width | validation | test | validation, to the first | test, to the first |",
        "|---" * 8 + "|",
    ]
    first = judged[0]
    for row, choice in enumerate(first.choices):
        means, differences = [], []
        for part in ("valid", "test"):
            point = np.array([task.accuracy[part] for task in judged]).mean(axis=0)
            values = np.array([task.resampled[part] for task in judged]).mean(axis=0)
            means.append(_cell(point[row], *central_interval(values[:, row])))
            differences.append(_cell(point[row] - point[0], *central_interval(values[:, row] - values[:, 0]), "+"))
        if row == 0:
            differences = ["", ""]
        lines.append(f"| {' | '.join(map(str, [*choice, first.widths[row], *means, *differences]))} |")
    tasks = ", ".join(task.task.rsplit("-v", 1)[0] for task in judged)
    return "\n".join([*lines, "", f"Mean of {len(judged)} tasks: {tasks}."]) + "\n"


def _cell(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
