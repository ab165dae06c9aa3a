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
import functools
import hashlib
import io
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from ml_collections import ConfigDict

from audio_mamba.cli.train_arguments import at_least, parse_arguments
from audio_mamba.cli.train_config import build_model, check_same_experiment, check_same_options, load_config
from audio_mamba.cli.train_data import apply_data_options
from audio_mamba.data.contents import Contents
from audio_mamba.data.dataset import LogMelDataset
from audio_mamba.front_end import FrontEnd
from audio_mamba.models import objectives
from audio_mamba.published_names import experiments, hyphenated, import_named, short_name, stored_name
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.system.shares import LAUNCHERS, Share
from audio_mamba.system.terminal import given_path, quiet_exit
from audio_mamba.training import checkpoint, resume
from audio_mamba.training.report import ReportError, read_run

STUDIES = "configs.studies."
TABLE = "sweep"
SAVING_SECONDS = 600  # that torchrun leaves a run to save before it kills it; its own 30 may not be enough
LONGEST_NAME = 255  # bytes of the name of a folder
COLUMNS = {  # of the table, and their titles in Markdown
    "name": "run",
    "state": "state",
    "parameters": "parameters",
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "samples_per_second": "samples/s",
    "peak_memory_mib": "peak memory, MiB",
}
ADVICE = "give the same values, or choose another --runs"
# What may differ between a run in --runs and the command: nothing that changes its weights or its speed.
FREE_KEYS = (
    "name",
    "log_every_steps",
    "wandb.",
    "scene_layout",
    "scene_pooling",
    "overlap",
    "data.train_",  # compared by content, since a folder may be moved
    "data.val_",
    "precision",  # one of OPTIONS
)
LENGTH = ("num_epochs", "opt.decay_epochs")  # a run may be made longer
OPTIONS = (  # of train.py, compared likewise
    "seed",
    "precision",
    "min_lr",
    "bias_decay",
    "init",
    "fake_data",
    "compile",
    "tf32",
    "gradient_checkpointing",
)


