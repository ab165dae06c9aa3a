"""Line charts for the report: curves become SVG paths and ticks; report.html decides how they look.

Paths use a square of SIZE units with y pointing down, which the page stretches to any shape. Tick positions are in
percent.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

SIZE = 1000
MOST_POINTS = 250  # per line; more are averaged, and a band shows their range
MOST_DOTS = 30  # lines with at most this many points show each point
MARGIN = 0.04  # of the y axis, above and below the curves


@dataclass(frozen=True)
class Curve:
    """y over x; points with NaN or Inf are left out. `run` is the number of its run."""

    run: int
    name: str
    x: np.ndarray
    y: np.ndarray
    dashed: bool = False


@dataclass(frozen=True)
class Line:
    """A curve as drawn: the paths of its line and band, and (path, text) for each dot."""

    curve: Curve
    path: str
    band: str
    dots: list[tuple[str, str]]


@dataclass(frozen=True)
class Chart:
    """Lines and ticks, which are (percent, label); `summary` describes the chart in words."""

    title: str
    x_label: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    log_scale: bool
    summary: str


@dataclass(frozen=True)
class Axis:
    """A range of values, on a linear or logarithmic scale."""

    low: float
    high: float
    log_scale: bool = False

    def position(self, values: np.ndarray | float) -> np.ndarray:
        """Positions of values along the axis, from 0 to 1; values outside the range are clipped to it."""
        scale: Callable = np.log10 if self.log_scale else np.asarray
        with np.errstate(divide="ignore"):
            return np.clip((scale(values) - scale(self.low)) / (scale(self.high) - scale(self.low)), 0, 1)

    def ticks(self, most: int, integer: bool = False) -> list[tuple[float, str]]:
        """About `most` round values, each as (percent, label)."""
        locator: Locator
        if self.log_scale:
            decades = math.log10(self.high / self.low)
            locator = LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0), numticks=most + 2)
        else:
            locator = MaxNLocator(most, steps=[1, 2, 5, 10] if integer else [1, 2, 2.5, 5, 10], integer=integer)
        values = [
            value
            for value in locator.tick_values(self.low, self.high)
            if self.low <= value <= self.high and (self.log_scale or abs(value) > 1e-15 or self.low <= 0)
        ]
        return [(round(100 * float(self.position(value)), 2), short_number(value)) for value in values]


def draw(title: str, x_label: str, curves: Sequence[Curve], log_scale: bool = False, from_zero: bool = False) -> Chart:
    """A chart of the curves. It has no lines if no point is finite; on a log scale only positive values are drawn."""
    thinned: list[tuple[Curve, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for curve in curves:
        seen = np.isfinite(curve.x) & np.isfinite(curve.y) & ((curve.y > 0) | (not log_scale))
        if seen.any():
            thinned.append((curve, *thin(curve.x[seen], curve.y[seen])))
    if not thinned:
        return Chart(title, x_label, [], [], [], log_scale, f"{title}: no data yet.")

    x_axis = _axis(np.concatenate([x for _, x, *_ in thinned]), margin=0.0)
    extents = [_extent(mean, low, high, log_scale) for _, _, mean, low, high in thinned]
    y_axis = _axis(np.concatenate(extents), MARGIN, log_scale)
    if from_zero:
        y_axis = Axis(0.0, y_axis.high)
    lines, summaries = [], []
    for curve, x, mean, low, high in thinned:
        across, up = x_axis.position(x), y_axis.position(mean)
        band = ""
        if (high > low).any():
            outline = np.append(y_axis.position(high), y_axis.position(low)[::-1])
            band = _path(np.append(across, across[::-1]), outline) + "Z"
        dots = []
        if len(x) <= MOST_DOTS:
            dots = [
                (_path(across[[i]], up[[i]]) + "h0", f"{curve.name}, {x_label} {x[i]:g}: {mean[i]:.4g}")
                for i in range(len(x))
            ]
        lines.append(Line(curve, _path(across, up), band, dots))
        summaries.append(f"{curve.name} goes from {mean[0]:.4g} to {mean[-1]:.4g}")
    return Chart(
        title,
        x_label,
        lines,
        x_axis.ticks(8, integer=True),
        y_axis.ticks(6),
        log_scale,
        f"{title} by {x_label}. " + "; ".join(summaries) + ".",
    )


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Average at most MOST_POINTS groups of consecutive points, all of nearly the same size.

    Returns:
        Mean x, mean y, lowest y and highest y of each group.
    """
    bounds = np.linspace(0, len(x), min(len(x), MOST_POINTS) + 1).astype(int)[:-1]
    counts = np.diff(np.append(bounds, len(x)))
    return (
        np.add.reduceat(x, bounds) / counts,
        np.add.reduceat(y, bounds) / counts,
        np.minimum.reduceat(y, bounds),
        np.maximum.reduceat(y, bounds),
    )


def short_number(value: float) -> str:
    """The label of a tick, such as 0.25, 1500, 20k, 3M or 1e-4."""
    if value == 0:
        return "0"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= (unit if unit > 1e3 else 1e4):
            return f"{value / unit:.4g}{name}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _axis(values: np.ndarray, margin: float, log_scale: bool = False) -> Axis:
    low, high = float(values.min()), float(values.max())
    if log_scale:
        spare = 10 ** (margin * (math.log10(high) - math.log10(low))) if high > low else 2.0
        return Axis(max(low / spare, sys.float_info.min), min(high * spare, sys.float_info.max), log_scale=True)
    spare = margin * (high - low) if high > low else max(abs(high) / 2, 0.5 if margin == 0 else 1e-9)
    return Axis(low - spare, high + spare)


def _extent(mean: np.ndarray, low: np.ndarray, high: np.ndarray, log_scale: bool) -> np.ndarray:
    """The values of a curve that the y axis must include: the means, and most of the band.

    On a linear scale, rare means far above the others are left out, because they would flatten everything else.
    """
    if not log_scale:
        lowest, highest = np.percentile(mean, [2, 98])
        mean = mean[mean <= highest + 2 * (highest - lowest)]
    return np.concatenate([mean, np.percentile(low, [2]), np.percentile(high, [98])])


def _path(across: np.ndarray, up: np.ndarray) -> str:
    points = zip(np.round(SIZE * across, 1), np.round(SIZE * (1 - up), 1), strict=True)
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
