"""Train a list of configs, one after another, and compare them in one table.

    python -m experiments.sweep patch_sizes --runs RUNS --data ARCHIVES --val-data VALIDATION --no-wandb
    python -m experiments.sweep list.txt --runs RUNS --share 2/8 --precision bfloat16 --set num_epochs=20

LIST is a study of configs/studies (sizes, patch_sizes, sequence_lengths, data_shares, masking), or a text file with a
config per line and any KEY=VALUE for it alone, quoted as in a shell; # begins a comment. All other options are those of
train.py and go to every run: --data, --val-data, --set, --precision, --device, --no-wandb and so on.

Each run has a work folder RUNS/NAME. Run the same command again to continue: finished runs are skipped, an interrupted
one resumes where it stopped, a failed one is tried again. On Ctrl-C, SIGTERM and SIGUSR1 the run in progress saves a
checkpoint and the sweep ends. The table is RUNS/sweep.csv and RUNS/sweep.md.
"""

import argparse
import csv
import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from audio_mamba.cli.train_arguments import at_least
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.system.shares import LAUNCHERS, Share
from audio_mamba.system.terminal import given_path, hyphenated, quiet_exit
from audio_mamba.training.report import ReportError, read_run
from experiments.sweep_plan import ADVICE, Planned, plan, read_list, train_arguments

TABLE = "sweep"
SAVING_SECONDS = 600  # that torchrun leaves a run to save before it kills it; its own 30 may not be enough
COLUMNS = {  # of the table, and their titles in Markdown
    "name": "run",
    "state": "state",
    "parameters": "parameters",
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "samples_per_second": "samples/s",
    "peak_memory_mib": "peak memory, MiB",
}


class Runner:
    """Runs commands one at a time, as a context in which SIGINT, SIGTERM and SIGUSR1 stop the command in progress.

    train.py then saves a checkpoint. It takes SIGTERM for the same request as the SIGINT that a terminal sends to both,
    so the request is passed on as SIGTERM. A second Ctrl-C is passed on as such and ends train.py at once.

    Attributes:
        stopped_by: the first such signal, after which nothing is run.
    """

    def __init__(self):
        self.stopped_by: int | None = None
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Runner":
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._previous = {number: signal.signal(number, self._stop) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT == self.stopped_by
        self.stopped_by = self.stopped_by or number
        if self._process is not None:
            self._process.send_signal(signal.SIGINT if again else signal.SIGTERM)

    def run(self, command: list[str]) -> int:
        """The exit status of a command; negative for a signal that ended it."""
        self._process = subprocess.Popen(command)
        try:
            if self.stopped_by:  # while it was being started
                self._process.terminate()
            return self._process.wait()
        finally:
            self._process = None


def sweep(planned: Sequence[Planned], runs: Path, train_options: list[str], runner: Runner) -> None:
    """Train what is not finished, until `runner` is stopped; failed and refused runs have a `problem` then."""
    for number, run in enumerate(planned, start=1):
        if runner.stopped_by:
            return
        label = f"[{number}/{len(planned)}] {run.entry.name}"
        try:
            if run.is_finished():
                print(f"{label}: is finished", flush=True)
                continue
        except (ValueError, OSError) as error:
            run.problem, run.refused = f"refused: {error}", True
            print(f"{label}: {run.problem}", file=sys.stderr, flush=True)
            continue
        try:
            print(f"{label}: training in {run.folder}", flush=True)
            status = runner.run([*_program(run.processes), *train_arguments(run.entry, runs, train_options)])
            if not runner.stopped_by and not run.is_finished():
                run.problem = f"failed with status {status}" if status else "was stopped"
        except (ValueError, OSError) as error:
            run.problem = f"failed: {error}"
        if run.problem:
            print(f"{label}: {run.problem}", file=sys.stderr, flush=True)


def _program(processes: int) -> list[str]:
    """The beginning of the command line that trains a run."""
    train = ["-m", "audio_mamba.train"]
    if processes == 1:
        return [sys.executable, *train]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun, f"--shutdown-timeout={SAVING_SECONDS}", *train]


