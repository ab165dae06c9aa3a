"""Weight files: find them in a folder, read them safely, load them into a model."""

import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.training.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, load_model_state

CONFIG_NAME = "config.json"  # beside the weights, in a work folder or a saved model
WEIGHTS_NAME = "model.safetensors"  # of a saved model
FORMAT = "audio-mamba 1"  # of a saved model's config.json
CLASSIFIER_FORMAT = "audio-mamba classifier 1"  # of a fine-tuned one's
CLASSIFIER_FOLDER = "classifier"  # in a work folder of finetune.py
ENCODER_PREFIX = "encoder."  # of the encoder's weights in a classifier


def find_checkpoint(weights_dir: str | Path) -> Path:
    """The weight file that a path names.

    Args:
        weights_dir: a weight file, a saved model, or a folder of checkpoints or with a sub-folder `checkpoints`, of
            which the highest epoch counts; of a work folder of finetune.py, the classifier's weights.

    Raises:
        FileNotFoundError: no weights there.
    """
    weights_dir = Path(weights_dir)
    if weights_dir.is_file():
        return weights_dir
    for folder in (weights_dir, weights_dir / CLASSIFIER_FOLDER):
        if (folder / WEIGHTS_NAME).is_file():
            return folder / WEIGHTS_NAME
    for folder in (weights_dir / "checkpoints", weights_dir):
        if found := latest_checkpoint(folder):
            return found[0]
    raise FileNotFoundError(
        f"no checkpoint-<epoch>.pth or {WEIGHTS_NAME} in {weights_dir} or {weights_dir / 'checkpoints'}"
    )


def load_weights(model: nn.Module, weights_dir: str | Path) -> Path:
    """Load the weights that `find_checkpoint` finds into a model, and return their file.

    Raises:
        FileNotFoundError: no weights there.
        CheckpointError: a damaged file, or weights of another architecture.
    """
    path = find_checkpoint(weights_dir)
    load_model_state(model, read_weights(path), source=path)
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of an encoder by name, also of one within a classifier. CheckpointError if the file is damaged."""
    state = read_safetensors(path) if path.suffix == ".safetensors" else load_checkpoint(path)["model"]
    if any(key.startswith(ENCODER_PREFIX) for key in state):
        return {
            key.removeprefix(ENCODER_PREFIX): value for key, value in state.items() if key.startswith(ENCODER_PREFIX)
        }
    return state


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name. CheckpointError if the file is absent or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} is not a saved model: it has no {path.name}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged, or not a saved model ({error})") from error


def check_folder(folder: Path, is_ours: Callable[[Path], bool]) -> None:
    """ValueError if a folder to be written holds something else than what `is_ours` knows: a training run, or weights
    without its config."""
    for name in ("checkpoints", CONFIG_NAME, WEIGHTS_NAME):
        if (folder / name).exists() and (name == "checkpoints" or not is_ours(folder)):
            raise ValueError(f"{folder} holds something else, {name}; choose another folder, or remove it")


def write_saved(folder: Path, weights: bytes, config: bytes) -> None:
    """Write a saved model or classifier; what was there is replaced, or stays as it was if the weights cannot be
    written. The config is written last, so a folder with a config is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / WEIGHTS_NAME) as file:
        file.write(weights)
        file.flush()
        os.fsync(file.fileno())  # some file systems notice only now that they are full
        (folder / CONFIG_NAME).unlink(missing_ok=True)
    with atomic_write(folder / CONFIG_NAME) as file:
        file.write(config)


def to_safetensors(state: dict[str, Tensor]) -> bytes:
    """The content of a safetensors file of these tensors."""
    return save({key: value.contiguous() for key, value in state.items()}, metadata={"format": "pt"})
