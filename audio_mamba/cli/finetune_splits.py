"""How finetune.py divides the clips into training, validation and test."""

import argparse
import logging
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from audio_mamba.cli.finetune_arguments import ALL_FOLDS
from audio_mamba.data.folds import (
    FoldError,
    Split,
    deal,
    file_names,
    find_fold,
    fold_names,
    joined,
    split_by_fold,
    split_by_name,
)
from audio_mamba.data.labelled import LabelledClips
from audio_mamba.training import distributed

FOLDS, SPLITS, NO_FOLDS = "folds", "splits", "no folds"  # what an archive has

logger = logging.getLogger("finetune")


def find_splits(clips: LabelledClips, config: ConfigDict, args: argparse.Namespace) -> dict[str, Split]:
    """The runs to make, by the name of the fold that each tests; "" is the name of a run without folds. A warning says
    if clips of one group are in several parts of a run.

    The clips of data.train_dirs are split: by their named splits (train, valid, test), or their folds (k tests, k + 1
    validates), or five folds that are dealt here, of which the first validates and none tests unless --fold or --folds
    asks for it. Clips of one audio file or group stay together in dealt folds, also those of several archives.

    --val-data and --test-data replace the splits valid and test, whose own clips are left out. Without named splits,
    --val-data makes all clips training clips, also those in folds.

    Raises:
        ValueError: folds that are not there, in some archives only or mixed with named splits, or a choice that is
            missing.
    """
    train_dirs, val_dir, test_dir = config.data.train_dirs, config.data.val_dir, config.data.test_dir
    own = np.flatnonzero(clips.directories < len(train_dirs))
    valid = np.flatnonzero(clips.directories == len(train_dirs)) if val_dir else None
    test = np.flatnonzero(clips.directories == len(train_dirs) + bool(val_dir)) if test_dir else None
    kinds = {name: _kind(clips, number, name) for number, name in enumerate(train_dirs) if number in clips.directories}
    wanted = args.fold or args.folds
    _refuse_contradictions(kinds, [clips.folds[clip] for clip in own], config.data, wanted)
    if SPLITS in kinds.values():
        splits = {"": _named(clips, own, valid, test)}
    elif valid is not None:
        splits = {"": _given(own, valid, test, FOLDS in kinds.values())}
    elif wanted:
        splits = _folds(clips, own, wanted, FOLDS in kinds.values())
    else:
        splits = {"": _held_out(clips, own, test)}
    _warn_of_divided_groups(clips, splits)
    return splits


def _kind(clips: LabelledClips, archive: int, name: str) -> str:
    """How the clips of an archive are divided. FoldError, which has its `name`, if they have folds and splits."""
    folds = [clips.folds[clip] for clip in np.flatnonzero(clips.directories == archive)]
    if not any(folds):
        return NO_FOLDS
    try:
        return FOLDS if fold_names(folds) else SPLITS
    except FoldError as error:
        raise FoldError(f"{name}: {error}") from error


def _refuse_contradictions(
    kinds: Mapping[str, str], folds: Sequence[str], data: ConfigDict, wanted: str | None
) -> None:
    """ValueError if the options contradict each other or the data, or do not say which fold tests.

    Args:
        kinds: what each archive of data.train_dirs has, by its name.
        folds: of the clips in them.
        data: the section of the config.
        wanted: the fold that an option asks for, or "all" of them.
    """
    if wanted and (data.val_dir or data.test_dir):
        raise ValueError("--fold and --folds cannot be combined with --val-data or --test-data: folds have their own")
    if data.val_dir and SPLITS not in kinds.values():
        return  # all clips are training clips, whatever their folds
    first, kind = next(iter(kinds.items()), ("", NO_FOLDS))
    for name, other in kinds.items():
        if other != kind:
            raise FoldError(
                f"{first} has {kind} and {name} has {other}: prepare both with --fold-column, or leave one out"
            )
    if kind == SPLITS and wanted:
        raise FoldError(f"the clips have the splits {', '.join(sorted(set(folds)))}, not folds to choose from")
    if kind == FOLDS and data.test_dir:
        raise FoldError(
            f"the clips are in the folds {', '.join(fold_names(folds))}: add --val-data, which takes all of them for "
            "training, or leave out --test-data"
        )
    if kind == FOLDS and not wanted:
        raise FoldError(
            f"the clips are in the folds {', '.join(fold_names(folds))}: choose one with --fold, or --folds all"
        )


