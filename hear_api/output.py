"""The output of the embed command: its journal while the run lasts, then the result and the list of failed files."""

import csv
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audio_mamba.hear_api.journal import Entry, Journal, JournalError, check_settings
from audio_mamba.hear_api.sources import digest_of_versions
from audio_mamba.hear_api.writers import Format, format_of, has_channels, read_settings
from audio_mamba.system.atomic_files import atomic_write, remove_partials

VERSIONS = "sizes and times of files"  # among the settings of a result: a digest


class Output:
    """What `--out` names.

    Args:
        path: of the result.
        resume: continue an interrupted run, and accept a complete result.
        format: of the result; None lets the suffix of `path` choose one of `writers`.

    Raises:
        ValueError: unknown format, or a result is already there and `resume` is not set.
    """

    def __init__(self, path: Path, resume: bool, format: Format | None = None):
        self.path, self.resume = path, resume
        self._format = format or format_of(path)
        self._journal_folder = path.with_name(f"{path.name}.partial")
        if path.exists() and not resume:
            raise ValueError(f"{path} exists already; remove it or choose another name")

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
                    f"{self.path} was made before some of its files changed (their sizes or times are others now); "
                    "remove it to start again, or choose another name"
                )
        shutil.rmtree(self._journal_folder, ignore_errors=True)  # left if the run was killed at its very end
        return True

    @contextmanager
    def journal(self, settings: dict, width: int) -> Iterator[Journal]:
        """The journal of this run. ValueError if another run has written the result in the meantime."""
        journal = Journal(self._journal_folder, settings, width, self.resume)
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
        if all(entry.version is not None for entry in journal.entries):
            journal.settings |= {VERSIONS: digest_of_versions(journal.entries)}
        remove_partials(self.path)  # of a run that was killed while it wrote
        failed = [entry for entry in journal.entries if entry.error]
        self._write_failures(failed, has_channels(journal))
        self._format.write(self.path, journal, step_seconds)
        journal.remove()
        return failed

    def read_failures(self) -> list[Entry]:
        """The failed files of a complete result."""
        if not self.failures_path.exists():
            return []
        with open(self.failures_path, newline="", encoding="utf-8") as file:
            return [Entry(row["path"], error=row["error"]) for row in csv.DictReader(file)]

    def _write_failures(self, failed: list[Entry], with_channels: bool) -> None:
        if not failed:
            self.failures_path.unlink(missing_ok=True)  # of an earlier result of the same name
            return
        with atomic_write(self.failures_path) as file:
            table = csv.writer(text := io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True))
            names = ("path", "channel", "error") if with_channels else ("path", "error")
            table.writerows([names, *([getattr(entry, name) for name in names] for entry in failed)])
            text.detach()
