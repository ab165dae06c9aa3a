"""The config of a run: read, changed by --set, checked, and compared with that of an earlier start."""

import argparse
import ast
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from audio_mamba import models
from audio_mamba.hear_api import resolve
from audio_mamba.models import objectives
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.precision import check_precision
from audio_mamba.schema import DEFAULTS, UNREAD, argument_defaults, check_config, check_objective, flattened
from audio_mamba.training import distributed, optim, resume

# Keys, or their beginnings, that may change when a run is resumed: none of them changes the training objective.
FREE_KEYS = (
    "name",
    "options.",  # of train.py, for readers; a checkpoint has those that a resumed run must repeat
    "data.train_",
    "data.val_",
    "data.test_",
    "log_every_steps",
    "model.backend",
    "num_epochs",
    "opt.decay_epochs",
    "wandb.",
    "precision",
    "batch_size",
    "opt.grad_accum_steps",
    "scene_layout",
    "scene_pooling",
    "overlap",
    *UNREAD,
)

# Options beside the config that a resumed run must repeat. Others either change rounding and speed alone, as the
# precision, or are compared elsewhere, as --bias-decay in the groups of the optimizer and the data by their content.
FIXED_OPTIONS = ("seed", "min_lr")

logger = logging.getLogger("train")


def load_config(module_name: str, overrides: list[str]) -> ConfigDict:
    """The config of a module with KEY=VALUE overrides. Raises ValueError for an unknown module, key or value."""
    config = resolve.load_config(module_name)
    apply_overrides(config, overrides)
    config = check_config(config, models.known_archs(), source="--set")
    check_objective(config, objectives.OBJECTIVES, objectives.find, source="--set" if overrides else module_name)
    optim.check_names(config.opt.optimizer, config.opt.schedule)
    optim.check_stages(config.opt, config.num_epochs)
    check_precision(config.precision)
    return config


def build_model(config: ConfigDict) -> MaskedSpectrogramEncoder:
    """The encoder of a config that is to be trained, with new weights.

    Raises:
        ValueError: an unknown arch or argument, or an input of other frames or mel bands than the data have.
    """
    model = models.build(config.model.arch, config.model.model_args.to_dict(), config.model.backend)
    for key, stated, read, unit in (
        ("data.num_frames", config.data.num_frames, model.num_frames, "frames"),
        ("front_end.n_mels", config.front_end.n_mels, model.n_mels, "mel bands"),
    ):
        if stated != read:
            raise ValueError(
                f"{key} is {stated}, but the model reads {read} {unit} (model.model_args.img_size is {model.img_size})"
            )
    return model


