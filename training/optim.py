"""AdamW with the published parameter groups, and the learning-rate schedules: the published one, and one in stages."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audio_mamba.training.checkpoint import CheckpointError

# Rates are quoted for a global batch of this many samples (Goyal et al. 2017, arXiv 1706.02677; as MAE does).
REFERENCE_BATCH = 256
SCHEDULES = ("warmupcosine", "warmupstabledecay")
OF_THE_RUN = ("weight_decay", "betas")  # settings of a group that a run has from its own config, not from a checkpoint


def check_names(optimizer: str, schedule: str) -> None:
    """Raise ValueError if a config names anything but the published "Adamw" and one of `SCHEDULES`."""
    if optimizer.lower() != "adamw":
        raise ValueError(f"unknown opt.optimizer {optimizer!r}; the only choice is 'Adamw'")
    if schedule.lower() not in SCHEDULES:
        raise ValueError(f"unknown opt.schedule {schedule!r}; choose from {', '.join(SCHEDULES)}")


def parameter_groups(model: nn.Module, weight_decay: float, bias_decay: bool = False) -> list[dict[str, Any]]:
    """The trainable parameters of `model` as AdamW groups, in the published order.

    The first group, biases, all other 1-d tensors and scalars, has no weight decay; the second holds the rest. With
    `bias_decay` there is one group with all parameters. Frozen tensors such as pos_embed are left out. Optimizer states
    are stored by index, so this order is part of the checkpoint format.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if bias_decay:
        return [{"params": [parameter for _, parameter in trainable], "weight_decay": weight_decay}]
    no_decay: list[nn.Parameter] = []
    decay: list[nn.Parameter] = []
    for name, parameter in trainable:
        (no_decay if parameter.ndim <= 1 or name.endswith(".bias") else decay).append(parameter)
    return [{"params": no_decay, "weight_decay": 0.0}, {"params": decay, "weight_decay": weight_decay}]


def make_optimizer(model: nn.Module, weight_decay: float, bias_decay: bool = False) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, with betas (0.9, 0.95), or (0.9, 0.999) with `bias_decay`.

    The learning rate is 0 until `set_learning_rate` is called.
    """
    betas = (0.9, 0.999) if bias_decay else (0.9, 0.95)
    return torch.optim.AdamW(parameter_groups(model, weight_decay, bias_decay), lr=0.0, betas=betas, fused=True)


def skip_step_if(optimizer: torch.optim.AdamW, bad: torch.Tensor) -> None:
    """Make the next step a no-op if `bad`, a float scalar on the device, is 1, without waiting for the device."""
    optimizer.found_inf = bad  # type: ignore[attr-defined]  # the fused step reads it, as it does for GradScaler


def load_state(optimizer: torch.optim.AdamW, state: dict[str, Any], source: str | Path) -> None:
    """Load the state of an AdamW, fused or not, with the same groups, all but their settings `OF_THE_RUN`.

    Raises:
        CheckpointError: the groups have other numbers of parameters; the message names `source`.
    """
    sizes, expected = (
        [len(group["params"]) for group in groups] for groups in (state["param_groups"], optimizer.param_groups)
    )
    if sizes != expected:
        raise CheckpointError(
            f"{source}: its optimizer has groups of {sizes} parameters instead of {expected}; "
            "there is one group with --bias-decay, two without"
        )
    groups = [
        {**group, "fused": True, "foreach": None, **{key: own[key] for key in OF_THE_RUN}}
        for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups, times the "scale" of a group that has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def peak_learning_rate(base_rate: float, global_batch: int) -> float:
    """The learning rate at the end of the warm-up.

    Args:
        base_rate: the rate for REFERENCE_BATCH samples.
        global_batch: samples of one optimizer step, over all processes and accumulated batches.
    """
    return base_rate * global_batch / REFERENCE_BATCH


def decay_epochs(opt: Any) -> float | None:
    """How long the rate falls at the end of a run, by the section `opt` of a config; None: from the warm-up on."""
    staged = opt.get("schedule", "").lower() == "warmupstabledecay"
    return opt.decay_epochs if staged else None


def check_stages(opt: Any, num_epochs: int) -> None:
    """Raise ValueError if warm-up and fall of a staged schedule, in the section `opt` of a config, overlap."""
    fall = decay_epochs(opt)
    if fall is not None and opt.warmup_epochs + fall > num_epochs:
        raise ValueError(
            f"opt.warmup_epochs {opt.warmup_epochs:g} and opt.decay_epochs {fall:g} do not fit into num_epochs "
            f"{num_epochs}: with opt.schedule {opt.schedule!r} the rate rises before it falls"
        )


def learning_rate_at(
    epoch: float,
    *,
    peak: float,
    num_epochs: float,
    warmup_epochs: float,
    min_lr: float = 0.0,
    decay_epochs: float | None = None,
) -> float:
    """The learning rate at a fractional epoch: linear from 0 to `peak`, then half a cosine down to `min_lr`.

    With `decay_epochs` the rate stays at `peak` instead, and falls linearly to `min_lr` over that many epochs at the
    end. A run can then go on from any checkpoint before the fall, to any length (Hu et al. 2024, arXiv 2404.06395;
    Hägele et al. 2024, arXiv 2405.18392).
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    if decay_epochs is not None:
        left = num_epochs - epoch
        return peak if left >= decay_epochs else min_lr + (peak - min_lr) * left / decay_epochs
    angle = math.pi * (epoch - warmup_epochs) / (num_epochs - warmup_epochs)
    return min_lr + (peak - min_lr) * 0.5 * (1.0 + math.cos(angle))
