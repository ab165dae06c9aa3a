"""Files of weights: found in a folder, read safely, loaded into a model."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from audio_mamba.training.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, load_model_state

CONFIG_NAME = "config.json"  # beside the weights: of a work folder, or of a saved model
WEIGHTS_NAME = "model.safetensors"  # of a saved model
FORMAT = "audio-mamba 1"  # of a saved model's config.json


def find_checkpoint(weights_dir: str | Path) -> Path:
    """A file of weights: `weights_dir` itself, the one of a saved model, or the highest epoch in the folder
    `checkpoints` or in `weights_dir`.

    FileNotFoundError if there is none.
    """
    weights_dir = Path(weights_dir)
    if weights_dir.is_file():
        return weights_dir
    if (weights_dir / WEIGHTS_NAME).is_file():
        return weights_dir / WEIGHTS_NAME
    for folder in (weights_dir / "checkpoints", weights_dir):
        if found := latest_checkpoint(folder):
            return found[0]
    raise FileNotFoundError(
        f"no checkpoint-<epoch>.pth or {WEIGHTS_NAME} in {weights_dir} or {weights_dir / 'checkpoints'}"
    )


def load_weights(model: nn.Module, weights_dir: str | Path) -> Path:
    """Load the weights of a saved model or the newest checkpoint in `weights_dir` into a model; returns the file taken.

    FileNotFoundError if there is none, `training.checkpoint.CheckpointError` for a damaged file or another
    architecture.
    """
    path = find_checkpoint(weights_dir)
    state = read_safetensors(path) if path.suffix == ".safetensors" else load_checkpoint(path)["model"]
    load_model_state(model, state, source=path)
    return path


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name. CheckpointError for a file that is absent or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} is not a saved model: it has no {path.name}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged, or not a saved model ({error})") from error