@dataclass(frozen=True)
class Entry:
    """A line of the list: the stored name of a config, and KEY=VALUE entries for it alone."""

    config: str
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the work folder. One that no disk would take ends in a digest of itself instead."""
        name = ",".join([short_name(self.config), *(re.sub(r"[^\w.=-]+", "-", entry) for entry in self.overrides)])
        if len(name.encode()) <= LONGEST_NAME:
            return name
        digest = "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
        return name.encode()[: LONGEST_NAME - len(digest)].decode(errors="ignore") + digest


@dataclass
class Planned:
    """A run of the sweep."""

    entry: Entry
    args: argparse.Namespace  # of train.py
    config: ConfigDict  # as train.py sees it
    folder: Path
    parameters: int
    problem: str | None = None  # why it failed now
    refused: bool = False  # the problem is that the work folder is of something else

    def is_finished(self) -> bool:
        """Whether the work folder has the checkpoint after the last epoch.

        Raises:
            ValueError: its checkpoints are of another config or other OPTIONS or, if it is finished, of other data.
        """
        found = resume.checkpoints(self.folder)
        if not found:
            return False
        done = found[0][0].epoch >= self.config.num_epochs
        free_keys = FREE_KEYS if done else FREE_KEYS + LENGTH
        check_same_experiment(self.folder, self.config, free_keys=free_keys, advice=ADVICE)
        state = checkpoint.load_checkpoint(found[0][1], mmap=True)
        trained = state["args"] | {"precision": state["args"].get("asked_precision", state["args"]["precision"])}
        check_same_options(self.args, {"args": trained}, self.folder, OPTIONS)
        if not done:
            return False
        for name, data in self.contents().items():
            before = (state.get("data") or {}).get(name)
            if before and (difference := data.difference(Contents.from_state(before))):
                raise ValueError(f"{self.folder} was trained with other {name}: {difference}")
        return True

    def contents(self) -> dict[str, Contents]:
        """What the folders of the command hold, by their use as in a checkpoint; without folders that are gone."""
        data, front_end = self.config.data, FrontEnd.from_settings(self.config.front_end)
        parts = {
            "training data": (tuple(data.train_dirs), data.fraction),
            "validation data": ((data.val_dir,), 1.0),
        }
        return {
            name: archive_contents(directories, fraction, front_end)
            for name, (directories, fraction) in parts.items()
            if directories and all(directory and Path(directory).is_dir() for directory in directories)
        }

    def state(self) -> str:
        """In words, for the table. Raises ValueError as `is_finished` does."""
        if self.is_finished():
            return "finished"
        if self.problem:
            return self.problem
        found = resume.checkpoints(self.folder)
        return f"{found[0][0].epoch} of {self.config.num_epochs} epochs" if found else "not started"


@functools.cache
def archive_contents(directories: tuple[str, ...], fraction: float, front_end: FrontEnd) -> Contents:
    """What archives hold, read once for all runs of a sweep; arguments as for `data.loader.make_loader`."""
    return LogMelDataset(directories, 1, front_end, fraction=fraction).contents()


def read_list(name: str) -> list[Entry]:
    """The runs that LIST names, without repetitions.

    Raises:
        ValueError: `name` is neither a file nor a study, a line cannot be read, or the list is empty.
    """
    if Path(name).is_file():
        entries = []
        for number, line in enumerate(Path(name).read_bytes().splitlines(), start=1):
            try:
                words = shlex.split(line.decode(), comments=True)
            except ValueError as error:  # not UTF-8, or an open quote
                raise ValueError(f"{name}, line {number}: {error}") from error
            if words:
                entries.append(Entry(stored_name(words[0]), tuple(words[1:])))
    else:
        module = name if name.startswith(STUDIES) else STUDIES + name
        known = [study for study in experiments() if study.startswith(STUDIES) and study != STUDIES + "base"]
        if module not in known:
            studies = ", ".join(map(short_name, known))
            raise ValueError(f"{name} is neither a file with a list of configs nor a study; studies are {studies}")
        entries = [Entry(f"{module}:{variant}") for variant in import_named(module).VARIANTS]
    if not entries:
        raise ValueError(f"{name} lists no config")
    return list(dict.fromkeys(entries))


def plan(entries: Sequence[Entry], runs: Path, train_options: list[str]) -> list[Planned]:
    """Check all runs before the first one starts.

    Raises:
        ValueError: an invalid config or option, or two different configs with the same name.
    """
    planned: dict[str, Planned] = {}
    for entry in entries:
        command = train_arguments(entry, runs, train_options)
        args = parse_arguments(str(__doc__), command, "experiments.sweep")
        if (args.config, args.workdir) != (entry.config, str(runs / entry.name)):
            raise ValueError("the sweep chooses --config and --workdir itself: from LIST and --runs")
        try:
            config = load_config(entry.config, args.overrides)
            apply_data_options(config, args)
            args.precision = args.precision or config.precision
            with torch.device("meta"):
                model = build_model(config)
                objectives.build(config.opt, model)
        except ValueError as error:
            raise ValueError(f"{entry.name}: {error}") from error
        run = Planned(entry, args, config, runs / entry.name, sum(p.numel() for p in model.parameters()))
        other = planned.setdefault(entry.name, run)
        if other.config != config:
            raise ValueError(f"{other.entry.config} and {entry.config} differ, but both would be {run.folder}")
    return list(planned.values())


def train_arguments(entry: Entry, runs: Path, train_options: list[str]) -> list[str]:
    """The command line of train.py for a run."""
    own = ["--config", entry.config, "--workdir", str(runs / entry.name)]
    return [*own, *train_options, *(["--set", *entry.overrides] if entry.overrides else [])]


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


def sweep(planned: Sequence[Planned], runs: Path, train_options: list[str], processes: int, runner: Runner) -> None:
    """Train what is not finished, until `runner` is stopped; failed and refused runs have a `problem` then."""
    program = ["-m", "audio_mamba.train"]
    if processes > 1:
        patience = f"--shutdown-timeout={SAVING_SECONDS}"
        program = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", patience, *program]
    for number, run in enumerate(planned, start=1):
        if runner.stopped_by:
            return
        place = f"[{number}/{len(planned)}] {run.entry.name}"
        try:
            if run.is_finished():
                print(f"{place}: is finished", flush=True)
                continue
        except (ValueError, OSError) as error:
            run.problem, run.refused = f"refused: {error}", True
            print(f"{place}: {run.problem}", file=sys.stderr, flush=True)
            continue
        try:
            print(f"{place}: training in {run.folder}", flush=True)
            status = runner.run([sys.executable, *program, *train_arguments(run.entry, runs, train_options)])
            if not runner.stopped_by and not run.is_finished():
                run.problem = f"failed with status {status}" if status else "was stopped"
        except (ValueError, OSError) as error:
            run.problem = f"failed: {error}"
        if run.problem:
            print(f"{place}: {run.problem}", file=sys.stderr, flush=True)


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
        planned = plan(read_list(args.list), args.runs, train_options)
        args.runs.mkdir(parents=True, exist_ok=True)
        with Runner() as runner:
            sweep(share.part(planned), args.runs, train_options, int(args.processes), runner)
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
    failed = [run.entry.name for run in planned if run.problem and not run.refused]
    messages = [f"{len(failed)} run(s) did not finish: {', '.join(failed)}; the same command continues them"]
    if messages := messages[: len(failed)] + ([refusal] if refused else []):
        raise SystemExit("\n".join(f"sweep: {message}" for message in messages))


if __name__ == "__main__":
    with quiet_exit():
        main()
