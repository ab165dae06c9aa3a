"""The experiment's tables: checked by hand, and equal to those in the documents."""

import re

import pandas as pd
import pytest
from scipy import stats

from experiments.free_audio import tables
from tests.conftest import ROOT

EXPERIMENT = ROOT / "experiments" / "free_audio"
PAGE = ROOT / "docs" / "results.md"
TITLES = [
    "Main rows, scene layout `bands`",
    "Both layouts of scenes",
    "Learning curve",
    "Positions of masked patches",
    "Pooling, by the heads of the HEAR kit",
    "More audio",
    "More audio, events",
    "Overlap",
    "Differences",
]


def test_a_table_equals_one_made_by_hand():
    rows = {"first": "the first", "second": "the second", "third": "the third"}
    tasks = {"drums": "9 drums", "notes": "36 notes", "rain": "rain"}
    scores = {
        ("first", "drums"): [0.2, 0.4],
        ("second", "drums"): [0.5, 0.5],
        ("third", "drums"): [0.1, 0.1],
        ("first", "notes"): [0.1, 0.1],
        ("second", "notes"): [0.3, 0.5],
        ("third", "notes"): [0.2, 0.2],
        ("first", "rain"): [0.9],
        ("another", "drums"): [0.9],
    }
    results = pd.DataFrame(
        [(exp, seed, dataset, score) for (exp, dataset), runs in scores.items() for seed, score in enumerate(runs)],
        columns=["exp", "run", "dataset", "scores"],
    )
    low, high = stats.t.interval(0.95, 1, loc=30, scale=stats.sem([20, 40]))
    wide, overall = f"{(high - low) / 2:.1f}", (0.2 / 0.4 + 0) / 2
    assert tables.table(results, rows, tasks, overall=True).splitlines() == [
        "| model | 9 drums | 36 notes | rain | s(m) |",
        "| --- | --- | --- | --- | --- |",
        f"| the first | 30.0 ± {wide} (2) | 10.0 ± 0.0 (2) | 90.0 (1) | {100 * overall:.0f} |",
        f"| the second | 50.0 ± 0.0 (2) | 40.0 ± {wide} (2) | not measured | 100 |",
        "| the third | 10.0 ± 0.0 (2) | 20.0 ± 0.0 (2) | not measured | 17 |",
    ]
    alone = tables.table(results, {"third": "the third"}, {"drums": "9 drums"}, overall=True)
    assert alone.endswith("| the third | 10.0 ± 0.0 (2) | not measured |")
    assert tables.table(results, {"nobody": "nobody"}, {"drums": "9 drums"}).endswith("| nobody | not measured |")


def test_differences_equal_those_made_by_hand(monkeypatch):
    scores = {"a": [0.5, 0.6, 0.7], "b": [0.1, 0.2], "c": [0.55, 0.65], "d": [0.9]}
    results = pd.DataFrame(
        [(exp, "drums", score) for exp, runs in scores.items() for score in runs], columns=["exp", "dataset", "scores"]
    )
    monkeypatch.setattr(tables, "DIFFERENCES", {"a, b": ("a", "b"), "c, a": ("c", "a"), "a, d": ("a", "d")})
    # Welch: variances of the means 0.01 / 3 and 0.005 / 2, degrees of freedom after Satterthwaite.
    first, second = 0.01 / 3, 0.005 / 2
    freedom = (first + second) ** 2 / (first**2 / 2 + second**2 / 1)
    half = 100 * stats.t.ppf(0.975, freedom) * (first + second) ** 0.5
    assert tables.difference_table(results, {"drums": "9 drums", "rain": "rain"}).splitlines() == [
        "| difference | 9 drums | rain |",
        "| --- | --- | --- |",
        f"| a, b | **+45.0 ({45 - half:+.1f} to {45 + half:+.1f})** | not measured |",
        f"| c, a | +0.0 ({-half:+.1f} to {half:+.1f}) | not measured |",
        "| a, d | not measured | not measured |",
    ]


@pytest.mark.parametrize("title", TITLES)
def test_the_results_page_shows_the_tables_of_the_committed_scores(title):
    text = _committed()[title]
    assert text in PAGE.read_text(), f"other numbers than {EXPERIMENT}/results, or none:\n{text}"


def test_no_other_document_repeats_a_row():
    rows = {line for text in _committed().values() for line in text.splitlines() if re.search(r"\d\.\d ", line)}
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/*/README.md")]:
        if page != PAGE:
            assert not rows & set(page.read_text().splitlines()), f"{page} repeats results of {PAGE}"


def test_the_front_page_shows_the_scores_of_the_page():
    """Those of the probe, without their intervals."""
    (of_the_probe,) = re.findall(r"\(`audio-mamba probe TASK .*?By paired intervals", PAGE.read_text(), re.S)
    rows = {
        "plain log-mels": "log-mels",
        "`ssam_tiny_free_audio`": "SSAM-Tiny, pretrained",
        "`ssam_tiny_free_audio_18h`": "SSAM-Tiny, 18 hours, pretrained",
        "`ssast_tiny_free_audio`": "SSAST-Tiny, pretrained",
    }
    text = (ROOT / "README.md").read_text()
    for name, row_of_page in rows.items():
        (row,) = re.findall(rf"^\| {name} \|.*", text, re.M)
        (measured,) = re.findall(rf"^\| {row_of_page} \|.*", of_the_probe, re.M)
        assert " / ".join(re.findall(r"([\d.]+) \(", measured)) in row, name


def _committed():
    return tables.all_tables(pd.read_csv(EXPERIMENT / "results" / "all_results.csv"))


def test_the_command_prints_them_all(capsys):
    tables.main([str(EXPERIMENT / "results" / "all_results.csv")])
    printed = capsys.readouterr().out
    assert all(title in printed for title in TITLES) and "SSAM-Tiny after 10% of the crops" in printed
    with pytest.raises(SystemExit, match="nothing.csv"):
        tables.main(["nothing.csv"])
