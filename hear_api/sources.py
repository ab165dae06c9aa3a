"""The INPUTs of embed and predict: which files they name, and what of each file is read."""

import csv
import glob
import hashlib
import itertools
import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from audio_mamba.data.audio import AudioError, channel_count, find_audio, fingerprint, is_hidden, printable
from audio_mamba.data.audio_files import files_and_dangling, leads_back
from audio_mamba.hear_api.clips import prefetch
from audio_mamba.hear_api.journal import Entry
from audio_mamba.system.shares import Share

PATH_COLUMNS = ("path", "file", "filename")  # of a csv list
OWN_COLUMNS = {"error", "probability", "npy", "track"}  # beside the paths in the lists that the commands write
COUNTS_AHEAD = 64

logger = logging.getLogger(__name__)


class Source(NamedTuple):
    """A file to embed, or one channel of it."""

    path: Path
    channel: int | None  # its number with `--channel each`, else None
    version: str  # size and time of the file, which change when it is written again; empty without a file to read

    @property
    def name(self) -> str:
        """The path as text for any file or terminal."""
        return printable(self.path)


def list_sources(files: Sequence[Path], channel: str, pool: Executor) -> list[Source]:
    """The files in order; with channel "each" every channel of them, counted by the pool."""
    versions = map(_version, files)
    if channel != "each":
        return [Source(path, None, version) for path, version in zip(files, versions)]
    counts = tqdm(
        prefetch(pool, _count_channels, ((path,) for path in files), COUNTS_AHEAD),
        desc="counting channels",
        unit="file",
        total=len(files),
        delay=2,
        leave=False,
    )
    return [
        # A file that cannot be read may become readable, with more channels, without a new size or time.
        Source(path, number, version if count else "")
        for path, version, count in zip(files, versions, counts)
        for number in range(count or 1)
    ]


def by_share(sources: Sequence[Source], count: int) -> list[list[Source]]:
    """The sources of each of so many shares: whole files, so that their channels do not move the bounds."""
    files = list(dict.fromkeys(source.path for source in sources))
    number_of = {path: share.number for share in Share(0, count).all() for path in share.part(files)}
    parts: list[list[Source]] = [[] for _ in range(count)]
    for source in sources:
        parts[number_of[source.path]].append(source)
    return parts


def count_unchanged(entries: Sequence[Entry], sources: Sequence[Source]) -> int:
    """How many entries, from the first one on, are of the sources in their places, as these are now."""
    count = 0
    for entry, source in zip(entries, sources):
        same = (entry.path, entry.channel) == (source.name, source.channel)
        still_fails = entry.error and not source.version
        # Earlier versions of this program noted no version, or one of a file that cannot be read.
        if not same or not (entry.version in (None, source.version) or still_fails):
            break
        count += 1
    return count


def digest_of_versions(sources: Sequence[Source | Entry]) -> str:
    """Changes when any of the files is written again."""
    return hashlib.sha256("\n".join(str(source.version) for source in sources).encode()).hexdigest()[:16]


def _version(path: Path) -> str:
    try:
        return " ".join(map(str, fingerprint(path)))
    except OSError:
        return ""


def _count_channels(path: Path) -> int:
    try:
        return channel_count(path)
    except AudioError:
        return 0  # what is wrong with it is reported when it is decoded


def list_audio(inputs: Iterable[str], hidden: bool = False) -> list[Path]:
    """The audio files that the INPUTs of a command line name, in the given order and without repeats.

    Args:
        inputs: each a file, a folder (all audio below it, sorted), a glob ("takes/**/*.wav", sorted), or a `.csv` list.
            The paths of a list are in its column `path`, `file` or `filename`, or else in its first column. They are
            relative to the list's folder or, for files that are not there, to the current folder; in the lists that
            the commands write, to the current folder first.
        hidden: take hidden, trash and system files and folders too. Those that an input itself names are always taken.

    Raises:
        AudioError: an input that names no file, or a malformed list.
    """
    files: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files += find_audio(path, hidden)
        elif path.suffix.lower() == ".csv" and path.is_file():
            files += _read_list(path)
        elif os.path.lexists(path):  # a dangling link is reported when it is read
            files.append(path)
        else:
            files += _matches(text, hidden)
    return list(dict.fromkeys(files))


