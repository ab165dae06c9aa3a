"""Speed of the training loader, compared with the published procedure, plain webdataset and the machine's limits.

    python -m benchmarks.loader [--json FILE]

All read crops of 200 frames from clips of 1000 x 80 in the page cache and make batches of 64:

    published       webdataset: unpickle the whole float32 clip, normalise it, cut out the crop
    webdataset      the same without normalising: the cost of tar and pickle alone
    float32         this project's loader on archives of data.prepare
    float16         the same on its default format
    floor           one read of the crop's float32 bytes into the batch, and nothing else
    copy            the same from memory

The contenders take turns, so that other load affects them all alike; the medians over rounds are reported. With 0
workers one process does everything, which is the fairest comparison per core. The last lines show how long a start on
two million clips takes, and how much memory a worker then uses.
"""

import argparse
import functools
import itertools
import json
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from tqdm import tqdm

from audio_mamba.data.archives import shard_indices, write_shard
from audio_mamba.data.loader import make_loader
from audio_mamba.data.samples import Sample
from benchmarks.large_index import measure_large_index

CLIPS, SHARDS, FRAMES, MELS, CROP, BATCH = 512, 64, 1000, 80, 200, 64
WARM_UP_BATCHES = 4
WORKERS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of timings of each contender")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each timing")
    parser.add_argument("--clips", type=int, default=2_000_000, help="size of the simulated large index")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "load_average": os.getloadavg()[0],
            "rounds": args.rounds,
            "float16_error": float16_error(),
            "loaders": measure_loaders(Path(folder), args),
            "large_index": measure_large_index(Path(folder) / "large", args.clips),
        }
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


# ---------------------------------------------------------------- archives


def make_clip(number: int) -> np.ndarray:
    """Values with the mean and deviation of log-mels: float32 [1000, 80]."""
    return np.random.default_rng(number).normal(-6, 4, (FRAMES, MELS)).astype(np.float32)


def make_archives(folder: Path) -> dict[str, Path]:
    """The same clips in three formats. Hard links to one shard make a long epoch that fits into the page cache."""
    directories = {}
    for name, dtype, as_pickle in (
        ("published", "float32", True),
        ("float32", "float32", False),
        ("float16", "float16", False),
    ):
        store, directory = folder / f"{name}.store", folder / name
        store.mkdir()
        directory.mkdir()
        clips = (Sample(f"{i:06d}", make_clip(i).astype(dtype), np.array([i])) for i in range(CLIPS))
        write_shard(store / "shard.tar", tqdm(clips, desc=f"writing {name}", total=CLIPS, leave=False), as_pickle)
        for number, suffix in itertools.product(range(SHARDS), ("tar", "index.npz")):
            if name != "published" or suffix == "tar":
                os.link(store / f"shard.{suffix}", directory / f"shard-{number:06d}.{suffix}")
        directories[name] = directory
    return directories


# ---------------------------------------------------------------- contenders: archive, workers -> batches


def published_crop(item: dict) -> torch.Tensor:
    clip = pickle.loads(item["data.pyd"])
    clip = (clip - clip.mean()) / (clip.std() + 1e-8)
    start = np.random.randint(FRAMES - CROP + 1)
    return torch.from_numpy(clip[start : start + CROP])[None]


def plain_crop(item: dict) -> torch.Tensor:
    start = np.random.randint(FRAMES - CROP + 1)
    return torch.from_numpy(pickle.loads(item["data.pyd"])[start : start + CROP])[None]


def webdataset_batches(crop: Callable[[dict], torch.Tensor], directory: Path, workers: int) -> Iterable[torch.Tensor]:
    shards = sorted(map(str, directory.glob("*.tar")))
    samples = webdataset.WebDataset(shards, shardshuffle=False, workersplitter=webdataset.split_by_worker).map(crop)
    return torch.utils.data.DataLoader(samples, batch_size=BATCH, num_workers=workers, drop_last=True)


def our_batches(directory: Path, workers: int) -> Iterator[torch.Tensor]:
    return (
        batch["spectrogram"]
        for batch in make_loader([directory], num_frames=CROP, batch_size=BATCH, num_workers=workers)
    )


def floor_batches(directory: Path, workers: int) -> Iterator[torch.Tensor]:
    """Crops in random order, read into batches without any processing, and without workers."""
    rng = np.random.default_rng(0)
    shards = [(os.open(path, os.O_RDONLY), index.places["values_offset"]) for path, index in shard_indices(directory)]
    try:
        while True:
            batch = torch.empty(BATCH, 1, CROP, MELS)
            for row in batch.numpy():
                file, offsets = shards[rng.integers(len(shards))]
                start = rng.integers(FRAMES - CROP + 1) * MELS * 4
                os.preadv(file, [memoryview(row).cast("B")], int(offsets[rng.integers(CLIPS)]) + int(start))
            yield batch
    finally:
        for file, _ in shards:
            os.close(file)