def apply_overrides(config: ConfigDict, overrides: list[str]) -> None:
    """Change a config by KEY=VALUE entries of a command line. Raises ValueError for an unknown key or wrong value."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override}: expected KEY=VALUE")
        if (instead := UNREAD.get(key)) is not None:
            logger.warning("--set %s: nothing reads this key%s", override, instead and f"; use {instead}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # an unquoted string
        if _is_section(config, key):
            raise ValueError(f"--set {override}: set its entries, as {key}.NAME=VALUE")
        now = flattened(config.to_dict()).get(key)
        if isinstance(value, bool) and isinstance(now, float):  # ConfigDict would take True for 1.0
            raise ValueError(f"--set {override}: expected a value like {now!r}")
        try:
            config.update_from_flattened_dict({key: value})
        except KeyError as error:
            raise ValueError(f"--set {override}: {error.args[0]}") from error
        except TypeError as error:
            raise ValueError(f"--set {override}: expected a value like {now!r}") from error


def _is_section(config: ConfigDict, key: str) -> bool:
    """Whether a config has a section under a dotted key."""
    value = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, ConfigDict) else None
    return isinstance(value, ConfigDict)


def clips_per_update(config: ConfigDict) -> int:
    """Clips of a step of the optimizer: those of all accumulated batches, in all processes together."""
    return config.opt.grad_accum_steps * config.batch_size * distributed.world_size()


def check_schedule(config: ConfigDict, steps_per_epoch: int, min_lr: float) -> None:
    """Raise ValueError if an epoch is too short for a single step, or the learning rate would fall to a higher one than
    its peak; warn if it never reaches the peak."""
    accumulation, warmup, epochs = config.opt.grad_accum_steps, config.opt.warmup_epochs, config.num_epochs
    if accumulation > steps_per_epoch:
        raise ValueError(
            f"opt.grad_accum_steps is {accumulation}, but an epoch has only {steps_per_epoch} batches: "
            "the optimizer would never make a step"
        )
    peak = optim.peak_learning_rate(config.opt.learning_rate, clips_per_update(config))
    if min_lr > peak:
        raise ValueError(
            f"--min-lr {min_lr:g} is above the peak of the learning rate, {peak:g} (opt.learning_rate x samples of a "
            f"step / {optim.REFERENCE_BATCH})"
        )
    if 0 < epochs <= warmup:
        logger.info(
            "the learning rate never reaches its peak: opt.warmup_epochs is %g, num_epochs is %d", warmup, epochs
        )


def check_same_experiment(
    workdir: Path,
    config: ConfigDict,
    defaults: Mapping[str, Any] = DEFAULTS,
    free_keys: tuple[str, ...] = FREE_KEYS,
    advice: str = "choose another --workdir",
) -> None:
    """Raise ValueError, with `advice`, if the checkpoints in `workdir` are of a config that differs in more than
    `free_keys`.

    `defaults` are the values of keys that are younger than the work folder.
    """
    if not (workdir / "config.json").exists() or not resume.checkpoints(workdir):
        return
    try:
        written = json.loads((workdir / "config.json").read_bytes())
        theirs = flattened(dict(defaults)) | flattened(written)  # the file may be older than some keys
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{workdir / 'config.json'} is damaged ({error}), so this run cannot be checked against it; "
            "delete the file if you are sure that the config is the same"
        ) from error
    if theirs.get("data.train_dirs") != list(config.data.train_dirs):
        logger.info(
            "until now %s was trained on other data: %s",
            workdir,
            ", ".join(theirs.get("data.train_dirs") or ["random spectrograms"]),
        )
    check_same_config(workdir, theirs, config, advice, {}, free_keys)


def check_same_config(
    source: str | Path,
    theirs: Mapping[str, Any],
    config: ConfigDict,
    advice: str,
    defaults: Mapping[str, Any] = DEFAULTS,
    free_keys: tuple[str, ...] = FREE_KEYS,
) -> None:
    """Raise ValueError, with `advice` to the user, if two configs differ in more than `free_keys`.

    Args:
        source: what `theirs` is the config of.
        theirs: the config as builtins, nested or flat.
        config: of this run.
        defaults: the values of keys that are younger than `theirs`.
    """
    before, now = (json.loads(json.dumps(entries)) for entries in (theirs, config.to_dict()))  # tuples become lists
    before, now = flattened(dict(defaults)) | flattened(before), flattened(now)
    for key in ("model.arch", "opt.objective"):
        if (name := now.get(key)) == before.get(key) and name is not None:
            arguments = _argument_defaults(key, name)
            before, now = arguments | before, arguments | now
    differences = [
        f"{key} is {before.get(key, 'not set')} there and {now.get(key, 'not set')} here"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not key.startswith(free_keys)
    ]
    if differences:
        raise ValueError(f"{source} belongs to another config: {'; '.join(differences)}; {advice}")


def _argument_defaults(key: str, name: str) -> dict[str, Any]:
    """The defaults of the arguments of an encoder (`key` "model.arch") or of an objective ("opt.objective"), by their
    dotted keys in a config; none of a class that cannot be found."""
    section = "model.model_args"
    constructor: Callable[..., Any] | None = None
    if key == "model.arch":
        constructor = models.known_archs().get(name)
    else:
        section = "opt.objective_args"
        with suppress(ValueError):
            constructor = objectives.find(name)
    found = argument_defaults(constructor) if constructor else {}
    return json.loads(json.dumps({f"{section}.{argument}": value for argument, value in found.items()}, default=str))


def check_same_options(
    args: argparse.Namespace, state: Mapping[str, Any], path: str | Path, names: Sequence[str] = FIXED_OPTIONS
) -> None:
    """Raise ValueError if the checkpoint `state` at `path` was trained with other values of the options `names`."""
    for name in names:
        ours = getattr(args, name)
        theirs = state["args"].get(name, ours)
        if theirs != ours:
            raise ValueError(f"{path} was trained with --{name.replace('_', '-')} {theirs}, not {ours}")


def check_same_objective(ours: str, trained: Mapping[str, Any], path: str | Path) -> None:
    """Raise ValueError if the config `trained` of the checkpoint at `path` has another objective."""
    theirs = (trained.get("opt") or {}).get("objective", DEFAULTS["opt"]["objective"])
    if theirs != ours:
        raise ValueError(
            f"{path} was trained with opt.objective {theirs!r}, not {ours!r}: it cannot be resumed; start a new run "
            "with --init"
        )
