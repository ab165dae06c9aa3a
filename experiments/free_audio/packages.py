"""The Debian packages of the experiment and the kinds of their files, from `packages.csv`.

Packages that the evaluation tasks are made from are not in the table.
"""

import csv
from pathlib import Path
from typing import NamedTuple

KINDS = ("speech", "music", "effects")
SPLITS = ("train", "validation")
LONG_SECONDS = 30.0  # in packages with several kinds, longer files are music


class Package(NamedTuple):
    """A package: the kinds of sound in it, its split, the hours of audio in it, and its licence in short."""

    name: str
    kinds: tuple[str, ...]
    split: str
    hours: float
    licence: str


def read_packages(path: Path = Path(__file__).with_name("packages.csv")) -> list[Package]:
    """The rows of the table. Raises ValueError, naming the line, for an unknown kind or split."""
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
    """The kind of a file: that of its package if it has only one, else by the file's folders and length."""
    if len(package.kinds) == 1:
        return package.kinds[0]
    folders = str(path).lower()
    if "music" in package.kinds and ("music" in folders or seconds > LONG_SECONDS):
        return "music"
    if "speech" in package.kinds and ("voice" in folders or "effects" not in package.kinds):
        return "speech"
    return "effects" if "effects" in package.kinds else package.kinds[0]
