"""The data of train.py: the loaders, and the checks that every process and every restart reads the same data."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ml_collections import ConfigDict
from torch.utils.data import default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from audio_mamba.cli.train_arguments import FAKE_SAMPLES
from audio_mamba.data.contents import Contents, stated_checksums
from audio_mamba.data.loader import (
    EpochBatches,
    common_options,
    make_loader,
    make_remote_loader,
    make_validation_loader,
)
from audio_mamba.data.remote import RemoteShards, is_remote
from audio_mamba.data.samples import ArchiveError
from audio_mamba.front_end import FrontEnd
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.training import distributed
from audio_mamba.training.fake_data import RandomSpectrograms
from audio_mamba.training.interruption import begin_worker
from audio_mamba.training.resume import Progress

CLIPS_SHOWN = 3

logger = logging.getLogger("train")


class Loaders(NamedTuple):
    """The batches of this process."""

    train: StatefulDataLoader
    validation: StatefulDataLoader | None

    def contents(self) -> dict[str, Contents]:
        """What the shards of each loader hold now, by its use; nothing for random spectrograms."""
        return {
            f"{name} data": loader.dataset.contents()
            for name, loader in (("training", self.train), ("validation", self.validation))
            if loader is not None and not isinstance(loader.dataset, RandomSpectrograms)
        }


def apply_data_options(config: ConfigDict, args: argparse.Namespace) -> None:
    """Put the data of the command line into the config.

    Raises:
        ValueError: --data with --fake-data, URLs beside folders, or URLs without the number of their clips.
    """
    if args.data and args.fake_data:
        raise ValueError("--data and --fake-data cannot be combined: one names archives, the other replaces them")
    if args.data or args.fake_data:
        config.data.train_dirs = args.data or []
        drop_data_of_config(config, args, "val_dir", "train_samples")
    if args.val_data:
        config.data.val_dir = args.val_data
    addresses = list(filter(is_remote, config.data.train_dirs))
    if addresses and len(addresses) < len(config.data.train_dirs):
        raise ValueError(f"--data mixes folders with URLs such as {addresses[0]}; use one kind")
    if addresses and not sum(config.data.train_samples):
        raise ValueError(
            f"--data {addresses[0]}: the number of clips at a URL is unknown; "
            'add --set "data.train_samples=[N]" with the number in all shards'
        )


def drop_data_of_config(config: ConfigDict, args: argparse.Namespace, *keys: str) -> None:
    """Empty these keys of `data`, which belong to other training data than --data, but not those that --set names."""
    for key in keys:
        if not any(override.partition("=")[0] == f"data.{key}" for override in args.overrides):
            config.data[key] = type(config.data[key])()


def build_loaders(
    args: argparse.Namespace, config: ConfigDict, model: MaskedSpectrogramEncoder, device: torch.device
) -> Loaders:
    """The loaders for training and, if its folder exists, for validation. Raises ValueError if they do not fit."""
    frames, mels = model.num_frames, model.n_mels
    front_end = FrontEnd.from_settings(config.front_end)
    rank, world_size, fraction = distributed.rank(), distributed.world_size(), config.data.fraction
    options = {
        "num_frames": frames,
        "front_end": front_end,
        "batch_size": config.batch_size,
        "rank": rank,
        "world_size": world_size,
        "seed": args.seed,
        "num_workers": args.num_workers,
        "draw_mask": model.draw_mask,
        "pin_memory": device.type == "cuda",
        "strict": args.strict_data,
        "worker_init_fn": begin_worker,
    }
    val_dir = config.data.val_dir
    if val_dir and not Path(val_dir).is_dir():
        if args.val_data:
            raise ValueError(f"--val-data: {val_dir} is not a folder")
        logger.info("no validation loss: %s (data.val_dir) does not exist", val_dir)
        val_dir = ""
    val_loader = make_validation_loader(val_dir, **options) if val_dir else None
    if args.fake_data:
        dataset = RandomSpectrograms(round(fraction * FAKE_SAMPLES), frames, mels, args.seed, model.draw_mask)
        batches = EpochBatches(len(dataset), config.batch_size, rank, world_size, args.seed)
        loader = StatefulDataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=args.num_workers,
            pin_memory=options["pin_memory"],
            worker_init_fn=begin_worker,
            **common_options(args.num_workers),
        )
        return Loaders(loader, val_loader)
    directories = config.data.train_dirs
    if not directories:
        raise ValueError("no training data: pass archive folders with --data, or set data.train_dirs")
    if is_remote(directories[0]):  # all of them are, see `apply_data_options`
        samples = sum(config.data.train_samples)
        return Loaders(make_remote_loader(directories, samples=samples, fraction=fraction, **options), val_loader)
    for directory in directories:
        if not Path(directory).is_dir():
            raise ValueError(
                f"{directory} is not a folder; pass archive folders with --data, or set $DATASETS_BASE_DIR"
            )
    _warn_of_repeated(directories, val_dir)
    return Loaders(make_loader(directories, fraction=fraction, **options), val_loader)


def _warn_of_repeated(directories: Sequence[str], val_dir: str) -> None:
    places = [Path(directory).resolve() for directory in directories]
    for number, place in enumerate(places):
        if place in places[:number]:
            logger.warning("%s is named twice as training data, so its clips are read twice in an epoch", place)
    trained = {checksum for place in places for checksum in stated_checksums(place).values() if checksum}
    copied = val_dir and not trained.isdisjoint(stated_checksums(Path(val_dir)).values())
    if copied or (val_dir and Path(val_dir).resolve() in places):
        logger.warning("%s is training and validation data: the validation loss is not of unseen clips", val_dir)


def clips_to_show(loader: StatefulDataLoader) -> dict[str, torch.Tensor]:
    """A batch of clips for the pictures, spread over the data. Data that do not fit the model fail here, early."""
    if isinstance(loader.dataset, RemoteShards):
        return loader.dataset.first(CLIPS_SHOWN)
    shown = np.linspace(0, len(loader.dataset) - 1, CLIPS_SHOWN, dtype=int).tolist()
    return default_collate([loader.dataset[0, index] for index in shown])


def build_loaders_together(
    args: argparse.Namespace, config: ConfigDict, model: MaskedSpectrogramEncoder, device: torch.device
) -> Loaders:
    """`build_loaders` in all processes. Raises ValueError in each of them if one fails or reads other data."""
    loaders, problem = None, None
    try:
        loaders = build_loaders(args, config, model, device)
    except (ValueError, OSError) as error:
        problem = error
    for rank, theirs in enumerate(distributed.gather(problem and str(problem))):
        if theirs is not None:
            raise problem or ValueError(f"rank {rank}: {theirs}")
    assert loaders is not None
    check_same_in_all_processes(loaders.contents())
    return loaders


def check_same_in_all_processes(contents: Mapping[str, Contents]) -> None:
    """Raise ArchiveError in every process if some of them see other data than the first one."""
    digests = distributed.gather({name: data.digest() for name, data in contents.items()})
    if all(digest == digests[0] for digest in digests):
        return
    first, *others = distributed.gather(dict(contents))
    for rank, theirs in enumerate(others, start=1):
        for name in sorted({*first, *theirs}):
            if name not in first or name not in theirs:
                raise ArchiveError(f"the processes see different data: only some of them have {name}")
            if difference := theirs[name].difference(first[name]):
                raise ArchiveError(
                    f"the processes see different {name}; rank {rank} compared with rank 0: {difference}"
                )


def check_unchanged(loaders: Loaders, at_start: Mapping[str, Contents]) -> None:
    """Raise ArchiveError in every process if one sees shards that were replaced since the start, or other data."""
    contents = loaders.contents()
    check_same_in_all_processes(contents)
    for name, data in contents.items():
        if difference := data.difference(at_start[name]):
            raise ArchiveError(
                f"the {name} changed during training: {difference}; run the same command to resume with "
                "--data-changed restart-epoch, or restore them first"
            )


def check_since_checkpoint(
    args: argparse.Namespace,
    config: ConfigDict,
    state: Mapping[str, Any],
    path: str | Path,
    progress: Progress,
    steps_per_epoch: int,
    contents: Mapping[str, Contents],
) -> bool:
    """Compare the data with those that a checkpoint was trained on; it has none to compare if it is an old one.

    Args:
        state: the content of the checkpoint at `path`.
        progress: where training would resume.

    Returns:
        whether the epoch must start again, since its order of samples no longer holds; a warning says why.

    Raises:
        ValueError: the training data have changed, and --data-changed is "refuse".
    """
    differences = {
        name: contents[name].difference(Contents.from_state(before))
        for name, before in (state.get("data") or {}).items()
        if name in contents
    }
    if difference := differences.get("validation data"):
        _tell("the validation data have changed since %s: %s", path, difference)
    difference = differences.get("training data")
    if not difference and progress.step > steps_per_epoch:
        difference = f"an epoch has {steps_per_epoch} steps, and {progress.step} of this one are complete"
    if progress.epoch >= config.num_epochs:
        return False
    if not difference:
        readers = _other_readers(args, config, state) if 0 < progress.step < steps_per_epoch else None
        if readers:
            number = progress.epoch + 1
            _tell("other readers share the shards since %s (%s); epoch %d starts again", path, readers, number)
        return bool(readers)
    problem = f"the training data have changed since {path}: {difference}"
    trained_on = state["args"]["config"]["data"]["train_dirs"]
    if progress.step == 0 and list(trained_on) != list(config.data.train_dirs):
        _tell("%s; training continues with the folders named now", problem)  # the user asked for it
        return False
    if args.data_changed == "refuse":
        how = f"start epoch {progress.epoch + 1} again" if progress.step else "continue"
        raise ValueError(
            f"{problem}; restore them, or add --data-changed restart-epoch to {how} with the data as they are now"
        )
    if progress.step == 0:
        _tell("%s; training continues with them", problem)
        return False
    _tell("%s; epoch %d starts again with them", problem, progress.epoch + 1)
    return True


def _other_readers(args: argparse.Namespace, config: ConfigDict, state: Mapping[str, Any]) -> str | None:
    """In words, the readers of shards at URLs if they are not those of the checkpoint with this content. Shards are
    dealt out to readers, so in the middle of an epoch others would skip some of its clips and repeat others."""
    if not any(map(is_remote, config.data.train_dirs)):
        return None
    before = len(state["processes"]), state["args"]["num_workers"], state["samples_per_step"]
    now = distributed.world_size(), args.num_workers, distributed.world_size() * config.batch_size
    if [max(1, number) for number in before] == [max(1, number) for number in now]:  # no worker reads like one
        return None
    words = "{} process(es) with {} worker(s) each and {} samples per step"
    return f"{words.format(*before)}, now {words.format(*now)}"


def _tell(message: str, *values: object) -> None:
    if distributed.is_main():
        logger.warning(message, *values)
