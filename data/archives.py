"""Archives of log-mel spectrograms: webdataset tar shards, written whole or not at all, read at any place.

A sample is two tar members: `<key>.data.pyd`, the log-mel [frames, mels], not normalised, and `<key>.target.pyd`, the
label ids. Ours hold .npy bytes, published ones pickled arrays; both are read. Beside each shard of ours lies
`<shard>.index.npz`, which says where its members are; for others the tar headers tell.
"""

import contextlib
import dataclasses
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import webdataset
from webdataset.tariterators import base_plus_ext

from data import array_bytes

DATA_MEMBER = "data.pyd"
LABELS_MEMBER = "target.pyd"
MANIFEST_NAME = "manifest.json"
SHARD_PATTERN = "shard-{:06d}.tar"
PARTIAL_SUFFIX = ".partial"
TAR_BLOCK = 512


class ArchiveError(ValueError):
    """A shard or sample that cannot be used; the message names it."""


class Sample(NamedTuple):
    key: str                     # no dots; unique within the archive
    spectrogram: np.ndarray      # float16 or float32 [frames, mels]
    labels: np.ndarray           # int64 [number of labels], may be empty


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """Where the members of a shard's n samples are. Further arrays per sample may be added to the saved form."""

    keys: np.ndarray             # bytes [n]
    data_offset: np.ndarray      # int64 [n]
    data_size: np.ndarray        # int64 [n]
    labels_offset: np.ndarray    # int64 [n]
    labels_size: np.ndarray      # int64 [n], 0 where a sample has no labels member

    def __len__(self) -> int:
        return len(self.keys)


# ---------------------------------------------------------------- writing

@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when complete and on the disk; after an error, not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_shard(path: Path, samples: Iterable[Sample]) -> int:
    """Write samples, in the order given, and the index beside them. The same samples give the same bytes.

    Returns:
        the number of samples. For none at all, no file is written.
    """
    count = 0
    with contextlib.ExitStack() as stack:
        for sample in samples:
            if count == 0:
                file = stack.enter_context(atomic_write(path))
                tar = stack.enter_context(
                    webdataset.TarWriter(file, encoder=False, mtime=0, user="audio-mamba", group="audio-mamba"))
            tar.write({"__key__": sample.key, DATA_MEMBER: array_bytes.encode(sample.spectrogram),
                       LABELS_MEMBER: array_bytes.encode(sample.labels)})
            count += 1
    if count:
        _save_index(path)
    return count


def _save_index(shard: Path) -> None:
    with atomic_write(_index_path(shard)) as file:
        np.savez(file, shard_bytes=shard.stat().st_size, **dataclasses.asdict(index_from_headers(shard)))


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


def shard_indices(directory: str | Path) -> list[tuple[Path, ShardIndex]]:
    """The shards of an archive folder in order, each with its index.

    A folder with a manifest has the shards it lists; any other has all its `*.tar` files.

    Raises:
        ArchiveError: no shard, a missing or damaged one, or one that disagrees with the manifest.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if manifest is None:
        paths = sorted(directory.glob("*.tar"))
        if not paths:
            raise ArchiveError(f"no shards (*.tar) in {directory}; data.prepare makes them from audio files")
        return [(path, read_index(path)) for path in paths]
    shards = []
    for entry in manifest["shards"]:
        path = directory / entry["name"]
        index = read_index(path)
        if len(index) != entry["samples"]:
            raise ArchiveError(f"{path} holds {len(index)} samples, but {MANIFEST_NAME} says {entry['samples']}")
        shards.append((path, index))
    return shards


def read_index(shard: Path) -> ShardIndex:
    """The saved index of a shard where it fits the shard's size, else one made from the tar headers."""
    path = _index_path(shard)
    if shard.exists() and path.exists():
        try:
            with np.load(path, allow_pickle=False) as saved:
                if int(saved["shard_bytes"]) == shard.stat().st_size:
                    return ShardIndex(**{field.name: saved[field.name] for field in dataclasses.fields(ShardIndex)})
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ArchiveError(f"{path} is damaged ({error}); delete it, and the shard itself is read") from error
    return index_from_headers(shard)


