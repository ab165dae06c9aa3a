"""Reads csv tables of labels and of classes, and names the line of whatever is wrong with them."""

import csv
import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

FILE_COLUMNS = ("file", "filename", "fname", "slice_file_name", "path")  # ours, ESC-50, FSD50K, UrbanSound8K; predict
YOUTUBE_COLUMN = "YTID"  # AudioSet
LABEL_COLUMNS = ("label", "labels", "positive_labels", "category")
LAST_LABEL_COLUMN = "class"  # UrbanSound8K; in a table with one of the above it may be anything
START_COLUMNS = ("start", "start_seconds", "onset")
CHANNEL_COLUMNS = ("channel",)
PREDICTED_COLUMNS = ("path", "start", "end", "label", "probability")  # of `predict`, which writes a row for each label
ID_COLUMNS = ("index", "idx")
CLASS_COLUMNS = ("mid", "label")  # AudioSet, HEAR

logger = logging.getLogger(__name__)

Row = tuple[int, dict[str, str]]  # line number, cell under each column name


class LabelError(ValueError):
    """A table of labels that cannot be used; the message names the file and, where there is one, the line."""


def composed(text: str) -> str:
    """Text in composed Unicode, in which é is one character; macOS writes names of folders with two."""
    return unicodedata.normalize("NFC", text)


def read_label_table(table: Path) -> tuple[bool, dict[str, set[str]]]:
    """The labels of a table with one row per file; several rows of a file add up, with a warning if they are of several
    times or channels. A row has one label or several, separated by , or ;, in a table of `predict` always one.

    Returns:
        whether files are named by their YouTube ids, and the labels under each file name.

    Raises:
        LabelError: the table cannot be read, a column is missing or there are two for the labels, or a row does not
            have one cell per column.
    """
    columns, rows = _read_csv(table)
    file_column = _first_of((*FILE_COLUMNS, YOUTUBE_COLUMN), columns)
    label_columns = _named(LABEL_COLUMNS, columns) or _named([LAST_LABEL_COLUMN], columns)
    if file_column is None or not label_columns:
        raise LabelError(
            f"{table} has the columns {columns}; it needs one of {[*FILE_COLUMNS, YOUTUBE_COLUMN]} "
            f"and one of {[*LABEL_COLUMNS, LAST_LABEL_COLUMN]}"
        )
    if len(label_columns) > 1:
        raise LabelError(
            f"{table} has more than one column of labels, {' and '.join(label_columns)}; rename all but one of them"
        )
    one_per_row = set(PREDICTED_COLUMNS) <= set(columns)
    labels_under: dict[str, set[str]] = {}
    for line, row in rows:
        name = row[file_column].strip()
        if not name:
            raise LabelError(f"{table}, line {line}: the cell under {file_column!r} is empty")
        cell = row[label_columns[0]]
        labels = (composed(label.strip()) for label in ([cell] if one_per_row else re.split("[,;]", cell)))
        labels_under.setdefault(name, set()).update(label for label in labels if label)
    for accepted, parts, part in ((START_COLUMNS, "times", "time"), (CHANNEL_COLUMNS, "channels", "channel")):
        column = _first_of(accepted, columns)
        if column and (of_several := _first_with_several(rows, file_column, column)):
            logger.warning(
                "%s has labels of several %s (column %s) of a file, such as %s: each counts for the whole file; "
                "if that is wrong, make a file of each %s",
                table,
                parts,
                column,
                of_several,
                part,
            )
    return file_column in _named([YOUTUBE_COLUMN], columns), labels_under


def _first_with_several(rows: Sequence[Row], file_column: str, column: str) -> str | None:
    """The first file whose rows differ in a column."""
    first: dict[str, str] = {}
    for _, row in rows:
        name, cell = row[file_column].strip(), row[column].strip()
        if first.setdefault(name, cell) != cell:
            return name
    return None


