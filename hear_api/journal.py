"""The finished part of a long run, kept on disk so that the run can resume after a kill."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np

from audio_mamba.system.atomic_files import PARTIAL_ENDING, atomic_write
from audio_mamba.system.folder_lock import lock_folder

# Settings that earlier versions did not write, with the only values they had.
EARLIER_SETTINGS = {"channel": "mix", "pooling": "mean", "overlap": 0.0}
ROWS, ENTRIES, SETTINGS, COMPLETE = "rows.f32", "files.jsonl", "settings.json", "complete"  # in a journal's folder
RESULT = "result"  # a folder of `writers`, while it is filled
SHARE_FOLDER = re.compile(r"share-\d+-of-\d+")
READ_ROWS = 8192  # rows in memory at once when they are read back


class JournalError(ValueError):
    """A run that cannot be started or resumed as asked; the message says what to do."""


def check_settings(what: str, before: dict, now: dict) -> None:
    """JournalError that names the first differing setting.

    Args:
        what: how the message begins, such as "x.npz was made".
        before: settings of the earlier run.
        now: settings of this run.
    """
    before = EARLIER_SETTINGS | before
    if changed := [key for key in now if now[key] != before.get(key)]:
        key = changed[0]
        raise JournalError(
            f"{what} with another {key} ({before.get(key)!r}, now {now[key]!r}); remove it to start again, or choose "
            "another name"
        )


def check_settings_of(folder: Path, settings: dict) -> None:
    """JournalError if the journal in a folder was started with other settings than these; nothing without one."""
    with suppress(FileNotFoundError):
        check_settings(f"{folder} was started", _read_settings(folder / SETTINGS), settings)


def check_is_ours(folder: Path) -> None:
    """JournalError if the folder of a journal, which is removed at the end, holds anything that no journal does."""
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError:  # as it should be at the start, or since another process has just completed the run
        return
    for path in found:
        name = PARTIAL_ENDING.sub("", path.name)
        known = name in (ROWS, ENTRIES, SETTINGS, COMPLETE, RESULT) or SHARE_FOLDER.fullmatch(name)
        if not known and not name.startswith(".nfs"):  # NFS: a file that was removed and is still open
            raise JournalError(
                f"{folder} holds {path.name}, which no interrupted run wrote, and is removed when a run ends; choose "
                "another name for the result"
            )


def _read_settings(path: Path) -> dict:
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise JournalError(f"{path} is damaged ({error}); remove its folder to start again") from error
    if not isinstance(settings, dict):
        raise JournalError(f"{path} does not belong to an interrupted run; remove its folder to start again")
    return settings


@dataclass(frozen=True)
class Entry:
    """One input file, or one channel of it: its number of rows, or the reason why it has none.

    Attributes:
        channel: its number with `--channel each`, else None.
        version: of the file, see `sources.Source`; None in journals of earlier versions.
        file: the path as the system has it, if `path` stands for bytes that are no text.
    """

    path: str
    rows: int = 0
    seconds: float = 0.0
    error: str | None = None
    channel: int | None = None
    version: str | None = None
    file: str | None = None


class _Rows:
    """Rows on disk, and the files that they belong to."""

    folder: Path
    settings: dict
    width: int
    entries: list[Entry]
    _paths: list[Path]  # of the rows

    def read_rows(self) -> Iterator[np.ndarray]:
        """All rows, in blocks [READ_ROWS, width] and a smaller one at the end."""
        held = b""
        for path in self._paths:
            with open(path, "rb") as file:
                while part := file.read(READ_ROWS * self.width * 4 - len(held)):
                    held += part
                    if len(held) == READ_ROWS * self.width * 4:
                        yield np.frombuffer(held, "<f4").reshape(-1, self.width)
                        held = b""
        if held:
            yield np.frombuffer(held, "<f4").reshape(-1, self.width)

    @property
    def count(self) -> int:
        """Rows of all entries."""
        return sum(entry.rows for entry in self.entries)


class Journal(_Rows):
    """Embeddings in the order of their files: `rows.f32`, and `files.jsonl` with a line per commit, a list of `Entry`.

    When a run resumes, rows without an entry and a torn last line are dropped. In journals of earlier versions each
    entry has its own line.

    Args:
        folder: of the journal; made if absent.
        settings: what the rows depend on; a run resumes only with the same ones.
        width: of a row.
        resume: continue an interrupted run.

    Raises:
        JournalError: an interrupted run is there and `resume` is not set, or it has other settings.
        FolderInUseError: another process has the journal open.
    """

    def __init__(self, folder: Path, settings: dict, width: int, resume: bool):
        self.folder, self.settings, self.width = folder, settings, width
        self.entries: list[Entry] = []
        self._commits: list[int] = []  # entries of each
        self._rows_path, self._entries_path = folder / ROWS, folder / ENTRIES
        self._paths = [self._rows_path]
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(lock_folder(folder))
            if not folder.exists():
                raise JournalError(f"{folder}: another run has just completed it")
            self._check_settings(resume)
            self._drop_unfinished()
            self._rows = stack.enter_context(open(self._rows_path, "ab"))
            self._lines = stack.enter_context(open(self._entries_path, "a", encoding="utf-8"))
            self._open = stack.pop_all()

    def append(self, rows: np.ndarray) -> None:
        """Add rows [n, width]; they count once their file is committed."""
        self._rows.write(np.ascontiguousarray(rows, "<f4").data)

    def drop(self) -> None:
        """Remove the rows appended since the last commit, because their file failed."""
        self._rows.flush()
        self._rows.truncate(self.count * self.width * 4)

    def commit(self, entries: Iterable[Entry]) -> None:
        """Assign the rows appended since the last commit to these files, in order. A kill no longer loses them."""
        entries = list(entries)
        _to_disk(self._rows)
        self._lines.write(json.dumps([asdict(entry) for entry in entries]) + "\n")
        _to_disk(self._lines)
        self.entries += entries
        self._commits.append(len(entries))

    def keep(self, count: int) -> None:
        """Remove all commits but the first ones that have at most `count` entries together."""
        kept = sum(entries <= count for entries in accumulate(self._commits))
        lines = self._entries_path.read_bytes().splitlines(keepends=True)
        self.entries, self._commits = self.entries[: sum(self._commits[:kept])], self._commits[:kept]
        self._lines.truncate(sum(map(len, lines[:kept])))
        _to_disk(self._lines)  # before the rows, which count only with an entry
        self.drop()

    def mark_complete(self) -> None:
        """Note that nothing is missing, for `JoinedJournal`, and close the files."""
        self.close_files()
        (self.folder / COMPLETE).touch()

    def close(self) -> None:
        """Close the files and let other processes open the journal."""
        self._open.close()

    def close_files(self) -> None:
        """Close the files alone; NFS cannot remove the folder of an open file. Nothing more can be added."""
        self._rows.close()
        self._lines.close()

    def remove(self) -> None:
        """Delete the journal of a complete run."""
        self.close_files()
        shutil.rmtree(self.folder)
        self.close()

    def _check_settings(self, resume: bool) -> None:
        path = self.folder / SETTINGS
        if path.exists() and not resume:
            raise JournalError(f"{self.folder} holds an interrupted run: continue it with --resume, or remove it")
        if path.exists():
            check_settings_of(self.folder, self.settings)
        else:  # without settings nobody knows what rows are: such are left where a removal was interrupted
            for left in (self._rows_path, self._entries_path, self.folder / COMPLETE):
                left.unlink(missing_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps(self.settings).encode())

    def _drop_unfinished(self) -> None:
        (self.folder / COMPLETE).unlink(missing_ok=True)
        text = self._entries_path.read_bytes() if self._entries_path.exists() else b""
        lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
        rows = self._rows_path.stat().st_size // (self.width * 4) if self._rows_path.exists() else 0
        kept = 0  # bytes of the lines whose rows are there; of a damaged or copied journal some may be missing
        for line, entries in zip(lines, _read_entries(b"".join(lines), self._entries_path)):
            rows -= sum(entry.rows for entry in entries)
            if rows < 0:
                break
            self.entries += entries
            self._commits.append(len(entries))
            kept += len(line)
        for path, size in ((self._entries_path, kept), (self._rows_path, self.count * self.width * 4)):
            with open(path, "ab") as file:
                file.truncate(size)


class JoinedJournal(_Rows):
    """The complete journals of all shares of a list, in order, read as one.

    Args:
        folder: that holds theirs.
        parts: folders of the journals.
        settings: that they have in common.
        width: of a row.
    """

    def __init__(self, folder: Path, parts: Iterable[Path], settings: dict, width: int):
        self.folder, self.settings, self.width = folder, settings, width
        self._paths, self.entries = [], []
        for part in parts:
            entries = read_entries(part)
            if (part / ROWS).stat().st_size != sum(entry.rows for entry in entries) * width * 4:
                raise JournalError(f"{part / ROWS} is damaged; remove its folder to start this share again")
            self._paths.append(part / ROWS)
            self.entries += entries


def is_complete(folder: Path) -> bool:
    """Whether the journal in a folder was marked as complete."""
    return (folder / COMPLETE).exists() and (folder / SETTINGS).exists()


def read_entries(folder: Path) -> list[Entry]:
    """The entries of the complete journal in a folder. Raises JournalError for a damaged line."""
    path = folder / ENTRIES
    return [entry for commit in _read_entries(path.read_bytes(), path) for entry in commit]


def _read_entries(lines: bytes, path: Path) -> Iterator[list[Entry]]:
    """The entries of each commit, from the lines of the file `path`. Raises JournalError for a damaged line."""
    for line in lines.splitlines():
        try:
            found = json.loads(line)
            entries = [Entry(**fields) for fields in (found if isinstance(found, list) else [found])]
        except (ValueError, TypeError) as error:
            raise JournalError(f"{path} is damaged ({error}); remove its folder to start again") from error
        yield entries


def _to_disk(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())
