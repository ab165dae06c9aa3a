import re

import numpy as np
import pytest

from audio_mamba.training.charts import MOST_POINTS, Curve, draw, short_number, thin


def curve(y, x=None, **options):
    y = np.array(y, dtype=float)
    return Curve(0, "run", np.arange(len(y)) if x is None else np.array(x, dtype=float), y, **options)


def points(path):
    """(x, y) of a path, both from 0 to 1, with y pointing up."""
    return [(float(x) / 1000, 1 - float(y) / 1000) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def test_a_line_matches_its_ticks():
    chart = draw("Loss", "epoch", [curve([3.0, 1.0, 2.0], x=[1, 2, 5])])
    (line,) = chart.lines
    across, up = np.array(points(line.path)).T
    assert across == pytest.approx([0, 0.25, 1])
    ticks = {label: place / 100 for place, label in chart.y_ticks}
    assert [ticks[label] for label in ("3", "1", "2")] == pytest.approx(up, abs=1e-3)
    assert [(place, label) for place, label in chart.x_ticks] == [(0, "1"), (25, "2"), (50, "3"), (75, "4"), (100, "5")]
    assert [text for _, text in line.dots] == ["run, epoch 1: 3", "run, epoch 2: 1", "run, epoch 5: 2"]
    assert chart.summary == "Loss by epoch. run goes from 3 to 2."


def test_a_logarithmic_axis_spaces_factors_evenly_and_drops_values_without_a_logarithm():
    (line,) = draw("Norm", "step", [curve([0.1, 0.0, 1.0, -5.0, 10.0])], log_scale=True).lines
    heights = [y for _, y in points(line.path)]
    assert len(heights) == 3
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=2e-4)


def test_nan_and_inf_points_are_left_out():
    (line,) = draw("Loss", "step", [curve([1.0, np.nan, 2.0, np.inf, 3.0])]).lines
    assert len(points(line.path)) == 3


@pytest.mark.parametrize("curves", [[], [curve([])], [curve([np.nan, np.inf])]])
def test_a_chart_without_data_has_no_lines(curves):
    chart = draw("Loss", "step", curves)
    assert chart.lines == [] and chart.summary == "Loss: no data yet."


def test_a_logarithmic_axis_holds_all_that_floats_can():
    (line,) = draw("Norm", "step", [curve([1e-300, 1.0, 1e300])], log_scale=True).lines
    heights = [y for _, y in points(line.path)]
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2, abs=0.01) and heights[2] - heights[0] > 0.8


@pytest.mark.parametrize("y", [[2.0], [2.0, 2.0], [0.0]])
@pytest.mark.parametrize("options", [{}, {"from_zero": True}, {"log_scale": True}])
def test_constant_curves_are_inside_the_chart(y, options):
    for line in draw("Loss", "epoch", [curve(y)], **options).lines:
        for _, up in points(line.path):
            assert 0 <= up < 1


def test_long_curves_become_means_with_their_extremes():
    y = np.random.default_rng(0).normal(size=10 * MOST_POINTS)
    x, mean, low, high = thin(np.arange(len(y)), y)
    stretches = y.reshape(MOST_POINTS, 10)
    np.testing.assert_allclose(x, 4.5 + 10 * np.arange(MOST_POINTS))
    np.testing.assert_allclose(mean, stretches.mean(1))
    np.testing.assert_array_equal(low, stretches.min(1))
    np.testing.assert_array_equal(high, stretches.max(1))


@pytest.mark.parametrize("count", [1, 7, MOST_POINTS, MOST_POINTS + 1, 2 * MOST_POINTS - 1])
def test_no_point_is_lost_or_counted_twice(count):
    x, mean, low, high = thin(np.arange(count), np.arange(count) ** 2.0)
    assert len(x) == min(count, MOST_POINTS) and low[0] == 0 and high[-1] == (count - 1) ** 2
    assert (low[1:] > high[:-1]).all() and (low <= mean).all() and (mean <= high).all()


def test_a_rare_spike_does_not_flatten_the_chart():
    y = np.linspace(1, 0.5, 200)
    y[77] = 1e6
    (line,) = draw("Loss", "step", [curve(y)]).lines
    heights = [up for _, up in points(line.path)]
    assert heights[77] == 1 and heights[0] - heights[-1] > 0.8


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (0.25, "0.25"),
        (1500, "1500"),
        (20_000, "20k"),
        (2.5e6, "2.5M"),
        (1e-4, "1e-4"),
        (2.5e-5, "2.5e-5"),
        (3e9, "3G"),
        (0.001, "0.001"),
    ],
)
def test_ticks_are_short(value, text):
    assert short_number(value) == text
