"""What the commands embed and predict share: runs over a list of files that keep a journal."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from audio_mamba.data.audio import AudioError
from audio_mamba.hear_api.clips import Clip, Failure, start_worker
from audio_mamba.hear_api.journal import Entry, Journal
from audio_mamba.hear_api.output import Output
from audio_mamba.hear_api.sources import Source

FAILED_STATUS = 3
FILES_AHEAD = 8  # per worker


@contextmanager
def decoding_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that run `decode`."""
    pool = ProcessPoolExecutor(workers, initializer=start_worker)
    try:
        pool.submit(int).result()  # starts the workers now, before the threads of the model exist
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def list_digest(files: list[Path]) -> str:
    """The number of files, and what tells their list from others."""
    digest = hashlib.sha256(b"\0".join(map(os.fsencode, files))).hexdigest()
    return f"{len(files)} files, {digest[:16]}"


def drop_changed(journal: Journal, sources: Sequence[Source], command: str, done: str) -> None:
    """Keep what an interrupted run has finished up to the first file that has changed since; say what is not kept.

    All later files are `done` again, too, since rows are in the order of files, and groups must be the same as in an
    uninterrupted run.

    Args:
        journal: of the run.
        sources: all of its files.
        command: that speaks.
        done: what it does with files, such as "embedded".
    """
    entries = journal.entries
    if any(entry.version is None for entry in entries):
        say(
            command,
            "this run was started by an earlier version, which noted no sizes and times; its files are not compared",
        )
    versions = {source.name: source.version for source in sources}
    changed = [n for n, entry in enumerate(entries) if entry.version not in (None, versions[entry.path])]
    if changed:
        files = dict.fromkeys(entries[number].path for number in changed)
        journal.keep(changed[0])
        kept = len({entry.path for entry in journal.entries})
        say(
            command,
            f"{len(files)} of the files that were {done} have changed since, the first is {next(iter(files))}; the "
            f"results of {kept} files before it are kept, the others are {done} again",
        )


def say(command: str, text: str) -> None:
    """Print a line of a command above its progress bar."""
    tqdm.write(f"{command}: {text}", file=sys.stderr)


def entry_of(clip: Clip | Failure, rows: int, source: Source) -> Entry:
    """What the journal keeps of a source with so many rows."""
    if isinstance(clip, Failure):
        return Entry(source.name, error=clip.reason, channel=source.channel, version=source.version)
    return Entry(source.name, rows, clip.seconds, channel=source.channel, version=source.version)


def without_failures(sources: Sequence[Source], clips: Iterator[Clip | Failure]) -> Iterator[Clip | Failure]:
    """The clips of sources; AudioError, which names the file, at the first failure."""
    for source, clip in zip(sources, clips):
        if isinstance(clip, Failure):
            raise strict_error(source.path, clip.reason)
        yield clip


def strict_error(path: str | Path, reason: str) -> AudioError:
    """What ends a run with --strict."""
    return AudioError(f"{path}: {reason} (--strict)")


def print_failures(failed: list[Entry], output: Output, done: str) -> None:
    """List the files that could not be `done` on stderr."""
    width, count = max(len(entry.path) for entry in failed), len({entry.path for entry in failed})
    files = "1 file" if count == 1 else f"{count} files"
    lines = [f"\n{files} could not be {done} (this list: {output.failures_path}):"]
    for path, error in dict.fromkeys((entry.path, entry.error) for entry in failed):  # once for all channels
        lines.append(f"  {path:<{width}}  {error}")
    tqdm.write("\n".join(lines), file=sys.stderr)
