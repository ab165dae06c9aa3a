"""Labels of audio files: from a csv table, or from the folders they lie in."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

FILE_COLUMNS = ("file", "filename")
LABEL_COLUMNS = ("label", "labels")


class LabelError(ValueError):
    """A table of labels that cannot be used; the message names it."""


def labels_of(files: Sequence[Path], directory: Path, table: Path | None = None) -> list[tuple[str, ...]]:
    """The labels of each file, in the order of the files.

    Args:
        files: audio files below `directory`.
        directory: where paths in the table start; without a table, the first folder level below it is the label, and
            files that lie in no folder have none.
        table: csv file with the columns `file` (path below `directory`, or just the name; with or without suffix) and
            `label` (one label, or several between , or ;). Several rows of a file add up.

    Raises:
        LabelError: the table is missing, lacks a column, or names none of the files.
    """
    relative = [path.relative_to(directory) for path in files]
    if table is None:
        return [path.parts[:1] if len(path.parts) > 1 else () for path in relative]
    rows = _read_table(table)
    found = [tuple(sorted(set().union(*(rows.get(name, ()) for name in _names(path))))) for path in relative]
    if not any(found):
        raise LabelError(f"{table} names none of the {len(files)} audio files below {directory}")
    return found


def _names(path: Path) -> list[str]:
    """Under which names a table may list the file `dogs/bark.wav`."""
    return [path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem]


def _read_table(table: Path) -> dict[str, set[str]]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = reader.fieldnames or []
            file_column = next((name for name in FILE_COLUMNS if name in columns), None)
            label_column = next((name for name in LABEL_COLUMNS if name in columns), None)
            if file_column is None or label_column is None:
                raise LabelError(f"{table} has the columns {columns}; needed are one of {list(FILE_COLUMNS)} "
                                 f"and one of {list(LABEL_COLUMNS)}")
            rows: dict[str, set[str]] = {}
            for row in reader:
                labels = (label.strip() for label in re.split("[,;]", row[label_column] or ""))
                rows.setdefault(row[file_column], set()).update(label for label in labels if label)
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{table} cannot be read as a csv table ({error})") from error
