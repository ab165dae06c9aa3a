"""The output of embed and predict: the journal while the run lasts, then the result and the list of failed files."""

import csv
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from audio_mamba.hear_api.journal import (
    SETTINGS,
    Entry,
    JoinedJournal,
    Journal,
    JournalError,
    check_is_ours,
    check_settings,
    check_settings_of,
    is_complete,
    read_entries,
)
from audio_mamba.hear_api.sources import Source, count_unchanged, digest_of_versions
from audio_mamba.hear_api.writers import Format, format_of, has_channels, read_settings
from audio_mamba.system.atomic_files import atomic_text, naming_full_disk, remove_partials
from audio_mamba.system.folder_lock import FolderInUseError, lock_folder
from audio_mamba.system.shares import Share

ALL = Share()
VERSIONS = "sizes and times of files"  # among the settings of a result: a digest
FAILED = "failed files"  # among them, too, if there are any: the number of rows in their table


class Output:
    """What `--out` names.

    Args:
        path: of the result.
        resume: continue an interrupted run, and accept a complete result.
        format: of the result; None lets the suffix of `path` choose one of `writers`.

    Raises:
        ValueError: unknown format, a path without a name, a result is already there and `resume` is not set, or there
            is another folder in the place of the journal.
    """

    def __init__(self, path: Path, resume: bool, format: Format | None = None):
        self.path, self.resume = path, resume
        self._format = format or format_of(path)
        if path.name in ("", ".."):
            raise ValueError(f"--out {path}: it needs a name, such as {path / 'result'}")
        self._journal_folder = path.with_name(f"{path.name}.partial")
        if not path.exists() and os.path.lexists(path):
            raise ValueError(f"{path} is a dangling link; remove it or choose another name")
        if path.exists() and not resume:
            raise ValueError(f"{path} exists already; remove it or choose another name")
        check_is_ours(self._journal_folder)

    @property
    def failures_path(self) -> Path:
        """A table of the failed files, beside the result; absent if there are none."""
        return self.path.with_name(f"{self.path.name}.failed.csv")

    def is_complete(self, settings: dict, versions: str) -> bool:
        """Whether the result of an earlier run is there.

        Args:
            settings: of this run.
            versions: `sources.digest_of_versions` of its files.

        Raises:
            ValueError: a result of other settings or of other versions of the files, or another file.
        """
        if not (self.resume and self.path.exists()):
            return False
        if made_with := read_settings(self.path, self._format):
            check_settings(f"{self.path} was made", made_with, settings)
            if made_with.get(VERSIONS, versions) != versions:  # earlier versions of this program did not note it
                raise JournalError(
                    f"{self.path} was made before some of its files changed (sizes or modification times differ); "
                    "remove it to start again, or choose another name"
                )
        shutil.rmtree(self._journal_folder, ignore_errors=True)  # left if the run was killed at its very end
        return True

    @contextmanager
    def journal(self, settings: dict, width: int, share: Share = ALL) -> Iterator[Journal]:
        """The journal of this run, or of its share of the files.

        Raises:
            ValueError: another run has written the result in the meantime, or has begun it with another number of
                shares or other settings.
        """
        self._check_shares(share, settings)
        with naming_full_disk(self._folder_of(share)):
            journal = Journal(self._folder_of(share), settings, width, self.resume)
            try:
                if self.path.exists():
                    journal.remove()
                    raise ValueError(f"{self.path} exists already; another run has just completed it")
                yield journal
            finally:
                journal.close()

    def finish(self, journal: Journal, step_seconds: float) -> list[Entry]:
        """Write the result and the list of failed files, remove the journal, and return the failed entries.

        step_seconds: from one embedding of a file to the next.
        """
        journal.close_files()
        return self._finish(journal, step_seconds)

    def finish_share(
        self, journal: Journal, step_seconds: float, share: Share, parts: Sequence[Sequence[Source]]
    ) -> list[Entry] | None:
        """Like `finish`, for the journal of a share: the process that completes the last share writes the result of
        all. None if another process has done so, or will.

        parts: the sources of each share, `sources.by_share`.

        Raises:
            ValueError: a share was made with other settings.
        """
        journal.mark_complete()
        self._check_shares(share, journal.settings)  # again, for shares that were started at the same time
        if not all(is_complete(self._folder_of(other)) for other in share.all()):
            return None
        with ExitStack() as stack:
            try:  # others may see at the same time that all is there
                stack.enter_context(lock_folder(self._journal_folder, patience=math.inf))
            except FileNotFoundError:  # another process has removed it, after writing the result
                return None
            if self.path.exists() or not all(self._is_complete_and_unchanged(other, parts) for other in share.all()):
                return None
            folders = map(self._folder_of, share.all())
            joined = JoinedJournal(self._journal_folder, folders, journal.settings, journal.width)
            return self._finish(joined, step_seconds)

    def missing_shares(self, share: Share, parts: Sequence[Sequence[Source]]) -> list[Share]:
        """The shares that are not complete and on which no process works now: not started, lost, or made before some
        of their files changed."""
        missing = []
        for other in share.all():
            folder = self._folder_of(other)
            try:
                if not self._is_complete_and_unchanged(other, parts):
                    with lock_folder(folder, patience=0):
                        missing.append(other)
            except FolderInUseError:
                pass
            except FileNotFoundError:
                missing.append(other)
        return missing

    def _folder_of(self, share: Share) -> Path:
        if share.count == 1:
            return self._journal_folder
        return self._journal_folder / f"share-{share.number + 1}-of-{share.count}"

    def _is_complete_and_unchanged(self, share: Share, parts: Sequence[Sequence[Source]]) -> bool:
        """Whether the journal of a share is complete, and its files are as they were when it was made."""
        folder, sources = self._folder_of(share), parts[share.number]
        if not is_complete(folder):
            return False
        entries = read_entries(folder)
        return len(entries) == len(sources) == count_unchanged(entries, sources)

    def _check_shares(self, share: Share, settings: dict) -> None:
        """JournalError if the run was begun with another number of shares, or another share with other settings."""
        counts = {int(path.name.rpartition("-")[2]) for path in self._journal_folder.glob("share-*-of-*")}
        counts |= {1} if (self._journal_folder / SETTINGS).exists() else set()
        if other := counts - {share.count}:
            raise JournalError(
                f"{self._journal_folder} was started by {other.pop()} processes, this run has {share.count}; continue "
                "with the same number, or remove it to start again"
            )
        for one in share.all():
            if one.number != share.number:  # `Journal` checks its own
                check_settings_of(self._folder_of(one), settings)

    def _finish(self, journal: Journal | JoinedJournal, step_seconds: float) -> list[Entry]:
        if all(entry.version is not None for entry in journal.entries):
            journal.settings |= {VERSIONS: digest_of_versions(journal.entries)}
        remove_partials(self.path)  # of a run that was killed while it wrote
        failed = [entry for entry in journal.entries if entry.error]
        if failed:
            journal.settings |= {FAILED: len(failed)}
        self._write_failures(failed, has_channels(journal))
        self._format.write(self.path, journal, step_seconds)
        shutil.rmtree(journal.folder)
        return failed

    def read_failures(self) -> list[Entry]:
        """The failed files of a complete result. ValueError if their table is damaged or gone."""
        failed: list[Entry] | None = []
        try:
            with open(self.failures_path, newline="", encoding="utf-8") as file:
                failed = [Entry(row["path"], error=row["error"]) for row in csv.DictReader(file)]
        except FileNotFoundError:
            pass
        except (KeyError, ValueError, csv.Error):
            failed = None
        made_with = read_settings(self.path, self._format) or {}
        if failed is None or len(failed) != made_with.get(FAILED, len(failed)):
            raise ValueError(
                f"{self.failures_path}, the list of what failed when {self.path} was made, is damaged or gone; remove "
                "both to start again"
            )
        return failed

    def _write_failures(self, failed: list[Entry], with_channels: bool) -> None:
        if not failed:
            self.failures_path.unlink(missing_ok=True)  # of an earlier result of the same name
            return
        names = ("path", "channel", "error") if with_channels else ("path", "error")
        with atomic_text(self.failures_path) as file:
            csv.writer(file).writerows([names, *([getattr(entry, name) for name in names] for entry in failed)])
