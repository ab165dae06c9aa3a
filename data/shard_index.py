"""Where the samples of a shard lie, and what a crop of one needs to be normalised.

`<shard>.index.npz` beside a shard tells of each sample where its members are, where the plain values of its spectrogram
begin, and their mean and deviation; so a crop is read in place, and no more than the crop. `data.prepare` writes it for
shards of ours and `data.index` for others. Without it the tar headers tell where the members are, and no more.
"""

import dataclasses
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from webdataset.tariterators import base_plus_ext

from audio_mamba.data.normalisation import clip_statistics
from audio_mamba.data.samples import DATA_MEMBER, LABELS_MEMBER, ArchiveError, decode_spectrogram
from audio_mamba.system.atomic_files import atomic_write

TAR_BLOCK = 512
UNKNOWN = -1

PLACE = np.dtype(
    [
        ("data_offset", "<i8"),
        ("data_size", "<i8"),  # the member of the spectrogram, in bytes of the shard
        ("labels_offset", "<i8"),
        ("labels_size", "<i8"),  # that of the labels; size 0 where a sample has none
        ("values_offset", "<i8"),  # the first value, row by row, little-endian; or UNKNOWN
        ("frames", "<i4"),
        ("mels", "<i4"),  # shape of the spectrogram
        ("value_bytes", "<i4"),  # 2, 4 or 8: float16, float32 or float64
        ("mean", "<f4"),
        ("std", "<f4"),  # over the whole clip, ddof 0
    ]
)


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    keys: np.ndarray  # bytes [n]
    places: np.ndarray  # PLACE [n]

    def __len__(self) -> int:
        return len(self.keys)


def refuse(problem: str) -> None:
    """What is done about a damaged shard unless the caller knows better."""
    raise ArchiveError(problem)


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.npz")


def save_index(
    shard: Path, report: Callable[[str], None] = refuse, before_sample: Callable[[], None] = lambda: None
) -> ShardIndex | None:
    """Read a whole shard, and write its index beside it.

    Args:
        report: called with each problem, in words; by default it raises ArchiveError. Where it returns, a sample that
            cannot be decoded stands in the index as the headers have it, so that whoever reads it meets the problem.
        before_sample: called before each sample is read; what it raises ends the work without an index.

    Returns:
        what was written; None, and no index, for a shard with damaged headers, since the index would hide the damage.
    """
    damage: list[str] = []
    index = index_from_headers(shard, damage.append)
    if damage:
        for problem in damage:
            report(problem)
        return None
    with open(shard, "rb") as file, np.errstate(over="ignore", invalid="ignore"):  # values too large, or NaN
        for key, place in zip(index.keys, index.places):
            before_sample()
            try:
                file.seek(place["data_offset"])
                _describe_values(place, file.read(place["data_size"]))
            except (OSError, ValueError) as error:
                report(f"{shard}, sample {key.decode(errors='replace')}: {error}")
    with atomic_write(index_path(shard)) as file:
        np.savez(file, shard_bytes=shard.stat().st_size, keys=index.keys, places=index.places)
    return index


def _describe_values(place: np.void, member: bytes) -> None:
    spectrogram = decode_spectrogram(member)
    place["frames"], place["mels"] = spectrogram.shape
    place["value_bytes"] = spectrogram.itemsize
    mean, std = clip_statistics(torch.from_numpy(spectrogram).double(), ddof=0)
    place["mean"], place["std"] = mean.item(), std.item()
    # Both .npy and pickles hold the values as they are (except the oldest pickles, which quote them).
    start = member.find(spectrogram.astype(spectrogram.dtype.newbyteorder("<")).tobytes())
    if start >= 0 and np.isfinite(place["std"]):  # NaN and Inf are better told of by who reads the whole clip
        place["values_offset"] = place["data_offset"] + start


