"""Set-up of train.py: build everything that the loop needs."""

import argparse
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from ml_collections import ConfigDict
from torch import nn

from audio_mamba.cli.train_config import (
    build_model,
    check_same_experiment,
    check_schedule,
    clips_per_update,
    load_config,
)
from audio_mamba.cli.train_data import Loaders, apply_data_options, build_loaders_together, clips_to_show
from audio_mamba.cli.train_resume import load_state, tensors_of
from audio_mamba.config_names import stored_name
from audio_mamba.data.contents import Contents
from audio_mamba.models import objectives
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.objectives import Objective
from audio_mamba.models.ops.linear_choice import linear_choice, set_linear_choice
from audio_mamba.models.precision import usable_precision
from audio_mamba.system.folder_lock import lock_folder
from audio_mamba.system.terminal import OutputHandler
from audio_mamba.training import distributed, optim, resume
from audio_mamba.training.guards import StepGuard
from audio_mamba.training.resume import Start


@dataclass
class Loop:
    """What the steps of a training loop need to start or resume."""

    args: argparse.Namespace
    config: ConfigDict
    workdir: Path
    device: torch.device
    model: nn.Module
    parallel_model: nn.Module
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    loaders: Loaders
    contents: dict[str, Contents]  # of the data, when the run started
    peak_rate: float
    start: Start
    guard: StepGuard

    @property
    def samples_per_step(self) -> int:
        """Samples of a step, all processes together."""
        return self.config.batch_size * distributed.world_size()

    def after_step(self, progress: float) -> None:
        """Called after each step of the optimizer; `progress` is the completed share of the run."""

    def more_state(self) -> dict[str, Any]:
        """Further entries of a checkpoint."""
        return {}


@dataclass
class Run(Loop):
    """Everything that the loop of train.py needs."""

    model: MaskedSpectrogramEncoder
    objective: Objective
    fixed_clips: dict[str, torch.Tensor]  # a batch for the pictures

    def after_step(self, progress: float) -> None:
        self.objective.after_step(progress)

    def more_state(self) -> dict[str, Any]:
        """The objective's state, if it has any: published checkpoints have no such entry."""
        state = self.objective.state_dict()
        return {"objective": state} if state else {}


def set_up(args: argparse.Namespace, resources: ExitStack) -> Run:
    """Build the run. Every process must call this together.

    Args:
        args: the command line; defaults that the config decides are filled in.
        resources: takes the lock of the workdir, which keeps other runs out until it is closed.

    Raises:
        ValueError, OSError: a mistake of the user, in one sentence; raised in every process alike.
    """
    args.config = stored_name(args.config)
    config = load_config(args.config, args.overrides)
    apply_data_options(config, args)
    device = join_processes(args, config)
    if args.init and args.resume:
        raise ValueError("--init and --resume cannot be combined: --init starts a new run, --resume continues one")
    workdir = open_workdir(Path(args.workdir), resources)
    (workdir / "checkpoints").mkdir(exist_ok=True)
    check_same_experiment(workdir, config)

    distributed.seed_all(args.seed)
    model = build_model(config).to(device)
    model.gradient_checkpointing = args.gradient_checkpointing
    objective = objectives.build(config.opt, model)
    if distributed.is_main():
        resume.remove_stale(workdir)
    resume.check_space(
        workdir,
        sum(p.numel() for p in objective.module.parameters()),
        sum(value.numel() for value in tensors_of(objective.state_dict()).values()),
    )
    loaders = build_loaders_together(args, config, model, device)
    contents = loaders.contents()
    check_schedule(config, len(loaders.train), args.min_lr)
    optimizer = optim.make_optimizer(objective.module, config.opt.weight_decay, args.bias_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "float16")
    distributed.seed_apart(args.seed)
    start = load_state(
        args, config, workdir, model, optimizer, scaler, len(loaders.train), contents, objective, args.init
    )
    compiled = cast(nn.Module, torch.compile(objective.module)) if args.compile else objective.module
    parallel_model = distributed.parallel(compiled, device)
    name_clip = getattr(loaders.train.dataset, "name", "sample {}".format)  # remote clips have no names
    return Run(
        args=args,
        config=config,
        workdir=workdir,
        device=device,
        model=model,
        parallel_model=parallel_model,
        optimizer=optimizer,
        scaler=scaler,
        loaders=loaders,
        contents=contents,
        peak_rate=optim.peak_learning_rate(config.opt.learning_rate, clips_per_update(config)),
        start=start,
        guard=StepGuard(scaler.is_enabled(), name_clip, start.skipped_steps),
        objective=objective,
        fixed_clips=clips_to_show(loaders.train),
    )


def join_processes(args: argparse.Namespace, config: ConfigDict) -> torch.device:
    """Join the processes of torchrun, and settle how this one computes and logs; return its device.

    args.print_freq and args.precision get the values of the config if no option sets them.

    Raises:
        ValueError: as for `set_up`.
    """
    args.print_freq = args.print_freq or config.log_every_steps
    device = distributed.init(args.device)
    share_linear_library(device)
    allow_tf32(device, args.tf32)
    start_logging()
    settle_precision(args, config, device)
    return device


def share_linear_library(device: torch.device) -> None:
    """Compute linear layers on CPUs by the library of the main process, so that all round alike. A checkpoint may name
    another one later."""
    if device.type == "cpu":
        set_linear_choice(distributed.gather(linear_choice())[0])


def allow_tf32(device: torch.device, allowed: bool) -> None:
    """Whether a GPU may round the factors of float32 products, also those of convolutions, to TF32."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = allowed  # of convolutions, for which PyTorch's default is True
        if allowed:
            torch.set_float32_matmul_precision("high")


def start_logging() -> None:
    """Log to standard output: everything in the main process, warnings in the others."""
    logging.basicConfig(
        level=logging.INFO if distributed.is_main() else logging.WARNING,
        handlers=[OutputHandler()],
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )


def settle_precision(args: argparse.Namespace, config: ConfigDict, device: torch.device) -> None:
    """Set args.precision and config.precision to what all processes use: that of --precision or the config, or float32
    in its place where a CPU is too slow in it. ValueError if a GPU does not have it."""
    asked = args.precision or config.precision
    if asked == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(f"--precision bfloat16: {torch.cuda.get_device_name()} does not support it; use float16")
    args.precision = config.precision = distributed.gather(usable_precision(device, asked))[0]
    # Checkpoints keep it with the other options, so that experiments/sweep.py knows a run of its command again although
    # another precision was used.
    args.asked_precision = asked


def open_workdir(workdir: Path, resources: ExitStack) -> Path:
    """Make the work folder if it is missing, and lock it until `resources` are closed. Errors as for `set_up`."""
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir {workdir} is a file; expected a folder")
    workdir.mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
        resources.enter_context(lock_folder(workdir))
    return workdir
