"""Set-up of train.py: check the arguments and build everything that the loop needs."""

import argparse
import ast
import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.ops.linear_choice import linear_choice, set_linear_choice
from audio_mamba.models.precision import PRECISIONS
from audio_mamba.published_names import stored_name
from audio_mamba.schema import DEFAULTS, check_config, flattened
from audio_mamba.system.folder_lock import exclusive_lock
from audio_mamba.system.terminal import OutputHandler
from audio_mamba.training import checkpoint, distributed, optim, resume
from audio_mamba.training.fake_data import RandomSpectrograms
from audio_mamba.training.interruption import leave_signals_to_the_trainer
from audio_mamba.training.resume import Progress

CLIPS_SHOWN = 3

# Keys, or their beginnings, that may change when a run is resumed: none of them changes the training objective.
FREE_KEYS = (
    "name",
    "data.train_",
    "data.val_",
    "log_every_steps",
    "model.backend",
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
    """The config of a module with KEY=VALUE overrides. Raises ValueError for an unknown module, key or value."""
    config = resolve.load_config(module_name)
    apply_overrides(config, overrides)
    return check_config(config, models.ARCHS, source="--set")


def apply_overrides(config: ConfigDict, overrides: list[str]) -> None:
    """Change a config by KEY=VALUE entries of a command line. Raises ValueError for an unknown key or wrong value."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override}: expected KEY=VALUE")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # an unquoted string
        try:
            config.update_from_flattened_dict({key: value})
        except KeyError as error:
            raise ValueError(f"--set {override}: {error.args[0]}") from error
        except TypeError as error:
            now = flattened(config.to_dict()).get(key)
            expected = f"expected a value like {now!r}" if now is not None else f"set its entries, as {key}.NAME=VALUE"
            raise ValueError(f"--set {override}: {expected}") from error


@dataclass
class Loop:
    """What the steps of a training loop need to start or resume at `progress`."""

    args: argparse.Namespace
    config: ConfigDict
    workdir: Path
    device: torch.device
    model: nn.Module
    parallel_model: nn.Module
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    loader: StatefulDataLoader
    val_loader: StatefulDataLoader | None
    peak_rate: float
    progress: Progress
    monitor_state: dict[str, Any] | None

    @property
    def samples_per_step(self) -> int:
        """Samples of a step, all processes together."""
        return self.config.batch_size * distributed.world_size()

    def more_state(self) -> dict[str, Any]:
        """Further entries of a checkpoint."""
        return {}


@dataclass
class Run(Loop):
    """Everything that the loop of train.py needs."""

    model: MaskedSpectrogramEncoder
    fixed_clips: dict[str, torch.Tensor]  # a batch for the pictures


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
    name_data(config, args)
    optim.check_names(config.opt.optimizer, config.opt.schedule)
    device = join_processes(args, config)
    if args.init and args.resume:
        raise ValueError("--init and --resume exclude each other: --init starts a new run, --resume continues one")
    workdir = open_workdir(Path(args.workdir), resources)
    (workdir / "checkpoints").mkdir(exist_ok=True)
    check_same_experiment(workdir, config)

    torch.manual_seed(args.seed)
    model = models.build(config.model.arch, config.model.model_args.to_dict(), config.model.backend).to(device)
    model.gradient_checkpointing = args.gradient_checkpointing
    if distributed.is_main():
        resume.remove_stale(workdir)
    resume.check_space(workdir, sum(p.numel() for p in model.parameters()))
    loader, val_loader = build_loaders(args, config, model, device)
    check_schedule(config, len(loader))
    optimizer = optim.make_optimizer(model, config.opt.weight_decay, args.bias_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "float16")
    progress, monitor_state = load_state(args, config, workdir, model, optimizer, scaler)
    compiled = cast(nn.Module, torch.compile(model)) if args.compile else model
    parallel_model = distributed.parallel(compiled, device)
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
        optim.peak_learning_rate(config.opt.learning_rate, global_batch),
        progress,
        monitor_state,
        clips_to_show(loader),
    )


def join_processes(args: argparse.Namespace, config: ConfigDict) -> torch.device:
    """Join the processes of torchrun and start logging; return the device of this process. Errors as for `set_up`."""
    args.print_freq = args.print_freq or config.log_every_steps
    args.precision = args.precision or config.precision
    if args.precision not in PRECISIONS:
        raise ValueError(f"unknown precision {args.precision!r}; choose from {', '.join(PRECISIONS)}")
    device = distributed.init(args.device)
    if device.type == "cpu":  # the processes round alike; a checkpoint may name another library below
        set_linear_choice(distributed.gather(linear_choice())[0])
    if args.precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(f"--precision bfloat16: {torch.cuda.get_device_name()} does not support it; use float16")
    if args.tf32 and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    logging.basicConfig(
        level=logging.INFO if distributed.is_main() else logging.WARNING,
        handlers=[OutputHandler()],
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    return device


def open_workdir(workdir: Path, resources: ExitStack) -> Path:
    """Make the work folder if it is missing, and lock it until `resources` are closed. Errors as for `set_up`."""
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir {workdir} is a file; expected a folder")
    workdir.mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
        resources.enter_context(exclusive_lock(workdir))
    return workdir


def name_data(config: ConfigDict, args: argparse.Namespace) -> None:
    """Put the data of the command line into the config. Raises ValueError for --data with --fake-data."""
    if args.data and args.fake_data:
        raise ValueError("--data and --fake-data exclude each other: one names archives, the other replaces them")
    if args.data or args.fake_data:
        config.data.train_dirs, config.data.val_dir = args.data or [], ""
    if args.val_data:
        config.data.val_dir = args.val_data


def check_schedule(config: ConfigDict, steps_per_epoch: int) -> None:
    """Raise ValueError if an epoch is too short for a single step; warn if the learning rate never reaches its peak."""
    accumulation, warmup, epochs = config.opt.grad_accum_steps, config.opt.warmup_epochs, config.num_epochs
    if accumulation > steps_per_epoch:
        raise ValueError(
            f"opt.grad_accum_steps is {accumulation}, but an epoch has only {steps_per_epoch} batches: "
            "the optimizer would never make a step"
        )
    if warmup >= epochs:
        logger.info(
            "the learning rate never reaches its peak: opt.warmup_epochs is %g, num_epochs is %d", warmup, epochs
        )


def check_same_experiment(workdir: Path, config: ConfigDict, defaults: Mapping[str, Any] = DEFAULTS) -> None:
    """Raise ValueError if the checkpoints in `workdir` belong to a config that differs in more than FREE_KEYS.

    `defaults` are the values of keys that are younger than the work folder.
    """
    if not (workdir / "config.json").exists() or not resume.checkpoints(workdir):
        return
    try:
        written = json.loads((workdir / "config.json").read_text())
        theirs = flattened(dict(defaults)) | flattened(written)  # the file may be older than some keys
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{workdir / 'config.json'} is damaged ({error}), so this run cannot be checked against it; "
            "delete the file if you are sure that the config is the same"
        ) from error
    ours = flattened(json.loads(json.dumps(config.to_dict())))
    if theirs.get("data.train_dirs") != ours["data.train_dirs"]:
        logger.info(
            "until now %s was trained on other data: %s",
            workdir,
            ", ".join(theirs.get("data.train_dirs") or ["random spectrograms"]),
        )
    differences = [
        f"{key} is {theirs.get(key)} there and {ours.get(key)} here"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key) and not key.startswith(FREE_KEYS)
    ]
    if differences:
        raise ValueError(f"{workdir} belongs to another config: {'; '.join(differences)}; choose another --workdir")


def build_loaders(
    args: argparse.Namespace, config: ConfigDict, model: MaskedSpectrogramEncoder, device: torch.device
) -> tuple[StatefulDataLoader, StatefulDataLoader | None]:
    """The loaders for training and, if its folder exists, for validation. Raises ValueError if they do not fit."""
    frames, mels = model.num_frames, model.n_mels
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
            raise ValueError(f"--val-data: {val_dir} is not a folder")
        logger.info("no validation loss: %s (data.val_dir) does not exist", val_dir)
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
        raise ValueError("no training data: pass archive folders with --data, or set data.train_dirs")
    addresses = [directory for directory in directories if is_remote(directory)]
    if addresses and len(addresses) < len(directories):
        raise ValueError(f"--data mixes folders with URLs such as {addresses[0]}; use one kind")
    if addresses:
        return make_remote_loader(directories, samples=sum(config.data.train_samples), **options), val_loader
    for directory in directories:
        if not Path(directory).is_dir():
            raise ValueError(
                f"{directory} is not a folder; pass archive folders with --data, or set $DATASETS_BASE_DIR"
            )
    return make_loader(directories, **options), val_loader


def clips_to_show(loader: StatefulDataLoader) -> dict[str, torch.Tensor]:
    """A batch of clips for the pictures, spread over the data. Data that do not fit the model fail here, early."""
    if isinstance(loader.dataset, RemoteShards):
        return loader.dataset.first(CLIPS_SHOWN)
    shown = np.linspace(0, len(loader.dataset) - 1, CLIPS_SHOWN, dtype=int).tolist()
    return default_collate([loader.dataset[0, index] for index in shown])


def find_state(named: str | None, workdir: Path) -> tuple[str | Path | None, dict[str, Any] | None]:
    """The path and content of the checkpoint to resume from; (None, None) if there is none.

    Running the same command again must resume where the run stopped, so a checkpoint `named` by --resume from another
    folder is used only at the start of the run.

    Raises:
        ValueError: `named` is in the workdir beside newer checkpoints, from which a later start would resume instead.
    """
    own = [path.resolve() for _, path in resume.checkpoints(workdir)]  # the newest first
    if named and own and Path(named).resolve() not in own:
        logger.info("--resume %s is ignored: %s has its own checkpoints by now", named, workdir)
        named = None
    if not named:
        return resume.load_newest(workdir) or (None, None)
    if own and Path(named).resolve() != own[0]:
        raise ValueError(
            f"--resume {named}: {own[0]} is newer; move newer checkpoints away to go back, or drop --resume to continue"
        )
    return named, checkpoint.load_checkpoint(named)


def load_state(
    args: argparse.Namespace,
    config: ConfigDict,
    workdir: Path,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
) -> tuple[Progress, dict[str, Any] | None]:
    """Load the checkpoint to resume from or, without one, the weights of --init.

    Returns:
        The progress at which training starts or resumes, and the state of the monitor in the middle of an epoch.

    Raises:
        ValueError: the checkpoint is damaged, incomplete or belongs to another run.
    """
    path, state = find_state(args.resume, workdir)
    found = distributed.gather(str(path))
    if len(set(found)) > 1:
        raise ValueError(
            f"the processes see different checkpoints in {workdir} ({', '.join(sorted(set(found)))}): "
            "all machines must share this folder"
        )
    front_end = FrontEnd.from_settings(config.front_end)
    if path is None or state is None:
        if args.init:
            source = find_checkpoint(args.init)
            front_end.check_same(resolve.trained_front_end(source), f"--init {source}")
            logger.info("initial weights from %s", load_weights(model, args.init))
        return Progress(0, 0), None
    if "processes" in state and state["args"]["seed"] != args.seed:
        raise ValueError(f"{path} was trained with --seed {state['args']['seed']}, not {args.seed}")
    trained = (state.get("args") or {}).get("config")  # a dict in our checkpoints, a name in published ones
    settings = trained.get("front_end", {}) if isinstance(trained, dict) else {}
    front_end.check_same(FrontEnd.from_settings(settings), str(path))
    missing = [key for key in ("optimizer", "epoch") if key not in state]
    if missing:
        raise ValueError(
            f"{path} has weights, but no {' and no '.join(missing)}: it cannot be resumed; start a new run with --init"
        )
    if state.get("linear_library") and "processes" in state:
        set_linear_choice(state["linear_library"])  # of the run so far, so that it continues with the same bits
    checkpoint.load_model_state(model, state["model"], source=path)
    optim.load_state(optimizer, state["optimizer"], source=path)
    if scaler.is_enabled() and state.get("scaler"):  # it is empty if the precision was not float16
        scaler.load_state_dict(state["scaler"])
    samples_per_step = config.batch_size * distributed.world_size()
    progress, monitor_state = resume.restore_process(state, samples_per_step, config.opt.grad_accum_steps)
    steps = f" and {progress.step} steps" if progress.step else ""
    logger.info("resuming from %s: %d epoch(s)%s are complete", path, progress.epoch, steps)
    return progress, monitor_state
