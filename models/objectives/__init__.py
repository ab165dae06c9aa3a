"""What pretraining minimises, by the names of `opt.objective`: `objectives.build(config.opt, encoder)`."""

import math
from typing import Any

import numpy as np
from torch import nn

from audio_mamba.config_names import import_named, is_missing
from audio_mamba.models.checks import check_call
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.objectives.base import EncoderWithHead, Objective, check_masking, deviation_over_clips
from audio_mamba.models.objectives.joint import Joint
from audio_mamba.models.objectives.reconstruction import Reconstruction
from audio_mamba.models.objectives.teacher import Teacher

OBJECTIVES: dict[str, type[Objective]] = {"reconstruction": Reconstruction, "teacher": Teacher, "joint": Joint}


def find(name: str) -> type[Objective]:
    """A class by its name in OBJECTIVES, or by "MODULE:CLASS" of any module that can be imported.

    Raises:
        ValueError: there is no such module, or the class is missing or not an objective.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(import_named(module_name), attribute, None)
    except ModuleNotFoundError as error:
        if not is_missing(module_name, error):
            raise
        raise ValueError(f"opt.objective {name!r}: there is no module {module_name!r}") from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ValueError(
            f"opt.objective {name!r}: {attribute!r} is not a subclass of audio_mamba.models.objectives.Objective"
        )
    return found


def build(opt: Any, encoder: MaskedSpectrogramEncoder) -> Objective:
    """The objective of a config's section `opt`, for an encoder on its device.

    Raises:
        ValueError: an unknown objective, an unknown or wrong argument, an encoder that hides all patches, or parts of
            the objective that would not be trained or saved. What the constructor itself raises passes.
    """
    if encoder.draw_mask(np.random.default_rng(0)).all():
        raise ValueError(
            f"model.model_args.mask_ratio {encoder.mask_ratio:g} with masking_mode {encoder.masking_mode!r} hides all "
            f"{math.prod(encoder.grid_size())} patches of a clip: nothing is left to predict them from"
        )
    constructor = find(opt.objective)
    check_call("opt.objective_args", constructor, opt.objective_args, encoder, opt)
    objective = constructor(encoder, opt, **opt.objective_args)
    _check_parts(opt.objective, objective, encoder)
    objective.module.to(encoder.mask_token.device)
    return objective


def _check_parts(name: str, objective: Objective, encoder: MaskedSpectrogramEncoder) -> None:
    """Raise ValueError if checkpoints of the objective would not fit, or if nothing would train a part of it."""
    module = objective.module
    if encoder not in (module, getattr(module, "encoder", None)):
        raise ValueError(
            f"opt.objective {name!r}: its module, of class {type(module).__name__}, must be the encoder or have it as "
            "its attribute `encoder`"
        )
    trained = set(map(id, module.parameters()))
    for attribute, part in vars(objective).items():
        parameters = part.parameters() if isinstance(part, nn.Module) else [part]
        if any(isinstance(p, nn.Parameter) and p.requires_grad and id(p) not in trained for p in parameters):
            raise ValueError(
                f"opt.objective {name!r}: nothing would train its attribute `{attribute}`; make it a part of `module`, "
                "or freeze it by requires_grad_(False)"
            )


__all__ = ["OBJECTIVES", "EncoderWithHead", "Objective", "build", "check_masking", "deviation_over_clips", "find"]