def read_column(table: Path, column: str) -> tuple[bool, dict[str, str]]:
    """The cells of one column, such as a fold or a speaker, under each file name. Its name counts in any case.

    Returns:
        whether files are named by their YouTube ids, and the cell of each file name.

    Raises:
        LabelError: the table or the column cannot be read, or two rows of a file differ.
    """
    columns, rows = _read_csv(table)
    file_column = _first_of((*FILE_COLUMNS, YOUTUBE_COLUMN), columns)
    named = column if column in columns else _first_of([column], columns)
    if file_column is None or named is None:
        needed = repr(column) if file_column else f"one of {[*FILE_COLUMNS, YOUTUBE_COLUMN]}"
        raise LabelError(f"{table} has the columns {columns}; it needs {needed}")
    cells: dict[str, str] = {}
    for line, row in rows:
        name, cell = row[file_column].strip(), composed(row[named].strip())
        if cells.setdefault(name, cell) != cell:
            raise LabelError(f"{table}, line {line}: {name} has the {column} {cell!r} here and {cells[name]!r} above")
    return file_column in _named([YOUTUBE_COLUMN], columns), cells


def read_classes(table: Path) -> list[str]:
    """All labels in the order of their ids, which must be 0, 1, 2 ... LabelError for anything else."""
    columns, rows = _read_csv(table)
    id_column, label_column = _first_of(ID_COLUMNS, columns), _first_of(CLASS_COLUMNS, columns)
    if id_column is None or label_column is None:
        raise LabelError(
            f"{table} has the columns {columns}; it needs one of {list(ID_COLUMNS)} and one of {list(CLASS_COLUMNS)}"
        )
    labels = {row[id_column]: composed(row[label_column]) for _, row in rows}
    if labels.keys() != {str(i) for i in range(len(rows))} or len(set(labels.values())) < len(rows):
        raise LabelError(f"{table}: its {len(rows)} rows must have the ids 0 to {len(rows) - 1} and different labels")
    return [labels[str(i)] for i in range(len(rows))]


def _first_of(accepted: Sequence[str], columns: list[str]) -> str | None:
    return next(iter(_named(accepted, columns)), None)


def _named(accepted: Sequence[str], columns: list[str]) -> list[str]:
    """The columns with one of the accepted names in any case, in the order of those."""
    return [column for name in accepted for column in columns if column.casefold() == name.casefold()]


def _read_csv(table: Path) -> tuple[list[str], list[Row]]:
    """Column names and rows. Each row is one line, so that an open quote cannot swallow the lines after it.

    Empty lines are skipped. AudioSet's own tables have the column names in a comment, the last one at the top.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            lines = file.readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{table} cannot be read as a csv table ({error})") from error
    header = 0
    while header < len(lines) and not lines[header].strip():
        header += 1
    while header + 1 < len(lines) and lines[header].startswith("#") and lines[header + 1].startswith("#"):
        header += 1
    if header == len(lines):
        return [], []
    columns = [name.strip() for name in _cells(table, header + 1, lines[header].lstrip("# "))]
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and separator in columns[0]:
            raise LabelError(f"{table} has {name} between its columns; separate them with commas")
    for name in columns:
        if name and columns.count(name) > 1:
            raise LabelError(f"{table}, line {header + 1}: {columns.count(name)} columns are named {name!r}")
    rows = []
    for number, line in enumerate(lines[header + 1 :], start=header + 2):
        if line.strip("\r\n"):
            rows.append((number, _row(table, number, line, columns)))
    return columns, rows


def _row(table: Path, number: int, line: str, columns: list[str]) -> dict[str, str]:
    if not line.strip():
        raise LabelError(f"{table}, line {number} holds nothing but blanks; remove the line")
    cells = _cells(table, number, line)
    if len(cells) != len(columns):
        advice = "; put several labels of one file in quotes" if len(cells) > len(columns) else ""
        raise LabelError(f"{table}, line {number}: {len(columns)} cells are needed, found {len(cells)}{advice}")
    # Columns without a name are ignored on the left, where other programs put row numbers.
    last_name = max((place for place, name in enumerate(columns) if name), default=-1)
    unnamed = [cell for cell in cells[last_name + 1 :] if cell.strip()]
    if unnamed:
        raise LabelError(f"{table}, line {number}: {unnamed[0]!r} is in a column without a name")
    return dict(zip(columns, cells))


def _cells(table: Path, number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip()], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        problem = "a quote is not closed" if "end of data" in str(error) else str(error)
        raise LabelError(f"{table}, line {number}: {problem}") from error
