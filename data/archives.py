"""Archives of log-mel spectrograms: folders of webdataset tar shards, each written whole or not at all.

A sample is two tar members (see `data.samples`). Beside each shard of ours lies its index (see `data.shard_index`), and
`manifest.json`, written last, lists the shards with their checksums.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import webdataset

from audio_mamba.data.samples import ArchiveError, Sample, decode_labels, decode_spectrogram, encode_members
from audio_mamba.data.shard_files import ShardFiles
from audio_mamba.data.shard_index import ShardIndex, read_index, save_index
from audio_mamba.front_end import FrontEnd, FrontEndError
from audio_mamba.system.atomic_files import atomic_write

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
UNFINISHED_NAME = "unfinished"  # what data.prepare keeps in a folder until the archive is complete
SHARD_PATTERN = "shard-{:06d}.tar"


# ---------------------------------------------------------------- writing


def write_shard(path: Path, samples: Iterable[Sample], as_pickle: bool = False) -> int:
    """Write samples, in the order given, and the index beside them. The same samples give the same bytes.

    Args:
        as_pickle: write members as published archives have them, pickled, instead of as .npy.

    Returns:
        the number of samples. For none at all, no file is written.
    """
    count = 0
    with contextlib.ExitStack() as stack:
        for sample in samples:
            if count == 0:
                file = stack.enter_context(atomic_write(path))
                tar = stack.enter_context(
                    webdataset.TarWriter(file, encoder=False, mtime=0, user="audio-mamba", group="audio-mamba")
                )
            tar.write({"__key__": sample.key} | encode_members(sample, as_pickle))
            count += 1
    if count:
        save_index(path)
    return count


def write_manifest(directory: Path, manifest: dict) -> None:
    """Write `manifest.json`; its presence means that the archive is complete."""
    with atomic_write(directory / MANIFEST_NAME) as file:
        file.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")


# ---------------------------------------------------------------- finding


def read_manifest(directory: Path) -> dict | None:
    """The manifest of an archive made by `data.prepare`, or None where there is none.

    Raises:
        ArchiveError: the file is there but is not a manifest.
    """
    path = directory / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
        if {"samples", "settings", "shards"} <= manifest.keys():
            return manifest
    except (ValueError, AttributeError):
        pass
    raise ArchiveError(f"{path} is not a manifest written by data.prepare")


def archive_front_end(directory: Path) -> FrontEnd:
    """The front end that an archive was made with; the published one for archives without a manifest.

    Raises:
        ArchiveError: the manifest is damaged.
    """
    manifest = read_manifest(directory)
    try:
        return FrontEnd.from_settings(manifest["settings"] if manifest else {})
    except (FrontEndError, AttributeError, TypeError) as error:
        raise ArchiveError(f"{directory / MANIFEST_NAME}: {error}") from error


def check_front_end(directory: str | Path, front_end: FrontEnd) -> None:
    """FrontEndError, naming each setting, for an archive that was made with another front end."""
    front_end.check_same(archive_front_end(Path(directory)), f"the archive {directory}")


def unfinished(directory: Path) -> bool:
    """Whether data.prepare still has shards of this folder to make."""
    return (directory / UNFINISHED_NAME).exists() and not (directory / MANIFEST_NAME).exists()


def expected_shards(directory: Path) -> dict[Path, int | None]:
    """The shards of an archive folder in order, each with the number of its samples, None where nothing tells it.

    A folder with a manifest has the shards it lists, even those that are lost; any other has all its `*.tar` files.

    Raises:
        ArchiveError: no shard, or a damaged manifest.
    """
    manifest = read_manifest(directory)
    if manifest is not None:
        return {directory / entry["name"]: entry["samples"] for entry in manifest["shards"]}
    expected = dict.fromkeys(sorted(directory.glob("*.tar")))
    if not expected:
        raise ArchiveError(f"no shards (*.tar) in {directory}; data.prepare makes them from audio files")
    return expected


def shard_indices(
    directory: str | Path, on_fault: Callable[[Path, str, int], None] | None = None
) -> list[tuple[Path, ShardIndex]]:
    """The shards of an archive folder in order, each with its index.

    Args:
        on_fault: called for each shard that is missing, damaged or at odds with the manifest, with its path, what is
            wrong and how many samples are lost, as far as known; what is left of the shard is used. None raises.

    Raises:
        ArchiveError: no shard, or no `on_fault` for a bad one.
    """
    directory = Path(directory)
    expected, shards = expected_shards(directory), []
    if unfinished(directory):
        logger.warning("%s is not complete: the same data.prepare command goes on with it", directory)
    for path, count in expected.items():
        problems = []
        index = read_index(path, problems.append)
        if not problems and count not in (None, len(index)):
            problems.append(f"{path} holds {len(index)} samples, but {MANIFEST_NAME} says {count}")
        if problems:
            if on_fault is None:
                raise ArchiveError("; ".join(problems))
            on_fault(path, "; ".join(problems), max(1, (count or 0) - len(index)))
        if len(index):
            shards.append((path, index))
    return shards


# ---------------------------------------------------------------- reading


def read_shard(path: str | Path) -> Iterator[Sample]:
    """All samples of a shard in order. Raises ArchiveError, naming shard and key, at the first bad one."""
    path, files = Path(path), ShardFiles(max_open=1)
    index = read_index(path)
    for key, place in zip(index.keys, index.places):
        yield read_sample(files, path, key.decode(), place)


def read_sample(files: ShardFiles, path: Path, key: str, place: np.void) -> Sample:
    """The sample at a place of the shard's index. Raises ArchiveError, naming shard and key, where it is bad."""
    try:
        spectrogram = decode_spectrogram(files.read(path, place["data_offset"], place["data_size"]))
        labels = np.zeros(0, np.int64)
        if place["labels_size"]:
            labels = decode_labels(files.read(path, place["labels_offset"], place["labels_size"]))
    except (OSError, ValueError) as error:
        raise ArchiveError(f"{path}, sample {key}: {error}") from error
    return Sample(key, spectrogram, labels)
