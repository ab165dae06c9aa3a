"""Archives of log-mel spectrograms: folders of webdataset tar shards, each written whole or not at all.

A sample is two tar members (see `data.samples`). `data.prepare` writes an index beside each shard (see
`data.shard_index`), and last `manifest.json`, which lists the shards with their checksums.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import webdataset

from audio_mamba.data.manifest import MANIFEST_NAME, read_manifest
from audio_mamba.data.samples import ArchiveError, Sample, decode_labels, decode_spectrogram, encode_members
from audio_mamba.data.shard_files import ShardFiles
from audio_mamba.data.shard_index import ShardIndex, read_index, save_index
from audio_mamba.front_end import FrontEnd, FrontEndError
from audio_mamba.system.atomic_files import atomic_write

logger = logging.getLogger(__name__)

UNFINISHED_NAME = "unfinished"  # what data.prepare keeps in a folder until the archive is complete
SHARD_PATTERN = "shard-{:06d}.tar"


# ---------------------------------------------------------------- writing


def write_shard(path: Path, samples: Iterable[Sample], as_pickle: bool = False) -> int:
    """Write samples, in the order given, and the index beside them. The same samples give the same bytes.

    Args:
        path: of the tar file.
        samples: with keys that differ.
        as_pickle: write the members pickled, as in published archives, instead of as .npy and JSON.

    Returns:
        the number of samples. If there are none, no file is written.
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


def archive_front_end(directory: Path) -> FrontEnd:
    """The front end that an archive was made with; the published one for archives without a manifest.

    Raises:
        ArchiveError: the manifest is damaged.
    """
    manifest = read_manifest(directory)
    try:
        return FrontEnd.from_settings(manifest["settings"] if manifest else {}).of_archives()
    except (FrontEndError, TypeError) as error:
        raise ArchiveError(f"{directory / MANIFEST_NAME}: {error}") from error


def check_front_end(directory: str | Path, front_end: FrontEnd) -> None:
    """FrontEndError, naming each differing setting, for an archive that was made with another front end."""
    front_end.of_archives().check_same(archive_front_end(Path(directory)), f"the archive {directory}")


def unfinished(directory: Path) -> bool:
    """Whether data.prepare still has shards of this folder to make."""
    return (directory / UNFINISHED_NAME).exists() and not (directory / MANIFEST_NAME).exists()


def tar_files(directory: Path) -> list[Path]:
    """The `*.tar` files of a folder in order, without hidden ones."""
    return sorted(path for path in directory.glob("*.tar") if not path.name.startswith("."))


def unlisted_shards(directory: Path, manifest: dict) -> list[Path]:
    """The tar files of a folder that its manifest does not list."""
    listed = {entry["name"] for entry in manifest["shards"]}
    return [path for path in tar_files(directory) if path.name not in listed]


def expected_shards(directory: Path) -> dict[Path, int | None]:
    """The shards of an archive folder in order, each with the number of its samples, None where it is not known.

    A folder with a manifest has the shards it lists, including lost ones; any other has all its `*.tar` files. A
    warning counts the tar files that a manifest does not list.

    Raises:
        ArchiveError: no shard, or a damaged manifest.
    """
    manifest = read_manifest(directory)
    expected: dict[Path, int | None]
    if manifest is None:
        expected = dict.fromkeys(tar_files(directory))
    else:
        expected = {directory / entry["name"]: entry["samples"] for entry in manifest["shards"]}
        warn_of_unlisted(directory, manifest)
    if not expected:
        raise ArchiveError(f"no shards (*.tar) in {directory}; audio-mamba prepare makes them from audio files")
    return expected


def warn_of_unlisted(directory: Path, manifest: dict) -> None:
    """One warning for all tar files that the manifest does not list."""
    if unlisted := unlisted_shards(directory, manifest):
        logger.warning(
            "%s does not list %d tar file(s) of its folder, which are not used, such as %s",
            directory / MANIFEST_NAME,
            len(unlisted),
            unlisted[0].name,
        )


def shard_indices(
    directory: str | Path, on_fault: Callable[[Path, str, int], None] | None = None
) -> list[tuple[Path, ShardIndex]]:
    """The shards of an archive folder in order, each with its index.

    Args:
        directory: archive folder.
        on_fault: called for each shard that is missing, damaged or contradicts the manifest, with its path, what is
            wrong and how many samples are lost, as far as known; its good samples are used. None raises instead.

    Raises:
        ArchiveError: no shard, or no `on_fault` for a bad one.
    """
    directory = Path(directory)
    expected, shards = expected_shards(directory), []
    if unfinished(directory):
        logger.warning("%s is not complete: the same audio-mamba prepare command continues it", directory)
    for path, count in expected.items():
        problems: list[str] = []
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
    """All samples of a shard in order. ArchiveError, naming shard and key, at the first bad one."""
    path, files = Path(path), ShardFiles(max_open=1)
    index = read_index(path)
    for key, place in zip(index.keys, index.places):
        yield read_sample(files, path, key.decode(), place)


def read_sample(files: ShardFiles, path: Path, key: str, place: np.void, n_mels: int | None = None) -> Sample:
    """The sample at a place of the shard's index. ArchiveError, naming shard and key, if it is bad, or has another
    number of mel bands than `n_mels`."""
    try:
        spectrogram = decode_spectrogram(files.read(path, place["data_offset"], place["data_size"]), n_mels)
        labels = np.zeros(0, np.int64)
        if place["labels_size"]:
            labels = decode_labels(files.read(path, place["labels_offset"], place["labels_size"]))
    except (OSError, ValueError) as error:
        raise ArchiveError(f"{path}, sample {key}: {error}") from error
    return Sample(key, spectrogram, labels)
