"""What train.py does before its first step: checks, and everything that the loop needs."""

import argparse
import ast
import json
import logging
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.utils.data import default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from audio_mamba import models
from audio_mamba.cli.train_arguments import FAKE_SAMPLES
from audio_mamba.data.loader import EpochBatches, make_loader, make_remote_loader, make_validation_loader
from audio_mamba.data.remote import RemoteShards, is_remote
from audio_mamba.front_end import FrontEnd
from audio_mamba.hear_api import resolve
from audio_mamba.hear_api.weights import find_checkpoint, load_weights
from audio_mamba.models.precision import PRECISIONS
from audio_mamba.published_names import stored_name
from audio_mamba.schema import DEFAULTS, check_config, flattened
from audio_mamba.system.folder_lock import sole_use
from audio_mamba.training import checkpoint, distributed, optim, resume
from audio_mamba.training.fake_data import RandomSpectrograms
from audio_mamba.training.interruption import leave_signals_to_the_trainer
from audio_mamba.training.resume import Place

CLIPS_SHOWN = 3

# Keys that may change between two parts of one run: none of them changes what the weights so far were trained to do.
FREE_KEYS = (
    "name",
    "data.train_",
    "data.val_",
    "log_every_steps",
    "num_epochs",
    "wandb.",
    "precision",
    "half_precision",
    "batch_size",
    "opt.grad_accum_steps",
    "scene_layout",
    "num_train_steps",
    "steps_per_eval",
)

logger = logging.getLogger("train")


def load_config(module_name: str, overrides: list[str]) -> ConfigDict:
    """The config of a module with KEY=VALUE entries replaced. Raises ValueError naming what is wrong."""
    config = resolve.load_config(module_name)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override}: expected KEY=VALUE")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # a plain word is a string
        try:
            config.update_from_flattened_dict({key: value})
        except KeyError as error:
            raise ValueError(f"--set {override}: {error.args[0]}") from error
        except TypeError as error:
            now = flattened(config.to_dict()).get(key)
            expected = f"expected a value like {now!r}" if now is not None else f"name an entry of it, {key}.NAME=VALUE"
            raise ValueError(f"--set {override}: {expected}") from error
    return check_config(config, models.ARCHS, source="--set")


@dataclass
class Run:
    """Everything that the loop needs, ready to go on at `place`."""

    args: argparse.Namespace
    config: ConfigDict
    workdir: Path
    device: torch.device
    model: nn.Module
    parallel_model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: StatefulDataLoader
    val_loader: StatefulDataLoader | None
    fixed_clips: dict[str, torch.Tensor]
    peak_rate: float
    place: Place
    monitor_state: dict[str, Any] | None

    @property
    def samples_per_step(self) -> int:
        """Of all processes together."""
        return self.config.batch_size * distributed.world_size()


