"""Draw the experiment in one picture: validation loss, and test scores after 10%, 30% and all of the crops.

    python -m experiments.free_audio.figure RUNS RESULTS_CSV OUT.png

RUNS contains the work folders ssam_tiny, ssast_tiny, ssam_positions_tiny and ssast_positions_tiny of train.py;
RESULTS_CSV is all_results.csv of stats_aggregation_v2.py. Parts of the picture without numbers stay empty.
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from audio_mamba.stats_aggregation_v2 import half_width
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.training.records import read_log
from experiments.free_audio.tables import BASELINE

MODELS = {
    "ssam": ("SSAM", "tab:blue"),
    "ssast": ("SSAST", "tab:orange"),
    "ssam_positions": ("SSAM, masked_positions", "tab:red"),
    "ssast_positions": ("SSAST, masked_positions", "tab:green"),
}
SHARES = {"random_bands": 0, "10_percent": 10, "30_percent": 30, "pretrained_bands": 100}  # percent of the crops


def learning_curve(results: pd.DataFrame) -> pd.DataFrame:
    """Scores of the models by share of the crops.

    Args:
        results: columns exp, run, dataset, scores; rows of models outside MODELS and SHARES are ignored.

    Returns:
        Columns model, dataset, percent, mean, interval (half the width of its 95% interval), sorted by percent.
    """
    points = [
        (model, dataset, percent, 100 * scores.mean(), 100 * half_width(scores))
        for model in MODELS
        for state, percent in SHARES.items()
        for dataset, scores in results[results.exp == f"{model}_{state}"].groupby("dataset").scores
    ]
    return pd.DataFrame(points, columns=["model", "dataset", "percent", "mean", "interval"])


def draw(runs: Path, results: pd.DataFrame) -> Figure:
    """Validation losses, and a panel of scores per task with a line at the score of plain log-mels."""
    curve = learning_curve(results)
    tasks = sorted(curve.dataset.unique())
    figure = Figure(figsize=(3.2 * (1 + len(tasks)), 3.4), layout="constrained")
    loss, *panels = figure.subplots(1, 1 + len(tasks), squeeze=False)[0]
    drawn = {}  # entries of the legend
    for model, (label, colour) in MODELS.items():
        log = [line for line in read_log(runs / f"{model}_tiny" / "log.txt") if line.get("val_loss") is not None]
        if log:
            (drawn[label],) = loss.plot(
                [line["epoch"] + 1 for line in log], [line["val_loss"] for line in log], ".-", color=colour
            )
    _finish(loss, "validation loss", "epoch")
    loss.set_ylim(bottom=0)
    for axes, task in zip(panels, tasks):
        for model, points in curve[curve.dataset == task].groupby("model"):
            shift = 1.6 * (list(MODELS).index(model) - 1.5)  # so that points do not overlap
            axes.errorbar(
                points.percent + shift,
                points["mean"],
                yerr=points.interval.fillna(0),
                fmt=".-",
                capsize=3,
                color=MODELS[model][1],
            )
        baseline = results.scores[(results.exp == BASELINE) & (results.dataset == task)]
        if len(baseline):
            drawn["log-mels"] = axes.axhline(100 * baseline.mean(), color="0.5", linestyle="--", linewidth=1)
        axes.set_xlim(-6, 106)
        _finish(axes, task.split("-")[0].replace("_", " ") + ", test score (%)", "percent of the crops")
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=len(drawn), frameon=False)
    return figure


def _finish(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.free_audio.figure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUNS", type=Path, help="parent of the work folders ssam_tiny and so on")
    parser.add_argument("results", metavar="RESULTS_CSV", type=Path, help="all_results.csv of stats_aggregation_v2.py")
    parser.add_argument("out", metavar="OUT.png", type=Path, help="picture to write")
    args = parser.parse_args(arguments)
    try:
        figure = draw(args.runs, pd.read_csv(args.results))
    except (OSError, ValueError) as error:
        raise SystemExit(f"figure: {error}") from None
    with atomic_write(args.out) as file:
        figure.savefig(file, format="png", dpi=120)


if __name__ == "__main__":
    main()
