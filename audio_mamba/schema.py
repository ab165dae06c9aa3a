"""The schema of a config: every key with its published value, and the check that completes and refuses.

A config is an `ml_collections.ConfigDict`. `check_config` fills in the defaults below and refuses keys that nothing
reads, so a config file of the published code works when dropped in, and a misspelt key does not pass unnoticed.
"""

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from audio_mamba.front_end import FrontEnd, FrontEndError

# Every key of a config with its published value. Keys that are "not read", those of UNREAD, are accepted for published
# config files.
DEFAULTS: dict[str, Any] = {
    "model": {
        "arch": "mamba_ssast_tiny",
        "type": "ssast",  # not read
        "num_classes": 1000,  # not read
        "model_args": {},  # the arguments of the encoder's constructor
        "backend": "auto",  # of SSAM's kernels in train.py, see `models.ops.dispatch`; AUDIO_MAMBA_BACKEND wins
        "patch_embed_args": {},  # not read
    },
    "opt": {
        "optimizer": "Adamw",
        "learning_rate": 1.5e-4,  # for a global batch of 256
        "weight_decay": 0.05,
        "schedule": "warmupcosine",  # or "warmupstabledecay": the peak is held until the last `decay_epochs`
        "warmup_epochs": 10.0,
        "decay_epochs": 10.0,  # of "warmupstabledecay"
        "momentum": 0.9,  # not read
        "grad_accum_steps": 1,
        "clip_grad_value": None,  # of the total gradient norm; None or 0: no clipping
        "norm_pix_loss": False,  # normalise each target patch
        "masked_only_loss": False,  # count masked patches alone; published: all
        "objective": "reconstruction",  # or "teacher", "joint", "MODULE:CLASS"; see `models.objectives`
        "objective_args": {},  # the arguments of its constructor
    },
    "log_every_steps": 100,  # unless --print-freq is given
    "num_train_steps": -1,  # not read
    "steps_per_eval": -1,  # not read
    "data": {
        "train_dirs": [],
        "train_samples": [],  # read only for URLs; folders know their count
        "val_dir": "",
        "val_samples": 0,  # not read
        "clip_duration": 2.0,  # not read: num_frames
        "num_frames": 200,
        "fraction": 1.0,  # share of the training clips to use, chosen by their keys, see `data.subset`
        "dataset_name": "audioset",  # not read
    },
    "batch_size": 256,  # per process
    "shuffle_buffer_multiplier": 250,  # not read: every epoch is fully shuffled
    "half_precision": False,  # not read: --precision
    "precision": "float32",  # unless --precision is given
    "num_epochs": 100,
    "scene_layout": "published",  # or "bands": scene embeddings in true time order, one mean per mel band
    "scene_pooling": "mean",  # or "mean_std": mean and standard deviation over time, twice the width
    "overlap": 0.0,  # part of a segment that an embedding reads as context, up to 0.75
    "front_end": FrontEnd().settings(),  # of the archives and of the audio to embed
    "wandb": {"project": "ssast-pytorch-mamba"},
}

WHOLE_NUMBERS = ("batch_size", "num_epochs", "log_every_steps", "opt.grad_accum_steps", "data.num_frames")  # 1 or more
NUMBERS = (  # 0 or more
    "opt.learning_rate",
    "opt.weight_decay",
    "opt.warmup_epochs",
    "opt.decay_epochs",
    "opt.clip_grad_value",
)
STRINGS = ("opt.optimizer", "opt.schedule", "precision")
FOLDERS = ("data.val_dir",)  # "" or None: there is none
UNREAD = {  # keys of published configs that nothing reads, and what to use in their place
    "model.type": "",
    "model.num_classes": "",
    "model.patch_embed_args": "",
    "opt.momentum": "",
    "num_train_steps": "num_epochs",
    "steps_per_eval": "",
    "data.val_samples": "",
    "data.clip_duration": "data.num_frames",
    "data.dataset_name": "",
    "shuffle_buffer_multiplier": "",
    "half_precision": "--precision",
}
LAYOUTS = ("published", "bands")  # of scene features, see `models.encoder`
POOLINGS = {"mean": 1, "mean_std": 2}  # of scene features, and the width of the result; see `models.pooling`
ENCODERS_VARIABLE = "AUDIO_MAMBA_ENCODERS"  # modules that register encoders, see `models.registry`
MAX_OVERLAP = 0.75  # of a segment with the one before; costs four times the work


