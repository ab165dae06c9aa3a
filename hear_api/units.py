"""Clips of any length as batches of the encoder's fixed units of 2 s."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TOKENS_PER_BATCH = {"cpu": 4_000, "cuda": 64_000}  # bounds the memory of a call; on a CPU, caches hold no more
# A unit may pad a batch of longer ones while the padding costs less than a batch of its own would.
PADDING_PER_BATCH = {"cpu": 50, "cuda": 5_000}  # tokens


@dataclass(frozen=True)
class Unit:
    """A stretch of a clip that the encoder reads at once."""

    clip: int  # its number in the call
    first: int  # step of the clip with which the unit begins
    steps: int  # embeddings that are kept of it
    tokens: int  # tokens that the encoder passes for these


def plan_units(steps_per_clip: list[int], steps_per_unit: int, tokens_read) -> list[Unit]:
    """The units of clips of so many steps; `tokens_read(steps)` is the number of tokens that a unit's steps cost."""
    units = []
    for clip, steps in enumerate(steps_per_clip):
        for first in range(0, steps, steps_per_unit):
            kept = min(steps_per_unit, steps - first)
            units.append(Unit(clip, first, kept, tokens_read(kept)))
    return units


def batch_units(units: list[Unit], device_type: str) -> Iterator[list[Unit]]:
    """All units, the longest first, in batches of like lengths: the first of a batch is its longest."""
    most_tokens, most_padding = (
        table.get(device_type, table["cuda"]) for table in (TOKENS_PER_BATCH, PADDING_PER_BATCH)
    )
    batch, padding = [], 0
    for unit in sorted(units, key=lambda unit: -unit.tokens):
        if batch:
            padding += batch[0].tokens - unit.tokens
            if padding > most_padding or (len(batch) + 1) * batch[0].tokens > most_tokens:
                yield batch
                batch, padding = [], 0
        batch.append(unit)
    if batch:
        yield batch


def stack_units(batch: list[Unit], spectrograms: list[Tensor], frames_per_step: int, unit_frames: int) -> Tensor:
    """The frames of a batch of units, padded with zeros: spectrograms [frames, mels] -> [B, unit_frames, mels]."""
    parts = []
    for unit in batch:
        first = unit.first * frames_per_step
        part = spectrograms[unit.clip][first : first + unit.steps * frames_per_step]
        parts.append(F.pad(part, (0, 0, 0, unit_frames - len(part))))
    return torch.stack(parts)
