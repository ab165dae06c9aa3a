"""Scores against the crops that a checkpoint has seen in pretraining."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from audio_mamba.hear_api.probe.classify import central_interval
from audio_mamba.hear_api.probe.features import Model
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.training.checkpoint import load_checkpoint
from experiments.judge.scores import Judged

NAME = "curve.csv"


def crops_seen(model: Model) -> int | None:
    """How many crops a model has seen: 0 for random weights; None for log-mels, saved models and checkpoints that do
    not say. CheckpointError for a damaged checkpoint."""
    if model.source is None:
        return None
    if model.source.weights is None:
        return 0
    if model.source.weights.suffix != ".pth":
        return None
    state = load_checkpoint(model.source.weights)
    steps, samples = state.get("global_step"), state.get("samples_per_step")
    return steps * samples if isinstance(steps, int) and isinstance(samples, int) else None


def rows(judged: Sequence[Judged], crops: Mapping[str, int | None]) -> list[dict[str, str]]:
    """A row for each model whose crops are known, and each of its features, by crops: validation and test accuracy, as
    means over tasks with 95% intervals over clips, and the validation accuracy of each task."""
    found = []
    for row, (model, layer, pooling) in enumerate(judged[0].choices):
        seen = crops[model]
        if seen is None:
            continue
        cells = {"model": model, "layer": layer, "pooling": pooling, "crops": str(seen)}
        for part in ("valid", "test"):
            point = np.mean([task.accuracy[part][row] for task in judged])
            low, high = central_interval(np.mean([task.resampled[part][:, row] for task in judged], axis=0))
            cells |= {part: f"{point:.4f}", f"{part}_low": f"{low:.4f}", f"{part}_high": f"{high:.4f}"}
        cells |= {task.task.rsplit("-v", 1)[0]: f"{task.accuracy['valid'][row]:.4f}" for task in judged}
        found.append((seen, cells))
    return [cells for _, cells in sorted(found, key=lambda item: item[0])]  # equal ones stay in order


def write(folder: Path, judged: Sequence[Judged], crops: Mapping[str, int | None]) -> None:
    """Write curve.csv, whole or not at all; nothing if no checkpoint says what it has seen."""
    if not any(crops.values()):
        return
    found = rows(judged, crops)
    text = io.StringIO()
    table = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    with atomic_write(folder / NAME) as file:
        file.write(text.getvalue().encode())


def table(judged: Sequence[Judged], crops: Mapping[str, int | None]) -> str:
    """The same as Markdown, in percent, without the tasks; empty if no checkpoint says what it has seen."""
    if not any(crops.values()):
        return ""
    lines = ["", "| crops seen | model | layer | pooling | validation | test |", "|---" * 6 + "|"]
    for row in rows(judged, crops):
        accuracies = []
        for part in ("valid", "test"):
            value, low, high = (100 * float(row[name]) for name in (part, f"{part}_low", f"{part}_high"))
            accuracies.append(f"{value:.1f} ({low:.1f} to {high:.1f})")
        lines.append(f"| {' | '.join([row['crops'], row['model'], row['layer'], row['pooling'], *accuracies])} |")
    return "\n".join(lines) + "\n"
