"""The Debian packages of the experiment and the kinds of their files, from `packages.csv`.

Packages that the evaluation tasks are made from are not in the table.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.judge.packages import read_sources

TABLE = Path(__file__).with_name("packages.csv")
KINDS = ("speech", "music", "effects")
SPLITS = ("train", "validation")
LONG_SECONDS = 30.0  # in packages with several kinds, longer files are music, except for ambient sounds
SPEECH_FOLDERS = ("voice", "announcer")  # in the paths of speech, in packages with effects too


class Package(NamedTuple):
    """A package: the kinds of sound in it, its split, the hours of audio in it, and its licence in short."""

    name: str
    kinds: tuple[str, ...]
    split: str
    hours: float
    licence: str


def add_tables_option(parser: argparse.ArgumentParser) -> None:
    """Add `--packages CSV`, which may be given several times: `tables`, a list of paths, or None."""
    parser.add_argument(
        "--packages",
        dest="tables",
        metavar="CSV",
        type=Path,
        action="append",
        help="table of packages, in place of the experiment's own; give it several times to use several tables",
    )


def read_packages(tables: Sequence[Path] = (TABLE,)) -> list[Package]:
    """The rows of one or more tables.

    Raises:
        ValueError: a table has an unknown kind or split, a package is listed twice, or a package for training is one
            that the judge's tasks are made from.
    """
    packages: dict[str, Package] = {}
    judged = {source.package for source in read_sources()}
    for table in tables:
        with open(table, newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                kinds = tuple(row["kinds"].split("+"))
                if not set(kinds) <= set(KINDS) or row["split"] not in SPLITS:
                    raise ValueError(
                        f"{table}, line {line}: kinds must be of {', '.join(KINDS)} and split one of "
                        f"{', '.join(SPLITS)}, got {row['kinds']!r} and {row['split']!r}"
                    )
                name = row["package"]
                if name in packages:
                    raise ValueError(f"{table}, line {line}: {name} is listed twice")
                if row["split"] == "train" and name in judged:
                    raise ValueError(
                        f"{table}, line {line}: {name} must not be in the training split; tasks of experiments/judge "
                        "are made from it"
                    )
                packages[name] = Package(name, kinds, row["split"], float(row["hours"]), row["licence"])
    return list(packages.values())


def kind_of(package: Package, path: Path, seconds: float) -> str:
    """The kind of a file: that of its package if it has only one, else by the file's folders and length."""
    if len(package.kinds) == 1:
        return package.kinds[0]
    folders = str(path).lower()
    ambient = "effects" in package.kinds and "ambien" in folders
    if "music" in package.kinds and ("music" in folders or seconds > LONG_SECONDS and not ambient):
        return "music"
    if "speech" in package.kinds and (
        "effects" not in package.kinds or any(folder in folders for folder in SPEECH_FOLDERS)
    ):
        return "speech"
    return "effects" if "effects" in package.kinds else package.kinds[0]
