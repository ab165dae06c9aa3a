"""One sample of an archive, and the bytes of its two members.

`<key>.data.pyd` is the log-mel [frames, mels], not normalised, and `<key>.target.pyd` the label ids. Ours hold .npy
bytes, published ones pickled arrays; both are read, and both can be written.
"""

import pickle
from typing import NamedTuple

import numpy as np

from audio_mamba.data import array_bytes

DATA_MEMBER = "data.pyd"
LABELS_MEMBER = "target.pyd"


class ArchiveError(ValueError):
    """A shard or sample that cannot be used; the message names it."""


class Sample(NamedTuple):
    key: str  # no dots; unique within the archive
    spectrogram: np.ndarray  # float16 or float32 [frames, mels]
    labels: np.ndarray  # int64 [number of labels], may be empty


def encode_members(sample: Sample, as_pickle: bool = False) -> dict[str, bytes]:
    """The two members: .npy bytes or, as in published archives, pickled (an array, and a list of ids)."""
    if as_pickle:
        return {
            DATA_MEMBER: pickle.dumps(sample.spectrogram, protocol=4),
            LABELS_MEMBER: pickle.dumps(sample.labels.tolist(), protocol=4),
        }
    return {DATA_MEMBER: array_bytes.encode(sample.spectrogram), LABELS_MEMBER: array_bytes.encode(sample.labels)}


def decode_spectrogram(data: bytes) -> np.ndarray:
    """A data member's bytes as a float [frames, mels] array of at least one frame; ValueError for anything else."""
    spectrogram = array_bytes.decode(data)
    if spectrogram.dtype.kind != "f" or spectrogram.ndim != 2 or 0 in spectrogram.shape:
        raise ValueError(
            f"a {spectrogram.dtype} array of shape {list(spectrogram.shape)} is not a "
            "spectrogram (floats of shape [frames, mels])"
        )
    return spectrogram


def decode_labels(data: bytes) -> np.ndarray:
    """A labels member's bytes as int64 [number of labels]; ValueError for anything else."""
    labels = np.atleast_1d(array_bytes.decode(data))
    if labels.ndim != 1 or labels.size and labels.dtype.kind not in "iu":
        raise ValueError(f"a {labels.dtype} array of shape {list(labels.shape)} is not a list of label ids")
    return labels.astype(np.int64)
