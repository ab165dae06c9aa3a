"""Load what a run starts from: its newest checkpoint, the one that --resume names, or the weights of --init."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import nn

from audio_mamba.cli.train_config import check_same_config, check_same_objective, check_same_options
from audio_mamba.cli.train_data import check_since_checkpoint
from audio_mamba.data.contents import Contents
from audio_mamba.front_end import FrontEnd
from audio_mamba.hear_api.trained_config import check_same_encoder, read_config_of, trained_front_end
from audio_mamba.hear_api.weights import find_checkpoint, read_weights
from audio_mamba.models import MaskedSpectrogramEncoder
from audio_mamba.models.objectives import Objective
from audio_mamba.models.ops.linear_choice import set_linear_choice
from audio_mamba.schema import flattened
from audio_mamba.training import checkpoint, distributed, optim, resume
from audio_mamba.training.resume import Start

logger = logging.getLogger("train")


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
    init: str | None = None,
) -> Start:
    """Load the checkpoint to resume from or, without one, the weights that `init` names; return where training starts.

    `objective` is that of a pretraining run; it is started, or gets its state from the checkpoint.

    Raises:
        ValueError: the checkpoint is damaged, incomplete or belongs to another run, or the data have changed.
        FileNotFoundError: no weights where `init` says.
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
        return _start_fresh(init, config, model, objective)
    _check_belongs(args, config, state, path, front_end, objective)
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


def _start_fresh(init: str | None, config: ConfigDict, model: nn.Module, objective: Objective | None) -> Start:
    """Load the weights of --init, if it is given, and start the objective."""
    if init:
        source = find_checkpoint(init)
        FrontEnd.from_settings(config.front_end).check_same(trained_front_end(source), f"--init {source}")
        try:
            check_same_encoder(config, read_config_of(source)[1].get("model"), f"--init {source} and this run")
        except ValueError as error:
            logger.warning("%s; training begins with these weights all the same", error)
        assert isinstance(model, MaskedSpectrogramEncoder)
        try:
            state = model.with_own_positions(read_weights(source))  # the length of crops may be another one
        except ValueError as error:
            raise checkpoint.CheckpointError(f"{source}: {error}") from error
        checkpoint.load_model_state(model, state, source=source)
        logger.info("initial weights from %s", source)
    if objective is not None:
        objective.start()
    return Start()


def _check_belongs(
    args: argparse.Namespace,
    config: ConfigDict,
    state: Mapping[str, Any],
    path: str | Path,
    front_end: FrontEnd,
    objective: Objective | None,
) -> None:
    """ValueError unless a checkpoint can be resumed, and was trained with the options, the config and the front end of
    this run."""
    ours = "processes" in state  # a checkpoint of this project
    if ours:
        check_same_options(args, state, path)
    trained = (state.get("args") or {}).get("config")  # a dict in our checkpoints, a name in published ones
    trained = trained if isinstance(trained, dict) else {}
    front_end.check_same(FrontEnd.from_settings(trained.get("front_end", {})), str(path))
    if objective is not None:
        check_same_objective(config.opt.objective, trained, path)
        if ours:
            advice = "give the same values, or start a new run from its weights with --init"
            check_same_config(path, trained, config, advice)
    missing = [key for key in ("optimizer", "epoch") if key not in state]
    if missing:
        raise ValueError(
            f"{path} has weights, but no {' and no '.join(missing)}: it cannot be resumed; start a new run with --init"
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
