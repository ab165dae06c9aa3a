"""Find the config and the weight file that a user names; nothing else in the project looks for them."""

import contextlib
import difflib
import inspect
import os
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from audio_mamba import models
from audio_mamba.config_names import experiments, import_named, is_missing, short_name, stored_name
from audio_mamba.front_end import FrontEnd
from audio_mamba.hear_api.trained_config import check_same_encoder, config_of, read_config_of
from audio_mamba.hear_api.weights import find_checkpoint
from audio_mamba.schema import check_config

DEFAULT_MODEL = "ssam_tiny_free_audio"  # its weights come with the project
UNTRAINED = "untrained"
WEIGHTS_VARIABLE = "PT_MAMBA_MODEL_DIR"
AXLSTM_WEIGHTS_VARIABLE = "PT_AXLSTM_MODEL_DIR"  # for experiments whose names begin with "axlstm"
PUBLISHED_SUFFIX = "_4x256_fp16_r1"  # 4 GPUs x 256 clips, float16, run 1
SHIPPED_WEIGHTS = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class ModelSource:
    """What a model is built from: a checked config, a weight file (None: random weights), and its name in tables."""

    config: ConfigDict
    weights: Path | None
    name: str

    @property
    def label(self) -> str:
        """The name and the weight file, such as "ssam_tiny_200_16x4:checkpoint-99"."""
        return f"{self.name}:{UNTRAINED if self.weights is None else self.weights.stem}"


def resolve(config_name: str | None, weights: str | Path | None, **features: str | float | None) -> ModelSource:
    """Find the config and the weights of a model.

    Args:
        config_name: an experiment under any of its names ("ssam_tiny_200_16x4", "configs.ssam_tiny_200_16x4" ...) or
            another module with `get_config()`; with a variant after a colon where `get_config` takes one. A study of
            `configs.studies` without a variant: the one that the weights were trained as. None: the config that the
            weights were trained with, or DEFAULT_MODEL if there are no weights either.
        weights: a checkpoint file, a work folder of train.py, a saved model, "untrained", or a name of
            `available_models`, unless a file or folder has it. None: the published folder of the config in
            $PT_MAMBA_MODEL_DIR, or the weights that come with the project.
        features: `scene_layout`, `scene_pooling` and `overlap` in place of the config's; None keeps the config's.

    Raises:
        ValueError: unknown config, weights without a config beside them, or a value of `features` out of range.
        FileNotFoundError: no weights there.
    """
    path: Path | None
    if config_name == "" or weights == "":
        raise ValueError("the name of the model or of its weights is empty; is a shell variable unset?")
    if weights is not None and weights in available_models() and not Path(weights).exists():
        config_name, weights = config_name or str(weights), default_weights(str(weights))
    if config_name is None and weights and weights != UNTRAINED:
        path = find_checkpoint(weights)
        config, name = config_of(path)
    else:
        module = _with_variant(stored_name(config_name or DEFAULT_MODEL), weights)
        config = load_config(module)  # first, so that a typo is reported before missing weights
        path = weights_file(module, weights)
        config, name = _as_trained(config, module, path), short_name(module)
    try:
        config.update({key: value for key, value in features.items() if value is not None})
    except TypeError as error:
        raise ValueError(str(error)) from error
    config = check_config(config, models.known_archs(), source=name)
    return ModelSource(config, path, name)


def names_a_path(name: str) -> bool:
    """Whether the name of a model means the path of weights, not a config."""
    return "/" in name or Path(name).exists()


def load_config(name: str) -> ConfigDict:
    """The checked config of a module, named as for `resolve`. ValueError as for `get_config`, or for an invalid key or
    value."""
    source = stored_name(name)
    return check_config(get_config(source), models.known_archs(), source=source)


def get_config(name: str) -> ConfigDict:
    """What a module's `get_config()` returns or, for a name like "module:variant", its `get_config("variant")`.

    Raises:
        ValueError: there is no such module or variant, or the module has no get_config.
    """
    module_name, colon, variant = stored_name(name).partition(":")
    try:
        module = import_named(module_name)
    except ModuleNotFoundError as error:
        if not is_missing(module_name, error):
            raise
        raise ValueError(f"no config module {module_name!r}; {_hint(module_name)}") from error
    if not hasattr(module, "get_config"):
        raise ValueError(f"the module {module_name!r} is not a config: it has no get_config()")
    arguments = [variant] if colon else []
    try:
        inspect.signature(module.get_config).bind(*arguments)
    except TypeError:
        problem = f"has no variants, got {variant!r}" if colon else f"needs a variant, as {module_name}:VARIANT"
        raise ValueError(f"the config {module_name} {problem}") from None
    return module.get_config(*arguments)


