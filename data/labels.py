"""The labels of audio files: from a table, from a HEAR task, or from the folders that the files are in."""

import json
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from audio_mamba.data.audio_files import find_audio, printable
from audio_mamba.data.folds import warn_of_divided_groups
from audio_mamba.data.label_tables import LabelError, composed, read_classes, read_column, read_label_table
from audio_mamba.front_end import PUBLISHED

YOUTUBE_ID_LENGTH = 11
SPEECH_COMMANDS_LISTS = {"validation_list.txt": "valid", "testing_list.txt": "test"}
NOT_A_WORD = "_background_noise_"  # a folder of Speech Commands with long noises, which are not a class
FOLDER, SPLIT = "folder", "split"  # columns that need no table
HEAR_METADATA = "task_metadata.json"  # in the folder of a HEAR task
TOP = "."  # the folder of files that are in none below the given one

Labelled = tuple[list[Path], list[tuple[str, ...]], list[str]]

logger = logging.getLogger(__name__)


def find_labelled(
    directory: Path,
    table: str | Path | None = None,
    classes: str | Path | None = None,
    sample_rate: int = PUBLISHED.sample_rate,
    hidden: bool = False,
) -> Labelled:
    """The audio files below a folder, the labels of each, and all labels in the order of their ids.

    A HEAR task (a folder with `task_metadata.json`) has its own tables of labels and classes. For any other folder,
    see `labels_of`.

    Args:
        directory: folder of audio files, of any depth.
        table: csv table of labels; see `labels_of`.
        classes: csv table with the columns index,mid (AudioSet) or idx,label (HEAR); None sorts the labels found.
        sample_rate: in Hz; a HEAR task may have its audio at several rates, and the nearest is taken.
        hidden: take hidden and system files and folders too (see `data.audio_files.find_audio`).

    Raises:
        LabelError: a table is missing or damaged, or a label is not among the classes.
        AudioError: there is no audio.
    """
    directory = Path(directory)
    if table is None and (directory / HEAR_METADATA).exists():
        classes = classes or directory / "labelvocabulary.csv"
        files, labels = _hear_task(directory, sample_rate, hidden)
    else:
        files = find_audio(directory, hidden)
        if is_speech_commands(directory):
            files = [path for path in files if path.parent.name != NOT_A_WORD]
        labels = labels_of(files, directory, None if table is None else Path(table))
    found = sorted(set().union(*labels))
    if classes is None:
        return files, labels, found
    vocabulary = read_classes(Path(classes))
    unknown = sorted(set(found) - set(vocabulary))
    if unknown:
        raise LabelError(f"{classes} has {len(vocabulary)} labels, but not {unknown[0]!r}, which is in use")
    return files, labels, vocabulary


def labels_of(files: Sequence[Path], directory: Path, table: Path | None = None) -> list[tuple[str, ...]]:
    """The labels of each file, in the order of the files.

    Args:
        files: audio files below `directory`.
        directory: where the paths of the table start. Without a table, the first folder level below `directory` is
            the label, and files directly in it have none.
        table: csv file with the columns `file` (path below `directory`, or with it in front, or just the name; with or
            without suffix) and `label` (one label, or several in quotes, separated by , or ;), or with the column names
            of AudioSet, FSD50K, ESC-50 or `predict`. The labels of several rows for one file are combined. A row
            `a.wav` also fits `b/a.wav` by its name, unless there is a file `a.wav`, and `b/a.wav` has a row of its own.
            An AudioSet YouTube id matches the files whose names begin with it, with or without a Y in front. Files
            without a row and rows without a file are counted in the log, and a warning counts the names without a path
            that fit files in several folders.

    Raises:
        LabelError: the table is missing or malformed, or labels none of the files.
    """
    relative = [path.relative_to(directory) for path in files]
    if table is None:
        return [(composed(printable(path.parts[0])),) if len(path.parts) > 1 else () for path in relative]
    by_youtube_id, rows = read_label_table(table)
    names_of = _youtube_ids if by_youtube_id else _names
    prefixes = _prefixes(directory, relative)
    labels_under: dict[str, set[str]] = {}
    for name, labels in rows.items():
        labels_under.setdefault(_comparable(name, prefixes), set()).update(labels)
    names = [[_comparable(name, prefixes) for name in names_of(path)] for path in relative]
    at_top = {name for path, of_file in zip(relative, names) if len(path.parts) == 1 for name in of_file}
    names = [_names_that_count(of_file, labels_under, at_top) for of_file in names]
    found = [tuple(sorted(set().union(*(labels_under.get(name, ()) for name in of_file)))) for of_file in names]
    unused = sorted(labels_under.keys() - set().union(*names))
    if not any(found):
        why = "their labels are empty"
        if unused:
            why = f"it has {unused[0]!r}, and there is {relative[0].as_posix()!r}"
        raise LabelError(f"{table} labels none of the {len(files)} audio files below {directory}: {why}")
    if not by_youtube_id:
        _warn_of_bare_names(table, relative, names, labels_under)
    if unlabelled := found.count(()):
        logger.info("%d of %d audio files have no label in %s", unlabelled, len(files), table)
    if unused:
        logger.info(
            "%d of %d names in %s match no audio file, such as %s",
            len(unused),
            len(labels_under),
            table,
            unused[0],
        )
    return found