def check_config(config: ConfigDict, encoders: Mapping[str, Callable[..., Any]], source: str) -> ConfigDict:
    """A copy of a config with every missing key at its default.

    Args:
        config: complete or partial.
        encoders: the constructor of each arch, such as `models.ARCHS`; its arguments are the valid keys of
            `model.model_args`.
        source: where the config comes from, for the messages.

    Raises:
        ValueError: a key or arch is unknown (the message suggests the nearest valid name), a section is not a section,
            or a value is out of range.
    """
    checked = ConfigDict(DEFAULTS, convert_dict=True)
    merge(checked, config, prefix="", source=source)
    arch = checked.model.arch
    if not isinstance(arch, str):
        raise ValueError(f"{source}: model.arch must be the name of an encoder, got {arch!r}")
    if arch not in encoders:
        raise ValueError(f"{source}: {unknown_arch(arch, encoders)}")
    valid = argument_names(encoders[arch])
    for key in checked.model.model_args:
        if key not in valid:
            raise _unknown_key(f"model.model_args.{key}", valid, f"{source}, with model.arch {arch!r}")
    _check_values(checked, source)
    return checked


def unknown_arch(arch: str, encoders: Iterable[str]) -> str:
    """What is wrong with an arch that none of the `encoders` has."""
    own = f"if your own code registers it, name that module in ${ENCODERS_VARIABLE}"
    return f"unknown model.arch {arch!r}; {suggestion(arch, list(encoders))} ({own})"


def argument_names(constructor: Callable[..., Any]) -> list[str]:
    """The keyword arguments of a class, or of another callable, also in a `functools.partial`."""
    return list(argument_defaults(constructor))


