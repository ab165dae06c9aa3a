"""Two versions of the code on the same clips: `python -m benchmarks.embed --against DIR`."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch

from audio_mamba.models.precision import usable_precision
from benchmarks.measure import in_turns, ratio_and_spread

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = ("float32", "bfloat16")
# Both sides have a `benchmarks.embed` with this much in common.
CHILD = """
import json, sys
from benchmarks import embed
config, kind, precision, count, repeats = json.loads(sys.argv[1])
if hasattr(embed, "load_model"):
    runtime = embed.load_model(config, "untrained", "cpu", precision=precision)
else:
    runtime, _ = embed.load_runtime(config, "untrained", precision, device="cpu")
clips = embed.make_clips(embed.CLIP_SECONDS[kind], count)
call = {"embed": lambda clips: runtime.embed(clips, output="torch")}
rate = embed.measure(call, clips, repeats, lambda: None)["embed"]
print(json.dumps([rate, runtime.embed(clips[:4]).tolist()]))
"""


@dataclass
class Comparison:
    """One setting; `old` and `new` have the clips/s of each round."""

    config: str
    clips: str
    precision: str
    old: list[float]
    new: list[float]
    cosine: float  # the lowest between the new code's embeddings in this precision and in float32


def measure(
    config: str, kind: str, precision: str, count: int, repeats: int, root: Path = ROOT
) -> tuple[float, list[list[float]]]:
    """Clips/s of `RuntimeSSAST.embed` by the code in `root`, in a fresh process, and the embeddings of four clips.

    Raises:
        RuntimeError: the process failed; the message has the end of its output.
    """
    command = [sys.executable, "-c", CHILD, json.dumps([config, kind, precision, count, repeats])]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{config} in {root} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    rate, embeddings = json.loads(done.stdout.splitlines()[-1])
    return rate, embeddings


def compare(
    configs: Sequence[str], kinds: Sequence[str], count: int, repeats: int, rounds: int, old: Path
) -> Iterator[Comparison]:
    """Old and new code in turns on each config and kind of clips, in PRECISIONS that the processor is fast in."""
    for config, kind in product(configs, kinds):
        exact = None
        for precision in PRECISIONS:
            if usable_precision(torch.device("cpu"), precision) != precision:
                continue  # a warning says so
            setting = (config, kind, precision, count, repeats)
            of_old, of_new = in_turns(rounds, partial(measure, *setting, old), partial(measure, *setting))
            embeddings = of_new[-1][1]
            exact = exact or embeddings
            rates_old, rates_new = [rate for rate, _ in of_old], [rate for rate, _ in of_new]
            yield Comparison(config, kind, precision, rates_old, rates_new, lowest_cosine(embeddings, exact))


def lowest_cosine(some: list[list[float]], others: list[list[float]]) -> float:
    """The lowest cosine between embeddings and their counterparts."""

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    return min(dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5 for a, b in zip(some, others, strict=True))


def table(comparisons: list[Comparison]) -> str:
    """The comparisons in markdown, and the new code's bfloat16 relative to its float32: speed, and cosine."""
    lines = [
        "| model | clips | precision | old clips/s | new clips/s | new / old | lowest to highest | 1 - cosine |",
        "|---|---|---|" + "---:|" * 5,
    ]
    rates = {(one.config, one.clips, one.precision): median(one.new) for one in comparisons}
    for one in comparisons:
        lines.append(
            f"| {one.config} | {one.clips} | {one.precision} | {median(one.old):.1f} | {median(one.new):.1f} "
            f"| {ratio_and_spread(one.new, one.old)} | {1 - one.cosine:.0e} |"
        )
    lines.append("")
    for (config, clips, precision), rate in rates.items():
        exact = rates.get((config, clips, "float32"))
        if precision != "float32" and exact:
            lines.append(f"{config}, {clips}: {precision} is {rate / exact:.2f} times as fast as float32")
    return "\n".join(lines)
