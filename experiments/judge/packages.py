"""The Debian packages of the judge's tasks, from `packages.csv`: pinned versions, licences, clips by task."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("packages.csv")
SUFFIXES = {".wav", ".ogg", ".gsm", ".sf2", ".sf3", ".pat", ".pk3"}  # of the files that the tasks read


class Source(NamedTuple):
    """What one task takes from one package: how many clips, and their licence in short."""

    package: str
    version: str
    task: str
    clips: int
    licence: str


def read_sources() -> list[Source]:
    """The rows of the table."""
    with open(TABLE, newline="", encoding="utf-8") as file:
        return [
            Source(row["package"], row["version"], row["task"], int(row["clips"]), row["licence"])
            for row in csv.DictReader(file)
        ]


def versions(sources: Iterable[Source], tasks: Iterable[str]) -> dict[str, str]:
    """The version of each package that some of the tasks need, by name."""
    wanted = set(tasks)
    return {source.package: source.version for source in sources if source.task in wanted}
