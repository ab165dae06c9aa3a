"""Speed and memory of pretraining on a CPU: train.py compared with the same step in plain PyTorch.

    python -m benchmarks.train

SSAM-tiny, SSAST-tiny and AxLSTM-tiny of the paper's configs, and SSAM-tiny whose blocks walk forward and backward in
turns or both ways each, run in one process and in two (torchrun, gloo), in each precision:

    train.py                    the command itself, with its loader, on an archive made for this benchmark
    train.py, checkpointing     the same with --gradient-checkpointing
    plain, chunked scan         a bare loop over random batches in memory with PyTorch's default AdamW, without loader,
                                log, schedule or guard; SSAM without compiled kernels, with its scan in chunks of time
    plain, step-by-step scan    the same with a naive step-by-step scan whose states autograd keeps, as published for
                                machines without the CUDA kernels; in batches of --loop-batch, because it needs
                                seconds and over 1 GiB per sample
    plain                       the bare loop with the others, and with the compiled kernels

Each row runs in fresh processes until --seconds of its steps have been timed, and for at least two steps. Everything
takes about a quarter of an hour on two idle cores. Use --models, --processes, --precisions and --steps to select rows,
and --batch and --seconds to shorten them.

samples/s counts all processes together, at the median step. The shares are of the time between two optimizer steps:
forward with the loss; backward, with the exchange of gradients and the second forward of checkpointing; and optimizer
step with zero_grad. `outside` is the rest, and `data wait` the part of it spent waiting for the loader. Peak memory is
that of the larger process, minus its memory before the first step.

    git worktree add OLD COMMIT && python -m benchmarks.train --against OLD

compares train.py with the train.py of another checkout instead. Old and new code run in turns, --rounds times each, in
fresh processes. The median of the ratios counts; the lowest and the highest are printed beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, median

import torch
from tqdm import tqdm

from audio_mamba.data.prepare import prepare
from audio_mamba.data.synthetic import write_audio
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.system.machine import usable_cores
from benchmarks import train_against
from benchmarks.train_steps import CHECKPOINTING, PLAIN_SCANS, TRAIN_PY, WORK, Setting

MODELS = {
    "SSAM-tiny": "configs.ssam_tiny_200_16x4",
    "SSAM-tiny, alternate": "configs.ssam_alternate_tiny_200_16x4",
    "SSAM-tiny, both": "configs.ssam_both_tiny_200_16x4",
    "SSAST-tiny": "configs.ssast_tiny_200_16x4",
    "AxLSTM-tiny": "configs.axlstm_tiny_200_16x4",
}
STEPS = (TRAIN_PY, CHECKPOINTING, *PLAIN_SCANS)
ROOT = Path(__file__).resolve().parent.parent
AUDIO_MINUTES = 40
LEAST_SPEED_UP, MOST_OUTSIDE = 8, 0.05  # the targets


@dataclass
class Row:
    """One measurement; see the module docstring."""

    model: str
    processes: int
    precision: str
    step: str
    batch: int
    steps_timed: int
    samples_per_second: float
    forward: float
    backward: float
    optimizer: float
    outside: float
    data_wait: float
    peak_mib: float
    speed_up: float | None = None  # of train.py in the same setting over this row


@dataclass
class Report:
    cores: int
    torch: str
    load_average: float
    rows: list[Row] = field(default_factory=list)


def settings(args: argparse.Namespace, archive: Path) -> list[Setting]:
    """Everything to measure, in an order that keeps comparable rows together."""
    found = []
    for model, processes, precision, step in product(args.models, args.processes, args.precisions, args.steps):
        scan = PLAIN_SCANS.get(step)
        if step in PLAIN_SCANS and (scan is not None) != (model == "SSAM-tiny"):
            continue
        found.append(
            Setting(
                model,
                MODELS[model],
                processes,
                precision,
                step,
                args.loop_batch if scan == "reference" else args.batch,
                args.seconds,
                str(archive),
                args.overrides,
            )
        )
    return found


def measure(setting: Setting, root: Path = ROOT) -> Row:
    """Run a setting by the code in `root`, in fresh processes. Raises RuntimeError with the end of their output if one
    fails."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "setting.json").write_text(json.dumps(asdict(setting)))
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc-per-node={setting.processes}"]
            if setting.processes > 1
            else []
        )
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "benchmarks.train_steps", f"{folder}/setting.json", folder],
            cwd=root,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{setting} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        ranks = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
    return summary(setting, ranks)


def summary(setting: Setting, ranks: list[dict]) -> Row:
    """The measurements of all processes as one row."""

    def share(*parts: str) -> float:
        return mean(
            sum(step.get(part, 0.0) for step in rank["steps"] for part in parts)
            / sum(step["step"] for step in rank["steps"])
            for rank in ranks
        )

    seconds = max(median(step["step"] for step in rank["steps"]) for rank in ranks)
    return Row(
        setting.model,
        setting.processes,
        setting.precision,
        setting.step,
        setting.batch,
        len(ranks[0]["steps"]),
        setting.processes * setting.batch / seconds,
        *map(share, WORK),
        1 - share(*WORK),
        share("data"),
        max(rank["peak_mib"] for rank in ranks),
    )


