"""Accuracies of fine-tuned encoders, and their differences on the same clips.

    python -m experiments.finetuning.paired OUT_DIR           the folder of run.sh

A clip counts as the mean over seeds. Intervals are 95% bootstraps over test clips, paired for the differences.
"""

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from audio_mamba.data.prepare_shards import key_part
from audio_mamba.hear_api.probe.classify import RESAMPLES, central_interval

FINETUNED, FROZEN, SCRATCH, PROBE = "fine-tuned", "frozen", "from scratch", "probe"
RUNS = {FINETUNED: "pretrained", FROZEN: "frozen", SCRATCH: "random"}


def right_of_run(run: Path) -> dict[str, bool]:
    """Whether each test clip of a run of finetune.py, or of its folds, got its label, by "NUMBER_name".

    Raises:
        ValueError: the run is not finished, or a clip was tested twice.
    """
    results = json.loads((run / "results.json").read_text()) if (run / "results.json").exists() else {}
    folds = [run / f"fold-{of_fold['fold']}" for of_fold in results["folds"]] if "folds" in results else [run]
    if not results or not all((fold / "predictions.csv").exists() for fold in folds):
        raise ValueError(f"{run} is not finished")
    right: dict[str, bool] = {}
    for fold in folds:
        for row in _rows(fold / "predictions.csv"):
            number, _, name = row.pop("clip").split("_", 2)  # keys are FILE_PART_name, and names are cut
            name, label = f"{number}_{name}", row.pop("labels")
            if name in right:
                raise ValueError(f"{run}: {name} was tested twice")
            right[name] = max(row, key=lambda label: float(row[label])) == label
    return right


def right_of_probe(folder: Path) -> dict[str, bool]:
    """Whether logistic regression gave each test clip its label, by "NUMBER_name" as in an archive of the task, whose
    files have the same order. ValueError for a table without it."""
    right = {}
    for number, row in enumerate(_rows(folder / "predictions.csv")):
        column = next((name for name in row if name.endswith(", logistic regression")), None)
        if column is None:
            raise ValueError(f"{folder}/predictions.csv has no logistic regression")
        if row[column]:
            right[f"{number:08d}_{key_part(Path(row['clip']))}"] = row[column] == row["label"]
    return right


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def shares(task: Path) -> dict[str, np.ndarray]:
    """By method, for each test clip the share of seeds that are right, float64 [clips]; the clips are in one order.

    Raises:
        ValueError: nothing is finished, or methods that tested different clips.
    """
    runs = {name: [right_of_run(run) for run in sorted(task.glob(f"{init}-*/"))] for name, init in RUNS.items()}
    runs[PROBE] = [right_of_probe(task / "probe")]
    names = sorted(runs[PROBE][0])
    for name, of_seeds in runs.items():
        if not of_seeds or any(sorted(right) != names for right in of_seeds):
            raise ValueError(f"{task}: {name} has no runs, or they tested other clips than the probe")
    return {name: np.mean([[right[clip] for clip in names] for right in runs[name]], axis=0) for name in runs}


def row(task: str, of_method: dict[str, np.ndarray], seconds: dict[str, float]) -> str:
    """A line of the table, in percent."""
    clips = len(of_method[PROBE])
    drawn = np.random.default_rng(0).integers(clips, size=(RESAMPLES, clips))
    cells = [task]
    for name in (FINETUNED, FROZEN, SCRATCH, PROBE):
        right = of_method[name]
        cells.append(f"{_cell(right, drawn)}, {seconds[name] / 60:.0f} min")
    cells += [_cell(of_method[FINETUNED] - of_method[other], drawn, "+") for other in (FROZEN, SCRATCH, PROBE)]
    return f"| {' | '.join(cells)} |"


def _cell(values: np.ndarray, drawn: np.ndarray, sign: str = "") -> str:
    low, high = central_interval(values[drawn].mean(axis=1))
    return f"{100 * values.mean():{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def table(out: Path) -> str:
    """A line for each finished task of run.sh, with the processor minutes of one seed of each method."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for task, name, took in csv.reader((out / "seconds.csv").open(newline="")):
        seconds.setdefault((task, name.rpartition("-")[0] or name), []).append(float(took))
    head = ["task", FINETUNED, FROZEN, SCRATCH, PROBE, f"to {FROZEN}", f"to {SCRATCH}", f"to the {PROBE}"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for task in sorted({task for task, _ in seconds}):
        of_method = shares(out / task)
        times = {name: float(np.mean(seconds[task, RUNS.get(name, "probe")])) for name in of_method}
        lines.append(row(task.rsplit("-v", 1)[0], of_method, times))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.finetuning.paired",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT_DIR", type=Path, help="the folder of run.sh")
    args = parser.parse_args(arguments)
    try:
        print(table(args.out))
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(f"paired: {error}") from None


if __name__ == "__main__":
    main()
