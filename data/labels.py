"""Labels of audio files: from a table, a HEAR task, or the folders they lie in."""

import csv
import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from audio_mamba.data.audio_files import find_audio, printable
from audio_mamba.front_end import PUBLISHED

FILE_COLUMNS = ("file", "filename", "fname")  # ours, ESC-50, FSD50K
YOUTUBE_COLUMN = "YTID"  # AudioSet
YOUTUBE_ID_LENGTH = 11
LABEL_COLUMNS = ("label", "labels", "positive_labels", "category")
ID_COLUMNS = ("index", "idx")
CLASS_COLUMNS = ("mid", "label")  # AudioSet, HEAR

Labelled = tuple[list[Path], list[tuple[str, ...]], list[str]]


logger = logging.getLogger(__name__)


class LabelError(ValueError):
    """A table of labels that cannot be used; the message names it."""


def find_labelled(
    directory: Path,
    table: str | Path | None = None,
    classes: str | Path | None = None,
    sample_rate: int = PUBLISHED.sample_rate,
    hidden: bool = False,
) -> Labelled:
    """The audio files below a folder, the labels of each, and all labels in the order of their ids.

    A HEAR task (a folder with `task_metadata.json`) has both in its own files. For any other, see `labels_of`.

    Args:
        sample_rate: of a HEAR task, which may have its audio at several, the nearest is taken.
        hidden: take hidden and system files and folders too (see `data.audio.find_audio`).
        classes: table with the columns index,mid (AudioSet) or idx,label (HEAR); None sorts the labels found.

    Raises:
        LabelError: a table is missing or damaged, or a label is not among the classes.
        AudioError: no audio.
    """
    directory = Path(directory)
    if table is None and (directory / "task_metadata.json").exists():
        classes = classes or directory / "labelvocabulary.csv"
        files, labels = _hear_task(directory, sample_rate, hidden)
    else:
        files = find_audio(directory, hidden)
        labels = labels_of(files, directory, None if table is None else Path(table))
    found = sorted(set().union(*labels))
    if classes is None:
        return files, labels, found
    vocabulary = _read_classes(Path(classes))
    unknown = sorted(set(found) - set(vocabulary))
    if unknown:
        raise LabelError(f"{classes} has {len(vocabulary)} labels, but not {unknown[0]!r}, which is in use")
    return files, labels, vocabulary


def labels_of(files: Sequence[Path], directory: Path, table: Path | None = None) -> list[tuple[str, ...]]:
    """The labels of each file, in the order of the files.

    Args:
        files: audio files below `directory`.
        directory: where paths in the table start; without a table, the first folder level below it is the label, and
            files that lie in no folder have none.
        table: csv file with the columns `file` (path below `directory`, or just the name; with or without suffix) and
            `label` (one label, or several between , or ;), or named as in AudioSet, FSD50K and ESC-50. Several rows of
            a file add up. AudioSet's YouTube ids stand for files whose names begin with them, perhaps after a Y.
            Files without a row and rows without a file are counted in the log.

    Raises:
        LabelError: the table is missing, lacks a column, or labels none of the files.
    """
    relative = [path.relative_to(directory) for path in files]
    if table is None:
        return [(printable(path.parts[0]),) if len(path.parts) > 1 else () for path in relative]
    by_youtube_id, rows = _read_table(table)
    names_of = _youtube_ids if by_youtube_id else _names
    prefix = f"{directory.absolute()}/"
    labels_under: dict[str, set[str]] = {}
    for name, labels in rows.items():
        labels_under.setdefault(_comparable(name, prefix), set()).update(labels)
    names = [[_comparable(name, prefix) for name in names_of(path)] for path in relative]
    found = [tuple(sorted(set().union(*(labels_under.get(name, ()) for name in of_file)))) for of_file in names]
    unused = sorted(labels_under.keys() - set().union(*names))
    if not any(found):
        why = "their labels are empty"
        if unused:
            why = f"it has {unused[0]!r}, and there is {relative[0].as_posix()!r}"
        raise LabelError(f"{table} labels none of the {len(files)} audio files below {directory}: {why}")
    if unlabelled := found.count(()):
        logger.info("%d of %d audio files have no label in %s", unlabelled, len(files), table)
    if unused:
        logger.info(
            "%d of %d names in %s are those of no audio file, such as %s",
            len(unused),
            len(labels_under),
            table,
            unused[0],
        )
    return found