def set_up(args: argparse.Namespace, held: ExitStack) -> Run:
    """Builds the run. Whatever the user got wrong raises ValueError or OSError here, on every process alike.

    held: keeps other runs out of the workdir until it is closed."""
    args.config = stored_name(args.config)
    config = load_config(args.config, args.overrides)
    name_data(config, args)
    optim.check_names(config.opt.optimizer, config.opt.schedule)
    args.print_freq = args.print_freq or config.log_every_steps
    args.precision = args.precision or config.precision
    if args.precision not in PRECISIONS:
        raise ValueError(f"precision {args.precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
    device = distributed.init(args.device)
    if args.precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(f"--precision bfloat16: {torch.cuda.get_device_name()} cannot compute in it; take float16")
    if args.tf32 and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    logging.basicConfig(
        level=logging.INFO if distributed.is_main() else logging.WARNING,
        stream=sys.stdout,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    if args.init and args.resume:
        raise ValueError("--init and --resume: begin a new run with weights, or go on with a run")
    workdir = Path(args.workdir)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir {workdir} is a file; name a folder")
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
        held.enter_context(sole_use(workdir))
    check_same_experiment(workdir, config)

    torch.manual_seed(args.seed)
    model = models.build(config.model.arch, config.model.model_args.to_dict()).to(device)
    model.gradient_checkpointing = args.gradient_checkpointing
    if distributed.is_main():
        resume.tidy(workdir)
    resume.check_space(workdir, sum(p.numel() for p in model.parameters()))
    loader, val_loader = build_loaders(args, config, model, device)
    check_schedule(config, len(loader))
    optimizer = optim.make_optimizer(model, config.opt.weight_decay, args.bias_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "float16")
    place, monitor_state = load_state(args, config, workdir, model, optimizer, scaler)
    parallel_model = distributed.parallel(torch.compile(model) if args.compile else model, device)
    global_batch = config.opt.grad_accum_steps * config.batch_size * distributed.world_size()
    return Run(
        args,
        config,
        workdir,
        device,
        model,
        parallel_model,
        optimizer,
        scaler,
        loader,
        val_loader,
        clips_to_show(loader),
        optim.peak_learning_rate(config.opt.learning_rate, global_batch),
        place,
        monitor_state,
    )


def name_data(config: ConfigDict, args: argparse.Namespace) -> None:
    """Puts the data that the command line names into the config. Raises ValueError for --data beside --fake-data."""
    if args.data and args.fake_data:
        raise ValueError("--data and --fake-data: name the data or train on random ones")
    if args.data or args.fake_data:
        config.data.train_dirs, config.data.val_dir = args.data or [], ""
    if args.val_data:
        config.data.val_dir = args.val_data


def check_schedule(config: ConfigDict, steps_per_epoch: int) -> None:
    """Raises ValueError where no step would be made; says so where the learning rate stays below its peak."""
    accumulation, warmup, epochs = config.opt.grad_accum_steps, config.opt.warmup_epochs, config.num_epochs
    if accumulation > steps_per_epoch:
        raise ValueError(
            f"opt.grad_accum_steps is {accumulation}, but an epoch has {steps_per_epoch} batches only: "
            "no step would be made"
        )
    if warmup >= epochs:
        logger.info("the learning rate never reaches its peak: opt.warmup_epochs is %g, num_epochs %d", warmup, epochs)


def check_same_experiment(workdir: Path, config: ConfigDict) -> None:
    """Raises ValueError where checkpoints in `workdir` were trained by a config that differs in more than FREE_KEYS."""
    if not (workdir / "config.json").exists() or not resume.checkpoints(workdir):
        return
    try:
        written = json.loads((workdir / "config.json").read_text())
        theirs = flattened(DEFAULTS) | flattened(written)  # it may be older than some of the keys
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{workdir / 'config.json'} is damaged ({error}), so it cannot be told whether this run may "
            "go on there; remove the file where you are sure"
        ) from error
    ours = flattened(json.loads(json.dumps(config.to_dict())))
    if theirs.get("data.train_dirs") != ours["data.train_dirs"]:
        logger.info(
            "%s names other data so far: %s",
            workdir / "config.json",
            ", ".join(theirs.get("data.train_dirs") or ["random ones"]),
        )
    differences = [
        f"{key} is {theirs.get(key)} there and {ours.get(key)} here"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key) and not key.startswith(FREE_KEYS)
    ]
    if differences:
        raise ValueError(f"{workdir} belongs to another config: {'; '.join(differences)}; choose another --workdir")


def build_loaders(
    args: argparse.Namespace, config: ConfigDict, model: nn.Module, device: torch.device
) -> tuple[StatefulDataLoader, StatefulDataLoader | None]:
    """The loaders of training and, where there is a folder for it, of validation."""
    frames, mels = reversed(model.img_size) if model.frequency_first else model.img_size
    if config.data.num_frames != frames:
        raise ValueError(
            f"data.num_frames is {config.data.num_frames}, but the model reads {frames} frames "
            f"(model.model_args.img_size is {model.img_size})"
        )
    front_end = FrontEnd.from_settings(config.front_end)
    if front_end.n_mels != mels:
        raise ValueError(
            f"front_end.n_mels is {front_end.n_mels}, but the model reads {mels} mel bands "
            f"(model.model_args.img_size is {model.img_size})"
        )
    rank, world_size = distributed.rank(), distributed.world_size()
    options = {
        "num_frames": frames,
        "front_end": front_end,
        "batch_size": config.batch_size,
        "rank": rank,
        "world_size": world_size,
        "seed": args.seed,
        "num_workers": args.num_workers,
        "draw_mask": model.draw_mask,
        "pin_memory": device.type == "cuda",
        "strict": args.strict_data,
        "worker_init_fn": leave_signals_to_the_trainer,
    }
    val_dir = config.data.val_dir
    if val_dir and not Path(val_dir).is_dir():
        if args.val_data:
            raise ValueError(f"no data folder {val_dir}, named by --val-data")
        logger.info("no validation loss: there is no folder %s (data.val_dir)", val_dir)
        val_dir = ""
    val_loader = make_validation_loader(val_dir, **options) if val_dir else None
    if args.fake_data:
        dataset = RandomSpectrograms(FAKE_SAMPLES, frames, mels, args.seed, model.draw_mask)
        batches = EpochBatches(len(dataset), config.batch_size, rank, world_size, args.seed)
        return StatefulDataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=args.num_workers,
            pin_memory=options["pin_memory"],
            worker_init_fn=leave_signals_to_the_trainer,
        ), val_loader
    directories = config.data.train_dirs
    if not directories:
        raise ValueError("no training data: name archive folders with --data, or set data.train_dirs")
    addresses = [directory for directory in directories if is_remote(directory)]
    if addresses and len(addresses) < len(directories):
        raise ValueError(f"--data mixes folders with addresses such as {addresses[0]}; name data of one kind")
    if addresses:
        return make_remote_loader(directories, samples=sum(config.data.train_samples), **options), val_loader
    for directory in directories:
        if not Path(directory).is_dir():
            raise ValueError(f"no data folder {directory}; name archive folders with --data, or set $DATASETS_BASE_DIR")
    return make_loader(directories, **options), val_loader