def _names_that_count(names: list[str], listed: Collection[str], at_top: set[str]) -> list[str]:
    """The names under which a table, which has those `listed`, is asked for a file: a row a.wav is not that of b/a.wav
    if that has a row of its own and the top folder has an a.wav.

    at_top: all names of the files in the top folder.
    """
    with_path = [name for name in names if "/" in name]
    if not any(name in listed for name in with_path):
        return names
    return [name for name in names if name in with_path or name not in at_top]


def _warn_of_bare_names(
    table: Path, relative: Sequence[Path], names: Sequence[Sequence[str]], listed: Collection[str]
) -> None:
    """Warn if a name in a table, one of `listed`, is that of files in several folders, which then have its labels."""
    files_of: dict[str, dict[Path, Path]] = {}  # the first file of each folder
    for path, of_file in zip(relative, names):
        for name in {name for name in of_file if "/" not in name and name in listed}:
            files_of.setdefault(name, {}).setdefault(path.parent, path)
    shared = {name: list(files.values()) for name, files in files_of.items() if len(files) > 1}
    if shared:
        name, (one, other, *_) = next(iter(shared.items()))
        logger.warning(
            "%d of %d names in %s fit files in several folders, such as %s, which labels %s and %s; with paths "
            "each row is of one file",
            len(shared),
            len(listed),
            table,
            name,
            printable(one),
            printable(other),
        )


def column_of(
    files: Sequence[Path], directory: Path, table: Path | None, column: str, whole_path: bool = False
) -> list[str]:
    """What a column says of each file: its fold, or the group (speaker, recording) whose files belong together.

    Args:
        files: audio files below `directory`.
        directory, table: as for `labels_of`.
        column: of the table; or "folder", the folder of each file; or without a table "split", which a HEAR task has
            in its folders and Speech Commands in its lists (all other files are "train").
        whole_path: "folder" is the path of the folder below `directory`, not its name alone.

    Raises:
        LabelError: there is no such column, or it is empty for a file.
    """
    if column == FOLDER or (column == SPLIT and table is None and (directory / HEAR_METADATA).exists()):
        folders = [path.relative_to(directory).parent for path in files]
        return [composed(printable(folder if whole_path and folder.name else folder.name or TOP)) for folder in folders]
    if table is None:
        if column == SPLIT and is_speech_commands(directory):
            return _speech_commands_splits(files, directory)
        raise LabelError(
            f"{directory}: the column {column!r} needs a table of labels; without one there are {FOLDER!r}, the folder "
            f"of each file, and for HEAR tasks and Speech Commands {SPLIT!r}"
        )
    by_youtube_id, cells = read_column(table, column)
    all_relative = [path.relative_to(directory) for path in files]
    prefixes = _prefixes(directory, all_relative)
    cell_under: dict[str, str] = {}
    for name, cell in cells.items():
        key = _comparable(name, prefixes)
        if cell_under.setdefault(key, cell) != cell:
            raise LabelError(f"{table}: the rows of {key} differ in {column}: {cell_under[key]!r} and {cell!r}")
    found = []
    for relative in all_relative:
        names = _youtube_ids(relative) if by_youtube_id else _names(relative)
        keys = [_comparable(name, prefixes) for name in names]
        found.append(next((cell_under[key] for key in keys if key in cell_under), ""))
    if "" in found:
        first = printable(files[found.index("")].relative_to(directory))
        raise LabelError(f"{table} has no {column} for {found.count('')} of {len(files)} audio files, such as {first}")
    return found


def folds_and_groups(
    files: Sequence[Path], directory: Path, table: Path | None, fold_column: str | None, group_column: str | None
) -> dict[str, list[str]]:
    """What `column_of` says of each file, as "folds" and "groups" where a column is named; a warning if the files of a
    group are in several folds."""
    columns = {
        name: column_of(files, directory, table, column, whole_path=name == "groups")
        for name, column in (("folds", fold_column), ("groups", group_column))
        if column is not None
    }
    warn_of_divided_groups(columns)
    return columns