def copy_batches(directory: Path, workers: int) -> Iterator[torch.Tensor]:
    """The same from memory: the bandwidth of one core."""
    clips = np.stack([make_clip(i) for i in range(128)])
    rng = np.random.default_rng(0)
    while True:
        batch = torch.empty(BATCH, 1, CROP, MELS)
        for row in batch.numpy()[:, 0]:
            start = rng.integers(FRAMES - CROP + 1)
            row[:] = clips[rng.integers(len(clips)), start : start + CROP]
        yield batch


CONTENDERS: dict[str, tuple[str, Callable]] = {  # name -> archive, batches
    "published": ("published", functools.partial(webdataset_batches, published_crop)),
    "webdataset": ("published", functools.partial(webdataset_batches, plain_crop)),
    "float32": ("float32", our_batches),
    "float16": ("float16", our_batches),
    "floor": ("float32", floor_batches),
    "copy": ("float32", copy_batches),
}


# ---------------------------------------------------------------- measuring


def measure_loaders(folder: Path, args: argparse.Namespace) -> list[dict]:
    """Median samples per second by contender and number of workers, and their ratio to the published procedure."""
    archives = make_archives(folder)
    cases = [
        (name, workers) for name in CONTENDERS for workers in WORKERS if workers == 0 or name not in ("floor", "copy")
    ]
    rates, read = {case: [] for case in cases}, {}
    for _, (name, workers) in tqdm([*itertools.product(range(args.rounds), cases)], desc="timing", leave=False):
        archive, make_batches = CONTENDERS[name]
        rate, bytes_read = time_batches(iter(make_batches(archives[archive], workers)), args.seconds)
        rates[name, workers].append(rate)
        if workers == 0:
            read[name] = bytes_read
    return [
        {
            "loader": name,
            "workers": workers,
            "samples_per_second": float(np.median(rates[name, workers])),
            "times_published": float(np.median(np.divide(rates[name, workers], rates["published", workers]))),
            "bytes_per_sample": read[name],
        }
        for name, workers in cases
    ]


def time_batches(batches: Iterator[torch.Tensor], seconds: float) -> tuple[float, float]:
    """Samples per second after a warm-up, and bytes read by this process per sample."""
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    samples, read_before, start = 0, bytes_read_so_far(), time.perf_counter()
    while time.perf_counter() - start < seconds:
        samples += len(next(batches))
    duration = time.perf_counter() - start
    return samples / duration, (bytes_read_so_far() - read_before) / samples


def bytes_read_so_far() -> int:
    """Bytes read by this process, from disk or page cache (Linux only; 0 elsewhere)."""
    counters = Path("/proc/self/io")
    return int(counters.read_text().split()[1]) if counters.exists() else 0


def float16_error() -> dict[str, float]:
    """The rounding error of float16 in a log-mel value, and relative to the deviation."""
    clip = np.random.default_rng(0).uniform(-16, 10, (FRAMES, MELS)).astype(np.float32)
    error = clip.astype(np.float16).astype(np.float32) - clip
    return {
        "largest": float(np.abs(error).max()),
        "rms": float(np.sqrt(np.square(error).mean())),
        "rms_of_deviation": float(np.sqrt(np.square(error).mean()) / clip.std()),
    }


def table(results: dict) -> str:
    lines = [f"{'loader':<11} {'workers':>7} {'samples/s':>10} {'x published':>11} {'bytes/sample':>12}"]
    lines += [
        f"{row['loader']:<11} {row['workers']:>7} {row['samples_per_second']:>10.0f} "
        f"{row['times_published']:>11.2f} {row['bytes_per_sample']:>12.0f}"
        for row in results["loaders"]
    ]
    error, large = results["float16_error"], results["large_index"]
    lines += [
        "",
        f"float16 changes a log-mel value by at most {error['largest']:.4f}, {error['rms']:.4f} rms "
        f"({error['rms_of_deviation']:.2%} of the deviation)",
        f"{large['clips']:,} clips in {large['shards']:,} shards: first batch after {large['start_s']:.2f} s, "
        f"index {large['index_mb']:.0f} MB; a worker uses {large['worker_private_mb']:.0f} MB of private memory, "
        f"{large['worker_pss_mb']:.0f} MB with its share of common pages ({large['worker_base_pss_mb']:.0f} MB "
        f"with a tiny archive)",
        f"load average at the start: {results['load_average']:.1f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
