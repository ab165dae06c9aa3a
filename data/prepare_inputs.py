"""The files that `data.prepare` makes archives of, and which of them are held out for validation."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from audio_mamba.data.audio_files import printable
from audio_mamba.data.labels import find_labelled, folds_and_groups
from audio_mamba.data.prepare_job import PrepareError, Settings


class Listed(NamedTuple):
    """The audio files below a folder, with all that is known about them."""

    folder: Path
    paths: list[Path]
    labels: list[tuple[str, ...]]
    vocabulary: list[str]  # all labels, in the order of their ids
    columns: dict[str, list[str]]  # "folds" and "groups", where they are known, with an entry per file

    @property
    def names(self) -> list[str]:
        """What `held_out` chooses by: the group of each file, or else its path below the folder."""
        return self.columns.get("groups") or [printable(path.relative_to(self.folder)) for path in self.paths]

    def part(self, numbers: set[int]) -> "Listed":
        """Some of the files, with the vocabulary of all."""
        kept = sorted(numbers)
        columns = {name: [values[i] for i in kept] for name, values in self.columns.items()}
        return self._replace(
            paths=[self.paths[i] for i in kept], labels=[self.labels[i] for i in kept], columns=columns
        )


def list_inputs(
    audio_dir: str | Path,
    labels_csv: str | Path | None = None,
    settings: Settings = Settings(),
    classes_csv: str | Path | None = None,
    hidden: bool = False,
    fold_column: str | None = None,
    group_column: str | None = None,
) -> Listed:
    """What `prepare` would make an archive of; see there."""
    folder, table = Path(audio_dir), None if labels_csv is None else Path(labels_csv)
    paths, labels, vocabulary = find_labelled(folder, table, classes_csv, settings.front_end.sample_rate, hidden)
    columns = folds_and_groups(paths, folder, table, fold_column, group_column)
    return Listed(folder, paths, labels, vocabulary, columns)


def held_out(names: list[str], fraction: float) -> set[int]:
    """The numbers of the files that `fraction` of them, at least one, leaves for validation.

    Args:
        names: of the files, or of their groups: files of one name stay together.
        fraction: of the files, above 0 and below 1.

    The hashes of the names choose, so that the same names give the same files anywhere. A group that would bring the
    number of files further from the share is passed over; where all would, the smallest is held out. PrepareError where
    nothing would be left on one side.
    """
    count = max(1, round(fraction * len(names))) if 0 < fraction < 1 else len(names)
    members: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        members.setdefault(name, []).append(number)
    if count >= len(names) or len(members) < 2:
        raise PrepareError(
            f"--validation {fraction:g} of {len(names)} files leaves nothing on one side; give a "
            "share between 0 and 1, and at least two files (or groups of files)"
        )
    chosen: set[int] = set()
    order = sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest())
    for name in order:
        reached = len(chosen) + len(members[name])
        if reached - count <= count - len(chosen) and reached < len(names):
            chosen.update(members[name])
    return chosen or set(members[min(order, key=lambda name: len(members[name]))])
