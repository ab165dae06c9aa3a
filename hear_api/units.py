"""Clips of any length as batches of the encoder's fixed units."""
import torch
import torch.nn.functional as F
from torch import Tensor

UNITS_PER_BATCH = 64  # bounds the memory of a call


def split_units(spectrogram: Tensor, unit_frames: int) -> Tensor:
    """[n, frames, mels] -> [n, units, unit_frames, mels], the last unit padded with zeros."""
    count, frames, mels = spectrogram.shape
    units = -(-frames // unit_frames)
    padded = F.pad(spectrogram, (0, 0, 0, units * unit_frames - frames))
    return padded.reshape(count, units, unit_frames, mels)


def run_units(encode, units: Tensor) -> Tensor:
    """Encode every unit of every clip: [n, units, unit_frames, mels] -> [n, units * steps, width].

    encode: [B, unit_frames, mels] -> [B, steps, width].
    """
    count = len(units)
    features = torch.cat([encode(batch) for batch in units.flatten(0, 1).split(UNITS_PER_BATCH)])
    return features.reshape(count, -1, features.shape[-1])
