"""Clips of any length as batches of segments, the encoder's inputs of fixed length (2 s with the paper's configs)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audio_mamba.schema import MAX_OVERLAP

TOKENS_PER_BATCH = {"cpu": 4_000, "cuda": 64_000}  # limits the memory of a call; on a CPU, more would miss the caches
# A shorter segment joins a batch of longer ones while its padding costs less than a batch of its own.
PADDING_PER_BATCH = {"cpu": 50, "cuda": 5_000}  # tokens


@dataclass(frozen=True)
class Cut:
    """How a clip is cut into segments, in time steps.

    Segments overlap by `before + after` steps, so that most steps are encoded with their context: the first `before`
    and the last `after` steps of a segment are read and not kept. A clip's first segment keeps its beginning, and its
    last one its end.
    """

    length: int  # of a segment
    before: int = 0
    after: int = 0

    @property
    def stride(self) -> int:
        """Steps from the start of a segment to that of the next one."""
        return self.length - self.before - self.after

    def place(self, step: int) -> int:
        """At which step of its segment a step of the clip is encoded, in a clip without end."""
        return step if step < self.length else self.before + (step - self.length) % self.stride

    @classmethod
    def with_overlap(cls, length: int, overlap: float, causal: bool) -> "Cut":
        """Segments that share a part `overlap` of their length with the one before. Causal encoders need context on the
        left alone, others on both sides. ValueError for an overlap out of range."""
        if not 0 <= overlap <= MAX_OVERLAP:
            raise ValueError(f"overlap must be from 0 to {MAX_OVERLAP} of a segment, got {overlap!r}")
        shared = round(overlap * length)
        return cls(length, shared, 0) if causal else cls(length, shared - shared // 2, shared // 2)


@dataclass(frozen=True)
class Segment:
    """The part of a clip that is one input of the encoder."""

    clip: int  # index of the clip in the call
    start: int  # first time step that is read
    read: int  # time steps that are read
    first: int  # first time step whose features are kept
    end: int  # the one after the last that is kept
    tokens: int  # tokens that the encoder processes for them

    @property
    def needed(self) -> int:
        """Time steps from the start to the last one that is kept."""
        return self.end - self.start


def plan_segments(steps_per_clip: Sequence[int], cut: Cut, tokens_read: Callable[[int], int]) -> list[Segment]:
    """Cut clips, given by their numbers of time steps, into segments.

    tokens_read: number of tokens that the encoder processes to give a segment's first n steps.
    """
    segments = []
    for clip, steps in enumerate(steps_per_clip):
        for start in range(0, max(min(steps, 1), steps - cut.before - cut.after), cut.stride):
            read = min(cut.length, steps - start)
            first = start + cut.before if start else 0
            end = steps if start + read == steps else start + cut.length - cut.after
            segments.append(Segment(clip, start, read, first, end, tokens_read(end - start)))
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
        first = segment.start * frames_per_step
        part = spectrograms[segment.clip][first : first + segment.read * frames_per_step]
        parts.append(F.pad(part, (0, 0, 0, segment_frames - len(part))))
    return torch.stack(parts)
