"""Where the samples of a shard are, and what a crop of one needs to be normalised.

`<shard>.index.npz` beside a shard holds for each sample where its members are, where the plain values of its
spectrogram begin, and their mean and deviation; so a crop is read in place, and nothing but the crop. `data.prepare`
writes it for its shards and `data.index` for others. Without it, the tar headers give the places of the members only.

An index belongs to a shard of the same size whose first and last 64 KiB have the same digest. Indexes of earlier
versions have no digest; for them the size decides.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from webdataset.tariterators import base_plus_ext

from audio_mamba.data.array_bytes import NPZ_ERRORS
from audio_mamba.data.normalisation import clip_statistics
from audio_mamba.data.samples import DATA_MEMBERS, LABELS_MEMBERS, VALUE_BYTES, ArchiveError, decode_spectrogram
from audio_mamba.data.tar_members import tar_members
from audio_mamba.system.atomic_files import atomic_write

UNKNOWN = -1
DIGEST_BYTES = 1 << 16  # at each end of a shard

PLACE = np.dtype(
    [
        ("data_offset", "<i8"),
        ("data_size", "<i8"),  # the member of the spectrogram, in bytes of the shard
        ("labels_offset", "<i8"),
        ("labels_size", "<i8"),  # the member of the labels; size 0 for a sample without one
        ("values_offset", "<i8"),  # the first value, row by row, little-endian; or UNKNOWN
        ("frames", "<i4"),
        ("mels", "<i4"),  # shape of the spectrogram; 0 where unknown
        ("value_bytes", "<i4"),  # 2, 4 or 8: float16, float32 or float64; 0 where unknown
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


@dataclasses.dataclass(frozen=True)
class SavedIndex(ShardIndex):
    """An index as it was saved, with what tells its shard from others."""

    shard_bytes: int
    digest: str | None  # None in indexes of earlier versions

    def belongs_to(self, shard: Path) -> bool:
        """Whether the shard has the size and the digest that the index was made from. OSError where it is missing."""
        return self.shard_bytes == shard.stat().st_size and self.digest in (None, short_digest(shard))


def refuse(problem: str) -> None:
    """The default way to report a problem of a shard."""
    raise ArchiveError(problem)


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.npz")


def short_digest(shard: Path) -> str:
    """SHA-256, in hex digits, of the first and the last 64 KiB of a file. OSError where it cannot be read."""
    with open(shard, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(os.pread(file.fileno(), DIGEST_BYTES, 0))
        digest.update(os.pread(file.fileno(), DIGEST_BYTES, max(0, size - DIGEST_BYTES)))
    return digest.hexdigest()


# ---------------------------------------------------------------- writing


def save_index(
    shard: Path, report: Callable[[str], None] = refuse, before_sample: Callable[[], None] = lambda: None
) -> ShardIndex | None:
    """Read a whole shard, and write its index beside it.

    Args:
        shard: path of the tar file.
        report: called with each problem, a sentence; by default it raises ArchiveError. If it returns, the index has
            only the header's entries for a sample that cannot be decoded, so that its reader finds the same problem.
        before_sample: called before each sample is read; what it raises ends the work without an index.

    Returns:
        what was written; None, and no index, for a damaged tar file, since the index would hide the damage.
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
                describe_values(place, file.read(place["data_size"]))
            except (OSError, ValueError) as error:
                report(f"{shard}, sample {key.decode(errors='replace')}: {error}")
    with atomic_write(index_path(shard)) as file:
        np.savez(
            file,
            shard_bytes=shard.stat().st_size,
            shard_digest=short_digest(shard),
            keys=index.keys,
            places=index.places,
        )
    return index


def describe_values(place: np.void, member: bytes) -> None:
    """Fill in what an index says about the values of a data member. ValueError for anything but a spectrogram."""
    spectrogram = decode_spectrogram(member)
    place["frames"], place["mels"] = spectrogram.shape
    place["value_bytes"] = spectrogram.itemsize
    mean, std = clip_statistics(torch.from_numpy(spectrogram).double(), ddof=0)
    place["mean"], place["std"] = float(mean), float(std)
    # Both .npy and pickles hold the values as they are (except the oldest pickles, which quote them).
    start = member.find(spectrogram.astype(spectrogram.dtype.newbyteorder("<")).tobytes())
    if start >= 0 and np.isfinite(place["std"]):  # the reader of the whole clip reports NaN and Inf
        place["values_offset"] = place["data_offset"] + start


# ---------------------------------------------------------------- reading


def saved_index(shard: Path) -> SavedIndex | None:
    """The index saved beside a shard, whether or not it belongs to it; None if there is none.

    Raises:
        ArchiveError: the index file is damaged.
    """
    path = index_path(shard)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            digest = str(saved["shard_digest"]) if "shard_digest" in saved else None
            index = SavedIndex(saved["keys"], saved["places"], int(saved["shard_bytes"]), digest)
        _check_form(index)
        return index
    except NPZ_ERRORS as error:
        raise ArchiveError(f"{path} is damaged ({error}); remove it, and the shard itself is read") from error


