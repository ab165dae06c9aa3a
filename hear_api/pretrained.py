"""Models as folders in open formats: `model.safetensors` and `config.json`."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from audio_mamba.hear_api.runtime import RuntimeSSAST
from audio_mamba.hear_api.trained_config import FEATURE_KEYS, saved_experiment
from audio_mamba.hear_api.weights import (
    CONFIG_NAME,
    FORMAT,
    WEIGHTS_NAME,
    check_folder,
    read_safetensors,
    to_safetensors,
    write_saved,
)
from audio_mamba.models.precision import PRECISIONS, check_precision
from audio_mamba.training.checkpoint import CheckpointError, load_model_state


def save_pretrained(runtime: RuntimeSSAST, folder: str | Path, dtype: str = "float32") -> Path:
    """Write the encoder's weights and what is needed to rebuild it; see `weights.write_saved`.

    Args:
        runtime: the model.
        folder: created if absent.
        dtype: of the weights in the file, a key of PRECISIONS; "float16" halves the size. They are loaded as float32.

    Returns:
        The folder.

    Raises:
        ValueError: unknown dtype, or a folder that holds something else, such as a training run.
    """
    check_precision(dtype)
    folder = Path(folder)
    check_folder(folder, _is_saved_model)
    state = {key: value.cpu().to(PRECISIONS[dtype]) for key, value in runtime.model.state_dict().items()}
    config = {
        "format": FORMAT,
        "arch": runtime.config.model.arch,
        "model_args": runtime.config.model.model_args.to_dict(),
        **{key: getattr(runtime, key) for key in FEATURE_KEYS},
        "front_end": runtime.front_end.settings(),
    }
    write_saved(folder, to_safetensors(state), json.dumps(config, indent=1).encode())
    return folder


def _is_saved_model(folder: Path) -> bool:
    try:
        return json.loads((folder / CONFIG_NAME).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def from_pretrained(folder: str | Path, precision: str = "auto") -> RuntimeSSAST:
    """Load what `save_pretrained` wrote.

    Raises:
        CheckpointError: the folder is absent, incomplete or damaged.
        ValueError: unknown precision.
    """
    check_precision(precision, "auto")
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not a saved model: it has no {CONFIG_NAME}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder}: damaged, or not a saved model ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{folder / CONFIG_NAME}: its format is not {FORMAT!r}")
    try:
        runtime = RuntimeSSAST(ConfigDict(saved_experiment(config)), None, precision)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME}: does not describe a model ({error})") from error
    load_model_state(runtime.model, read_safetensors(folder / WEIGHTS_NAME), source=folder / WEIGHTS_NAME)
    return runtime
