"""Set-up of train.py: check the arguments and build everything that the loop needs."""

import argparse
import ast
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from ml_collections import ConfigDict
from torch import nn

from audio_mamba import models
from audio_mamba.cli.train_data import (
    Loaders,
    build_loaders_together,
    check_since_checkpoint,
    clips_to_show,
    name_data,
)
from audio_mamba.data.contents import Contents
from audio_mamba.front_end import FrontEnd
from audio_mamba.hear_api import resolve
from audio_mamba.hear_api.weights import find_checkpoint, load_weights
from audio_mamba.models import objectives
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.objectives import Objective
from audio_mamba.models.ops.linear_choice import linear_choice, set_linear_choice
from audio_mamba.models.precision import check_precision, usable_precision
from audio_mamba.published_names import stored_name
from audio_mamba.schema import DEFAULTS, check_config, check_objective, flattened
from audio_mamba.system.folder_lock import exclusive_lock
from audio_mamba.system.terminal import OutputHandler
from audio_mamba.training import checkpoint, distributed, optim, resume
from audio_mamba.training.resume import Start

# Keys, or their beginnings, that may change when a run is resumed: none of them changes the training objective.
FREE_KEYS = (
    "name",
    "data.train_",
    "data.val_",
    "data.test_",
    "log_every_steps",
    "model.backend",
    "num_epochs",
    "opt.decay_epochs",
    "wandb.",
    "precision",
    "half_precision",
    "batch_size",
    "opt.grad_accum_steps",
    "scene_layout",
    "scene_pooling",
    "overlap",
    "num_train_steps",
    "steps_per_eval",
)

# Options beside the config that a resumed run must repeat. Others either change rounding and speed alone, as the
# precision, or are compared elsewhere, as --bias-decay in the groups of the optimizer and the data by their content.
FIXED_OPTIONS = ("seed", "min_lr")

logger = logging.getLogger("train")


def load_config(module_name: str, overrides: list[str]) -> ConfigDict:
    """The config of a module with KEY=VALUE overrides. Raises ValueError for an unknown module, key or value."""
    config = resolve.load_config(module_name)
    apply_overrides(config, overrides)
    config = check_config(config, models.known_archs(), source="--set")
    check_objective(config, objectives.OBJECTIVES, objectives.find, source="--set" if overrides else module_name)
    optim.check_names(config.opt.optimizer, config.opt.schedule)
    optim.check_stages(config.opt, config.num_epochs)
    check_precision(config.precision)
    return config


def build_model(config: ConfigDict) -> MaskedSpectrogramEncoder:
    """The encoder of a config that is to be trained, with new weights.

    Raises:
        ValueError: an unknown arch or argument, or an input of other frames or mel bands than the data have.
    """
    model = models.build(config.model.arch, config.model.model_args.to_dict(), config.model.backend)
    for key, stated, read, unit in (
        ("data.num_frames", config.data.num_frames, model.num_frames, "frames"),
        ("front_end.n_mels", config.front_end.n_mels, model.n_mels, "mel bands"),
    ):
        if stated != read:
            raise ValueError(
                f"{key} is {stated}, but the model reads {read} {unit} (model.model_args.img_size is {model.img_size})"
            )
    return model


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
        if _is_section(config, key):
            raise ValueError(f"--set {override}: set its entries, as {key}.NAME=VALUE")
        try:
            config.update_from_flattened_dict({key: value})
        except KeyError as error:
            raise ValueError(f"--set {override}: {error.args[0]}") from error
        except TypeError as error:
            now = flattened(config.to_dict()).get(key)
            raise ValueError(f"--set {override}: expected a value like {now!r}") from error


