"""The picture of the experiment, drawn from invented numbers."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.free_audio import figure

SCORES = {
    "ssam_random_bands": [0.2, 0.3],
    "ssam_10_percent": [0.3, 0.5],
    "ssam_pretrained_bands": [0.6, 0.8],
    "ssam_pretrained_published": [0.9, 0.9],
    "ssast_30_percent": [0.5, 0.7],
    figure.BASELINE: [0.4, 0.6],
}


@pytest.fixture
def results() -> pd.DataFrame:
    return pd.DataFrame(
        [
            (exp, seed, task, score)
            for exp, scores in SCORES.items()
            for seed, score in enumerate(scores)
            for task in ("drum_hits-v1-full", "notes-v1-small")
        ],
        columns=["exp", "run", "dataset", "scores"],
    )


def test_the_learning_curve_shows_one_layout_by_share_of_crops(results):
    curve = figure.learning_curve(results)
    drums = curve[(curve.dataset == "drum_hits-v1-full") & (curve.model == "ssam")]
    assert list(drums.percent) == [0, 10, 100]
    np.testing.assert_allclose(drums["mean"], [25, 40, 70])
    low, high = stats.t.interval(0.95, 1, loc=40, scale=stats.sem([30, 50]))
    assert drums.interval.iloc[1] == pytest.approx((high - low) / 2)
    assert list(curve[curve.model == "ssast"].percent) == [30, 30]


def test_a_panel_for_the_losses_and_one_for_each_task(results, tmp_path):
    for model, losses in (("ssam", [0.5, None, 0.3]), ("ssast", [0.6])):
        (tmp_path / f"{model}_tiny").mkdir()
        (tmp_path / f"{model}_tiny" / "log.txt").write_text(
            "".join(json.dumps({"epoch": epoch, "val_loss": loss}) + "\n" for epoch, loss in enumerate(losses))
        )
    picture = figure.draw(tmp_path, results)
    loss, drums, notes = picture.axes
    assert [list(line.get_xdata()) for line in loss.lines] == [[1, 3], [1]]
    assert [list(line.get_ydata()) for line in loss.lines] == [[0.5, 0.3], [0.6]]
    assert drums.get_title() == "drum hits, test score (%)" and notes.get_title() == "notes, test score (%)"
    assert list(drums.lines[-1].get_ydata()) == pytest.approx([50, 50])  # the baseline
    assert [text.get_text() for text in picture.legends[0].get_texts()] == ["SSAM", "SSAST", "log-mels"]

    results.to_csv(tmp_path / "all_results.csv")
    figure.main([str(tmp_path), str(tmp_path / "all_results.csv"), str(tmp_path / "out.png")])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_missing_numbers_are_reported(tmp_path):
    with pytest.raises(SystemExit, match="all_results.csv"):
        figure.main([str(tmp_path), str(tmp_path / "all_results.csv"), str(tmp_path / "out.png")])
    assert not (tmp_path / "out.png").exists()
