"""What a long run has finished so far, kept on the disk so that the run can be taken up again after a kill."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.system.folder_lock import exclusive_lock

READ_ROWS = 8192  # held at once when the rows are read again


class JournalError(ValueError):
    """A run that cannot be begun or taken up as asked; the message says what to do."""


def check_settings(what: str, before: dict, now: dict) -> None:
    """JournalError that names the first of the settings which was another one for `what`, such as "x was begun"."""
    if changed := [key for key in now if now[key] != before.get(key)]:
        key = changed[0]
        raise JournalError(
            f"{what} with another {key} ({before.get(key)!r}, now {now[key]!r}); remove it to begin "
            "anew, or choose another name"
        )


@dataclass(frozen=True)
class Entry:
    """One input file: the rows that it gave, or why it gave none."""

    path: str
    rows: int = 0
    seconds: float = 0.0
    error: str | None = None


class Journal:
    """Embeddings in the order of their files: `rows.f32`, and `files.jsonl` with an `Entry` per finished file.

    Rows that no entry speaks for, and a torn last entry, are dropped when a run is taken up.

    Args:
        folder: made here, or the one of an interrupted run.
        settings: what the rows depend on; a run is taken up only with equal ones.
        width: of a row.
        resume: take an interrupted run up; without it, finding one is a JournalError.

    Until it is closed no other process can open it: `folder_lock.FolderInUseError`.
    """

    def __init__(self, folder: Path, settings: dict, width: int, resume: bool):
        self.folder, self.width, self.entries = folder, width, []
        self._rows_path, self._entries_path = folder / "rows.f32", folder / "files.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(exclusive_lock(folder))
            if not folder.exists():
                raise JournalError(f"{folder}: another run has completed it meanwhile")
            self._check_settings(settings, resume)
            self._drop_unfinished()
            self._rows = stack.enter_context(open(self._rows_path, "ab"))
            self._lines = stack.enter_context(open(self._entries_path, "a", encoding="utf-8"))
            self._open = stack.pop_all()

    def append(self, rows: np.ndarray) -> None:
        """Rows [n, width] of a file that has not ended yet."""
        self._rows.write(np.ascontiguousarray(rows, "<f4").data)

    def drop(self) -> None:
        """Forget the rows appended since the last commit: their file failed."""
        self._rows.flush()
        self._rows.truncate(self.count * self.width * 4)

    def commit(self, entries: Iterable[Entry]) -> None:
        """The appended rows are those of these files; from here on a kill loses nothing of them."""
        entries = list(entries)
        _to_disk(self._rows)
        self._lines.writelines(json.dumps(asdict(entry)) + "\n" for entry in entries)
        _to_disk(self._lines)
        self.entries += entries

    def read_rows(self) -> Iterator[np.ndarray]:
        """All rows, a bounded number [n, width] at a time."""
        self._rows.flush()
        with open(self._rows_path, "rb") as file:
            while block := file.read(READ_ROWS * self.width * 4):
                yield np.frombuffer(block, "<f4").reshape(-1, self.width)

    @property
    def count(self) -> int:
        """Rows of all entries."""
        return sum(entry.rows for entry in self.entries)

    def close(self) -> None:
        self._open.close()

    def remove(self) -> None:
        """The run is complete and its result lies elsewhere."""
        shutil.rmtree(self.folder)
        self.close()

    def _check_settings(self, settings: dict, resume: bool) -> None:
        path = self.folder / "settings.json"
        if path.exists() and not resume:
            raise JournalError(f"{self.folder} holds an interrupted run: continue it with --resume, or remove it")
        if path.exists():
            check_settings(f"{self.folder} was begun", json.loads(path.read_text()), settings)
        else:
            with atomic_write(path) as file:
                file.write(json.dumps(settings).encode())

    def _drop_unfinished(self) -> None:
        text = self._entries_path.read_bytes() if self._entries_path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        self.entries = [Entry(**json.loads(line)) for line in whole.splitlines()]
        for path, size in ((self._entries_path, len(whole)), (self._rows_path, self.count * self.width * 4)):
            with open(path, "ab") as file:
                file.truncate(size)


def _to_disk(file) -> None:
    file.flush()
    os.fsync(file.fileno())
