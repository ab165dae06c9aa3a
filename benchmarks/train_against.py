"""Two versions of the code on the same pretraining steps: `python -m benchmarks.train --against DIR`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from benchmarks.measure import in_turns, ratio_and_spread
from benchmarks.train_steps import Setting


@dataclass
class Comparison:
    """One setting; `old` and `new` have a value for each round."""

    model: str
    processes: int
    precision: str
    batch: int
    old: list[float]  # samples/s
    new: list[float]
    old_peak_mib: float
    new_peak_mib: float

    def ratios(self) -> list[float]:
        """How many times the old samples/s the new code reaches, in each round."""
        return [new / old for old, new in zip(self.old, self.new, strict=True)]


def alternate(
    settings: list[Setting], rounds: int, measure_old: Callable[[Setting], Any], measure_new: Callable[[Setting], Any]
) -> Iterator[Comparison]:
    """Measures old and new in turns, `rounds` times each, see `in_turns`.

    The functions return an object with `samples_per_second` and `peak_mib`, such as a `benchmarks.train.Row`.
    """
    for setting in settings:
        olds, news = in_turns(rounds, partial(measure_old, setting), partial(measure_new, setting))
        yield Comparison(
            setting.model,
            setting.processes,
            setting.precision,
            setting.batch,
            [row.samples_per_second for row in olds],
            [row.samples_per_second for row in news],
            max(row.peak_mib for row in olds),
            max(row.peak_mib for row in news),
        )


def table(comparisons: list[Comparison]) -> str:
    """The comparisons in markdown, and the speed of SSAM relative to SSAST where both were measured."""
    lines = [
        "| model | processes | precision | batch | old samples/s | new samples/s | new / old | lowest to highest "
        "| old peak MiB | new peak MiB |",
        "|---|---:|---|" + "---:|" * 7,
    ]
    for one in comparisons:
        lines.append(
            f"| {one.model} | {one.processes} | {one.precision} | {one.batch} | {median(one.old):.2f} "
            f"| {median(one.new):.2f} | {ratio_and_spread(one.new, one.old)} "
            f"| {one.old_peak_mib:.0f} | {one.new_peak_mib:.0f} |"
        )
    return "\n".join([*lines, "", *_against_ssast(comparisons)])


def _against_ssast(comparisons: list[Comparison]) -> list[str]:
    rates = {(one.model, one.processes, one.precision): median(one.new) for one in comparisons}
    return [
        f"SSAM-tiny makes {rate / rates['SSAST-tiny', processes, precision]:.2f} times the samples/s of SSAST-tiny "
        f"({processes} process{'es' if processes > 1 else ''}, {precision})"
        for (model, processes, precision), rate in rates.items()
        if model == "SSAM-tiny" and ("SSAST-tiny", processes, precision) in rates
    ]