def _is_section(config: ConfigDict, key: str) -> bool:
    """Whether a config has a section under a dotted key."""
    value = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, ConfigDict) else None
    return isinstance(value, ConfigDict)


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
    name_data(config, args)
    device = join_processes(args, config)
    if args.init and args.resume:
        raise ValueError("--init and --resume exclude each other: --init starts a new run, --resume continues one")
    workdir = open_workdir(Path(args.workdir), resources)
    (workdir / "checkpoints").mkdir(exist_ok=True)
    check_same_experiment(workdir, config)

    torch.manual_seed(args.seed)
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
    check_schedule(config, len(loaders.train))
    optimizer = optim.make_optimizer(objective.module, config.opt.weight_decay, args.bias_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "float16")
    start = load_state(args, config, workdir, model, optimizer, scaler, len(loaders.train), contents, objective)
    compiled = cast(nn.Module, torch.compile(objective.module)) if args.compile else objective.module
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
        loaders,
        contents,
        optim.peak_learning_rate(config.opt.learning_rate, global_batch),
        start,
        objective,
        clips_to_show(loaders.train),
    )


def join_processes(args: argparse.Namespace, config: ConfigDict) -> torch.device:
    """Join the processes of torchrun and start logging; return the device of this process. Errors as for `set_up`."""
    args.print_freq = args.print_freq or config.log_every_steps
    precision = args.precision or config.precision
    device = distributed.init(args.device)
    if device.type == "cpu":  # the processes round alike; a checkpoint may name another library below
        set_linear_choice(distributed.gather(linear_choice())[0])
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(f"--precision bfloat16: {torch.cuda.get_device_name()} does not support it; use float16")
    if args.tf32 and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    logging.basicConfig(
        level=logging.INFO if distributed.is_main() else logging.WARNING,
        handlers=[OutputHandler()],
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    usable = distributed.gather(usable_precision(device, precision))[0]
    config.precision = args.precision = usable  # config.json says what was used
    return device


def open_workdir(workdir: Path, resources: ExitStack) -> Path:
    """Make the work folder if it is missing, and lock it until `resources` are closed. Errors as for `set_up`."""
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir {workdir} is a file; expected a folder")
    workdir.mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
        resources.enter_context(exclusive_lock(workdir))
    return workdir


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


def check_same_experiment(
    workdir: Path,
    config: ConfigDict,
    defaults: Mapping[str, Any] = DEFAULTS,
    free_keys: tuple[str, ...] = FREE_KEYS,
) -> None:
    """Raise ValueError if the checkpoints in `workdir` belong to a config that differs in more than `free_keys`.

    `defaults` are the values of keys that are younger than the work folder.
    """
    if not (workdir / "config.json").exists() or not resume.checkpoints(workdir):
        return
    try:
        written = json.loads((workdir / "config.json").read_bytes())
        theirs = flattened(dict(defaults)) | flattened(written)  # the file may be older than some keys
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{workdir / 'config.json'} is damaged ({error}), so this run cannot be checked against it; "
            "delete the file if you are sure that the config is the same"
        ) from error
    if theirs.get("data.train_dirs") != list(config.data.train_dirs):
        logger.info(
            "until now %s was trained on other data: %s",
            workdir,
            ", ".join(theirs.get("data.train_dirs") or ["random spectrograms"]),
        )
    check_same_config(workdir, theirs, config, "choose another --workdir", {}, free_keys)


