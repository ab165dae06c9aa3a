"""Checkpoints in the published layout: a dict with `model`, `optimizer`, `epoch`, `scaler` and `args`.

Reading never runs code from the file. The published `args` are an `argparse.Namespace` that holds an
`ml_collections.ConfigDict`; both are read as plain dicts, without importing their classes.
"""

import re
import shutil
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audio_mamba.system.atomic_files import atomic_write, remove_partials

LAST_EPOCHS_KEPT = 5

# What `torch.load` reads safely. A class that derives from one of these it does not.
TENSORS = (torch.Tensor, nn.Parameter, torch.Size, torch.dtype, torch.device)
BUILTINS = (type(None), bool, int, float, complex, str, bytes, bytearray)


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, unsafe or belongs to another model. The message names the file."""


def is_due(epoch: int, num_epochs: int) -> bool:
    """Whether to save after `epoch`, counted from 0: after every second epoch and each of the last five."""
    return epoch % 2 == 0 or epoch >= num_epochs - LAST_EPOCHS_KEPT


def save_checkpoint(path: str | Path, **state: Any) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file; an existing one is replaced.
        state: the entries, of tensors and builtins only, so that `load_checkpoint` can read them safely.

    Raises:
        TypeError: there is something else among the entries; no file is written.
        OSError: the disk or a quota is full.
    """
    if problem := _first_unreadable(state):
        raise TypeError(f"cannot write {path}: {problem}; a checkpoint holds tensors and Python's own types only")
    remove_partials(path)  # left by a killed attempt, and as large as the checkpoint
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch.save raises it when a write fails
        free = shutil.disk_usage(Path(path).parent).free
        raise OSError(f"cannot write {path}; {free / 2**20:.0f} MiB are free on its disk") from error


def _first_unreadable(value: Any, name: str = "") -> str | None:
    """Where in nested entries the first value is that `load_checkpoint` would refuse, in words; None without one."""
    if type(value) in (dict, OrderedDict, Counter):
        parts = [(name, key) for key in value]
        parts += [(f"{name}.{key}" if name else str(key), entry) for key, entry in value.items()]
    elif type(value) in (list, tuple, set):
        parts = [(f"{name}[{number}]", entry) for number, entry in enumerate(value)]
    else:
        return None if type(value) in TENSORS + BUILTINS else f"{name} is {value!r}, of {type(value)}"
    return next(filter(None, (_first_unreadable(part, place) for place, part in parts)), None)


def load_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint on the CPU, with `args` and its config as plain dicts.

    Args:
        path: the file.
        mmap: read no tensor before it is used; the file must be one that `save_checkpoint` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, has no `model` entry, or contains more than tensors and builtins.
    """
    state = read_pickle(path, mmap)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{path} is not a checkpoint: it has no 'model' entry with the weights")
    return state


def read_pickle(path: str | Path, mmap: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU; `mmap` as for `load_checkpoint`.

    Raises:
        CheckpointError: the file is missing, damaged, or contains more than tensors and builtins.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}")
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        return _as_builtins(state)
    except Exception as error:  # hostile or damaged bytes can raise anything in the reader
        raise CheckpointError(f"cannot read checkpoint {path}: {_why_unreadable(error)}") from error


def _why_unreadable(error: Exception) -> str:
    """One sentence, without torch's advice to load the file unsafely."""
    text = str(error)
    if refused := re.search(r"\bGLOBAL (\S+)", text):
        return f"it asks for {refused[1]}, which weights do not need and which could run arbitrary code"
    if "WeightsUnpickler error" in text or not text.strip():
        return "damaged, or not a checkpoint"
    return f"damaged, or not a checkpoint ({text.strip().splitlines()[0]})"


def checkpoint_path(directory: str | Path, epoch: int) -> Path:
    """The file of an epoch's checkpoint, under its published name."""
    return Path(directory) / f"checkpoint-{epoch}.pth"


def epoch_checkpoints(directory: str | Path) -> list[tuple[int, Path]]:
    """The epoch and the file of every `checkpoint-<epoch>.pth` in `directory`, in any order."""
    found = []
    for path in Path(directory).glob("checkpoint-*.pth"):
        if match := re.fullmatch(r"checkpoint-(\d+)\.pth", path.name):
            found.append((int(match[1]), path))
    return found


def latest_checkpoint(directory: str | Path) -> tuple[Path, int] | None:
    """The `checkpoint-<epoch>.pth` with the highest epoch in `directory`, and that epoch; None if there is none."""
    found = epoch_checkpoints(directory)
    if not found:
        return None
    epoch, path = max(found)
    return path, epoch


def load_model_state(model: nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load the weights `state` into `model`; `source` is where they came from, for the messages.

    Raises:
        CheckpointError: the weights belong to another architecture (the message names the first differing keys or
            shapes), or some are NaN or Inf.
    """
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(getattr(value, "shape", ())) for key, value in state.items()}
    differences = [f"no {key}" for key in expected if key not in found]
    differences += [f"unexpected {key}" for key in found if key not in expected]
    differences += [
        f"{key} is {found[key]} instead of {shape}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise CheckpointError(f"{source} holds another architecture: {'; '.join(differences[:3])}{more}")
    if key := first_not_finite(state):
        raise CheckpointError(f"{source} holds weights that are NaN or Inf, first in {key}")
    model.load_state_dict(state)


def first_not_finite(state: dict[str, torch.Tensor]) -> str | None:
    """The name of the first tensor with a NaN or Inf; None if all are finite."""
    return next((key for key, value in state.items() if not torch.isfinite(value).all()), None)


class _Namespace:
    """Receives the fields of a pickled argparse.Namespace and nothing else."""


class _ConfigDict:
    """Receives the fields of a pickled ml_collections.ConfigDict and nothing else."""


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Namespace, "argparse.Namespace"),
    (_ConfigDict, "ml_collections.config_dict.config_dict.ConfigDict"),
]


def _as_builtins(value: Any) -> Any:
    """`value` with every stand-in at any depth replaced by a dict of its entries."""
    if isinstance(value, _Namespace):
        return _as_builtins(vars(value))
    if isinstance(value, _ConfigDict):
        return _as_builtins(vars(value)["_fields"])
    if type(value) is dict:
        return {key: _as_builtins(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_as_builtins, value))
    return value
