"""Checks every byte of an archive: checksums against the manifest, every sample, every index.

    python -m data.verify ARCHIVE_DIR

Ends with status 1 and the names of the bad shards and samples where there are any. Archives without a manifest or
indices, such as published ones, are read through as well.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from audio_mamba.data.archives import MANIFEST_NAME, archive_front_end, read_manifest, read_sample, unfinished
from audio_mamba.data.normalisation import clip_statistics
from audio_mamba.data.samples import ArchiveError
from audio_mamba.data.shard_files import ShardFiles
from audio_mamba.data.shard_index import ShardIndex, index_from_headers, index_path, saved_index
from audio_mamba.front_end import PUBLISHED
from audio_mamba.system.atomic_files import sha256


def verify_archive(directory: str | Path, n_mels: int | None = None) -> Iterator[tuple[Path, int, list[str]]]:
    """Check an archive shard by shard.

    n_mels: the mel bands that each spectrogram must have; None for those of the manifest.

    Yields:
        the path of a shard, the number of its samples, and what is wrong with it, a sentence each.

    Raises:
        ArchiveError: there is nothing to check, the archive is not complete, or its manifest is damaged.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    n_mels = n_mels or archive_front_end(directory).n_mels
    if manifest is None:
        paths = sorted(directory.glob("*.tar"))
        if not paths:
            raise ArchiveError(f"no shards (*.tar) in {directory}")
        if unfinished(directory):
            raise ArchiveError(f"{directory} is not complete: the same data.prepare command goes on with it")
        for path in paths:
            yield path, *verify_shard(path, n_mels)
        return
    for entry in manifest["shards"]:
        path = directory / entry["name"]
        if not path.exists():
            yield path, 0, [f"{path}: no such file"]
            continue
        problems = _wrong_checksums(directory, entry.get("sha256", {}))
        count, found = verify_shard(path, n_mels)
        if count != entry["samples"]:
            found.append(f"{path}: holds {count} samples, but {MANIFEST_NAME} says {entry['samples']}")
        yield path, count, problems + found


def verify_shard(path: Path, n_mels: int = PUBLISHED.n_mels) -> tuple[int, list[str]]:
    """The number of samples in a shard, and what is wrong with it."""
    problems: list[str] = []
    index, files = index_from_headers(path, problems.append), ShardFiles(max_open=1)
    try:
        saved = saved_index(path)
    except ArchiveError as error:
        saved = None
        problems.append(str(error))
    if saved is not None and not _fits(saved[1], index):
        problems.append(f"{index_path(path)} does not belong to this shard")
        saved = None
    for number, key in enumerate(index.keys):
        name = key.decode(errors="replace")
        try:
            spectrogram = read_sample(files, path, name, index.places[number]).spectrogram
        except ArchiveError as error:
            problems.append(str(error))
            continue
        if spectrogram.shape[1] != n_mels:
            problems.append(f"{path}, sample {name}: has {spectrogram.shape[1]} mel bands, but {n_mels} are expected")
        elif not np.isfinite(spectrogram).all():
            problems.append(f"{path}, sample {name}: the spectrogram holds NaN or Inf")
        elif saved is not None and not _statistics_fit(saved[1].places[number], spectrogram):
            problems.append(f"{path}, sample {name}: the values are not those that {index_path(path).name} describes")
    return len(index), problems


def _wrong_checksums(directory: Path, checksums: dict[str, str]) -> list[str]:
    problems = []
    for name, expected in checksums.items():
        try:
            if sha256(directory / name) != expected:
                problems.append(f"{directory / name}: its checksum is not that of {MANIFEST_NAME}")
        except OSError as error:
            problems.append(f"{directory / name}: cannot be read ({error})")
    return problems


def _fits(saved: ShardIndex, found: ShardIndex) -> bool:
    columns = ["data_offset", "data_size", "labels_offset", "labels_size"]
    return np.array_equal(saved.keys, found.keys) and all(
        np.array_equal(saved.places[column], found.places[column]) for column in columns
    )


def _statistics_fit(place: np.void, spectrogram: np.ndarray) -> bool:
    expected = [value.item() for value in clip_statistics(torch.from_numpy(spectrogram).double(), ddof=0)]
    # Both are rounded to float32, which may go either way.
    close = np.allclose([place["mean"], place["std"]], expected, rtol=1e-6, atol=1e-7)
    return close and (place["frames"], place["mels"]) == spectrogram.shape


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.data.verify") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("archive_dir", metavar="ARCHIVE_DIR", type=Path, help="folder of shards")
    parser.add_argument(
        "--mels", type=int, help="mel bands that each spectrogram must have (default: those of the manifest, else 80)"
    )
    args = parser.parse_args(arguments)
    shards = samples = bad_shards = 0
    try:
        for _path, count, problems in tqdm(verify_archive(args.archive_dir, args.mels), desc="verifying", unit="shard"):
            shards, samples, bad_shards = shards + 1, samples + count, bad_shards + bool(problems)
            for problem in problems:
                tqdm.write(problem)
    except ArchiveError as error:
        raise SystemExit(f"verify: {error}")
    if bad_shards:
        raise SystemExit(f"verify: {bad_shards} of {shards} shards are damaged")
    print(f"{args.archive_dir}: {shards} shards, {samples} samples, all good")


if __name__ == "__main__":
    main()
