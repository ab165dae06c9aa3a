"""What the experiments share: the published values, the check of keys, and the three functions of the HEAR API.

A config is an `ml_collections.ConfigDict`. `check_config` completes one with the defaults below and refuses keys that
nothing knows, so a config file of the published code works when dropped in, and a misspelt key does not pass unseen.
"""
import difflib
import importlib
import math
import numbers
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

# Every key of a config with its published value; the comments name what is only kept for published config files.
DEFAULTS = {
    "model": {
        "arch": "mamba_ssast_tiny",
        "type": "ssast",            # not read
        "num_classes": 1000,        # not read
        "model_args": {},           # keys: MODEL_ARGS
        "patch_embed_args": {},     # not read
    },
    "opt": {
        "optimizer": "Adamw",
        "learning_rate": 1.5e-4,    # for a global batch of 256
        "weight_decay": 0.05,
        "schedule": "warmupcosine",
        "warmup_epochs": 10.0,
        "momentum": 0.9,            # not read
        "grad_accum_steps": 1,
        "clip_grad_value": None,    # of the total gradient norm
        "norm_pix_loss": False,     # normalise each target patch
        "masked_only_loss": False,  # count masked patches alone; published: all
    },
    "log_every_steps": 100,         # where --print_freq is not given
    "num_train_steps": -1,          # not read
    "steps_per_eval": -1,           # not read
    "data": {
        "train_dirs": [],
        "train_samples": [],        # not read where an archive's own count is known
        "val_dir": "",
        "val_samples": 0,           # not read
        "clip_duration": 2.0,       # not read: num_frames
        "num_frames": 200,
        "dataset_name": "audioset",  # not read
    },
    "batch_size": 256,              # per process
    "shuffle_buffer_multiplier": 250,   # not read: every epoch is fully shuffled
    "half_precision": False,        # not read: --precision
    "precision": "float32",         # where --precision is not given
    "num_epochs": 100,
    "scene_layout": "published",    # or "bands": scene embeddings in true time order, one mean per mel band
    "wandb": {"project": "ssast-pytorch-mamba"},
}

MODEL_ARGS = {
    "ssast": ["img_size", "patch_size", "in_chans", "mask_ratio", "masking_mode", "use_cls_token", "frequency_first",
              "masked_positions", "embed_dim", "depth", "num_heads"],
    "mamba_ssast": ["img_size", "patch_size", "in_chans", "mask_ratio", "masking_mode", "use_cls_token",
                    "frequency_first", "masked_positions", "embed_dim", "depth", "rms_norm", "fused_add_norm",
                    "residual_in_fp32", "norm_epsilon", "ssm_kwargs"],
}

WHOLE_NUMBERS = ("batch_size", "num_epochs", "log_every_steps", "opt.grad_accum_steps", "data.num_frames")  # 1 or more
NUMBERS = ("opt.learning_rate", "opt.weight_decay", "opt.warmup_epochs", "opt.clip_grad_value")             # 0 or more
LAYOUTS = ("published", "bands")

WEIGHTS_VARIABLE = "PT_MAMBA_MODEL_DIR"
SHIPPED_WEIGHTS = Path(__file__).parents[1] / "weights"
AUDIOSET = [("balanced_train", 18988), ("unbalanced_train", 1766912), ("unbalanced_train_2", 265408)]


def paper_config(arch: str, **model_args) -> ConfigDict:
    """The paper's pretraining on AudioSet (section 3.2) of one arch: 200 frames x 80 mels, patches of 4 x 16.

    The archives are looked for in $DATASETS_BASE_DIR (default: the folder `datasets`).
    """
    config = ConfigDict(DEFAULTS)
    config.model.arch = arch
    config.model.model_args = {"img_size": (200, 80), "patch_size": (4, 16), "mask_ratio": 0.5,
                               "frequency_first": False, **model_args}
    base = os.path.join(os.environ.get("DATASETS_BASE_DIR", "datasets"), "audioset_logmelspec_webdataset")
    config.data.train_dirs = [os.path.join(base, folder) for folder, _ in AUDIOSET]
    config.data.train_samples = [samples for _, samples in AUDIOSET]
    config.data.val_dir, config.data.val_samples = os.path.join(base, "eval"), 17408
    return config


def ssam_config(size: str) -> ConfigDict:
    """The paper's SSAM of one size: LayerNorm, plain add + norm."""
    return paper_config(f"mamba_ssast_{size}", rms_norm=False, fused_add_norm=False)


def ssast_config(size: str) -> ConfigDict:
    """The paper's SSAST of one size."""
    return paper_config(f"ssast_{size}")


def free_audio_config(config: ConfigDict) -> ConfigDict:
    """The paper's recipe scaled to 32,000 crops on one CPU core (experiments/free_audio); the same for SSAM and SSAST.

    What differs from the paper, and why:
        data            3,201 clips of free recordings for AudioSet's two million
        num_epochs      10, each one crop of every clip; the paper's 100 epochs are 205 million crops
        batch_size      8 instead of 4 x 256, so that these crops make 4,000 steps
        learning_rate   1.6e-2, a peak of 1.6e-2 x 8 / 256 = 5e-4, near the paper's 6e-4
        warmup_epochs   a tenth of the run, as in the paper
        precision       bfloat16: a step takes 1.3 (SSAM) and 1.5 times (SSAST) as long in float32 on a CPU with AVX-512
        scene_layout    true time order: there are no published numbers to match
    """
    config.data.train_dirs, config.data.train_samples = ["free_audio/archives/train"], [3201]
    config.data.val_dir, config.data.val_samples = "free_audio/archives/validation", 300
    config.num_epochs, config.batch_size, config.precision = 10, 8, "bfloat16"
    config.opt.learning_rate, config.opt.warmup_epochs = 1.6e-2, 1.0
    config.log_every_steps = 10
    config.scene_layout = "bands"
    return config