def row(run: Planned) -> dict[str, Any]:
    """The row of a run, as far as it has come; None for what is not known."""
    values: dict[str, Any] = {"name": run.entry.name, "parameters": run.parameters}
    try:
        values["state"] = run.state()
    except (ValueError, OSError) as error:  # its numbers may be those of other settings or data
        return values | {"state": run.problem or f"failed: {error}"}
    try:
        found = read_run(run.folder)
    except ReportError:
        return values
    peaks = [step["peak_memory_mib"] for step in found.steps if step["peak_memory_mib"] > 0]  # not NaN
    return values | {
        "train_loss": found.last("train_loss"),
        "val_loss": found.last("val_loss"),
        "samples_per_second": found.typical("samples_per_second"),
        "peak_memory_mib": max(peaks, default=None),
    }


def write_table(planned: Sequence[Planned], runs: Path) -> str:
    """Write sweep.csv and sweep.md with a row per run; return the second."""
    rows = [row(run) for run in planned]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    lines = [
        list(COLUMNS.values()),
        ["---"] * len(COLUMNS),
        *([_shown(one.get(key), key) for key in COLUMNS] for one in rows),
    ]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    for suffix, content in ((".csv", text.getvalue()), (".md", table)):
        with atomic_write(runs / (TABLE + suffix)) as file:
            file.write(content.encode())
    return table


def _shown(value: Any, column: str) -> str:
    """A value in the Markdown table."""
    if value is None:
        return "-"
    if column == "parameters":
        return f"{value / 1e6:.2f} M"
    if isinstance(value, float):
        return f"{value:.4f}" if column.endswith("loss") else f"{value:.0f}" if value >= 100 else f"{value:.1f}"
    return str(value).replace("|", "/")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("list", metavar="LIST", help="name of a study, or a text file; before all options of train.py")
    add("--runs", metavar="DIR", type=given_path, required=True, help="folder for the work folders and the table")
    add(
        "--share",
        metavar="I/N",
        help="train the I-th of N parts of the list, for N jobs that see the same folders; srun sets this by itself",
    )
    add(
        "--processes",
        metavar="N",
        type=at_least(1),
        default=1,
        help="training processes per run, under torchrun: one per GPU (default: %(default)s)",
    )
    args, train_options = parser.parse_known_args(hyphenated(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args.share is None and LAUNCHERS[0][0] in os.environ:
            raise ValueError("start the sweep without torchrun; --processes N starts each run under it")
        share = Share.of_process(args.share)
        planned = plan(read_list(args.list), args.runs, train_options, int(args.processes))
        args.runs.mkdir(parents=True, exist_ok=True)
        with Runner() as runner:
            sweep(share.part(planned), args.runs, train_options, runner)
            if refused := [run.entry.name for run in planned if run.refused]:
                others = "" if len(refused) == 1 else f" and {len(refused) - 1} more, named above"
                refusal = f"{refused[0]}{others}: trained with other values than the command says; {ADVICE}"
                if len(refused) == len(planned):
                    raise ValueError(refusal)
            table = write_table(planned, args.runs)
    except (ValueError, OSError) as error:
        raise SystemExit(f"sweep: {error}") from None
    print(f"\n{table}\n{args.runs / TABLE}.csv, {args.runs / TABLE}.md")
    if runner.stopped_by:
        print(f"sweep: {signal.Signals(runner.stopped_by).name}: run the same command to continue", file=sys.stderr)
        raise SystemExit(128 + runner.stopped_by)
    messages = []
    if failed := [run.entry.name for run in planned if run.problem and not run.refused]:
        messages.append(f"{len(failed)} run(s) did not finish: {', '.join(failed)}; the same command continues them")
    if refused:
        messages.append(refusal)
    if messages:
        raise SystemExit("\n".join(f"sweep: {message}" for message in messages))


if __name__ == "__main__":
    with quiet_exit():
        main()
