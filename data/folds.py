"""Which clips train, which validate and which test: named splits, given folds, or folds dealt by a fixed rule."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FOLDS = 5  # where nothing else splits the clips
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
    "eval": "test",
}

logger = logging.getLogger(__name__)


class FoldError(ValueError):
    """Folds that cannot be used as asked; the message says what is there."""


class Split(NamedTuple):
    """Numbers of clips, int64, in ascending order; `test` may be empty."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def deal(names: Sequence[str], labels: Sequence[tuple], groups: Sequence[str] | None = None) -> list[str]:
    """A fold for each clip, "fold0" to "fold4".

    The clips of each label are dealt out in the order of their names' SHA-256, so that the same names give the same
    folds anywhere and every fold has its share of each label. A clip of several labels counts for its rarest.

    Args:
        names: of the clips.
        labels: of each clip.
        groups: clips of one group are dealt as one, under the name of the first; None makes each clip its own group.
    """
    counts = Counter(label for of_clip in labels for label in of_clip)
    first: dict[str, int] = {}  # clip of each group
    labels_of: dict[str, set] = {}
    groups = names if groups is None else groups
    for clip, group in enumerate(groups):
        first.setdefault(group, clip)
        labels_of.setdefault(group, set()).update(labels[clip])

    def place(group: str) -> tuple:
        rarest = min(labels_of[group], key=lambda label: (counts[label], label)) if labels_of[group] else ""
        return str(rarest), hashlib.sha256(names[first[group]].encode()).digest()

    fold_of = {group: f"fold{number % FOLDS}" for number, group in enumerate(sorted(first, key=place))}
    return [fold_of[group] for group in groups]


def warn_of_divided_groups(columns: dict[str, list[str]]) -> None:
    """Warn if the files of a group are in several folds, so that training would know what is tested."""
    folds_of: dict[str, set[str]] = {}
    for group, fold in zip(columns.get("groups", []), columns.get("folds", [])):
        folds_of.setdefault(group, set()).add(fold)
    divided = [group for group, folds in folds_of.items() if len(folds) > 1]
    if divided:
        logger.warning(
            "%d of %d groups have files in several folds, such as %s in %s",
            len(divided),
            len(folds_of),
            divided[0],
            " and ".join(sorted(folds_of[divided[0]])),
        )


def file_numbers(keys: Sequence[str]) -> list[int]:
    """The number of the audio file that each sample of an archive comes from, which begins its key.

    FoldError for archives of other tools.
    """
    try:
        return [int(key[:8]) for key in keys]
    except ValueError:
        other = next(key for key in keys if not key[:8].isdecimal())
        raise FoldError(
            f"sample {other} does not say which file it is from; audio-mamba prepare makes archives that do"
        )


def file_names(keys: Sequence[str]) -> list[str]:
    """What the samples of one audio file share in every archive of its folder, whatever the channel: the number of the
    file and the end of its name. A key of another form is its own."""
    found = [re.fullmatch(r"(\d{8})_(?:ch\d+_)?\d{5,}_(.*)", key) for key in keys]
    return [f"{match[1]}_{match[2]}" if match else key for key, match in zip(keys, found)]


def joined(groups: Sequence[str], files: Sequence[str]) -> list[str]:
    """The group of each clip, with one name for those that files connect, directly or through other groups."""
    first: dict[tuple[str, str], tuple[str, str]] = {}

    def find(name: tuple[str, str]) -> tuple[str, str]:
        while first.setdefault(name, name) != name:
            first[name] = first[first[name]]  # so that chains stay short
            name = first[name]
        return name

    for group, file in zip(groups, files):
        first[find(("file", file))] = find(("group", group))
    return [find(("group", group))[1] for group in groups]


def fold_names(folds: Sequence[str]) -> list[str]:
    """The folds in use in order ("2" before "10"). Empty for named splits (train, valid, test).

    FoldError if some names are those of splits and others are not: as folds, clips for the test would train.
    """
    names = sorted(set(folds), key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])
    splits = [name for name in names if name.lower() in SPLIT_NAMES]
    if 0 < len(splits) < len(names):
        other = next(name for name in names if name not in splits)
        raise FoldError(
            f"{other!r} is not the name of a split, but {', '.join(splits)} {'is' if len(splits) == 1 else 'are'}; "
            "name either all of them train, valid or test, or none"
        )
    return [] if splits else names


def find_fold(names: Sequence[str], wanted: str) -> str:
    """The fold that a user names: "fold03", or its number as in "3". FoldError if there is no such fold."""
    number = re.compile(rf"\D*0*{re.escape(wanted)}")
    found = [name for name in names if name == wanted] or [name for name in names if number.fullmatch(name)]
    if len(found) != 1:
        raise FoldError(f"no fold {wanted!r}; there are {', '.join(names)}")
    return found[0]


def split_by_fold(folds: Sequence[str], tested: str) -> Split:
    """Fold k tests, the one after it validates, all others train. FoldError for fewer than three."""
    names = fold_names(folds)
    if len(names) < 3:
        raise FoldError(f"{len(names)} folds; at least 3 are needed, to train, validate and test")
    in_fold = np.array(folds)
    validates = names[(names.index(tested) + 1) % len(names)]
    return Split(
        np.flatnonzero((in_fold != tested) & (in_fold != validates)),
        np.flatnonzero(in_fold == validates),
        np.flatnonzero(in_fold == tested),
    )


def split_by_name(folds: Sequence[str]) -> Split:
    """Named splits: train, valid (or val, validation) and test."""
    in_split = np.array([SPLIT_NAMES[name.lower()] for name in folds])
    return Split(*(np.flatnonzero(in_split == name) for name in ("train", "valid", "test")))
