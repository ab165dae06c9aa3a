"""How the commands of this room name a model: their common options, and the runtime that these stand for."""
import argparse
import importlib
from pathlib import Path

import torch

from hear_api.runtime import RuntimeSSAST
from hear_api.weights import find_checkpoint
from machine import bound_threads


def load_runtime(config_name: str, weights: str | None, precision: str = "auto", layout: str | None = None,
                 device: str = "cpu") -> tuple[RuntimeSSAST, str]:
    """A runtime by names from a command line, and the model's name for tables.

    config_name: "ssam_tiny_200_16x4", or any module with get_config(). weights: file, folder, "untrained", or
    None for those that the config's load_model() takes. layout: of scene embeddings instead of the config's own.
    ValueError and FileNotFoundError say what is not there.
    """
    module = config_name if "." in config_name else f"configs.{config_name}"
    config = importlib.import_module("configs.base").load_config(module)
    if layout:
        config.scene_layout = layout
    path = weights_file(config_name, weights)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    bound_threads()
    runtime = RuntimeSSAST(config, path, precision).to(device)
    return runtime, f"{module.rpartition('.')[2]}:{'untrained' if path is None else path.stem}"


def weights_file(config_name: str, weights: str | None) -> Path | None:
    """The file that `load_runtime` takes for the same arguments; None for "untrained"."""
    if weights == "untrained":
        return None
    return find_checkpoint(weights or importlib.import_module("configs.base").default_weights(config_name))


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which model, the same for every command."""
    add = parser.add_argument
    add("--config", default="ssam_tiny_free_audio", metavar="NAME",
        help="experiment, e.g. ssam_tiny_200_16x4, or a module with get_config() (default: %(default)s)")
    add("--weights", metavar="DIR",
        help="checkpoint file, work folder of train.py, folder of a saved model, or \"untrained\" (default: those in "
             "$PT_MAMBA_MODEL_DIR, else those that came with the project)")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Where the model runs, the same for every command."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="torch device (default: %(default)s)")
