"""Checks every byte of an archive: checksums against the manifest, every sample, every index.

    audio-mamba verify ARCHIVE_DIR

Names the bad shards and samples and exits with status 1 if there are any. Archives without a manifest or indexes, such
as published ones, are read in full as well.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audio_mamba.data.archives import archive_front_end, read_sample, tar_files, unfinished, unlisted_shards
from audio_mamba.data.crops import hole_frames, log_floor
from audio_mamba.data.manifest import MANIFEST_NAME, read_manifest
from audio_mamba.data.samples import ArchiveError
from audio_mamba.data.shard_files import ShardFiles
from audio_mamba.data.shard_index import (
    UNKNOWN,
    ShardIndex,
    describe_values,
    index_from_headers,
    index_path,
    misfit,
    saved_index,
)
from audio_mamba.front_end import PUBLISHED, FrontEnd, FrontEndError
from audio_mamba.system.atomic_files import sha256
from audio_mamba.system.terminal import given_path, quiet_exit

HOLE_FRAMES = 2  # this many successive frames of one value are not audio


def verify_archive(directory: str | Path, n_mels: int | None = None) -> Iterator[tuple[Path, int, list[str]]]:
    """Check an archive shard by shard.

    Args:
        directory: archive folder.
        n_mels: the mel bands that each spectrogram must have; None for the manifest's number.

    Yields:
        the path of a shard, the number of its samples, and what is wrong with it, a sentence each.

    Raises:
        ArchiveError: there is nothing to check, the archive is not complete, or its manifest is damaged.
        FrontEndError: n_mels is not a number of bands.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    front_end = archive_front_end(directory)
    if n_mels is not None:
        front_end = dataclasses.replace(front_end, n_mels=n_mels)
    entries: list[dict] = manifest["shards"] if manifest else [{"name": path.name} for path in tar_files(directory)]
    if not entries:
        raise ArchiveError(f"no shards (*.tar) in {directory}")
    if unfinished(directory):
        raise ArchiveError(f"{directory} is not complete: the same audio-mamba prepare command continues it")
    for entry in entries:
        path = directory / entry["name"]
        if not path.exists():
            yield path, 0, [f"{path}: no such file"]
            continue
        problems = _wrong_checksums(directory, entry.get("sha256", {}))
        count, found = verify_shard(path, front_end, len((manifest or {}).get("labels") or []))
        if manifest and count != entry["samples"]:
            found.append(f"{path}: holds {count} samples, but {MANIFEST_NAME} says {entry['samples']}")
        yield path, count, problems + found
    for path in unlisted_shards(directory, manifest) if manifest else []:
        yield path, 0, [f"{path}: {MANIFEST_NAME} does not list this shard, so it is not used"]


def verify_shard(path: Path, front_end: FrontEnd = PUBLISHED, classes: int = 0) -> tuple[int, list[str]]:
    """The number of samples in a shard, and what is wrong with it. `classes` bounds the label ids; 0 does not."""
    problems: list[str] = []
    index, files = index_from_headers(path, problems.append), ShardFiles(max_open=1)
    try:
        saved = saved_index(path)
        if saved is not None and not (saved.belongs_to(path) and _same_members(saved, index)):
            problems.append(misfit(path))
            saved = saved if _same_members(saved, index) else None
    except (ArchiveError, OSError) as error:
        saved = None
        problems.append(str(error))
    for number, key in enumerate(index.keys):
        place, name = index.places[number], key.decode(errors="replace")
        try:
            sample = read_sample(files, path, name, place, front_end.n_mels)
        except ArchiveError as error:
            problems.append(str(error))
            continue
        problem = _wrong_values(sample.spectrogram, front_end) or _wrong_labels(sample.labels, classes)
        if problem is None and saved is not None:
            member = files.read(path, place["data_offset"], place["data_size"])
            if not _describes(saved.places[number], place, member):
                problem = f"the values are not those that {index_path(path).name} describes"
        if problem:
            problems.append(f"{path}, sample {name}: {problem}")
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


def _wrong_values(spectrogram: np.ndarray, front_end: FrontEnd) -> str | None:
    """What is wrong with a decoded spectrogram [frames, mels], or None."""
    if not np.isfinite(spectrogram).all():
        return "the spectrogram holds NaN or Inf"
    frames = hole_frames(spectrogram, front_end)
    if frames >= min(HOLE_FRAMES, len(spectrogram)):
        return (
            f"{frames} successive frames hold one single value, which is not silence "
            f"({log_floor(front_end):.6g}); they may be a hole in the file"
        )
    return None


def _wrong_labels(labels: np.ndarray, classes: int) -> str | None:
    """What is wrong with the label ids of a sample, or None."""
    if len(labels) and labels.min() < 0:
        return f"the label id {labels.min()} is negative"
    if len(labels) and classes and labels.max() >= classes:
        return f"the label id {labels.max()} has no name among the {classes} of {MANIFEST_NAME}"
    return None


def _same_members(saved: ShardIndex, found: ShardIndex) -> bool:
    columns = ["data_offset", "data_size", "labels_offset", "labels_size"]
    return np.array_equal(saved.keys, found.keys) and all(
        np.array_equal(saved.places[column], found.places[column]) for column in columns
    )


def _describes(saved: np.void, place: np.void, member: bytes) -> bool:
    """Whether all that an index says about a sample is true; `place` is what the tar headers say."""
    expected = place.copy()
    describe_values(expected, member)
    columns = ["frames", "mels", "value_bytes"]
    if saved["values_offset"] != UNKNOWN:
        columns.append("values_offset")
    # Mean and deviation are rounded to float32, which may go either way.
    return all(saved[column] == expected[column] for column in columns) and np.allclose(
        [saved["mean"], saved["std"]], [expected["mean"], expected["std"]], rtol=1e-6, atol=1e-7
    )


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.data.verify") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("archive_dir", metavar="ARCHIVE_DIR", type=given_path, help="folder of shards")
    parser.add_argument(
        "--mels", type=int, help="mel bands that each spectrogram must have (default: as in the manifest, else 80)"
    )
    args = parser.parse_args(arguments)
    shards = samples = bad_shards = 0
    try:
        for _path, count, problems in tqdm(verify_archive(args.archive_dir, args.mels), desc="verifying", unit="shard"):
            shards, samples, bad_shards = shards + 1, samples + count, bad_shards + bool(problems)
            for problem in problems:
                tqdm.write(problem)
    except (ArchiveError, FrontEndError) as error:
        raise SystemExit(f"verify: {error}")
    if bad_shards:
        raise SystemExit(f"verify: {bad_shards} of {shards} shards are damaged")
    print(f"{args.archive_dir}: {shards} shards, {samples} samples, all good")


if __name__ == "__main__":
    with quiet_exit():
        main()