def argument_defaults(constructor: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments of a class, or of another callable, and their defaults (`inspect.Parameter.empty` if they
    have none); those of a `functools.partial` count.

    In the constructor of a class, `**kwargs` stands for the arguments of the next constructor in its method resolution
    order, to which `super().__init__(**kwargs)` passes them.
    """
    chosen: dict[str, Any] = {}
    while isinstance(constructor, functools.partial):
        chosen = constructor.keywords | chosen
        constructor = constructor.func
    functions: list[Callable[..., Any]] = [constructor]
    if isinstance(constructor, type):
        own = [vars(cls)["__init__"] for cls in constructor.__mro__ if "__init__" in vars(cls)]
        functions = [functools.partial(function, None) for function in own]  # without self
    defaults: dict[str, Any] = {}  # in order; the first constructor that has an argument decides
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        named = {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        defaults |= {name: default for name, default in named.items() if name not in defaults}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return defaults | {name: value for name, value in chosen.items() if name in defaults}


def check_objective(
    config: ConfigDict, known: Collection[str], find: Callable[[str], Callable[..., Any]], source: str
) -> None:
    """Check the objective of a config that is to be trained; embedding needs none.

    Args:
        config: complete.
        known: the names of the project's own objectives.
        find: the constructor of such a name, or of "MODULE:CLASS". Its arguments after the encoder and the section
            `opt` are the valid keys of `opt.objective_args`.
        source: where the config comes from, for the messages.

    Raises:
        ValueError: the objective or an argument is unknown; the message suggests the nearest valid name.
    """
    name = config.opt.objective
    if not isinstance(name, str):
        raise ValueError(f"{source}: opt.objective must be the name of an objective or MODULE:CLASS, got {name!r}")
    if name not in known and ":" not in name:
        raise ValueError(f"{source}: unknown opt.objective {name!r}; {suggestion(name, [*known, 'MODULE:CLASS'])}")
    valid = argument_names(find(name))[2:]
    for key in config.opt.objective_args:
        if key not in valid:
            raise _unknown_key(f"opt.objective_args.{key}", valid, f"{source}, with opt.objective {name!r}")


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether it is a whole number of at least `least`."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def is_finite(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def check_numbers(
    config: ConfigDict,
    whole: Sequence[str],
    real: Sequence[str],
    defaults: Mapping[str, Any],
    source: str,
    whole_from_0: Sequence[str] = (),
) -> None:
    """Raise ValueError unless the keys `whole` are whole numbers of 1 or more, and `real` finite ones of 0 or more.

    None is accepted where it is the default.
    """
    for name in (*whole, *whole_from_0, *real):
        section, _, key = name.rpartition(".")
        value = _value(config, name)
        if value is None and defaults.get(section, defaults)[key] is None:
            continue
        if name in real:
            valid, expected = is_finite(value) and value >= 0, "a finite number of at least 0"
        else:
            least = 1 if name in whole else 0
            valid, expected = is_whole(value, least), f"a whole number of at least {least}"
        if not valid:
            raise ValueError(f"{source}: {name} must be {expected}, got {value!r}")


def check_strings(config: ConfigDict, strings: Sequence[str], folders: Sequence[str], source: str) -> None:
    """Raise ValueError unless `strings` are strings, `folders` strings or None, and data.train_dirs a list of them."""
    for name in (*strings, *folders):
        value = _value(config, name)
        if not isinstance(value, str) and not (value is None and name in folders):
            raise ValueError(f"{source}: {name} must be a string, got {value!r}")
    directories = config.data.train_dirs
    if not isinstance(directories, list | tuple) or not all(isinstance(directory, str) for directory in directories):
        raise ValueError(f"{source}: data.train_dirs must be a list of strings, got {directories!r}")


def _value(config: ConfigDict, name: str) -> Any:
    """The value of a key of the config or, with a dot, of a section of it."""
    section, _, key = name.rpartition(".")
    return (config[section] if section else config)[key]


def _check_values(config: ConfigDict, source: str) -> None:
    check_numbers(config, WHOLE_NUMBERS, NUMBERS, DEFAULTS, source)
    check_strings(config, STRINGS, FOLDERS, source)
    samples = config.data.train_samples
    if not isinstance(samples, list | tuple) or not all(is_whole(count, least=0) for count in samples):
        raise ValueError(f"{source}: data.train_samples must be a list of whole numbers, got {samples!r}")
    try:
        FrontEnd.from_settings(config.front_end)
    except FrontEndError as error:
        raise ValueError(f"{source}: {error}") from error
    fraction = config.data.fraction
    if not is_finite(fraction) or not 0 < fraction <= 1:
        raise ValueError(f"{source}: data.fraction must be a number above 0, up to 1, got {fraction!r}")
    if config.scene_layout not in LAYOUTS:
        raise ValueError(f"{source}: scene_layout must be one of {', '.join(LAYOUTS)}, got {config.scene_layout!r}")
    if config.scene_pooling not in list(POOLINGS):  # not in the dict: the value may be unhashable
        raise ValueError(f"{source}: scene_pooling must be one of {', '.join(POOLINGS)}, got {config.scene_pooling!r}")
    if not is_finite(config.overlap) or not 0 <= config.overlap <= MAX_OVERLAP:
        raise ValueError(f"{source}: overlap must be a number from 0 to {MAX_OVERLAP}, got {config.overlap!r}")
    if config.overlap and config.scene_layout == "published":
        raise ValueError(f'{source}: overlap needs scene_layout "bands", since a published row has no single time')


def merge(target: ConfigDict, entries, prefix: str, source: str) -> None:
    """Put the `entries` of a config, or of the section whose names begin with `prefix`, in place of the defaults in
    `target`.

    Raises:
        ValueError: `target` has no such key, a section is not a section, a value is not of builtins, or it is neither
            True nor False where the default is, or one of them where the default is a number.
    """
    for key in entries:
        name, value = prefix + key, entries[key]
        if key not in target:
            raise _unknown_key(name, list(target), source)
        if not isinstance(target[key], ConfigDict):
            value = as_builtins(value, name, source)
            if isinstance(target[key], bool) and value not in (True, False):
                raise ValueError(f"{source}: {name} must be True or False, got {value!r}")
            if isinstance(target[key], float) and isinstance(value, bool):  # ConfigDict would take True for 1.0
                raise ValueError(f"{source}: {name} must be a number, got {value!r}")
            if isinstance(target[key], float) and type(value) is int:
                value = float(value)
            with target.ignore_type():
                target[key] = value
        elif name in ("model.model_args", "model.patch_embed_args", "opt.objective_args") and hasattr(value, "keys"):
            target[key] = ConfigDict(as_builtins(value, name, source))
        elif hasattr(value, "keys"):
            merge(target[key], value, name + ".", source)
        else:
            keys = f" with keys {', '.join(target[key])}" if target[key] else ""
            raise ValueError(f"{source}: {name} must be a section{keys}, got {value!r}")


def as_builtins(value: Any, name: str, source: str) -> Any:
    """The value of a key with numpy's numbers as Python's own, so that config.json and checkpoints can hold it.

    Raises:
        ValueError: it is, or contains, anything but numbers, texts, None, lists, tuples and sections.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if hasattr(value, "keys"):
        return {key: as_builtins(value[key], f"{name}.{key}", source) for key in value}
    if type(value) in (list, tuple):
        return type(value)(as_builtins(entry, name, source) for entry in value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"{source}: {name} must be a number, a string, None or a list of them, got {value!r}")


def _unknown_key(name: str, valid: list[str], source: str) -> ValueError:
    """`valid` are the keys of the section, one of which the last part of `name` may have meant."""
    section, dot, key = name.rpartition(".")
    return ValueError(f"{source}: nothing reads the key {name!r}; {suggestion(key, valid, section + dot)}")


def suggestion(name: str, valid: list[str], prefix: str = "") -> str:
    """The nearest valid name as a question, or all of them."""
    nearest = difflib.get_close_matches(name, valid, n=1)
    return f"did you mean {prefix + nearest[0]!r}?" if nearest else f"accepted are {', '.join(valid) or 'none'}"


def flattened(entries: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as a flat one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in entries.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
