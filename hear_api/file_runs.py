"""What the commands embed and predict share: runs over a list of files that keep a journal."""

import hashlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audio_mamba.data.audio import AudioError, AudioFileError
from audio_mamba.front_end import FrontEnd
from audio_mamba.hear_api.clips import Clip, Failure, decode_file, group_clips, prefetch, start_worker
from audio_mamba.hear_api.journal import Entry, Journal
from audio_mamba.hear_api.output import Output
from audio_mamba.hear_api.sources import Source, count_unchanged

FAILED_STATUS = 3
FILES_AHEAD = 8  # per worker
SECONDS_TO_END = 1.0  # of workers after an exception; a file at hand may take minutes

Decoder = Callable[[Sequence[Source]], Iterator[Clip | Failure]]


@contextmanager
def decoding_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that run `decode_file`. After an exception in the block they are killed if they do not end soon."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, initializer=start_worker)
    try:
        pool.submit(int).result()  # starts the workers now, before the threads of the model exist
        yield pool
    except BaseException:
        own = set(multiprocessing.active_children()) - others
        # Not at once: the pool has to drop what is cancelled before it notices, or its thread fails.
        killer = threading.Timer(SECONDS_TO_END, _kill, [own])
        killer.start()
        pool.shutdown(wait=True, cancel_futures=True)
        killer.cancel()
        raise
    pool.shutdown(cancel_futures=True)


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()


def list_digest(files: list[Path]) -> str:
    """The number of files, and what tells their list from others."""
    digest = hashlib.sha256(b"\0".join(map(os.fsencode, files))).hexdigest()
    return f"{len(files)} files, {digest[:16]}"


def decode_sources(
    pool: ProcessPoolExecutor, workers: int, front_end: FrontEnd, channel: str, sources: Sequence[Source]
) -> Iterator[Clip | Failure]:
    """The clips of sources, decoded in advance by a pool of so many workers; `channel` of files that are not split."""
    calls = ((source.path, front_end, channel if source.channel is None else source.channel) for source in sources)
    return prefetch(pool, decode_file, calls, FILES_AHEAD * workers)


def drop_changed(journal: Journal, sources: Sequence[Source], decode: Decoder, command: str, done: str) -> None:
    """Keep what an interrupted run has finished up to the first file that has changed since, or that failed then and
    can be read now; say what is not kept.

    All later files are `done` again, too, since rows are in the order of files, and groups must be the same as in an
    uninterrupted run.

    Args:
        journal: of the run.
        sources: all of its files.
        decode: gives the clips of sources.
        command: its name, put before each message.
        done: what it does with files, such as "embedded".
    """
    entries = journal.entries
    if any(entry.version is None for entry in entries):
        say(
            command,
            "this run was started by an earlier version, which noted no sizes and times; its files are not compared",
        )
    same = count_unchanged(entries, sources)
    failed = [number for number in range(same) if entries[number].error]
    clips = decode([sources[number] for number in failed])
    repaired = [number for number, clip in zip(failed, clips) if not isinstance(clip, Failure)]
    if repaired or same < len(entries):
        versions = {source.name: source.version for source in sources}
        changed = [n for n, entry in enumerate(entries) if entry.version not in (None, versions[entry.path])]
        first = min([*repaired, same])
        files = {entries[number].path for number in (first, *repaired, *changed)}
        first_file = entries[first].path
        journal.keep(first)
        kept = len({entry.path for entry in journal.entries})
        say(
            command,
            f"{len(files)} file(s) have changed since, or can be read now, the first is {first_file}; "
            f"the results of {kept} files before it are kept, the others are {done} again",
        )


def run_groups(
    rows_of: Callable[[list[Clip | Failure]], Iterator[tuple[int, np.ndarray]]],
    sources: Sequence[Source],
    decode: Decoder,
    journal: Journal,
    bar: tqdm,
    strict: bool,
) -> None:
    """Add the rows of the sources that the journal lacks, group by group; each is committed before the next one.

    Args:
        rows_of: gives the rows [n, width] of a group of `clips.group_clips` clip by clip, each time with the number of
            the clip in the group, and none for failures. It may raise AudioFileError for a long file, which is a group
            of its own.
        sources: all of the run.
        decode: gives the clips of sources.
        bar: counts sources; `rows_of` may advance it within a group.
        strict: raise AudioError, which names the file, at the first failure.
    """
    left = sources[len(journal.entries) :]
    clips = decode(left)
    if strict:
        clips = _without_failures(left, clips)
    waiting = iter(left)
    for group in group_clips(clips):
        counts = [0] * len(group)
        try:
            for number, rows in rows_of(group):
                journal.append(rows)
                counts[number] += len(rows)
        except AudioFileError as error:  # a long file that has changed or gone since it was measured
            if strict:
                raise _strict_error(error.path, error.reason)
            journal.drop()
            group = [Failure(error.reason)]
        journal.commit(_entry_of(*finished) for finished in zip(group, counts, waiting))
        bar.update(len(journal.entries) - bar.n)


def say(command: str, text: str) -> None:
    """Print a line of a command above its progress bar."""
    tqdm.write(f"{command}: {text}", file=sys.stderr)


def _entry_of(clip: Clip | Failure, rows: int, source: Source) -> Entry:
    """What the journal keeps of a source with so many rows."""
    file = str(source.path) if os.fsencode(source.path) != source.name.encode() else None
    entry = Entry(source.name, rows, clip.seconds, channel=source.channel, version=source.version, file=file)
    return replace(entry, rows=0, error=clip.reason) if isinstance(clip, Failure) else entry


def _without_failures(sources: Sequence[Source], clips: Iterator[Clip | Failure]) -> Iterator[Clip | Failure]:
    """The clips of sources; AudioError, which names the file, at the first failure."""
    for source, clip in zip(sources, clips):
        if isinstance(clip, Failure):
            raise _strict_error(source.path, clip.reason)
        yield clip


def _strict_error(path: str | Path, reason: str) -> AudioError:
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
