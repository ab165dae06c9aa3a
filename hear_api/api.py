"""The public functions: `load_model` and `list_models` of the package, and the HEAR API of a config module.

torch is imported when a model is loaded, so `get_config()` of a config module works without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from audio_mamba.hear_api.runtime import RuntimeSSAST


def load_model(
    model: str | Path | None = None,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    *,
    precision: str = "auto",
    layout: str | None = None,
    pooling: str | None = None,
    overlap: float | None = None,
) -> RuntimeSSAST:
    """A pretrained encoder as an embedding model.

    Args:
        model: one of `list_models()`, the name of a config, or the path of weights: a work folder of train.py, a saved
            model, or a checkpoint file of this project. Default: "ssam_tiny_free_audio".
        weights: in place of the model's own: a path as above, or "untrained" for random weights.
        device: torch device; default: a GPU if there is one, else the CPU.
        precision: "float32", "float16", "bfloat16", or "auto": float16 on CUDA, float32 elsewhere.
        layout: of scene embeddings, "published" or "bands"; default: the config's.
        pooling: of scene embeddings over time, "mean", or "mean_std" for mean and standard deviation (twice the width);
            default: the config's.
        overlap: part of a segment that is read as context, 0 to 0.75, with layout "bands"; default: the config's.

    Returns:
        The model, with `embed`, `get_scene_embeddings` and `get_timestamp_embeddings`.

    Raises:
        ValueError: unknown model, config, precision, layout, pooling or device; an overlap out of range or with layout
            "published"; weights that do not fit.
        FileNotFoundError: no weights there.
    """
    from audio_mamba.hear_api.resolve import names_a_path, resolve
    from audio_mamba.hear_api.runtime import build_runtime

    name = None if model is None else str(model)
    if name is not None and weights is None and (isinstance(model, Path) or names_a_path(name)):
        name, weights = None, name
    source = resolve(name, weights, scene_layout=layout, scene_pooling=pooling, overlap=overlap)
    return build_runtime(source, precision, device)


def list_models() -> list[str]:
    """Names for `load_model` of the models whose weights are on this machine: those that come with the project and the
    published ones in $PT_MAMBA_MODEL_DIR and $PT_AXLSTM_MODEL_DIR."""
    from audio_mamba.hear_api.resolve import available_models

    return available_models()


def hear_functions(module_name: str) -> tuple[Callable, Callable, Callable]:
    """`load_model`, `get_scene_embeddings` and `get_timestamp_embeddings` of a config module (HEAR common API)."""

    def load_model(model_file_path: str = ""):
        """The pretrained encoder as a HEAR model (`hear_api.RuntimeSSAST`), on the CPU.

        Args:
            model_file_path: a checkpoint file, a work folder of train.py or its folder `checkpoints` (all with the
                model as --set changed it), or "untrained" for random weights. Default: the published folder in
                $PT_MAMBA_MODEL_DIR (of AxLSTM $PT_AXLSTM_MODEL_DIR), or else the weights that come with the project.

        Raises:
            FileNotFoundError: no weights there.
        """
        from audio_mamba.hear_api.resolve import resolve
        from audio_mamba.hear_api.runtime import RuntimeSSAST

        source = resolve(module_name, model_file_path or None)
        return RuntimeSSAST(source.config, source.weights)

    def get_scene_embeddings(audio, model):
        """One embedding per clip: audio float32 [n_sounds, n_samples] at the model's rate -> [n_sounds, width]."""
        return model.get_scene_embeddings(audio)

    def get_timestamp_embeddings(audio, model):
        """One embedding per patch step (40 ms with the paper's configs): [n_sounds, n_timestamps, width], and
        timestamps in ms [n_sounds, n_timestamps]."""
        return model.get_timestamp_embeddings(audio)

    return load_model, get_scene_embeddings, get_timestamp_embeddings
