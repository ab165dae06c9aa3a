"""Two versions of the code on the same stacks, or stacks against each other: `--against` and `--stacks` of
`python -m benchmarks.cpu`."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.measure import in_turns, ratio_and_spread

ROOT = Path(__file__).resolve().parent.parent
CASES = ((1, False), (8, False), (8, True))  # batch, backward
# Both sides have a `benchmarks.cpu` with this much in common.
CHILD = """
import json, sys
from benchmarks import cpu
stack, batch, tokens, backward = json.loads(sys.argv[1])
row = cpu.measure(cpu.Row(stack, batch, tokens, backward)) if stack in cpu.STACKS else None
print(json.dumps(row and [row.seconds, row.peak_mib]))
"""


@dataclass
class Comparison:
    """One setting; `old` and `new` have the seconds of each round. `old` is empty if that code lacks the stack. Among
    stacks, `old` is the first one."""

    stack: str
    batch: int
    backward: bool
    old: list[float]
    new: list[float]
    old_peak_mib: float
    new_peak_mib: float


def measure(stack: str, batch: int, tokens: int, backward: bool, root: Path = ROOT) -> tuple[float, float] | None:
    """Seconds and peak MiB by the code in `root`, in a fresh process; None if it does not have this stack.

    Raises:
        RuntimeError: the process failed; the message has the end of its output.
    """
    command = [sys.executable, "-c", CHILD, json.dumps([stack, batch, tokens, backward])]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{stack} in {root} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found and tuple(found)


def compare(stacks: list[str], tokens: int, rounds: int, old: Path) -> Iterator[Comparison]:
    """Old and new code in turns on each stack and each of CASES."""
    for batch, backward in CASES:
        for stack in stacks:
            one = partial(measure, stack, batch, tokens, backward, old)
            yield _comparison(stack, batch, tokens, backward, rounds, one)


def compare_stacks(first: str, others: list[str], tokens: int, rounds: int) -> Iterator[Comparison]:
    """The first stack and each other one in turns, on each of CASES."""
    for batch, backward in CASES:
        for stack in others:
            one = partial(measure, first, batch, tokens, backward)
            yield _comparison(stack, batch, tokens, backward, rounds, one)


def _comparison(
    stack: str, batch: int, tokens: int, backward: bool, rounds: int, one: Callable[[], tuple[float, float] | None]
) -> Comparison:
    """The stack in turns with what `one` measures."""
    found, of_new = in_turns(rounds, one, partial(measure, stack, batch, tokens, backward))
    of_old = [pair for pair in found if pair is not None]
    return Comparison(
        stack,
        batch,
        backward,
        [seconds for seconds, _ in of_old],
        [seconds for seconds, _ in of_new],
        max((peak for _, peak in of_old), default=0.0),
        max(peak for _, peak in of_new),
    )


def table_of_stacks(first: str, comparisons: list[Comparison]) -> str:
    """How many times the time of the first stack the others take, in markdown."""
    lines = [
        f"| stack | batch | pass | ms | ms of {first} | times as long | lowest to highest | peak MiB "
        f"| peak MiB of {first} |",
        "|---|---:|---|" + "---:|" * 6,
    ]
    for one in comparisons:
        lines.append(
            f"| {one.stack} | {one.batch} | {_name(one)} | {1000 * median(one.new):.1f} | {1000 * median(one.old):.1f} "
            f"| {ratio_and_spread(one.new, one.old)} | {one.new_peak_mib:.0f} | {one.old_peak_mib:.0f} |"
        )
    return "\n".join(lines)


def table(comparisons: list[Comparison]) -> str:
    """The comparisons in markdown, and the time of SSAM relative to SSAST, old and new."""
    lines = [
        "| stack | batch | pass | old ms | new ms | old / new | lowest to highest | old peak MiB | new peak MiB |",
        "|---|---:|---|" + "---:|" * 6,
    ]
    for one in comparisons:
        new = f"{1000 * median(one.new):.1f}"
        old, peak, ratios = "", "", " | "
        if one.old:
            old, peak = f"{1000 * median(one.old):.1f}", f"{one.old_peak_mib:.0f}"
            ratios = ratio_and_spread(one.old, one.new)
        lines.append(
            f"| {one.stack} | {one.batch} | {_name(one)} | {old} | {new} | {ratios} | {peak} | {one.new_peak_mib:.0f} |"
        )
    return "\n".join([*lines, "", *_against_ssast(comparisons)])


def _name(one: Comparison) -> str:
    return "forward + backward" if one.backward else "forward"


def _against_ssast(comparisons: list[Comparison]) -> list[str]:
    times = {(one.stack, one.batch, one.backward): one for one in comparisons}
    lines = []
    for one in comparisons:
        other = times.get(("SSAST-tiny", one.batch, one.backward))
        if one.stack == "SSAM-tiny" and other:
            old = f", {median(one.new) / median(other.old):.2f} of the old" if other.old else ""
            lines.append(
                f"SSAM-tiny takes {median(one.new) / median(other.new):.2f} of the time of the new SSAST-tiny{old} "
                f"({_name(one)}, batch {one.batch})"
            )
    return lines
