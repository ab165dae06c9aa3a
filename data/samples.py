"""One sample of an archive, and the bytes of its two members.

The data member is the log-mel [frames, mels], not normalised; the labels member holds the label ids. By format:

    npy         <key>.data.npy, <key>.target.json     plain webdataset decodes both
    pickle      <key>.data.pyd, <key>.target.pyd      as in published archives
    older npy   the .pyd names, with .npy bytes       read, but no longer written

Which of them a member is follows from its bytes, not from its name.
"""

import json
import pickle
from typing import NamedTuple

import numpy as np

from audio_mamba.data import array_bytes

DATA_MEMBERS = ("data.pyd", "data.npy")
LABELS_MEMBERS = ("target.pyd", "target.json")
VALUE_BYTES = (2, 4, 8)  # float16, float32, float64


class ArchiveError(ValueError):
    """A shard or sample that cannot be used; the message names it."""


class Sample(NamedTuple):
    key: str  # no dots; unique within the archive
    spectrogram: np.ndarray  # float16 or float32 [frames, mels]
    labels: np.ndarray  # int64 [number of labels], may be empty


def encode_members(sample: Sample, as_pickle: bool = False) -> dict[str, bytes]:
    """The two members by name: .npy and JSON or, as in published archives, pickled (an array, and a list of ids)."""
    labels = sample.labels.tolist()
    if as_pickle:
        return {
            "data.pyd": pickle.dumps(sample.spectrogram, protocol=4),
            "target.pyd": pickle.dumps(labels, protocol=4),
        }
    return {"data.npy": array_bytes.encode(sample.spectrogram), "target.json": json.dumps(labels).encode()}


def decode_spectrogram(data: bytes, n_mels: int | None = None) -> np.ndarray:
    """A data member's bytes as a float [frames, mels] array of at least one frame; ValueError for anything else, or for
    another number of mel bands than `n_mels`."""
    spectrogram = array_bytes.decode(data)
    floats = spectrogram.dtype.kind == "f" and spectrogram.itemsize in VALUE_BYTES
    if not floats or spectrogram.ndim != 2 or 0 in spectrogram.shape:
        raise ValueError(
            f"a {spectrogram.dtype} array of shape {list(spectrogram.shape)} is not a spectrogram "
            "(float16, float32 or float64 of shape [frames, mels])"
        )
    if n_mels is not None and spectrogram.shape[1] != n_mels:
        raise ValueError(f"has {spectrogram.shape[1]} mel bands, but {n_mels} are expected")
    return spectrogram


def decode_labels(data: bytes) -> np.ndarray:
    """A labels member's bytes as int64 [number of labels]; ValueError for anything else."""
    is_json = data.lstrip()[:1] in b"[-0123456789"  # no array or pickle begins with any of these
    array = _json_numbers(data) if is_json else array_bytes.decode(data)
    labels = np.atleast_1d(array)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise ValueError(f"a {labels.dtype} array of shape {list(labels.shape)} is not a list of label ids")
    return labels.astype(np.int64)


def _json_numbers(data: bytes) -> np.ndarray:
    try:
        return np.array(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON list of label ids ({error})") from error
