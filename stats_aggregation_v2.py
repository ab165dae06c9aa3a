#!/usr/bin/env python3
"""Summarise downstream scores: mean and 95% interval over seeds for each task, and the overall score s(m).

    python stats_aggregation_v2.py --base-dir OUTPUT_DIR/todo_audioset --output-dir DIR

Reads BASE_DIR/<model>_r<pretraining>_<seed>/<task>/test.predicted-scores.json, as written by this project or by the
published scripts. Writes all_results.csv (one line per run), summary.csv (one line per model), results.md and
results.png.
"""

import argparse
import json
import logging
import math
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from audio_mamba import published_names
from audio_mamba.data.audio_files import is_hidden
from audio_mamba.external_sources import layout
from audio_mamba.external_sources.result_checks import check_fresh, check_grids, check_seeds, check_versions
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.system.terminal import given_path, hyphenated, quiet_exit

CONFIDENCE = 0.95
OVERALL = "s(m)"
COMPARISON = f"{OVERALL} compares models"
log = logging.getLogger("stats_aggregation")

if __name__ == "stats_aggregation_v2":  # imported from a checkout
    published_names.share(__name__)


def read_score(path: Path) -> float:
    """Test score of one run: of the test split, or the mean over folds.

    Raises:
        ValueError: the file is not a score file of the evaluation kit; the message names it.
    """
    try:
        scores = json.loads(path.read_bytes())
        if "aggregated_scores" in scores:
            score = float(scores["aggregated_scores"]["test_score_mean"])
        else:
            score = float(scores["test"]["test_score"])
        if not math.isfinite(score):
            raise ValueError(f"the score is {score}")
        return score
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot read test.test_score or aggregated_scores.test_score_mean "
            f"({type(error).__name__}: {error})"
        ) from None


def task_folders(run: Path, hidden: bool) -> list[Path]:
    """The tasks of a run, sorted: those with embeddings, and those with scores whose embeddings are gone."""
    scored = {path.parent for path in run.glob(f"*/{layout.SCORES}") if hidden or not is_hidden(path.parent.name)}
    return sorted({*layout.task_folders(run, hidden=hidden), *scored})


def read_results(base_dir: Path, hidden: bool = False) -> pd.DataFrame:
    """All runs in BASE_DIR, with columns exp, ssl_run, run, dataset, scores. One warning counts the unfinished runs.

    hidden: take runs and tasks of hidden, trash or system names too; otherwise a warning counts them.

    Raises:
        ValueError: there is no finished run, or `external_sources.result_checks` refuses one.
    """
    folders = sorted(folder for folder in base_dir.iterdir() if hidden or not is_hidden(folder.name))
    note = None if hidden else layout.hidden_note([base_dir, *filter(Path.is_dir, folders)])
    if note:
        log.warning(note)
    scored, unfinished = [], []
    for folder in folders:
        run = layout.parse_run_name(folder.name)
        if run is None or not folder.is_dir():
            log.warning("skipping %s: its name is not <model>_r<pretraining>_<seed>", folder)
            continue
        for task in task_folders(folder, hidden):
            if (task / layout.SCORES).is_file():
                scored.append((run, task))
            else:
                unfinished.append(f"{folder.name}/{task.name}")
    tasks = [task for _, task in scored]
    for check in (check_fresh, check_seeds, check_versions, check_grids):
        check(tasks)
    rows = [(*run, task.name, read_score(task / layout.SCORES)) for run, task in scored]
    if not rows:
        raise ValueError(f"--base-dir: {base_dir} has no {layout.SCORES}; run downstream_experiments.sh first")
    if unfinished:
        log.warning("skipping %d runs without scores, the first is %s", len(unfinished), unfinished[0])
    return pd.DataFrame(rows, columns=["exp", "ssl_run", "run", "dataset", "scores"])