def _hint(missing: str) -> str:
    """What may have been meant by the name of a module that does not exist."""
    path = Path(missing)
    if path.suffix == ".py":
        elsewhere = path.is_relative_to("..") or path.is_absolute()
        module = ".".join((Path(path.name) if elsewhere else path).with_suffix("").parts)
        return f"name the module, not its file: {module!r}"
    wanted = missing if missing.startswith("configs.") else f"configs.{missing}"
    nearest = difflib.get_close_matches(wanted, experiments(), n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else "write it as configs.<experiment>"


def weights_file(config_name: str, weights: str | Path | None) -> Path | None:
    """The weight file that `resolve` finds for a named config; None for "untrained"."""
    if weights == UNTRAINED:
        return None
    return find_checkpoint(weights or default_weights(short_name(stored_name(config_name))))


def default_weights(name: str) -> Path:
    """The folder of an experiment's weights if none are named: $PT_MAMBA_MODEL_DIR/<name>_4x256_fp16_r1, or else the
    one that comes with the project. FileNotFoundError if neither exists."""
    variable = _variable_of(name)
    model_dir, shipped = os.environ.get(variable), SHIPPED_WEIGHTS / name
    published = Path(model_dir) / (name + PUBLISHED_SUFFIX) if model_dir else None
    if published and published.is_dir():
        return published
    if shipped.is_dir():
        return shipped
    missing = (
        f"{variable} has no folder {published}"
        if published
        else f"set {variable} to the folder that holds {name}{PUBLISHED_SUFFIX}"
    )
    raise FileNotFoundError(
        f'no weights for {name}: {missing}, or name a checkpoint file, a work folder of train.py, or "{UNTRAINED}": '
        "load_model(...), --weights of audio-mamba embed, MODEL= of extract_features.sh"
    )


def available_models() -> list[str]:
    """Names of the models whose weights are on this machine, in the project and in $PT_MAMBA_MODEL_DIR or
    $PT_AXLSTM_MODEL_DIR."""
    names = {folder.name for folder in SHIPPED_WEIGHTS.glob("*") if _has_weights(folder)}
    for variable in (WEIGHTS_VARIABLE, AXLSTM_WEIGHTS_VARIABLE):
        if model_dir := os.environ.get(variable):
            folders = filter(_has_weights, Path(model_dir).glob(f"*{PUBLISHED_SUFFIX}"))
            found = {folder.name.removesuffix(PUBLISHED_SUFFIX) for folder in folders}
            known = {short_name(name) for name in experiments()}
            names |= {name for name in found & known if _variable_of(name) == variable}
    return sorted(names)


def _has_weights(folder: Path) -> bool:
    try:
        return folder.is_dir() and find_checkpoint(folder).is_file()
    except OSError:
        return False


def _variable_of(name: str) -> str:
    """The environment variable with the folder of an experiment's published weights."""
    return AXLSTM_WEIGHTS_VARIABLE if name.startswith("axlstm") else WEIGHTS_VARIABLE


def _with_variant(module: str, weights: str | Path | None) -> str:
    """`module`, with the variant that `weights` were trained as if they are of one of its variants."""
    if weights and weights != UNTRAINED:
        with contextlib.suppress(OSError, ValueError):  # reported later, after mistakes in the name of the module
            name = stored_name(str(read_config_of(find_checkpoint(weights))[1].get("name")))
            return name if name.startswith(f"{module}:") else module
    return module


def _as_trained(config: ConfigDict, module: str, path: Path | None) -> ConfigDict:
    """A config with its model and front end as `train.py --set` changed them, if the weights at `path` are in a work
    folder of the same experiment; otherwise the config itself. ValueError if other weights had another front end, or
    an encoder of the same arch with other arguments."""
    found, entries = read_config_of(path) if path else (None, {})
    if "model" not in entries or stored_name(str(entries.get("name"))) != module:
        if isinstance(theirs := entries.get("front_end"), dict):
            FrontEnd.from_settings(config.front_end).check_same(FrontEnd.from_settings(theirs), str(found))
        check_same_encoder(config, entries.get("model", entries), f"{found} and {module}")
        return config
    changed = config.copy_and_resolve_references()
    for section in {"model", "front_end"} & entries.keys():
        changed[section] = ConfigDict(entries[section])
    return check_config(changed, models.known_archs(), source=str(found))
