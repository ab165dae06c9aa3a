"""Where the weights of an experiment lie."""
from pathlib import Path

from torch import nn

from training.checkpoint import latest_checkpoint, load_checkpoint, load_model_state

PUBLISHED_SUFFIX = "_4x256_fp16_r1"  # 4 GPUs x 256 clips, float16, run 1


def default_weights_dir(config_name: str, model_dir: str | None) -> Path:
    """The published folder of an experiment's weights below `model_dir`. FileNotFoundError if it is not there."""
    hint = "or pass load_model a checkpoint file, a work folder of train.py, or \"untrained\""
    if not model_dir:
        raise FileNotFoundError(f"no weights for {config_name}: set PT_MAMBA_MODEL_DIR to the folder that holds "
                                f"{config_name}{PUBLISHED_SUFFIX}, {hint}")
    folder = Path(model_dir) / (config_name + PUBLISHED_SUFFIX)
    if not folder.is_dir():
        raise FileNotFoundError(f"no weights for {config_name}: PT_MAMBA_MODEL_DIR has no folder {folder}, {hint}")
    return folder


def find_checkpoint(weights_dir: str | Path) -> Path:
    """A checkpoint file: `weights_dir` itself, or the highest epoch in its `checkpoints` folder or in itself.

    FileNotFoundError if there is none.
    """
    weights_dir = Path(weights_dir)
    if weights_dir.is_file():
        return weights_dir
    for folder in (weights_dir / "checkpoints", weights_dir):
        if found := latest_checkpoint(folder):
            return found[0]
    raise FileNotFoundError(f"no checkpoint-<epoch>.pth in {weights_dir} or {weights_dir / 'checkpoints'}")


def load_weights(model: nn.Module, weights_dir: str | Path) -> Path:
    """Load the newest checkpoint below `weights_dir` into a model; returns the file taken.

    FileNotFoundError if there is none, `training.checkpoint.CheckpointError` for a damaged file or another
    architecture.
    """
    path = find_checkpoint(weights_dir)
    load_model_state(model, load_checkpoint(path)["model"], source=path)
    return path
