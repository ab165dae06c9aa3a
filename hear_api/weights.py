"""Where the weights of an experiment lie."""
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, load_model_state

PUBLISHED_SUFFIX = "_4x256_fp16_r1"  # 4 GPUs x 256 clips, float16, run 1
WEIGHTS_NAME = "model.safetensors"   # in a folder of save_pretrained


def default_weights_dir(config_name: str, model_dir: str | None, shipped: Path) -> Path:
    """The published folder of an experiment's weights below `model_dir`, or else the folder `shipped` with the project.

    FileNotFoundError if neither is there.
    """
    if shipped.is_dir() and not (model_dir and (Path(model_dir) / (config_name + PUBLISHED_SUFFIX)).is_dir()):
        return shipped
    hint = ("or name a checkpoint file, a work folder of train.py, or \"untrained\": load_model(...), --weights of "
            "hear_api.embed, MODEL= of extract_features.sh")
    if not model_dir:
        raise FileNotFoundError(f"no weights for {config_name}: set PT_MAMBA_MODEL_DIR to the folder that holds "
                                f"{config_name}{PUBLISHED_SUFFIX}, {hint}")
    folder = Path(model_dir) / (config_name + PUBLISHED_SUFFIX)
    if not folder.is_dir():
        raise FileNotFoundError(f"no weights for {config_name}: PT_MAMBA_MODEL_DIR has no folder {folder}, {hint}")
    return folder


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
    raise FileNotFoundError(f"no checkpoint-<epoch>.pth or {WEIGHTS_NAME} in {weights_dir} or "
                            f"{weights_dir / 'checkpoints'}")


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
