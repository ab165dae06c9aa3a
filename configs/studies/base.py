"""The variants of a study: the paper's recipe (configs/base.py) with other values, named like the published configs."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ml_collections import ConfigDict

from audio_mamba.config_names import stored_name
from audio_mamba.configs.base import axlstm_config, ssam_config, ssast_config
from audio_mamba.hear_api.api import hear_functions

MODELS = {"ssam": ssam_config, "ssast": ssast_config, "axlstm": axlstm_config}


@dataclass(frozen=True)
class Variant:
    """One run. The defaults are the paper's recipe.

    Attributes:
        model: a key of MODELS.
        size: of the encoder.
        num_frames: of a crop.
        patch: frames and mel bands of a patch.
        fraction: share of the training clips.
        masking_mode: see `models.masking`.
        mask_ratio: share of the patches that are hidden.
    """

    model: str
    size: str = "tiny"
    num_frames: int = 200
    patch: tuple[int, int] = (4, 16)
    fraction: float = 1.0
    masking_mode: str = "unstructured"
    mask_ratio: float = 0.5

    @property
    def name(self) -> str:
        """Such as `ssam_tiny_200_16x4`: size, frames, and a patch's bands x frames, as in the published names; after
        that, what else differs from the paper's recipe. Equal names mean equal configs, in all studies."""
        frames, bands = self.patch
        parts = [self.model, self.size, str(self.num_frames), f"{bands}x{frames}"]
        if self.fraction != 1:
            parts.append(f"{100 * self.fraction:g}_percent")
        if (self.masking_mode, self.mask_ratio) != ("unstructured", 0.5):
            parts.append(f"{self.masking_mode}_{100 * self.mask_ratio:.0f}")
        return "_".join(parts)

    def config(self) -> ConfigDict:
        config = MODELS[self.model](self.size)
        config.data.num_frames, config.data.fraction = self.num_frames, self.fraction
        config.data.clip_duration = self.num_frames / 100
        config.model.model_args.img_size = (self.num_frames, 80)
        config.model.model_args.patch_size = self.patch
        config.model.model_args.mask_ratio = self.mask_ratio
        if self.masking_mode != "unstructured":
            config.model.model_args.masking_mode = self.masking_mode
        return config


def study(
    module_name: str, variants: Iterable[Variant]
) -> tuple[dict[str, Variant], Callable, Callable, Callable, Callable]:
    """The variants of a study by name, its `get_config(variant)`, and its functions of the HEAR API.

    `load_model` takes the work folder or a checkpoint of any variant.
    """
    by_name = {variant.name: variant for variant in variants}
    stored = stored_name(module_name)

    def get_config(variant: str = "") -> ConfigDict:
        if variant not in by_name:
            nearest = difflib.get_close_matches(variant, by_name, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(by_name)}"
            problem = f"has no variant {variant!r}" if variant else f"needs a variant, as {stored}:VARIANT"
            raise ValueError(f"the study {stored} {problem}; {hint}")
        return by_name[variant].config()

    return by_name, get_config, *hear_functions(module_name)
