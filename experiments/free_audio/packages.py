"""The Debian packages of the experiment and what their files are: `packages.csv`, one line each.

Packages whose recordings or scores the evaluation tasks are made of are not among them.
"""

import csv
from pathlib import Path
from typing import NamedTuple

KINDS = ("speech", "music", "effects")
SPLITS = ("train", "validation")
LONG_SECONDS = 30.0  # a longer file of a package that has music too is music


class Package(NamedTuple):
    """A package, the kinds of sound in it, where it goes, the hours found in it, and its licence in short."""

    name: str
    kinds: tuple[str, ...]
    split: str
    hours: float
    licence: str


def read_packages(path: Path = Path(__file__).with_name("packages.csv")) -> list[Package]:
    """The table's lines. ValueError, naming line and column, for a kind or split that there is not."""
    packages = []
    with open(path, newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            kinds = tuple(row["kinds"].split("+"))
            if not set(kinds) <= set(KINDS) or row["split"] not in SPLITS:
                raise ValueError(
                    f"{path}, line {line}: kinds must be of {', '.join(KINDS)} and split one of "
                    f"{', '.join(SPLITS)}, got {row['kinds']!r} and {row['split']!r}"
                )
            packages.append(Package(row["package"], kinds, row["split"], float(row["hours"]), row["licence"]))
    return packages


def kind_of(package: Package, path: Path, seconds: float) -> str:
    """What a file of a package is, by its package where that has one kind, else by its folders and length."""
    if len(package.kinds) == 1:
        return package.kinds[0]
    folders = str(path).lower()
    if "music" in package.kinds and ("music" in folders or seconds > LONG_SECONDS):
        return "music"
    if "speech" in package.kinds and ("voice" in folders or "effects" not in package.kinds):
        return "speech"
    return "effects" if "effects" in package.kinds else package.kinds[0]