def _check_form(index: SavedIndex) -> None:
    """ValueError for an index that no shard can have."""
    keys, places = index.keys, index.places
    if places.dtype != PLACE or keys.dtype.kind != "S" or keys.ndim != 1 or places.shape != keys.shape:
        raise ValueError("its keys and places must be two columns of the same length")
    described = places["values_offset"] != UNKNOWN
    begin, size, values = places["data_offset"], places["data_size"], places["values_offset"]
    frames, mels, value_bytes = places["frames"], places["mels"], places["value_bytes"]
    values_end = values + frames.astype(np.float64) * mels * value_bytes  # float64 cannot overflow here
    wrong = {
        "a member is outside the shard": (begin < 0) | (size < 0) | (begin > index.shard_bytes - size),
        "labels are outside the shard": (places["labels_offset"] < 0)
        | (places["labels_size"] < 0)
        | (places["labels_offset"] > index.shard_bytes - places["labels_size"]),
        "a shape must be positive": (frames < described) | (mels < described),
        "values must have 2, 4 or 8 bytes": described & ~np.isin(value_bytes, VALUE_BYTES),
        "values are outside their member": described & ((values < begin) | (values_end > begin + size)),
        "a mean or deviation is invalid": described
        & ~((places["std"] >= 0) & np.isfinite(places["mean"] + places["std"])),
    }
    for problem, where in wrong.items():
        if where.any():
            raise ValueError(f"sample {keys[where][0].decode(errors='replace')}: {problem}")


def fitting_index(shard: Path) -> SavedIndex | None:
    """The saved index of a shard if it belongs to it, else None. Raises ArchiveError if it is damaged."""
    saved = saved_index(shard)
    return saved if saved is not None and shard.exists() and saved.belongs_to(shard) else None


def read_index(shard: Path, report: Callable[[str], None] = refuse) -> ShardIndex:
    """The saved index of a shard if it belongs to it, else one made from the tar headers.

    An index of a shard of another size is ignored as out of date. One with the right size but another digest is
    reported, since either of the two may be damaged.

    `report` is called with each problem, a sentence; by default it raises ArchiveError.
    """
    problem = None
    try:
        saved = saved_index(shard)
        if saved is not None and shard.is_file() and saved.shard_bytes == shard.stat().st_size:
            if saved.belongs_to(shard):
                return saved
            problem = misfit(shard)
    except (ArchiveError, OSError) as error:
        problem = str(error)
    if problem:
        report(problem)
    return index_from_headers(shard, report)


def misfit(shard: Path) -> str:
    """What is said about an index that does not belong to its shard."""
    return f"{index_path(shard)} does not belong to this shard: its size or its first or last 64 KiB are different"


def index_from_headers(shard: Path, report: Callable[[str], None] = refuse) -> ShardIndex:
    """An index from the headers of a tar file. Keys follow webdataset: all up to the first dot of the file name.

    `report` is called with each problem, a sentence: the shard is missing, cut off, damaged or not a plain tar file,
    or a key has no data or has it twice. By default it raises ArchiveError; if it returns, the index has the samples
    that are whole.
    """
    members: dict[str, dict[str, tuple[int, int]]] = {}  # key -> "data" or "labels" -> (offset, size)
    if not shard.is_file():
        report(f"{shard}: no such file")
        return ShardIndex(np.zeros(0, "S"), np.zeros(0, PLACE))
    try:
        _walk(shard, members, report)
    except OSError as error:
        report(f"{shard}: cannot be read ({error})")
    for key in [key for key, found in members.items() if "data" not in found]:
        report(f"{shard}: sample {key} has no {' or '.join(f'{key}.{member}' for member in DATA_MEMBERS)}")
        del members[key]
    if not members:
        report(f"{shard}: holds no <key>.{' or <key>.'.join(DATA_MEMBERS)} members")
    places = np.zeros(len(members), PLACE)
    places["values_offset"] = UNKNOWN
    for place, found in zip(places, members.values()):
        place["data_offset"], place["data_size"] = found["data"]
        place["labels_offset"], place["labels_size"] = found.get("labels", (0, 0))
    return ShardIndex(np.array([key.encode(errors="surrogateescape") for key in members], "S"), places)


def _walk(shard: Path, members: dict[str, dict[str, tuple[int, int]]], report: Callable[[str], None]) -> None:
    """Fill `members` from the headers, as far as they can be read."""
    kinds = dict.fromkeys(DATA_MEMBERS, "data") | dict.fromkeys(LABELS_MEMBERS, "labels")
    shard_bytes = shard.stat().st_size
    with open(shard, "rb") as file:
        for member in tar_members(file, lambda problem: report(f"{shard}: {problem}")):
            key, extension = base_plus_ext(member.name)
            if not member.isreg() or extension not in kinds or member.offset_data + member.size > shard_bytes:
                continue
            if kinds[extension] in members.setdefault(key, {}):
                report(f"{shard}: two members {key}.{extension}")
            members[key][kinds[extension]] = (member.offset_data, member.size)
