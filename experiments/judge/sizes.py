"""One task at several numbers of training clips, and the scores on it as a curve; `sizes.sh` runs all steps.

    python -m experiments.judge.sizes make PACKAGES_DIR TASKS_DIR
    python -m experiments.judge.sizes curve FIGURE.png --heads NAME=OUTPUT_DIR --judge tasks.csv

The task: which family of General MIDI an instrument is of. An instrument of one sound font is in one split; the smaller
sets of training clips are part of the larger ones, and all are tested on the same clips.
"""

import argparse
import csv
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean

from audio_mamba.external_sources import layout
from audio_mamba.system.atomic_files import atomic_write
from experiments.judge.build import write_task
from experiments.judge.clips import SPLITS, Clip, split_by
from experiments.judge.instruments import Note, play
from experiments.judge.played import FAMILIES, FONTS
from experiments.judge.tasks import Task

SIZES = (125, 250, 500, 1000, 2000)
HELD_OUT = 500  # clips for validation, and for the test
KEYS = range(40, 77, 2)
SECONDS = 1.5
NAME = re.compile(r"families_of_(\d+)-v1-full")


def notes(packages: Path) -> list[Clip]:
    """All clips, in an order that says nothing."""
    found = []
    for font in ("musescore", "a320u", "gmbank"):
        package, file = FONTS[font]
        played = [(program, key) for program in range(8 * len(FAMILIES)) for key in KEYS]
        slots = [[Note(0, program, key, 90, 0, 1.0)] for program, key in played]
        for (program, key), audio in zip(played, play(packages / package / file, slots, SECONDS)):
            split = split_by(f"{font} {program}")
            found.append(Clip(package, split, FAMILIES[program // 8], f"{font}_{program}_{key}", audio))
    return sorted(found, key=lambda clip: hashlib.sha256(clip.name.encode()).hexdigest())


def of_size(clips: list[Clip], size: int) -> Iterator[Clip]:
    """The first `size` clips for training, and those held out.

    Raises:
        ValueError: there are fewer clips.
    """
    for split in SPLITS:
        number = size if split == "train" else HELD_OUT
        of_split = [clip for clip in clips if clip.split == split][:number]
        if len(of_split) < number:
            raise ValueError(f"{len(of_split)} clips for {split}, {number} wanted")
        yield from of_split


def make(packages: Path, out: Path) -> None:
    """The tasks that are not there yet."""
    missing = [size for size in SIZES if not (out / f"families_of_{size}-v1-full").exists()]
    clips = notes(packages) if missing else []
    for size in missing:
        described = "families of instruments; an instrument is in one split"
        write_task(
            Task(f"families_of_{size}", SECONDS, SPLITS, described, lambda _, n=size: of_size(clips, n)), packages, out
        )


def scores_of_heads(output_dir: Path) -> dict[int, float]:
    """Mean test accuracy over seeds by number of training clips, of the only model in an OUTPUT_DIR of the kit.

    Raises:
        ValueError: no finished heads, or those of several models.
    """
    found: dict[int, list[float]] = {}
    models = set()
    for run in sorted((output_dir / layout.RUNS).iterdir()):
        parsed = layout.parse_run_name(run.name)
        for task in layout.task_folders(run) if parsed else ():
            match = NAME.fullmatch(task.name)
            if match and layout.is_done(task):
                models.add(parsed.module if parsed else "")
                scores = json.loads((task / layout.SCORES).read_text())
                found.setdefault(int(match[1]), []).append(scores["test"]["test_score"])
    if len(models) != 1:
        raise ValueError(f"{output_dir} has finished heads of {len(models)} models, not of one")
    return {size: mean(found[size]) for size in sorted(found)}


def scores_of_judge(table: Path) -> dict[int, float]:
    """Test accuracy by number of training clips from the first model in tasks.csv of `experiments.judge`."""
    found: dict[int, float] = {}
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if match := NAME.fullmatch(row["task"]):
                found.setdefault(int(match[1]), float(row["test"]))
    return dict(sorted(found.items()))


def markdown(curves: Mapping[str, Mapping[int, float]]) -> str:
    """The curves as a table, in percent."""
    sizes = sorted({size for curve in curves.values() for size in curve})
    lines = [f"| training clips | {' | '.join(map(str, sizes))} |", "|---|" + "---|" * len(sizes)]
    for name, curve in curves.items():
        cells = [f"{100 * curve[size]:.1f}" if size in curve else "-" for size in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """The curves as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(list(curve), [100 * score for score in curve.values()], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.set(xlabel="training clips", ylabel="test accuracy in percent")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def curve(args: argparse.Namespace) -> None:
    """The command `curve`."""
    curves = {}
    for text in args.heads:
        name, separator, folder = text.partition("=")
        if not separator:
            raise ValueError(f"--heads {text}: must be NAME=OUTPUT_DIR")
        curves[name] = scores_of_heads(Path(folder))
    curves["logistic regression"] = scores_of_judge(args.judge)
    draw(curves, args.figure)
    print(markdown(curves))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.judge.sizes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make", help="make the tasks that are not there")
    making.add_argument("packages", metavar="PACKAGES_DIR", type=Path, help="folder of build.py")
    making.add_argument("tasks", metavar="TASKS_DIR", type=Path, help="folder for the tasks")
    making.set_defaults(run=lambda args: make(args.packages, args.tasks))
    drawing = commands.add_parser("curve", help="print a table of scores and draw it")
    drawing.add_argument("figure", metavar="FIGURE.png", type=Path, help="the picture")
    drawing.add_argument(
        "--heads", metavar="NAME=OUTPUT_DIR", action="append", default=[], help="of downstream_experiments.sh; repeat"
    )
    drawing.add_argument("--judge", metavar="tasks.csv", type=Path, required=True, help="of experiments.judge")
    drawing.set_defaults(run=curve)
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (RuntimeError, ValueError, OSError) as error:
        raise SystemExit(f"sizes: {error}") from None


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