def _matches(pattern: str, hidden: bool) -> list[Path]:
    """The files that match a glob, sorted. Folders are left out, files that cannot be read with a warning, and hidden
    matches unless the pattern names them."""
    folder = os.path.dirname(pattern)
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    literal = glob.escape(folder) + pattern[len(folder) :]  # a folder may be called [ab]
    found = map(Path, glob.glob(literal, recursive=True, include_hidden=hidden))
    files = sorted(itertools.chain(*files_and_dangling(found)))
    named = Path(pattern).parts
    if "**" in named:
        depth, goes_round = named.index("**"), cache(leads_back)
        files = [path for path in files if not any(map(goes_round, path.parents[: len(path.parts) - 1 - depth]))]
    left_out = [path for path in files if any(is_hidden(part) and part not in named for part in path.parts)]
    if left_out and not hidden:
        files = sorted(set(files) - set(left_out))
        logger.warning(
            "left out hidden or system files: %d, the first is %s; --hidden takes them",
            len(left_out),
            printable(left_out[0]),
        )
    if not files:
        raise AudioError(f"{pattern}: no such file or folder, and as a pattern it matches no file")
    return files


def _read_list(path: Path) -> list[Path]:
    """The paths of a csv list. AudioError with the line number for a row without one."""
    rows = list(_rows(path))
    if not rows:
        raise AudioError(f"{path}: the list is empty")
    header = [cell.strip().lower() for cell in rows[0][1]]
    if len(header) == 1 and any(name in header[0].split(";") for name in PATH_COLUMNS if ";" in header[0]):
        raise AudioError(f"{path}: it has semicolons between its columns; separate them with commas")
    own = "path" in header and not OWN_COLUMNS.isdisjoint(header)
    if own:
        rows = list(_rows(path, exact=True))
    column = next((header.index(name) for name in PATH_COLUMNS if name in header), None)
    if column is not None and len(rows) == 1:
        raise AudioError(f"{path}: the list has a header and no rows, so it names no file")
    names = []
    for line, row in rows if column is None else rows[1:]:
        name = "".join(row[column or 0 :][:1])
        name = name if own else name.strip()
        if not name:
            where = f" in column {header[column]!r}" if column is not None else ""
            raise AudioError(f"{path}, line {line}: the row has no path{where}")
        if "\0" in name:
            raise AudioError(f"{path}, line {line}: the path {name!r} has a null character, which no path can have")
        if column is not None and any(cell.strip() for cell in row[len(header) :]):
            raise AudioError(
                f"{path}, line {line}: {len(row)} cells, but the header has {len(header)}; put cells with commas in "
                "quotes"
            )
        names.append(name)
    folders = (Path(), path.parent) if own else (path.parent, Path())
    return [_found_from(folders, name) for name in names]


def _found_from(folders: Sequence[Path], name: str) -> Path:
    """The file of this name in the first of the folders that has one; without one, its path in the first folder."""
    paths = [folder / spelling for spelling in _spellings(name) for folder in folders]
    return next(filter(os.path.lexists, paths), paths[0])


def _spellings(name: str) -> list[str]:
    r"""A name as it is, with / for the \ of Windows, and with accents as Linux and as macOS write them."""
    names = (name, name.replace("\\", "/"))
    return list(
        dict.fromkeys([*names, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD") for text in names)])
    )


def _rows(path: Path, exact: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The rows of a csv file with the number of the line where each begins. Empty lines are skipped, and blanks at the
    beginning of a cell, unless `exact`."""
    line = 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=not exact, strict=True)
            for row in reader:
                if row:
                    yield line + 1, row
                line = reader.line_num
    except csv.Error as error:
        problem = "a quote is not closed" if "end of data" in str(error) else f"cannot be read as csv ({error})"
        raise AudioError(f"{path}, line {line + 1}: {problem}") from error
    except UnicodeDecodeError as error:
        raise AudioError(f"{path}: cannot be read as a csv list ({error})") from error