def check_same_config(
    source: str | Path,
    theirs: Mapping[str, Any],
    config: ConfigDict,
    advice: str,
    defaults: Mapping[str, Any] = DEFAULTS,
    free_keys: tuple[str, ...] = FREE_KEYS,
) -> None:
    """Raise ValueError, with `advice` to the user, if two configs differ in more than `free_keys`.

    Args:
        source: what `theirs` is the config of.
        theirs: the config as builtins, nested or flat.
        config: of this run.
        defaults: the values of keys that are younger than `theirs`.
    """
    before, now = (json.loads(json.dumps(entries)) for entries in (theirs, config.to_dict()))  # tuples become lists
    before, now = flattened(dict(defaults)) | flattened(before), flattened(now)
    differences = [
        f"{key} is {before.get(key)} there and {now.get(key)} here"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not key.startswith(free_keys)
    ]
    if differences:
        raise ValueError(f"{source} belongs to another config: {'; '.join(differences)}; {advice}")


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
    steps_per_epoch: int,
    contents: Mapping[str, Contents],
    objective: Objective | None = None,
) -> Start:
    """Load the checkpoint to resume from or, without one, the weights of --init; return where training starts.

    `objective` is that of a pretraining run; it is started, or gets its state from the checkpoint.

    Raises:
        ValueError: the checkpoint is damaged, incomplete or belongs to another run, or the data have changed.
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
        if objective is not None:
            objective.start()
        return Start()
    if "processes" in state:  # a checkpoint of this project
        check_same_options(args, state, path)
    trained = (state.get("args") or {}).get("config")  # a dict in our checkpoints, a name in published ones
    trained = trained if isinstance(trained, dict) else {}
    front_end.check_same(FrontEnd.from_settings(trained.get("front_end", {})), str(path))
    if objective is not None:
        check_same_objective(config.opt.objective, trained, path)
        if "processes" in state:
            advice = "give the same values, or start a new run from its weights with --init"
            check_same_config(path, trained, config, advice)
    missing = [key for key in ("optimizer", "epoch") if key not in state]
    if missing:
        raise ValueError(
            f"{path} has weights, but no {' and no '.join(missing)}: it cannot be resumed; start a new run with --init"
        )
    if state.get("linear_library") and "processes" in state:
        set_linear_choice(state["linear_library"])  # of the run so far, so that it continues with the same bits
    checkpoint.load_model_state(model, state["model"], source=path)
    if objective is not None and objective.state_dict():
        load_objective_state(objective, state, path)
    optim.load_state(optimizer, state["optimizer"], source=path)
    if scaler.is_enabled() and state.get("scaler"):  # it is empty if the precision was not float16
        scaler.load_state_dict(state["scaler"])
    samples_per_step = config.batch_size * distributed.world_size()
    start = resume.restore_process(state, samples_per_step, config.opt.grad_accum_steps, steps_per_epoch)
    if check_since_checkpoint(args, config, state, path, start.progress, steps_per_epoch, contents):
        start = start.at_the_epoch()
    epoch, step = start.progress
    steps = f" and {step} steps" if step else ""
    logger.info("resuming from %s: %d epoch(s)%s are complete", path, epoch, steps)
    return start


def check_same_options(
    args: argparse.Namespace, state: Mapping[str, Any], path: str | Path, names: Sequence[str] = FIXED_OPTIONS
) -> None:
    """Raise ValueError if the checkpoint `state` at `path` was trained with other values of the options `names`."""
    for name in names:
        ours = getattr(args, name)
        theirs = state["args"].get(name, ours)
        if theirs != ours:
            raise ValueError(f"{path} was trained with --{name.replace('_', '-')} {theirs}, not {ours}")


def check_same_objective(ours: str, trained: Mapping[str, Any], path: str | Path) -> None:
    """Raise ValueError if the config `trained` of the checkpoint at `path` has another objective."""
    theirs = (trained.get("opt") or {}).get("objective", DEFAULTS["opt"]["objective"])
    if theirs != ours:
        raise ValueError(
            f"{path} was trained with opt.objective {theirs!r}, not {ours!r}: it cannot be resumed; start a new run "
            "with --init"
        )


def load_objective_state(objective: Objective, state: Mapping[str, Any], path: str | Path) -> None:
    """Restore what an objective keeps in the checkpoint at `path`.

    Raises:
        CheckpointError: it is missing, does not fit, or is NaN or Inf.
    """
    if not isinstance(state.get("objective"), dict):
        raise checkpoint.CheckpointError(f"{path} lacks the state of its objective: it cannot be resumed")
    if key := checkpoint.first_not_finite(tensors_of({"objective": state["objective"]})):
        raise checkpoint.CheckpointError(f"{path} holds values that are NaN or Inf, first in {key}")
    try:
        objective.load_state_dict(state["objective"])
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise checkpoint.CheckpointError(f"{path}: the state of its objective does not fit: {reason}") from error


def tensors_of(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a nested state by dotted names."""
    return {key: value for key, value in flattened(state).items() if isinstance(value, torch.Tensor)}
