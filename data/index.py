"""Indexes archives that data.prepare did not write, such as published ones, for training that starts at once and reads
no more than its crops.

    python -m data.index ARCHIVE_DIR... [--workers N]

Reads each shard that has no index, or one that does not fit it, and writes <shard>.index.npz beside it. Stopped at any
moment, the same command goes on with the shards that are left. Ends with status 1 where samples or shards are bad:
training meets them as it would have without an index.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audio_mamba.data.archives import expected_shards, unfinished
from audio_mamba.data.samples import ArchiveError
from audio_mamba.data.shard_index import UNKNOWN, fitting_index, index_path, save_index
from audio_mamba.system.atomic_files import remove_partials
from audio_mamba.system.folder_lock import FolderInUseError, exclusive_lock
from audio_mamba.system.machine import usable_cores
from audio_mamba.system.workers import exit_with_parent


class _Stopped(Exception):
    """The main process has asked its workers to leave."""


def shards_to_index(directory: Path) -> tuple[list[Path], int]:
    """The shards of an archive folder that have no index or one that does not fit, and the number of all its shards.

    Raises:
        ArchiveError: no shards, an archive that data.prepare has not finished, or a folder that cannot be written to.
    """
    shards = list(expected_shards(directory))
    if unfinished(directory):
        raise ArchiveError(f"{directory} is not complete: the same data.prepare command goes on with it")
    missing = [shard for shard in shards if not _has_index(shard)]
    if missing and not os.access(directory, os.W_OK):
        raise ArchiveError(
            f"{directory} is not writable, but the index of a shard lies beside it; links to the shards "
            "in a folder of your own can be indexed instead"
        )
    return missing, len(shards)


def _has_index(shard: Path) -> bool:
    try:
        return fitting_index(shard) is not None
    except ArchiveError:  # a damaged index is none
        return False


# ---------------------------------------------------------------- the main process


def index_shards(shards: Sequence[Path], workers: int, tell: Callable[[str], None]) -> tuple[int, int, int]:
    """Write the index of each shard in processes of their own, with a progress bar on stderr.

    Args:
        workers: number of processes.
        tell: called with each problem, which names the shard and perhaps the sample.

    Returns:
        how many shards got an index, the number of their samples, and how many of those are still to be read whole.

    Raises:
        OSError: an index cannot be written.
    """
    done, stop = np.zeros(3, int), multiprocessing.Event()
    with ProcessPoolExecutor(min(workers, len(shards)), initializer=_start_worker, initargs=(stop,)) as pool:
        futures = [pool.submit(_index_shard, shard) for shard in shards]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="indexing", unit="shard"):
                counts, problems = future.result()
                done += counts
                for problem in problems:
                    tell(problem)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return tuple(done.tolist())


# ---------------------------------------------------------------- the workers


def _start_worker(stop) -> None:
    global _stop
    _stop = stop
    exit_with_parent()


def _index_shard(shard: Path) -> tuple[tuple[int, int, int], list[str]]:
    problems: list[str] = []
    index = save_index(shard, problems.append, before_sample=_go_on)
    if index is None:
        return (0, 0, 0), problems
    problems += [
        f"{shard}, sample {key.decode(errors='replace')}: the spectrogram holds NaN or Inf"
        for key in index.keys[~np.isfinite(index.places["std"])]
    ]
    return (1, len(index), int((index.places["values_offset"] == UNKNOWN).sum())), problems


def _go_on() -> None:
    if _stop.is_set():
        raise _Stopped


# ---------------------------------------------------------------- the command


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.data.index") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("archive_dirs", metavar="ARCHIVE_DIR", type=Path, nargs="+", help="folder of shards")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes")
    args = parser.parse_args(arguments)
    if args.workers < 1:
        raise SystemExit(f"index: --workers is {args.workers}; at least 1 is needed")
    problems = 0
    try:
        for directory in args.archive_dirs:
            problems += _index_archive(directory, args.workers)
    except KeyboardInterrupt:
        print("index: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenProcessPool:
        raise SystemExit("index: a worker process was killed, perhaps for lack of memory; try fewer --workers")
    except (ArchiveError, FolderInUseError) as error:
        raise SystemExit(f"index: {error}")
    except OSError as error:
        raise SystemExit(f"index: {error}; once its cause is removed, the same command goes on")
    if problems:
        raise SystemExit(f"index: problems found: {problems}; training will meet them and name them as well")


def _index_archive(directory: Path, workers: int) -> int:
    """Index an archive folder and say so. Returns the number of problems."""
    problems: list[str] = []

    def tell(problem: str) -> None:
        problems.append(problem)
        tqdm.write(problem, file=sys.stderr)

    missing, total = shards_to_index(directory)
    if not missing:
        print(f"{directory}: each of its {total} shards has an index already")
        return 0
    with exclusive_lock(directory):
        for shard in missing:
            remove_partials(index_path(shard))
        shards, samples, whole = index_shards(missing, workers, tell)
    print(
        f"{directory}: {shards} of {total} shards indexed, {samples} samples"
        + (f"; {whole} of them must still be read whole" if whole else "")
    )
    return len(problems)


if __name__ == "__main__":
    main()