def run(args: argparse.Namespace) -> Report:
    """Measure all settings in turn, writing args.output again after each row."""
    report = Report(usable_cores(), torch.__version__, os.getloadavg()[0])
    with made_archive(args.audio_minutes) as archive:
        for setting in (bar := tqdm(settings(args, archive), unit="row")):
            bar.set_description(f"{setting.model}, {setting.processes} x {setting.precision}, {setting.step}")
            report.rows.append(measure(setting))
            compare(report.rows)
            with atomic_write(args.output) as file:
                file.write(json.dumps(asdict(report), indent=1).encode() + b"\n")
    return report


def run_against(args: argparse.Namespace) -> list[train_against.Comparison]:
    """Compares train.py with that of args.against; the file args.output grows setting by setting."""
    comparisons, args.steps = [], [TRAIN_PY]
    with made_archive(args.audio_minutes) as archive:
        found = train_against.alternate(
            chosen := settings(args, archive), args.rounds, partial(measure, root=args.against), measure
        )
        for comparison in tqdm(found, total=len(chosen), unit="setting"):
            comparisons.append(comparison)
            with atomic_write(args.output) as file:
                file.write(json.dumps([asdict(one) for one in comparisons], indent=1).encode() + b"\n")
    return comparisons


@contextmanager
def made_archive(minutes: float) -> Iterator[Path]:
    """An archive of so many minutes of synthetic audio, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        write_audio(Path(folder) / "audio", minutes)
        prepare(Path(folder) / "audio", archive, workers=usable_cores())
        yield archive


def compare(rows: list[Row]) -> None:
    """Fill in how much faster train.py is than each row, if it was measured in the same setting."""
    ours = {(row.model, row.processes, row.precision): row for row in rows if row.step == TRAIN_PY}
    for row in rows:
        same = ours.get((row.model, row.processes, row.precision))
        row.speed_up = same and same.samples_per_second / row.samples_per_second


def table(report: Report) -> str:
    """The rows as a Markdown table, followed by a comparison with the targets."""
    lines = [
        f"{report.cores} cores, torch {report.torch}, load average at the start {report.load_average:.1f}",
        "",
        "| model | processes | precision | step | batch | samples/s | train.py is faster | forward | backward "
        "| optimizer | outside | data wait | peak MiB |",
        "|---|---:|---|---|" + "---:|" * 9,
    ]
    for row in report.rows:
        faster = f"{row.speed_up:.2f} x" if row.speed_up else ""
        lines.append(
            f"| {row.model} | {row.processes} | {row.precision} | {row.step} | {row.batch} "
            f"| {row.samples_per_second:.2f} | {faster} | {row.forward:.1%} | {row.backward:.1%} "
            f"| {row.optimizer:.1%} | {row.outside:.1%} | {row.data_wait:.1%} | {row.peak_mib:.0f} |"
        )
    return "\n".join([*lines, "", *verdicts(report.rows)])


def verdicts(rows: list[Row]) -> list[str]:
    """A line for each target for which there are measurements."""
    lines = []
    for step, scan in PLAIN_SCANS.items():
        compared = [row for row in rows if row.step == step and scan and row.speed_up]
        if compared:
            found, batches = [row.speed_up for row in compared], sorted({row.batch for row in compared})
            lines.append(
                f"train.py trains SSAM-tiny {min(found):.1f} to {max(found):.1f} times as fast as "
                f"{step} in batches of {', '.join(map(str, batches))} (target: at least {LEAST_SPEED_UP})"
            )
    found = [row.outside for row in rows if row.step in (TRAIN_PY, CHECKPOINTING)]
    if found:
        lines.append(
            f"train.py spends at most {max(found):.1%} of a step outside forward, backward and optimizer "
            f"(target: at most {MOST_OUTSIDE:.0%})"
        )
    return lines


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL", help="; ".join(MODELS))
    add("--processes", nargs="+", type=int, default=[1, 2], metavar="N", help="world sizes (default: 1 2)")
    add(
        "--precisions",
        nargs="+",
        choices=("float32", "bfloat16", "float16"),
        default=["float32", "bfloat16"],
        metavar="NAME",
        help="default: float32 bfloat16",
    )
    add("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help="rows of the list above")
    add("--seconds", type=float, default=4.0, help="time measured per row (default: %(default)g)")
    add("--batch", type=int, default=16, help="samples per process and step (default: %(default)s)")
    add("--loop-batch", type=int, default=1, help="the same for the step-by-step scan (default: %(default)s)")
    add("--audio-minutes", type=float, default=AUDIO_MINUTES, help="length of the archive (default: %(default)g)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides", help="override config entries")
    add(
        "--output",
        type=Path,
        default=Path("benchmark_train.json"),
        help="JSON file for the numbers (default: %(default)s)",
    )
    add(
        "--against",
        type=Path,
        metavar="DIR",
        help="compare train.py with that of another checkout, such as a git worktree of an older commit",
    )
    add("--rounds", type=int, default=5, help="of --against, an old and a new run each (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.against and not (args.against / "benchmarks" / "train_steps.py").is_file():
        parser.error(f"--against {args.against}: not a checkout of this project (no benchmarks/train_steps.py)")
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    print(train_against.table(run_against(args)) if args.against else table(run(args)))


if __name__ == "__main__":
    main()