def _named(clips: LabelledClips, own: np.ndarray, valid: np.ndarray | None, test: np.ndarray | None) -> Split:
    """The clips `own` by their splits, with other validation and test clips where they are given; without any, a fifth
    of train validates."""
    split = _of(own, split_by_name([clips.folds[clip] for clip in own]))
    for part, option, replaced, given in (
        ("valid", "--val-data", split.valid, valid),
        ("test", "--test-data", split.test, test),
    ):
        if given is not None and len(replaced):
            logger.info("left out the %d clips of the split %s, which %s replaces", len(replaced), part, option)
    if valid is None and not len(split.valid):
        return _held_out(clips, split.train, split.test if test is None else test)
    return Split(split.train, split.valid if valid is None else valid, split.test if test is None else test)


def _given(own: np.ndarray, valid: np.ndarray, test: np.ndarray | None, in_folds: bool) -> Split:
    """The clips `own` for training, with validation clips, and perhaps test clips, from other archives."""
    if in_folds:
        logger.info("with --val-data, all clips of --data are used for training, whatever their fold")
    return Split(own, valid, own[:0] if test is None else test)


def _folds(clips: LabelledClips, own: np.ndarray, wanted: str, in_folds: bool) -> dict[str, Split]:
    """A run for the fold `wanted` of the clips `own`, or for each. FoldError if there is no such fold."""
    folds = [clips.folds[clip] for clip in own] if in_folds else _deal(clips, own)
    names = fold_names(folds)
    chosen = names if wanted == ALL_FOLDS else [find_fold(names, wanted)]
    return {name: _of(own, split_by_fold(folds, name)) for name in chosen}


def _held_out(clips: LabelledClips, own: np.ndarray, test: np.ndarray | None) -> Split:
    """A fifth of the clips `own` validates: the first of the folds that are dealt. None of them tests."""
    validates = np.array(_deal(clips, own)) == "fold0"
    return Split(own[~validates], own[validates], own[:0] if test is None else test)


def _of(own: np.ndarray, split: Split) -> Split:
    """The numbers among all clips of a split of the clips `own`."""
    return Split(*(own[part] for part in split))


def _deal(clips: LabelledClips, chosen: np.ndarray) -> list[str]:
    """The fold that is dealt to each of the chosen clips."""
    labels = [tuple(clips.labels[clip].tolist()) for clip in chosen]
    keys = [clips.keys[clip] for clip in chosen]
    return deal(keys, labels, joined([clips.groups[clip] for clip in chosen], file_names(keys)))


def _warn_of_divided_groups(clips: LabelledClips, splits: Mapping[str, Split]) -> None:
    """Warn once if training, validation and test of a run share groups, as several archives may, so that training would
    know what is judged. In dealt folds none is divided."""
    divided: dict[str, str] = {}
    for split in splits.values():
        parts_of: dict[str, list[str]] = {}
        for part, chosen in zip(("training", "validation", "test"), split):
            for group in dict.fromkeys(clips.groups[clip] for clip in chosen):
                parts_of.setdefault(group, []).append(part)
        divided |= {group: " and ".join(parts) for group, parts in parts_of.items() if len(parts) > 1}
    if divided and distributed.is_main():
        first = next(iter(divided))
        example = f"{first} in {divided[first]}"
        logger.warning("%d group(s) have clips on several sides, such as %s", len(divided), example)
