"""Indexes archives from other programs, such as published ones, so that training starts at once and reads only crops.

    audio-mamba index ARCHIVE_DIR... [--workers N]

Reads each shard that has no index, or one that does not belong to it, and writes <shard>.index.npz beside it. The
command may be stopped at any time; started again, it continues with the remaining shards. It exits with status 1 if
samples or shards are bad: training finds them too, as it would without an index.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audio_mamba.data.archives import expected_shards, unfinished
from audio_mamba.data.samples import ArchiveError
from audio_mamba.data.shard_index import UNKNOWN, fitting_index, index_path, save_index
from audio_mamba.system.atomic_files import remove_partials
from audio_mamba.system.folder_lock import FolderInUseError, lock_folder
from audio_mamba.system.machine import usable_cores
from audio_mamba.system.terminal import given_path, quiet_exit
from audio_mamba.system.workers import check_stop, stoppable_pool


def shards_to_index(directory: Path) -> tuple[list[Path], int]:
    """The shards of an archive folder without an index that belongs to them, and the number of all its shards.

    Raises:
        ArchiveError: no shards, an archive that data.prepare has not finished, or a read-only folder.
    """
    shards = list(expected_shards(directory))
    if unfinished(directory):
        raise ArchiveError(f"{directory} is not complete: the same audio-mamba prepare command continues it")
    missing = [shard for shard in shards if not _has_index(shard)]
    if missing and not os.access(directory, os.W_OK):
        raise ArchiveError(
            f"{directory} is read-only, and indexes are written next to the shards; "
            "symlink the shards into a folder of your own and index that"
        )
    return missing, len(shards)


def _has_index(shard: Path) -> bool:
    try:
        return fitting_index(shard) is not None
    except (ArchiveError, OSError):  # a damaged index is written again; an unreadable shard is reported
        return False


# ---------------------------------------------------------------- the main process


def index_shards(shards: Sequence[Path], workers: int, tell: Callable[[str], None]) -> tuple[int, int, int]:
    """Write the index of each shard in processes of their own, with a progress bar on stderr.

    Args:
        workers: number of processes.
        tell: called with each problem, a sentence that names the shard and, if one is bad, the sample.

    Returns:
        how many shards got an index, the number of their samples, and how many samples must still be read whole.

    Raises:
        OSError: an index cannot be written.
    """
    done = np.zeros(3, int)
    with stoppable_pool(min(workers, len(shards))) as pool:
        futures = [pool.submit(_index_shard, shard) for shard in shards]
        for future in tqdm(as_completed(futures), total=len(futures), desc="indexing", unit="shard"):
            counts, problems = future.result()
            done += counts
            for problem in problems:
                tell(problem)
    indexed, samples, whole = done.tolist()
    return indexed, samples, whole


# ---------------------------------------------------------------- the workers


def _index_shard(shard: Path) -> tuple[tuple[int, int, int], list[str]]:
    problems: list[str] = []
    index = save_index(shard, problems.append, before_sample=check_stop)
    if index is None:
        return (0, 0, 0), problems
    problems += [
        f"{shard}, sample {key.decode(errors='replace')}: the spectrogram holds NaN or Inf"
        for key in index.keys[~np.isfinite(index.places["std"])]
    ]
    return (1, len(index), int((index.places["values_offset"] == UNKNOWN).sum())), problems


# ---------------------------------------------------------------- the command


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.data.index") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("archive_dirs", metavar="ARCHIVE_DIR", type=given_path, nargs="+", help="folder of shards")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="number of processes")
    args = parser.parse_args(arguments)
    if args.workers < 1:
        raise SystemExit(f"index: --workers must be at least 1, got {args.workers}")
    problems = 0
    try:
        for directory in args.archive_dirs:
            problems += _index_archive(directory, args.workers)
    except KeyboardInterrupt:
        print("index: interrupted; the same command continues from here", file=sys.stderr)
        sys.exit(130)
    except BrokenProcessPool:
        raise SystemExit(
            "index: a worker process was killed, probably for lack of memory; the same command with fewer --workers "
            "continues"
        )
    except (ArchiveError, FolderInUseError) as error:
        raise SystemExit(f"index: {error}")
    except BrokenPipeError:  # the reader of the output went away; quiet_exit ends the command
        raise
    except OSError as error:
        raise SystemExit(f"index: {error}; once the cause is removed, the same command continues")
    if problems:
        raise SystemExit(f"index: problems found: {problems}; training will report them as well")


def _index_archive(directory: Path, workers: int) -> int:
    """Index an archive folder and print the result. Returns the number of problems."""
    problems: list[str] = []

    def tell(problem: str) -> None:
        problems.append(problem)
        tqdm.write(problem, file=sys.stderr)

    missing, total = shards_to_index(directory)
    if not missing:
        print(f"{directory}: all of its {total} shards have an index already")
        return 0
    with lock_folder(directory):
        remove_partials(*map(index_path, missing))
        shards, samples, whole = index_shards(missing, workers, tell)
    print(
        f"{directory}: {shards} of {total} shards indexed, {samples} samples"
        + (f"; {whole} of these must still be read whole" if whole else "")
    )
    return len(problems)


if __name__ == "__main__":
    with quiet_exit():
        main()