def saved_index(shard: Path) -> tuple[int, ShardIndex] | None:
    """The index saved beside a shard and the size of the shard it belongs to, or None where there is none.

    Raises:
        ArchiveError: the file is there but is damaged.
    """
    path = index_path(shard)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            index = ShardIndex(saved["keys"], saved["places"])
            if index.places.dtype != PLACE or index.keys.dtype.kind != "S" or len(index.places) != len(index.keys):
                raise ValueError("it has other columns than data.prepare writes")
            return int(saved["shard_bytes"]), index
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        SyntaxError,
        MemoryError,
        OverflowError,
        NotImplementedError,
    ) as error:
        raise ArchiveError(f"{path} is damaged ({error}); without this file the shard itself is read") from error


def fitting_index(shard: Path) -> ShardIndex | None:
    """The saved index of a shard where it fits the shard's size, else None. Raises ArchiveError where it is damaged."""
    saved = saved_index(shard)
    return saved[1] if saved is not None and shard.exists() and saved[0] == shard.stat().st_size else None


def read_index(shard: Path, report: Callable[[str], None] = refuse) -> ShardIndex:
    """The saved index of a shard where it fits the shard's size, else one made from the tar headers.

    `report` is called with each problem, in words; by default it raises ArchiveError.
    """
    try:
        index = fitting_index(shard)
        if index is not None:
            return index
    except ArchiveError as error:
        report(str(error))
    return index_from_headers(shard, report)


def index_from_headers(shard: Path, report: Callable[[str], None] = refuse) -> ShardIndex:
    """Walk the headers of a tar file. Keys follow webdataset: all up to the first dot of the file name.

    `report` is called with each problem: the shard is missing, cut off or no plain tar, or a key has no data or has it
    twice. By default it raises ArchiveError; where it returns, the samples that are whole make the index.
    """
    members: dict[str, dict[str, tuple[int, int]]] = {}  # key -> member -> (offset, size)
    if not shard.is_file():
        report(f"{shard}: no such file")
        return ShardIndex(np.zeros(0, "S"), np.zeros(0, PLACE))
    try:
        _walk(shard, members, report)
    except (OSError, ValueError, tarfile.TarError) as error:  # ValueError: a damaged header with absurd numbers
        if isinstance(error, ArchiveError):
            raise
        report(f"{shard}: cannot be read as a tar file ({error})")
    for key in [key for key, found in members.items() if DATA_MEMBER not in found]:
        report(f"{shard}: sample {key} has no {key}.{DATA_MEMBER}")
        del members[key]
    if not members:
        report(f"{shard}: holds no <key>.{DATA_MEMBER} members")
    places = np.zeros(len(members), PLACE)
    places["values_offset"] = UNKNOWN
    for place, found in zip(places, members.values()):
        place["data_offset"], place["data_size"] = found[DATA_MEMBER]
        place["labels_offset"], place["labels_size"] = found.get(LABELS_MEMBER, (0, 0))
    return ShardIndex(np.array([key.encode(errors="surrogateescape") for key in members], "S"), places)


def _walk(shard: Path, members: dict[str, dict[str, tuple[int, int]]], report: Callable[[str], None]) -> None:
    """Fill `members` from the headers, as far as they can be read."""
    shard_bytes, end = shard.stat().st_size, 0
    with open(shard, "rb") as file:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // TAR_BLOCK) * TAR_BLOCK
                key, extension = base_plus_ext(member.name)
                if not member.isreg() or extension not in (DATA_MEMBER, LABELS_MEMBER) or end > shard_bytes:
                    continue
                if extension in members.setdefault(key, {}):
                    report(f"{shard}: two members {key}.{extension}")
                members[key][extension] = (member.offset_data, member.size)
        # tarfile takes a damaged header for the end of the archive; a true end is two blocks of zeros.
        file.seek(end)
        if file.read(2 * TAR_BLOCK) != bytes(2 * TAR_BLOCK):
            report(f"{shard}: cut off or damaged at byte {end}, after {len(members)} samples")