def clips_to_show(loader: StatefulDataLoader) -> dict[str, torch.Tensor]:
    """A batch of clips for the pictures, from all over the data: data that do not fit the model are found here."""
    if isinstance(loader.dataset, RemoteShards):
        return loader.dataset.first(CLIPS_SHOWN)
    shown = np.linspace(0, len(loader.dataset) - 1, CLIPS_SHOWN, dtype=int).tolist()
    return default_collate([loader.dataset[0, index] for index in shown])


def find_state(named: str | None, workdir: Path) -> tuple[str | Path | None, dict[str, Any] | None]:
    """The path and contents of the checkpoint to go on from; None where there is none.

    The same command must go on where the run was stopped, so a checkpoint `named` from elsewhere only begins it.
    ValueError where it is one of the workdir itself and newer ones lie there, which later would be taken for its own.
    """
    own = [path.resolve() for _, path in resume.checkpoints(workdir)]  # the newest first
    if named and own and Path(named).resolve() not in own:
        logger.info("--resume %s is not read again: %s has checkpoints of its own", named, workdir)
        named = None
    if not named:
        return resume.load_newest(workdir) or (None, None)
    if own and Path(named).resolve() != own[0]:
        raise ValueError(
            f"--resume {named}: {own[0]} is newer; move what is newer away to go back, or leave --resume out to go on"
        )
    return named, checkpoint.load_checkpoint(named)


def load_state(
    args: argparse.Namespace,
    config: ConfigDict,
    workdir: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> tuple[Place, dict[str, Any] | None]:
    """Loads the checkpoint to go on from, if there is one, or else the weights to begin with.

    Returns the place to go on at, and the state of the monitor there."""
    path, state = find_state(args.resume, workdir)
    found = distributed.gather(str(path))
    if len(set(found)) > 1:
        raise ValueError(
            f"the processes see different checkpoints in {workdir} ({', '.join(sorted(set(found)))}): it "
            "must be one folder for all machines"
        )
    front_end = FrontEnd.from_settings(config.front_end)
    if path is None:
        if args.init:
            source = find_checkpoint(args.init)
            front_end.check_same(resolve.trained_front_end(source), f"--init {source}")
            logger.info("the weights begin as those of %s", load_weights(model, args.init))
        return Place(0, 0), None
    if "processes" in state and state["args"]["seed"] != args.seed:
        raise ValueError(f"{path} was trained with --seed {state['args']['seed']}, not {args.seed}")
    trained = (state.get("args") or {}).get("config")  # a dict in our checkpoints, a name in published ones
    settings = trained.get("front_end", {}) if isinstance(trained, dict) else {}
    front_end.check_same(FrontEnd.from_settings(settings), str(path))
    missing = [key for key in ("optimizer", "epoch") if key not in state]
    if missing:
        raise ValueError(f"{path} has weights, but no {' and no '.join(missing)}: training cannot go on from it")
    checkpoint.load_model_state(model, state["model"], source=path)
    optim.load_state(optimizer, state["optimizer"], source=path)
    if scaler.is_enabled() and state.get("scaler"):  # one of a run in another precision is of no use
        scaler.load_state_dict(state["scaler"])
    samples_per_step = config.batch_size * distributed.world_size()
    place, monitor_state = resume.restore_process(state, samples_per_step, config.opt.grad_accum_steps)
    logger.info(
        "going on from %s: %d epoch(s)%s are done", path, place.epoch, f" and {place.step} steps" if place.step else ""
    )
    return place, monitor_state