def load_config(name: str) -> ConfigDict:
    """The checked config of a module, e.g. "configs.ssam_tiny_200_16x4" or "configs.poc.ssam_tiny_200_16x4".

    ValueError if there is no such module, it has no get_config, or a key of it is unknown.
    """
    try:
        if name.startswith("."):
            raise ModuleNotFoundError("a relative name, and there is nothing that it could be relative to", name=name)
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        known = [f"configs.{module.name}" for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
        nearest = difflib.get_close_matches(name if name.startswith("configs.") else f"configs.{name}", known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "write it as configs.<experiment>"
        raise ValueError(f"no config module {name!r}; {hint}") from error
    if not hasattr(module, "get_config"):
        raise ValueError(f"the module {name!r} is not a config: it has no get_config()")
    return check_config(module.get_config(), source=name)


def check_config(config: ConfigDict, source: str = "the config") -> ConfigDict:
    """A copy of a config with every absent key at its default.

    ValueError for a key that nothing knows, with the nearest valid name, for a section that is not one, and for a
    value out of range.
    """
    checked = ConfigDict(DEFAULTS, convert_dict=True)
    _merge(checked, config, prefix="", source=source)
    arch = checked.model.arch
    if not isinstance(arch, str):
        raise ValueError(f"{source}: model.arch must be the name of an encoder, got {arch!r}")
    valid = MODEL_ARGS["mamba_ssast" if arch.startswith("mamba_ssast") else "ssast"]
    for key in checked.model.model_args:
        if key not in valid:
            raise _unknown_key(f"model.model_args.{key}", valid, f"{source}, with model.arch {arch!r}")
    _check_values(checked, source)
    return checked


def _check_values(config: ConfigDict, source: str) -> None:
    for name in WHOLE_NUMBERS + NUMBERS:
        section, _, key = name.rpartition(".")
        value = (config[section] if section else config)[key]
        kind, least, words = (numbers.Integral, 1, "whole number") if name in WHOLE_NUMBERS else (
            numbers.Real, 0, "finite number")
        if value is None and DEFAULTS.get(section, DEFAULTS)[key] is None:
            continue
        if not isinstance(value, kind) or isinstance(value, bool) or not least <= value < math.inf:
            raise ValueError(f"{source}: {name} must be a {words} of at least {least}, got {value!r}")
    if config.scene_layout not in LAYOUTS:
        raise ValueError(f"{source}: scene_layout must be one of {', '.join(LAYOUTS)}, got {config.scene_layout!r}")


def _merge(target: ConfigDict, source_config, prefix: str, source: str) -> None:
    for key in source_config:
        name, value = prefix + key, source_config[key]
        if key not in target:
            raise _unknown_key(name, list(target), source)
        if not isinstance(target[key], ConfigDict):
            if isinstance(target[key], float) and type(value) is int:
                value = float(value)
            with target.ignore_type():
                target[key] = value
        elif name in ("model.model_args", "model.patch_embed_args") and hasattr(value, "keys"):
            target[key] = ConfigDict(value)
        elif hasattr(value, "keys"):
            _merge(target[key], value, name + ".", source)
        else:
            keys = f" with keys {', '.join(target[key])}" if target[key] else ""
            raise ValueError(f"{source}: {name} must be a section{keys}, got {value!r}")


def _unknown_key(name: str, valid: list[str], source: str) -> ValueError:
    """`valid` are the names in the section that the last part of `name` might have meant."""
    section, dot, key = name.rpartition(".")
    nearest = difflib.get_close_matches(key, valid, n=1)
    hint = f"did you mean {section + dot + nearest[0]!r}?" if nearest else f"accepted are {', '.join(valid)}"
    return ValueError(f"{source}: nothing reads the key {name!r}; {hint}")


def default_weights(config_name: str) -> Path:
    """The weights of an experiment where none are named: $PT_MAMBA_MODEL_DIR/<config>_4x256_fp16_r1, or else the folder
    that came with the project. FileNotFoundError if neither is there."""
    from hear_api.weights import default_weights_dir

    name = config_name.rpartition(".")[2]
    return default_weights_dir(name, os.environ.get(WEIGHTS_VARIABLE), SHIPPED_WEIGHTS / name)


def hear_functions(module_name: str) -> tuple[Callable, Callable, Callable]:
    """`load_model`, `get_scene_embeddings` and `get_timestamp_embeddings` of a config module (HEAR common API)."""

    def load_model(model_file_path: str = ""):
        """The pretrained encoder as a HEAR model (`hear_api.RuntimeSSAST`).

        model_file_path: a checkpoint file, a work folder of train.py or its folder `checkpoints` (all with the model as
        --set made it), or "untrained" for random weights. Default: `default_weights`. FileNotFoundError if nothing is
        there.
        """
        from hear_api import RuntimeSSAST
        from hear_api.command_line import as_trained, weights_file

        config = load_config(module_name)
        path = weights_file(module_name, model_file_path or None)
        return RuntimeSSAST(as_trained(config, module_name, path), path)

    def get_scene_embeddings(audio, model):
        """One embedding per clip: audio float32 [n_sounds, n_samples] at 16 kHz -> [n_sounds, width]."""
        return model.get_scene_embeddings(audio)

    def get_timestamp_embeddings(audio, model):
        """Embeddings each 40 ms: [n_sounds, n_timestamps, width] and timestamps in ms [n_sounds, n_timestamps]."""
        return model.get_timestamp_embeddings(audio)

    return load_model, get_scene_embeddings, get_timestamp_embeddings
