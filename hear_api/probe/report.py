"""The result of a probe as tables and pictures: results.md, results.csv, per_class.csv, predictions.csv, confusion."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audio_mamba.hear_api.probe.classify import Result, bootstrap, central_interval, metric
from audio_mamba.hear_api.probe.clips import Clips
from audio_mamba.hear_api.probe.features import as_file_name
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.training.metrics import average_precisions

RESULTS, TABLE, PER_CLASS, PREDICTIONS = "results.md", "results.csv", "per_class.csv", "predictions.csv"
CONFUSION = "confusion-{}.png"
FEW = 10  # clips or groups: a bootstrap over so few is too narrow
MAX_DRAWN = 60  # classes of a confusion matrix


@dataclass(frozen=True)
class Row:
    """One line of the table: score, its interval, and the difference to the first model with the same classifier."""

    model: str
    classifier: str
    score: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


def compare(results: list[tuple[str, Result]], clips: Clips) -> list[Row]:
    """Scores over all tested clips with 95% bootstrap intervals over clips, or over the groups that they are in
    (classifiers are not trained again), paired for the differences."""
    tested = ~np.isnan(results[0][1].scores[:, 0])
    targets, multi = clips.targets()[tested], clips.multi_label
    scores = [result.scores[tested] for _, result in results]
    groups = None if clips.groups is None else np.array(clips.groups)[tested]
    values = bootstrap(scores, targets, multi, groups)
    first: dict[str, int] = {}  # of each classifier, the result that others are compared with
    rows = []
    for number, (model, result) in enumerate(results):
        reference = first.setdefault(result.classifier, number)
        points = [metric(scores[i], targets, multi) for i in (number, reference)]
        rows.append(
            Row(
                model,
                result.classifier,
                points[0],
                *central_interval(values[:, number]),
                points[0] - points[1],
                *central_interval(values[:, number] - values[:, reference]),
            )
        )
    return rows


def markdown(rows: list[Row], results: list[tuple[str, Result]], clips: Clips) -> str:
    """The table in percent."""
    name = "mAP" if clips.multi_label else "accuracy"
    lines = [f"| model | classifier | {name} | 95% interval | difference to {rows[0].model} |", "|---" * 5 + "|"]
    for row in rows:
        difference = (
            ""
            if row.model == rows[0].model
            else (f"{100 * row.difference:+.1f} ({100 * row.difference_low:+.1f} to {100 * row.difference_high:+.1f})")
        )
        lines.append(
            f"| {row.model} | {row.classifier} | {100 * row.score:.1f} | {100 * row.low:.1f} to {100 * row.high:.1f} | "
            f"{difference} |"
        )
    splits = ", ".join(f"{name} {clips.splits.count(name)}" for name in sorted(set(clips.splits)))
    lines += ["", f"{len(clips.names)} clips, {len(clips.vocabulary)} labels; clips per split: {splits}."]
    unlabelled = clips.labels.count(())
    if unlabelled:
        lines += [f"{unlabelled} clips have no label; they count as clips without any of the labels."]
    tested = np.flatnonzero(~np.isnan(results[0][1].scores[:, 0]))
    if clips.groups is None:
        drawn, count = "tested clips", len(tested)
    else:
        drawn, count = "groups of tested clips", len({clips.groups[clip] for clip in tested})
    lines += [f"Intervals: bootstrap over {count} {drawn}; differences are paired."]
    if count < FEW:
        lines += [f"With fewer than {FEW} the true intervals are wider."]
    return "\n".join(lines) + "\n"


def check_folder(folder: Path) -> None:
    """ValueError if a folder for results has a file under the name of one that no probe wrote."""
    found = [path for path in (folder / RESULTS, folder / TABLE, folder / PREDICTIONS) if path.exists()]
    found += sorted(folder.glob(CONFUSION.format("*")))
    if found and not (folder / PER_CLASS).exists():
        raise ValueError(f"{found[0]} exists already and no probe wrote it; choose another --out")


def write(folder: Path, rows: list[Row], results: list[tuple[str, Result]], clips: Clips) -> list[str]:
    """Write all files into a folder, each whole or not at all, without those of an earlier probe.

    Returns their names.
    """
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    for earlier in (folder / PREDICTIONS, *folder.glob(CONFUSION.format("*"))):  # which not every probe writes
        earlier.unlink(missing_ok=True)
    tables = {TABLE: pd.DataFrame(rows), PER_CLASS: _per_class(results, clips)}
    if not clips.multi_label:
        tables[PREDICTIONS] = _predictions(results, clips)
    for name, table in tables.items():
        _write_text(folder / name, table.to_csv(index=False))
    _write_text(folder / RESULTS, markdown(rows, results, clips))
    written = [RESULTS, *tables]
    if not clips.multi_label and len(clips.vocabulary) <= MAX_DRAWN:
        for model in dict.fromkeys(model for model, _ in results):
            result = next(result for name, result in results if name == model)
            name = CONFUSION.format(as_file_name(model))
            if name in written:  # of a/b and a:b
                name = CONFUSION.format(f"{as_file_name(model)}-{len(written)}")
            _draw_confusion(folder / name, model, result, clips)
            written.append(name)
    return written


def _per_class(results: list[tuple[str, Result]], clips: Clips):
    import pandas as pd

    lines = []
    for model, result in results:
        tested = ~np.isnan(result.scores[:, 0])
        targets, scores = clips.targets()[tested], result.scores[tested]
        precisions = average_precisions(scores, targets)
        guesses = np.eye(targets.shape[1], dtype=bool)[scores.argmax(axis=1)]
        for number, label in enumerate(clips.vocabulary):
            line = {
                "model": model,
                "classifier": result.classifier,
                "label": label,
                "clips": int(targets[:, number].sum()),
                "average_precision": precisions[number],
            }
            if not clips.multi_label:
                right = int((targets & guesses)[:, number].sum())
                line["recall"] = right / max(1, int(targets[:, number].sum()))
                line["precision"] = right / max(1, int(guesses[:, number].sum()))
            lines.append(line)
    return pd.DataFrame(lines)


def _predictions(results: list[tuple[str, Result]], clips: Clips):
    import pandas as pd

    table = {"clip": clips.names, "split": clips.splits, "label": [labels[0] for labels in clips.labels]}
    for model, result in results:
        tested = ~np.isnan(result.scores[:, 0])
        best = np.where(tested, np.nan_to_num(result.scores).argmax(axis=1), -1)
        table[f"{model}, {result.classifier}"] = [clips.vocabulary[i] if i >= 0 else "" for i in best]
    return pd.DataFrame(table)


def _draw_confusion(path: Path, model: str, result: Result, clips: Clips) -> None:
    from matplotlib.figure import Figure

    tested = ~np.isnan(result.scores[:, 0])
    true, guessed = clips.targets()[tested].argmax(axis=1), result.scores[tested].argmax(axis=1)
    classes = len(clips.vocabulary)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (true, guessed), 1)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    size = max(4.0, 0.28 * classes + 2)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    as_given: dict[str, Any] = {"parse_math": False}  # names may hold $, which would begin a formula
    axes.set_xticks(range(classes), clips.vocabulary, rotation=90, fontsize=8, **as_given)
    axes.set_yticks(range(classes), clips.vocabulary, fontsize=8, **as_given)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{model}, {result.classifier}", fontsize=9, **as_given)
    figure.colorbar(image, shrink=0.7, label="percent of the true label")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