def index_from_headers(shard: Path) -> ShardIndex:
    """Walk the headers of a tar file. Keys follow webdataset: all up to the first dot of the file name.

    Raises:
        ArchiveError: the shard is missing, cut off or no plain tar, or a key has no data or has it twice.
    """
    places: dict[str, dict[str, tuple[int, int]]] = {}      # key -> member -> (offset, size)
    try:
        with open(shard, "rb") as file:
            end = 0
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    end = member.offset_data + -(-member.size // TAR_BLOCK) * TAR_BLOCK
                    key, extension = base_plus_ext(member.name)
                    if not member.isreg() or extension not in (DATA_MEMBER, LABELS_MEMBER):
                        continue
                    if extension in places.setdefault(key, {}):
                        raise ArchiveError(f"{shard}: two members {key}.{extension}")
                    places[key][extension] = (member.offset_data, member.size)
            # tarfile takes a damaged header for the end of the archive; a true end is two blocks of zeros.
            file.seek(end)
            if file.read(2 * TAR_BLOCK) != bytes(2 * TAR_BLOCK):
                raise ArchiveError(f"{shard}: cut off or damaged at byte {end}, after {len(places)} samples")
    except (OSError, tarfile.TarError) as error:
        raise ArchiveError(f"{shard}: cannot be read as a tar file ({error})") from error
    if not places:
        raise ArchiveError(f"{shard}: holds no <key>.{DATA_MEMBER} members")
    for key, members in places.items():
        if DATA_MEMBER not in members:
            raise ArchiveError(f"{shard}: sample {key} has no {key}.{DATA_MEMBER}")
    data = np.array([members[DATA_MEMBER] for members in places.values()], np.int64)                 # [n, 2]
    labels = np.array([members.get(LABELS_MEMBER, (0, 0)) for members in places.values()], np.int64)
    keys = np.array([key.encode() for key in places])
    return ShardIndex(keys, data[:, 0], data[:, 1], labels[:, 0], labels[:, 1])


def _index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.npz")


# ---------------------------------------------------------------- reading

class ShardFiles:
    """Reads byte ranges of many shards, with at most `max_open` of them open at a time.

    Reads carry their own offset, so a forked process may share the open files; a pickled copy opens its own.
    """

    def __init__(self, max_open: int = 64):
        self.max_open = max_open
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()      # least recently used first

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer where the file ends before. Raises OSError where it cannot be read."""
        if path not in self._open:
            self._open[path] = open(path, "rb", buffering=0)
            if len(self._open) > self.max_open:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return os.pread(self._open[path].fileno(), size, offset)

    def __getstate__(self) -> dict:
        return {"max_open": self.max_open}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


def decode_spectrogram(data: bytes) -> np.ndarray:
    """A data member's bytes as a float [frames, mels] array of at least one frame; ValueError for anything else."""
    spectrogram = array_bytes.decode(data)
    if spectrogram.dtype.kind != "f" or spectrogram.ndim != 2 or 0 in spectrogram.shape:
        raise ValueError(f"a {spectrogram.dtype} array of shape {list(spectrogram.shape)} is not a "
                         "spectrogram (floats of shape [frames, mels])")
    return spectrogram


def decode_labels(data: bytes) -> np.ndarray:
    """A labels member's bytes as int64 [number of labels]; ValueError for anything else."""
    labels = np.atleast_1d(array_bytes.decode(data))
    if labels.ndim != 1 or labels.size and labels.dtype.kind not in "iu":
        raise ValueError(f"a {labels.dtype} array of shape {list(labels.shape)} is not a list of label ids")
    return labels.astype(np.int64)


def read_shard(path: str | Path) -> Iterator[Sample]:
    """All samples of a shard in order. Raises ArchiveError, naming shard and key, at the first bad one."""
    path, files = Path(path), ShardFiles(max_open=1)
    index = read_index(path)
    for i, key in enumerate(index.keys):
        try:
            spectrogram = decode_spectrogram(files.read(path, index.data_offset[i], index.data_size[i]))
            labels = np.zeros(0, np.int64)
            if index.labels_size[i]:
                labels = decode_labels(files.read(path, index.labels_offset[i], index.labels_size[i]))
        except (OSError, ValueError) as error:
            raise ArchiveError(f"{path}, sample {key.decode()}: {error}") from error
        yield Sample(key.decode(), spectrogram, labels)
