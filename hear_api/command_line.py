"""How the commands of this room name a model: their common options, and the runtime that these stand for."""
import argparse
import importlib
import json
from pathlib import Path

import torch
from ml_collections import ConfigDict

from hear_api.pretrained import CONFIG_NAME, FORMAT
from hear_api.runtime import RuntimeSSAST
from hear_api.weights import find_checkpoint
from machine import bound_threads

DEFAULT_CONFIG = "ssam_tiny_free_audio"  # its weights come with the project


def load_runtime(config_name: str | None, weights: str | None, precision: str = "auto", layout: str | None = None,
                 device: str = "cpu") -> tuple[RuntimeSSAST, str]:
    """A runtime by names from a command line, and the model's name for tables.

    config_name: "ssam_tiny_200_16x4", or any module with get_config(); None for that of the weights, see `config_of`,
    or, without weights, DEFAULT_CONFIG. weights: file, folder, "untrained", or None for those that the config's
    load_model() takes. layout: of scene embeddings instead of the config's own.
    ValueError and FileNotFoundError say what is not there.
    """
    if config_name is None and weights and weights != "untrained":
        path = weights_file(None, weights)
        config, name = config_of(path)
    else:
        config_name = config_name or DEFAULT_CONFIG
        module = config_name if "." in config_name else f"configs.{config_name}"
        # Before the weights, so that a mistyped name is told of and not that its weights are missing.
        config = importlib.import_module("configs.base").load_config(module)
        path = weights_file(config_name, weights)
        config, name = as_trained(config, module, path), module.rpartition(".")[2]
    if layout:
        config.scene_layout = layout
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    bound_threads()
    runtime = RuntimeSSAST(config, path, precision).to(device)
    return runtime, f"{name}:{'untrained' if path is None else path.stem}"


def config_of(path: Path) -> tuple[ConfigDict, str]:
    """The config that a file of weights was trained with and its name, from the config.json of the work folder of
    train.py, or of the folder of a saved model, that it lies in. ValueError where there is none."""
    found, entries = _read_config_beside(path)
    name = str(entries.pop("name", "unnamed")).rpartition(".")[2]
    try:
        if entries.get("format") == FORMAT:
            name = found.parent.name
            entries = {"scene_layout": entries["scene_layout"],
                       "model": {"arch": entries["arch"], "model_args": entries["model_args"]}}
        if "model" not in entries:
            raise ValueError(f"name the --config of {path}: nothing beside it tells")
        return importlib.import_module("configs.base").check_config(ConfigDict(entries), source=str(found)), name
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{found}: does not describe a model ({error}); name the --config of {path}") from error


def as_trained(config: ConfigDict, module: str, path: Path | None) -> ConfigDict:
    """The config of a module with its model as `train.py --set` made it, where a work folder of this module has the
    weights at `path`; else the config as it is."""
    found, entries = _read_config_beside(path) if path else (None, {})
    name, module = (str(text).replace("configs.poc.", "configs.") for text in (entries.get("name"), module))
    if name != module or "model" not in entries:
        return config
    changed = config.copy_and_resolve_references()
    changed.model = ConfigDict(entries["model"])
    return importlib.import_module("configs.base").check_config(changed, source=str(found))


def _read_config_beside(path: Path) -> tuple[Path | None, dict]:
    """The config.json in the folder of a file or in the one above, and its entries, if it has any."""
    folder = path.absolute().parent
    found = next((place / CONFIG_NAME for place in (folder, folder.parent) if (place / CONFIG_NAME).is_file()), None)
    try:
        entries = json.loads(found.read_bytes()) if found else {}
    except ValueError:
        entries = {}
    return found, entries if isinstance(entries, dict) else {}


def weights_file(config_name: str | None, weights: str | None) -> Path | None:
    """The file that `load_runtime` takes for the same arguments; None for "untrained"."""
    if weights == "untrained":
        return None
    default_weights = importlib.import_module("configs.base").default_weights
    return find_checkpoint(weights or default_weights(config_name or DEFAULT_CONFIG))


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which model, the same for every command."""
    add = parser.add_argument
    add("--config", metavar="NAME",
        help="experiment, e.g. ssam_tiny_200_16x4, or a module with get_config() (default: the one that the weights "
             f"were trained with, if their folder has its config.json; without --weights, {DEFAULT_CONFIG})")
    add("--weights", metavar="DIR",
        help="checkpoint file, work folder of train.py, folder of a saved model, or \"untrained\" (default: those in "
             "$PT_MAMBA_MODEL_DIR, else those that came with the project)")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Where the model runs, the same for every command."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="torch device (default: %(default)s)")