def half_width(scores: pd.Series) -> float:
    """Half the width of the 95% confidence interval of the mean, by Student's t; NaN for a single score."""
    n = len(scores)
    return stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * scores.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, half the width of its interval, and number of seeds, with index (model, dataset).

    A model is `<exp>_r<ssl_run>`. A warning lists the seeds that a model lacks and another model has.
    """
    results = results.assign(model=results.exp + "_r" + results.ssl_run.astype(str))
    groups = results.groupby(["model", "dataset"])
    seeds = sorted(results.run.unique())
    for model in results.model.unique():
        for dataset in sorted(results.dataset.unique()):
            found = results.run[(results.model == model) & (results.dataset == dataset)]
            missing = sorted(set(seeds) - set(found))
            if missing:
                log.warning("%s on %s: no scores for seeds %s", model, dataset, ", ".join(map(str, missing)))
    return groups.scores.agg(mean="mean", interval=half_width, seeds="count")


def overall_scores(means: pd.DataFrame) -> pd.Series:
    """s(m) = 100 * mean over tasks of (x - min) / (max - min), min and max over the models (paper, section 4).

    Args:
        means: means over seeds, one row per model and one column per task, NaN if missing.

    Returns:
        One value per model; NaN if no task can be used, or if there is only one model. A task that a model lacks, or
        on which all models score the same, is excluded for all models with a warning.
    """
    if len(means) == 1:
        log.warning("%s; there is only %s", COMPARISON, means.index[0])
        return pd.Series(math.nan, means.index, name=OVERALL)
    for task in means.columns[means.isna().any()]:
        lacking = ", ".join(means.index[means[task].isna()])
        log.warning("%s is excluded from %s: no scores for %s", task, OVERALL, lacking)
    complete = means.dropna(axis="columns")
    spread = complete.max() - complete.min()
    for task in complete.columns[spread == 0]:
        log.warning("%s is excluded from %s: all models score the same", task, OVERALL)
    usable = complete.loc[:, spread > 0]
    scaled = (usable - usable.min()) / (usable.max() - usable.min())
    return (100 * scaled.mean(axis="columns")).rename(OVERALL)


def wide_table(summary: pd.DataFrame, overall: pd.Series) -> pd.DataFrame:
    """One row per model: `<task>` and `<task> interval` for each task, then s(m)."""
    means, intervals = summary["mean"].unstack(), summary["interval"].unstack().add_suffix(" interval")
    columns = [name for task in means.columns for name in (task, f"{task} interval")]
    return means.join(intervals)[columns].join(overall)


def markdown_table(summary: pd.DataFrame, overall: pd.Series) -> str:
    """Scores in percent as `mean ± interval`, one line per model."""
    tasks = summary.index.unique("dataset").sort_values()
    lines = ["| model | " + " | ".join(tasks) + f" | {OVERALL} |", "|---" * (len(tasks) + 2) + "|"]
    for model in overall.index:
        cells = [_cell(summary.loc[(model, task)]) if (model, task) in summary.index else "-" for task in tasks]
        lines.append(f"| {model} | " + " | ".join(cells) + f" | {_number(overall[model])} |")
    seeds = summary.seeds
    counts = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    lines += [
        "",
        f"Test scores in percent: mean over {counts} downstream seeds ± half the width of its 95% interval "
        "(Student's t); -: not available.",
    ]
    if len(overall) == 1:
        lines.append(f"{COMPARISON}; there is only one here.")
    return "\n".join(lines) + "\n"


def _cell(row: pd.Series) -> str:
    return f"{_number(100 * row['mean'])} ± {_number(100 * row['interval'])}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def draw(summary: pd.DataFrame, overall: pd.Series) -> Figure:
    """Dots with 95% intervals, one row per task and one colour per model."""
    tasks = summary.index.unique("dataset").sort_values(ascending=False)
    rows = {task: row for row, task in enumerate(tasks)}
    figure = Figure(figsize=(8, 1.5 + 0.6 * len(tasks) + 0.2 * len(overall)), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(overall.index):
        points = summary.loc[model]
        shift = 0.5 * (0.5 - (number + 0.5) / len(overall))  # models side by side within a task's row
        axes.errorbar(
            100 * points["mean"],
            [rows[task] + shift for task in points.index],
            xerr=100 * points["interval"].fillna(0),
            fmt="o",
            capsize=3,
            label=f"{model}   {OVERALL} = {_number(overall[model])}",
        )
    axes.set_yticks(range(len(tasks)), tasks, parse_math=False)  # names may hold $, which would begin a formula
    axes.set_ylim(-0.5, len(tasks) - 0.5)
    axes.set_xlabel("test score in percent, mean and 95% interval over seeds")
    axes.grid(axis="x", alpha=0.3)
    for text in figure.legend(loc="outside lower center", ncols=1, frameon=False).get_texts():
        text.set_parse_math(False)
    return figure


def write_tables(results: pd.DataFrame, output_dir: Path) -> str:
    """Write the four files to `output_dir`; return the markdown table."""
    summary = summarise(results)
    overall = overall_scores(summary["mean"].unstack())
    markdown, figure = markdown_table(summary, overall), draw(summary, overall)
    output_dir.mkdir(parents=True, exist_ok=True)
    texts = {
        "all_results.csv": results.to_csv(index=False),
        "summary.csv": wide_table(summary, overall).to_csv(),
        "results.md": markdown,
    }
    for name, text in texts.items():
        with atomic_write(output_dir / name) as file:
            file.write(text.encode())
    with atomic_write(output_dir / "results.png") as file:
        figure.savefig(file, format="png", dpi=150)
    return markdown


def main(arguments: list[str] | None = None, prog: str = "stats_aggregation_v2.py") -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--base-dir", type=given_path, required=True, help="OUTPUT_DIR/todo_audioset of the downstream runs")
    add("--output-dir", type=given_path, required=True, help="folder for the tables; created if missing")
    add("--hidden", action="store_true", help="also take runs and tasks with hidden, trash or system names")
    args = parser.parse_args(hyphenated(arguments))
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if not args.base_dir.is_dir():
        raise SystemExit(f"--base-dir: {args.base_dir} is not a folder")
    try:
        print(write_tables(read_results(args.base_dir, args.hidden), args.output_dir))
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(f"written to {args.output_dir}: all_results.csv, summary.csv, results.md, results.png")


if __name__ == "__main__":
    with quiet_exit():
        main()
