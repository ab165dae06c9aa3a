"""The config that weights were trained with: from the config.json beside them, or from within a checkpoint."""

import json
from pathlib import Path
from typing import Any, TypeGuard

from ml_collections import ConfigDict

from audio_mamba import models
from audio_mamba.config_names import short_name
from audio_mamba.front_end import FrontEnd, FrontEndError
from audio_mamba.hear_api.weights import CLASSIFIER_FOLDER, CLASSIFIER_FORMAT, CONFIG_NAME, FORMAT
from audio_mamba.schema import argument_defaults, check_config
from audio_mamba.training.checkpoint import CheckpointError, load_checkpoint

# Arguments of an encoder that weights may be read with other values of: of its masks, speed, and length of input.
FREE_ARGUMENTS = ("mask_ratio", "masking_mode", "masked_positions", "fused_add_norm", "img_size")
FEATURE_KEYS = ("scene_layout", "scene_pooling", "overlap")  # of a config: how features become embeddings


def trained_front_end(path: Path) -> FrontEnd:
    """The front end that a weight file was trained with, or the published one if that is not noted.

    FrontEndError for values out of range.
    """
    return FrontEnd.from_settings(read_config_of(path)[1].get("front_end", {}))


def config_of(path: Path) -> tuple[ConfigDict, str]:
    """The config that a weight file was trained with and its name. ValueError if it is not noted."""
    found, entries = read_config_of(path)
    name = short_name(str(entries.pop("name", "unnamed")))
    entries.pop("options", None)  # of train.py, which say nothing of the model
    try:
        if found and entries.get("format") == FORMAT:
            name = found.parent.name
            entries = saved_experiment(entries)
        elif found and entries.get("format") == CLASSIFIER_FORMAT:
            name = found.absolute().parents[1].name if found.parent.name == CLASSIFIER_FOLDER else found.parent.name
            entries = classifier_experiment(entries)
        elif {"encoder", "head"} <= entries.keys():  # a checkpoint of finetune.py
            entries = {"scene_layout": "bands", "front_end": entries["front_end"], "model": entries["model"]}
        if "model" not in entries:
            raise ValueError(f"cannot tell which config {path} was trained with, if it holds weights; name the config")
        return check_config(ConfigDict(entries), models.known_archs(), source=str(found)), name
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{found}: does not describe a model ({error}); pass the --config of {path}") from error


def saved_experiment(entries: dict) -> dict[str, Any]:
    """The experiment that the config.json of a saved model describes. KeyError if it lacks the model."""
    return {
        **{key: entries[key] for key in FEATURE_KEYS if key in entries},
        "front_end": entries.get("front_end", {}),
        "model": _model_in(entries),
    }


def classifier_experiment(entries: dict) -> dict[str, Any]:
    """The experiment of the encoder in a classifier, from its config.json. KeyError if that lacks a part of it."""
    return {"scene_layout": "bands", "model": _model_in(entries), "front_end": entries["front_end"]}


def _model_in(entries: dict) -> dict[str, Any]:
    return {"arch": entries["arch"], "model_args": entries["model_args"]}


def check_same_encoder(config: ConfigDict, theirs: Any, names: str) -> None:
    """ValueError for an argument of the encoder that differs and that the shapes of the weights may not show."""
    if not isinstance(theirs, dict) or theirs.get("arch") != config.model.arch:
        return  # none is noted, or the names of the weights tell them apart
    if different := _different_argument(theirs, config.model.to_dict()):
        key, there, here = different
        raise ValueError(f"{names} differ in model.model_args.{key}: {there!r} there, {here!r} here")


def described_encoder(config: ConfigDict) -> dict[str, Any]:
    """What embeddings depend on beside the weights, as JSON has it: arch, arguments of the encoder, front end."""
    section = config.model.to_dict()
    arguments = argument_defaults(models.known_archs()[section["arch"]]) | dict(_arguments(section))
    described = {"arch": section["arch"]}
    free = set(FREE_ARGUMENTS) - {"img_size"}  # recordings are cut into inputs of that length
    described |= {f"model_args.{key}": value for key, value in arguments.items() if key not in free}
    front_end = FrontEnd.from_settings(config.front_end).settings()
    return json.loads(
        json.dumps(described | {f"front_end.{key}": value for key, value in front_end.items()}, default=str)
    )


def _different_argument(theirs: dict, ours: dict) -> tuple[str, Any, Any] | None:
    """The first argument that differs between `model` sections of one arch, and its values; None if they agree."""
    known = models.known_archs()
    defaults = argument_defaults(known[ours["arch"]]) if ours["arch"] in known else {}
    there, here = (
        json.loads(json.dumps(defaults | dict(_arguments(section)), default=str))  # lists, not tuples
        for section in (theirs, ours)
    )
    for key, value in there.items():
        if key not in FREE_ARGUMENTS and value != here.get(key):
            return key, value, here.get(key)
    return None


def read_config_of(path: Path) -> tuple[Path | None, dict]:
    """The entries of what a weight file was trained with, and the file that has them; (None, {}) if there are none.

    They are those of the config.json in the folder of the file or in the one above, also of the file behind a link.
    A checkpoint of ours holds its config itself, all but the name; it counts where config.json is of another model, as
    beside a copy of the checkpoint.
    """
    own = _config_inside(path)
    for folder in (path.absolute().parent, path.resolve().parent):
        found = next((place for place in (folder / CONFIG_NAME, folder.parent / CONFIG_NAME) if place.is_file()), None)
        if found is None:
            continue
        try:
            entries = json.loads(found.read_bytes())
        except ValueError:
            entries = {}
        entries = entries if isinstance(entries, dict) else {}
        if own is None or _describe_one_model(entries, own):
            return found, entries
    return (None, {}) if own is None else (path, own)


def _config_inside(path: Path) -> dict | None:
    """The config in a checkpoint of ours; None for other weights. A damaged file is reported where it is loaded."""
    if path.suffix != ".pth":
        return None
    try:
        noted = load_checkpoint(path, mmap=True).get("args")
    except CheckpointError:
        return None
    config = noted.get("config") if isinstance(noted, dict) else None  # a name in published checkpoints
    return config if isinstance(config, dict) and _is_model(config.get("model")) else None


def _describe_one_model(one: dict, other: dict) -> bool:
    """Whether two configs have the same front end and encoder."""
    model, other_model = one.get("model"), other.get("model")
    if not (_is_model(model) and _is_model(other_model)) or model["arch"] != other_model["arch"]:
        return False
    try:
        front_ends = [FrontEnd.from_settings(config.get("front_end", {})) for config in (one, other)]
    except FrontEndError:
        return False
    return front_ends[0] == front_ends[1] and _different_argument(model, other_model) is None


def _is_model(section: Any) -> TypeGuard[dict]:
    """Whether this is the `model` section of a config, with the name of an encoder and its arguments."""
    return isinstance(section, dict) and isinstance(section.get("arch"), str) and isinstance(_arguments(section), dict)


def _arguments(section: dict) -> Any:
    return section.get("model_args") or {}
