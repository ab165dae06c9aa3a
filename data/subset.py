"""A share of the clips that depends on their keys alone (`data.fraction` of a config).

A hash gives each key a fixed position in [0, 1), and a share of 0.1 is all clips with a position below 0.1. So every
model, process and machine takes the same clips, in whatever order and shards they are, and a smaller share is part of a
larger one. The number of clips is near, not at, the fraction of all: of n clips, it deviates by sqrt(n f (1 - f)).
"""

import hashlib
from collections.abc import Sequence

import numpy as np

SALT = b"audio-mamba subset"  # never changed, since it decides which clips a share has


def position(key: bytes) -> float:
    """The position of a sample's key in [0, 1): the first 53 bits of its BLAKE2b digest."""
    digest = hashlib.blake2b(key, digest_size=8, key=SALT).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def in_subset(keys: Sequence[bytes] | np.ndarray, fraction: float) -> np.ndarray:
    """Which of the samples belong to the share `fraction`, in (0, 1]: bool [n]."""
    if fraction >= 1:
        return np.ones(len(keys), bool)
    return np.array([position(key) < fraction for key in keys], bool)
