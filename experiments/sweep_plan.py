"""The runs of a sweep: what LIST names, whether each can start, and what its work folder already holds."""

import argparse
import functools
import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ml_collections import ConfigDict

from audio_mamba.cli.train_arguments import parse_arguments
from audio_mamba.cli.train_config import build_model, check_same_experiment, check_same_options, load_config
from audio_mamba.cli.train_data import apply_data_options
from audio_mamba.config_names import experiments, import_named, short_name, stored_name
from audio_mamba.data.contents import Contents
from audio_mamba.data.dataset import LogMelDataset
from audio_mamba.front_end import FrontEnd
from audio_mamba.models import objectives
from audio_mamba.training import checkpoint, resume

STUDIES = "configs.studies."
LONGEST_NAME = 255  # bytes of the name of a folder
ADVICE = "give the same values, or choose another --runs"
# What may differ between a run in --runs and the command: nothing that changes its weights or its speed.
FREE_KEYS = (
    "name",
    "options.",
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
    processes: int  # that train it
    problem: str | None = None  # why it failed now
    refused: bool = False  # the problem is that the work folder is of something else

    def is_finished(self) -> bool:
        """Whether the work folder has the checkpoint after the last epoch.

        Raises:
            ValueError: its checkpoints are of another config, other OPTIONS, or steps of another number of samples, or,
                if it is finished, of other data.
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
        samples = self.config.batch_size * self.processes
        if state.get("samples_per_step", samples) != samples:
            raise ValueError(
                f"{self.folder} was trained with {state['samples_per_step']} samples in a step, not with {samples} "
                f"(batch_size {self.config.batch_size}, --processes {self.processes}); {ADVICE}"
            )
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


def plan(entries: Sequence[Entry], runs: Path, train_options: list[str], processes: int = 1) -> list[Planned]:
    """Check all runs, each of which so many processes train, before the first one starts.

    Raises:
        ValueError: an invalid config or option, or two different configs with the same name.
    """
    planned: dict[str, Planned] = {}
    for entry in entries:
        command = train_arguments(entry, runs, train_options)
        args = parse_arguments("A run of a sweep.", command, "experiments.sweep")
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
        parameters = sum(parameter.numel() for parameter in model.parameters())
        run = Planned(entry, args, config, runs / entry.name, parameters, processes)
        other = planned.setdefault(entry.name, run)
        if other.config != config:
            raise ValueError(f"{other.entry.config} and {entry.config} differ, but both would be {run.folder}")
    return list(planned.values())


def train_arguments(entry: Entry, runs: Path, train_options: list[str]) -> list[str]:
    """The command line of train.py for a run."""
    own = ["--config", entry.config, "--workdir", str(runs / entry.name)]
    return [*own, *train_options, *(["--set", *entry.overrides] if entry.overrides else [])]
