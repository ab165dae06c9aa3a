"""Do runs collapse? Their losses and deviations over clips, step by step: `python -m experiments.collapse RUN...`.

A run whose encoder gives the same for all clips has deviations near 0 (`token_std`, and `target_std` of a teacher, see
docs/pretraining.md). Train with --print-freq 1 for a row of steps.csv per step.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.training.records import STEPS_NAME, read_steps

DEVIATIONS = ("target_std", "token_std")
SMOOTHED = 25  # steps in a moving mean of the loss
LAST = 100  # steps whose mean is the value at the end


def read(run: Path) -> dict[str, np.ndarray]:
    """The columns step, train_loss and DEVIATIONS, as far as the run has them, float64 [rows].

    Rows without one of these numbers are left out: those of skipped steps, or of before the run had the column.

    Raises:
        ValueError: no steps.csv with rows.
    """
    rows = read_steps(run / STEPS_NAME) if (run / STEPS_NAME).is_file() else []
    columns = ("step", "train_loss", *(name for name in DEVIATIONS if rows and name in rows[0]))
    values = np.array([[row[name] for name in columns] for row in rows]).reshape(-1, len(columns))
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        raise ValueError(f"{run} has no {STEPS_NAME} with steps")
    return dict(zip(columns, values.T))


def table(runs: dict[str, dict[str, np.ndarray]]) -> str:
    """A row per run and deviation: at the first step, and the lowest and the last ones relative to it."""
    lines = ["| run | number | first | lowest / first | last / first |", "|---|---|---|---|---|"]
    for name, columns in runs.items():
        for number, values in list(columns.items())[1:]:
            relative = f"{values.min() / values[0]:.2f} | {values[-LAST:].mean() / values[0]:.2f}"
            lines.append(f"| {name} | {number} | {values[0]:.3g} | {relative} |")
    return "\n".join(lines)


def draw(runs: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """A column per run: its loss above, its deviations relative to the first step below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(runs), 5), layout="constrained")
    axes = figure.subplots(2, len(runs), sharex="col", squeeze=False)
    for (above, below), (name, columns) in zip(axes.T, runs.items()):
        step, loss = columns["step"], columns["train_loss"]
        above.plot(step, loss, color="tab:blue", alpha=0.25, linewidth=0.6)
        width = min(SMOOTHED, len(loss))
        above.plot(step[width - 1 :], np.convolve(loss, np.ones(width) / width, "valid"), color="tab:blue")
        above.set_title(name, parse_math=False)  # $ begins no formula
        above.set_ylabel("training loss")
        for number in filter(columns.__contains__, DEVIATIONS):
            below.plot(step, columns[number] / columns[number][0], linewidth=0.6, label=number)
        below.axhline(0.1, color="0.5", linestyle=":")
        below.set(yscale="log", xlabel="step", ylabel="deviation over clips / first")
        if set(DEVIATIONS) & columns.keys():
            below.legend(frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.collapse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="work folder of train.py")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("collapse.png"), help="default: %(default)s")
    args = parser.parse_args(arguments)
    try:
        names = [run.resolve().name for run in args.runs]
        if len(set(names)) < len(names):
            names = list(map(str, args.runs))
        runs = {name: read(run) for name, run in zip(names, args.runs)}
        draw(runs, args.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"collapse: {error}") from None
    print(table(runs))


if __name__ == "__main__":
    main()
