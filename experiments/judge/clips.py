"""What a recipe gives: clips, and the split of each."""

import hashlib
from typing import NamedTuple

import numpy as np

SPLITS = ("train", "valid", "test")


class Clip(NamedTuple):
    """A clip of a task. `package` is where it is from; audio float32 [n] at 16 kHz, of any length."""

    package: str
    split: str
    label: str
    name: str
    audio: np.ndarray


def folds(count: int) -> tuple[str, ...]:
    """The names of folds, as in HEAR."""
    return tuple(f"fold{number:02d}" for number in range(count))


def fold_by(key: str, count: int) -> str:
    """One of `count` folds for all clips of a key, the same anywhere."""
    return folds(count)[_number(key) % count]


def split_by(key: str) -> str:
    """A split for all clips of a key, the same anywhere: three of five are train, one valid, one test."""
    return ("train", "train", "train", "valid", "test")[_number(key) % 5]


def _number(key: str) -> int:
    return int(hashlib.sha256(key.encode()).hexdigest(), 16)