def _comparable(name: str, prefix: str) -> str:
    """A name without what tables and file systems write in several ways, such as the folder as `prefix`."""
    return unicodedata.normalize("NFC", name.removeprefix(prefix).removeprefix("./"))


def _names(path: Path) -> list[str]:
    """Under which names a table may list the file `dogs/bark.wav`."""
    return [path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem]


def _youtube_ids(path: Path) -> list[str]:
    """Which ids the files `<id>.wav`, `Y<id>.wav` and `<id>_30.000.wav` may have; an id may begin with Y as well."""
    ids = [path.stem[:YOUTUBE_ID_LENGTH]]
    if path.stem.startswith("Y"):
        ids.append(path.stem[1 : 1 + YOUTUBE_ID_LENGTH])
    return ids


def _read_table(table: Path) -> tuple[bool, dict[str, set[str]]]:
    """Whether the files are named by their YouTube ids, and the labels under each name."""
    columns, rows = _read_csv(table)
    file_column = next((name for name in (*FILE_COLUMNS, YOUTUBE_COLUMN) if name in columns), None)
    label_column = next((name for name in LABEL_COLUMNS if name in columns), None)
    if file_column is None or label_column is None:
        raise LabelError(
            f"{table} has the columns {columns}; needed are one of "
            f"{[*FILE_COLUMNS, YOUTUBE_COLUMN]} and one of {list(LABEL_COLUMNS)}"
        )
    labels_under: dict[str, set[str]] = {}
    for row in rows:
        labels = (label.strip() for label in re.split("[,;]", row[label_column] or ""))
        labels_under.setdefault(row[file_column], set()).update(label for label in labels if label)
    return file_column == YOUTUBE_COLUMN, labels_under


def _read_classes(table: Path) -> list[str]:
    """Labels in the order of their ids, which must be 0, 1, 2 ..."""
    columns, rows = _read_csv(table)
    id_column = next((name for name in ID_COLUMNS if name in columns), None)
    label_column = next((name for name in CLASS_COLUMNS if name in columns), None)
    if id_column is None or label_column is None:
        raise LabelError(
            f"{table} has the columns {columns}; needed are one of {list(ID_COLUMNS)} and one of {list(CLASS_COLUMNS)}"
        )
    labels = {row[id_column]: row[label_column] for row in rows}
    if labels.keys() != {str(i) for i in range(len(rows))} or len(set(labels.values())) < len(rows):
        raise LabelError(f"{table}: its {len(rows)} rows must have the ids 0 to {len(rows) - 1} and different labels")
    return [labels[str(i)] for i in range(len(rows))]


def _read_csv(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows. AudioSet's own tables put the column names into a comment, the last of those at the top."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            lines = file.readlines()
        comments = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        header = [lines[comments - 1].lstrip("# ")] if comments else []
        reader = csv.DictReader(header + lines[comments:], skipinitialspace=True)
        return list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{table} cannot be read as a csv table ({error})") from error


def _hear_task(directory: Path, sample_rate: int, hidden: bool) -> tuple[list[Path], list[tuple[str, ...]]]:
    """Files <rate>/<split>/<name> of a HEAR task at the rate nearest `sample_rate`; labels of <split>.json."""
    rates = [int(path.name) for path in directory.iterdir() if path.is_dir() and path.name.isdigit()]
    if not rates:
        raise LabelError(f"{directory} is a HEAR task without a folder of audio such as {sample_rate}")
    files = find_audio(directory / str(min(rates, key=lambda rate: abs(rate - sample_rate))), hidden)
    tables: dict[str, dict[str, set[str]]] = {}
    labels = []
    for path in files:
        split = path.parent.name
        if split not in tables:
            tables[split] = _hear_split(directory / f"{split}.json")
        labels.append(tuple(sorted(tables[split].get(path.name, ()))))
    return files, labels


def _hear_split(table: Path) -> dict[str, set[str]]:
    """Labels of each file: of a clip as a whole, or of the events in it."""
    try:
        return {
            name: {str(entry["label"] if isinstance(entry, dict) else entry) for entry in entries}
            for name, entries in json.loads(table.read_text()).items()
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise LabelError(f"{table} cannot be read as the labels of a HEAR split ({error})") from error
