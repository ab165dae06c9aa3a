"""Clips of any length as batches of segments, the encoder's inputs of fixed length (2 s with the paper's configs)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TOKENS_PER_BATCH = {"cpu": 4_000, "cuda": 64_000}  # limits the memory of a call; on a CPU, more would miss the caches
# A shorter segment joins a batch of longer ones while its padding costs less than a batch of its own.
PADDING_PER_BATCH = {"cpu": 50, "cuda": 5_000}  # tokens


@dataclass(frozen=True)
class Segment:
    """The part of a clip that is one input of the encoder."""

    clip: int  # index of the clip in the call
    first: int  # first time step of the segment in the clip
    steps: int  # time steps whose features are kept
    tokens: int  # tokens that the encoder processes for them


def plan_segments(
    steps_per_clip: Sequence[int], steps_per_segment: int, tokens_read: Callable[[int], int]
) -> list[Segment]:
    """Split clips, given by their numbers of time steps, into segments.

    tokens_read: number of tokens that the encoder processes to give a segment's first n steps.
    """
    segments = []
    for clip, steps in enumerate(steps_per_clip):
        for first in range(0, steps, steps_per_segment):
            kept = min(steps_per_segment, steps - first)
            segments.append(Segment(clip, first, kept, tokens_read(kept)))
    return segments


def batch_segments(segments: Sequence[Segment], device_type: str) -> Iterator[list[Segment]]:
    """All segments, longest first, in batches of similar lengths; the first of a batch is its longest."""
    max_tokens, max_padding = (table.get(device_type, table["cuda"]) for table in (TOKENS_PER_BATCH, PADDING_PER_BATCH))
    batch: list[Segment] = []
    padding = 0
    for segment in sorted(segments, key=lambda segment: -segment.tokens):
        if batch:
            padding += batch[0].tokens - segment.tokens
            if padding > max_padding or (len(batch) + 1) * batch[0].tokens > max_tokens:
                yield batch
                batch, padding = [], 0
        batch.append(segment)
    if batch:
        yield batch


def stack_segments(
    batch: Sequence[Segment], spectrograms: Sequence[Tensor], frames_per_step: int, segment_frames: int
) -> Tensor:
    """Log-mels of clips [frames, mels] -> a batch of segments, padded with zeros, [B, segment_frames, mels]."""
    parts = []
    for segment in batch:
        first = segment.first * frames_per_step
        part = spectrograms[segment.clip][first : first + segment.steps * frames_per_step]
        parts.append(F.pad(part, (0, 0, 0, segment_frames - len(part))))
    return torch.stack(parts)
