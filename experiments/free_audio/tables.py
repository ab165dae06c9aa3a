"""Print the tables of the experiment in Markdown.

    python -m experiments.free_audio.tables RESULTS_CSV

RESULTS_CSV is all_results.csv of stats_aggregation_v2.py. A cell is the mean over seeds of the test score in percent,
half the width of its 95% interval (if there are several seeds), and the number of seeds in brackets; missing scores
read "not measured". The last table lists differences between pairs of rows, in bold if their 95% interval excludes 0.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from scipy import stats

from audio_mamba.stats_aggregation_v2 import OVERALL, half_width, overall_scores

SCENES = {
    "drum_hits-v1-full": "9 drum pieces",
    "guitar_chords-v1-full": "25 guitar chords",
    "spoken_letters-v1-full": "26 spoken letters",
}
EVENTS = {"piano_notes-v1-small": "36 piano notes"}
BASELINE = "benchmarks.log_mel_baseline"

MAIN = {
    BASELINE: "mean and deviation of log-mels",
    "ssam_pretrained_bands": "SSAM-Tiny, pretrained",
    "ssam_random_bands": "SSAM-Tiny, random weights",
    "ssast_pretrained_bands": "SSAST-Tiny, pretrained",
    "ssast_random_bands": "SSAST-Tiny, random weights",
}
STATES = {"random": "random weights", "pretrained": "pretrained"}
LAYOUTS = {
    f"{model}_{state}_{layout}": f"{model.upper()}-Tiny, {words}, `{layout}`"
    for model in ("ssam", "ssast")
    for state, words in STATES.items()
    for layout in ("published", "bands")
}
CURVE = {
    f"{model}_{percent}_percent": f"{model.upper()}-Tiny after {percent}% of the crops"
    for model in ("ssam", "ssast")
    for percent in (10, 30)
}
POSITIONS = {
    "ssast_pretrained_bands": "SSAST-Tiny, as published",
    "ssast_positions_pretrained_bands": "SSAST-Tiny, `masked_positions`",
    "ssam_pretrained_bands": "SSAM-Tiny, as published",
    "ssam_positions_pretrained_bands": "SSAM-Tiny, `masked_positions`",
}
POOLINGS = {
    BASELINE: "mean and deviation of log-mels",
    "eGeMAPSv02": "openSMILE, eGeMAPS",
    **{
        f"{model}_{state}_{exp}": f"{model.upper()}-Tiny, {words}, `{pooling}`"
        for model in ("ssam", "ssast")
        for state, words in STATES.items()
        for exp, pooling in (("bands", "mean"), ("mean_std", "mean_std"))
    },
}
LONG_RUN = {
    **{exp: POOLINGS[exp] for exp in (BASELINE, "ssam_random_mean_std", "ssam_pretrained_mean_std")},
    "ssam_18h_random_mean_std": "SSAM-Tiny, 18 hours, random weights, `mean_std`",
    "ssam_18h_pretrained_mean_std": "SSAM-Tiny, 18 hours, pretrained, `mean_std`",
}
LONG_RUN_EVENTS = {  # embeddings over time are not pooled, so `mean_std` says nothing there
    BASELINE: "log-mels",
    **{exp: MAIN[exp] for exp in ("ssam_random_bands", "ssam_pretrained_bands")},
    "ssam_18h_random_mean_std": "SSAM-Tiny, 18 hours, random weights",
    "ssam_18h_pretrained_mean_std": "SSAM-Tiny, 18 hours, pretrained",
}
OVERLAPS = {"ssam_pretrained_bands": "no overlap", "ssam_overlap_50": "overlap of half a segment"}

# Pairs of rows to compare: the difference is the mean of the first minus that of the second.
DIFFERENCES = {
    "SSAM pretrained, random": ("ssam_pretrained_bands", "ssam_random_bands"),
    "the same, `mean_std`": ("ssam_pretrained_mean_std", "ssam_random_mean_std"),
    "SSAM `mean_std`, `mean`": ("ssam_pretrained_mean_std", "ssam_pretrained_bands"),
    "SSAM `mean_std`, log-mels": ("ssam_pretrained_mean_std", BASELINE),
    "SSAM on 18 h, random, `mean_std`": ("ssam_18h_pretrained_mean_std", "ssam_18h_random_mean_std"),
    "SSAM on 18 h, on 5 h, `mean_std`": ("ssam_18h_pretrained_mean_std", "ssam_pretrained_mean_std"),
    "SSAM on 18 h, log-mels, `mean_std`": ("ssam_18h_pretrained_mean_std", BASELINE),
    "SSAM with overlap, without": ("ssam_overlap_50", "ssam_pretrained_bands"),
    "SSAST pretrained, random": ("ssast_pretrained_bands", "ssast_random_bands"),
    "SSAM, SSAST": ("ssam_pretrained_bands", "ssast_pretrained_bands"),
    "SSAM, log-mels": ("ssam_pretrained_bands", BASELINE),
    "SSAST, log-mels": ("ssast_pretrained_bands", BASELINE),
    "SSAST with positions, without": ("ssast_positions_pretrained_bands", "ssast_pretrained_bands"),
    "SSAM with positions, without": ("ssam_positions_pretrained_bands", "ssam_pretrained_bands"),
    "SSAM, SSAST with positions": ("ssam_pretrained_bands", "ssast_positions_pretrained_bands"),
}


def table(results: pd.DataFrame, rows: Mapping[str, str], tasks: Mapping[str, str], overall: bool = False) -> str:
    """A markdown table.

    Args:
        results: columns exp, run, dataset, scores (0 to 1).
        rows: exp -> name of its row.
        tasks: dataset -> name of its column.
        overall: add s(m), computed over these tasks and rows.
    """
    chosen = results[results.exp.isin(rows) & results.dataset.isin(tasks)]
    scores = dict(list(chosen.groupby(["exp", "dataset"]).scores))
    lines = [[name, *(_cell(scores.get((exp, dataset))) for dataset in tasks)] for exp, name in rows.items()]
    head = ["model", *tasks.values()]
    if overall:
        head.append(OVERALL)
        of_model = overall_scores(chosen.groupby(["exp", "dataset"]).scores.mean().unstack())
        for exp, line in zip(rows, lines):
            line.append("not measured" if math.isnan(score := of_model.get(exp, math.nan)) else f"{score:.0f}")
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def _cell(scores: pd.Series | None) -> str:
    if scores is None:
        return "not measured"
    margin = f" ± {100 * half_width(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * scores.mean():.1f}{margin} ({len(scores)})"


def difference_table(results: pd.DataFrame, tasks: Mapping[str, str]) -> str:
    """A markdown table with a row for each of DIFFERENCES, in percentage points with 95% intervals.

    The intervals are Welch's, which does not assume equal deviations. Differences whose interval excludes 0 are bold.
    """
    scores = dict(list(results.groupby(["exp", "dataset"]).scores))
    lines = [
        [name, *(_difference(scores.get((first, dataset)), scores.get((second, dataset))) for dataset in tasks)]
        for name, (first, second) in DIFFERENCES.items()
    ]
    head = ["difference", *tasks.values()]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def _difference(first: pd.Series | None, second: pd.Series | None) -> str:
    if first is None or second is None or min(len(first), len(second)) < 2:
        return "not measured"
    interval = stats.ttest_ind(100 * first, 100 * second, equal_var=False).confidence_interval(0.95)
    text = f"{100 * (first.mean() - second.mean()):+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"
    return f"**{text}**" if interval.low > 0 or interval.high < 0 else text


def all_tables(results: pd.DataFrame) -> dict[str, str]:
    """All tables by title."""
    return {
        "Main rows, scene layout `bands`": table(results, MAIN, SCENES | EVENTS, overall=True),
        "Both layouts of scenes": table(results, LAYOUTS, SCENES),
        "Learning curve": table(results, CURVE, SCENES),
        "Positions of masked patches": table(results, POSITIONS, SCENES),
        "Pooling, by the heads of the HEAR kit": table(results, POOLINGS, SCENES),
        "More audio": table(results, LONG_RUN, SCENES),
        "More audio, events": table(results, LONG_RUN_EVENTS, EVENTS),
        "Overlap": table(results, OVERLAPS, EVENTS),
        "Differences": difference_table(results, SCENES | EVENTS),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.free_audio.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", metavar="RESULTS_CSV", type=Path, help="all_results.csv of stats_aggregation_v2.py")
    args = parser.parse_args(arguments)
    try:
        results = pd.read_csv(args.results)
    except (OSError, ValueError) as error:
        raise SystemExit(f"tables: {error}") from None
    for title, text in all_tables(results).items():
        print(f"{title}:\n\n{text}\n")


if __name__ == "__main__":
    main()