def hear_metadata(directory: Path) -> dict[str, Any]:
    """What a HEAR task says of itself in `task_metadata.json`. LabelError if that cannot be read."""
    path = directory / HEAR_METADATA
    try:
        metadata = json.loads(path.read_bytes())
        if not isinstance(metadata, dict):
            raise TypeError(f"expected an object, got {metadata!r:.80}")
        return metadata
    except (OSError, ValueError, TypeError) as error:
        raise LabelError(f"{path} cannot be read as the description of a HEAR task ({error})") from error


def is_speech_commands(directory: Path) -> bool:
    """Whether a folder has the layout of Speech Commands (Warden 2018): a folder per word, and two lists of files."""
    return all((directory / name).is_file() for name in SPEECH_COMMANDS_LISTS)


def _speech_commands_splits(files: Sequence[Path], directory: Path) -> list[str]:
    split_of = {
        composed(line.strip()): split
        for name, split in SPEECH_COMMANDS_LISTS.items()
        for line in (directory / name).read_text(encoding="utf-8").splitlines()
    }
    return [split_of.get(composed(path.relative_to(directory).as_posix()), "train") for path in files]


def _prefixes(directory: Path, relative: Sequence[Path]) -> list[str]:
    """What a table may have in front of the paths below the folder: the folder itself, from the root, from the current
    folder or as it was given, unless there is a folder of that name in it."""
    written = (directory.absolute(), directory, Path(os.path.relpath(directory)))
    prefixes = [f"{folder.as_posix()}/" for folder in written]
    inside = {prefix for prefix in prefixes if any(path.as_posix().startswith(prefix) for path in relative)}
    return [composed(prefix) for prefix in prefixes if prefix not in inside]


def _comparable(name: str, prefixes: Sequence[str]) -> str:
    r"""A name in the one form that is compared: composed Unicode, / for the \ of Windows, without ./ and without one
    of `prefixes` in front."""
    name = composed(name.replace("\\", "/")).removeprefix("./")
    return next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)


def _names(path: Path) -> list[str]:
    """The names under which a table may list the file `dogs/bark.wav`."""
    return [path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem]


def _youtube_ids(path: Path) -> list[str]:
    """The ids that the files `<id>.wav`, `Y<id>.wav` and `<id>_30.000.wav` may have; an id may itself begin with Y."""
    ids = [path.stem[:YOUTUBE_ID_LENGTH]]
    if path.stem.startswith("Y"):
        ids.append(path.stem[1 : 1 + YOUTUBE_ID_LENGTH])
    return ids


def _hear_task(directory: Path, sample_rate: int, hidden: bool) -> tuple[list[Path], list[tuple[str, ...]]]:
    """The files <rate>/<split>/<name> of a HEAR task at the rate nearest `sample_rate`, with labels of <split>.json."""
    rates = [int(path.name) for path in directory.iterdir() if path.is_dir() and path.name.isdecimal()]
    if not rates:
        raise LabelError(f"{directory} is a HEAR task, but has no folder of audio such as {sample_rate}")
    files = find_audio(directory / str(min(rates, key=lambda rate: (abs(rate - sample_rate), -rate))), hidden)
    tables: dict[str, dict[str, set[str]]] = {}
    labels = []
    for path in files:
        split = path.parent.name
        if split not in tables:
            tables[split] = _hear_split(directory / f"{split}.json")
            _check_present(path.parent, tables[split])
        labels.append(tuple(sorted(tables[split].get(path.name, ()))))
    return files, labels


def _check_present(folder: Path, names: Collection[str]) -> None:
    """LabelError if files of a split are missing, as after an interrupted download."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise LabelError(f"{folder} lacks {len(missing)} of the {len(names)} files of its split, such as {missing[0]}")


def _hear_split(table: Path) -> dict[str, set[str]]:
    """The labels of each file: of the clip as a whole, or of the events in it."""
    try:
        labels_of_file = json.loads(table.read_bytes())
        for name, entries in labels_of_file.items():
            if not isinstance(entries, list):
                raise TypeError(f"the labels of {name} must be a list, got {entries!r:.80}")
        return {
            name: {composed(str(entry["label"] if isinstance(entry, dict) else entry)) for entry in entries}
            for name, entries in labels_of_file.items()
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise LabelError(f"{table} cannot be read as the labels of a HEAR split ({error})") from error
