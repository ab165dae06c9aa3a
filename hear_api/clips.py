"""Clips on their way to the encoder: read, grouped by a fixed rule, and prefetched while the model runs.

`RuntimeSSAST.embed` reads clips in threads, the embed command in processes; from there on both take the same path.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, repeat
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
import soxr
import torch
from torch import Tensor

from audio_mamba.data.audio import AudioFileError, check_channel, stream_audio
from audio_mamba.data.features import LogMelStream, log_mel
from audio_mamba.data.normalisation import RunningStats, Statistics, fixed_statistics, normalise, statistics_of
from audio_mamba.front_end import FrontEnd
from audio_mamba.hear_api.inputs import ClipInput, as_samples, check_samples, check_values, fault_in_values
from audio_mamba.system.workers import exit_with_parent

LONG_SECONDS = 120  # longer files are read twice: once for their statistics, then chunk by chunk
GROUP_FRAMES = 24_000  # log-mel frames encoded together: 4 minutes and 8 MB with the paper's front end
CHUNK_FRAMES = 6_000  # of a long file, which is encoded chunk by chunk
CHUNKS_AHEAD = 2

T = TypeVar("T")


@dataclass(frozen=True)
class ShortClip:
    """A clip that is held in memory: its normalised log-mel, float32 [frames, mels]."""

    spectrogram: np.ndarray | Tensor
    seconds: float


@dataclass(frozen=True)
class LongFile:
    """A file that is too long to hold: its length at the front end's rate, and what normalises its log-mel."""

    path: Path
    samples: int
    statistics: Statistics
    front_end: FrontEnd
    channel: str | int = "mix"  # see `data.audio.stream_audio`

    @property
    def seconds(self) -> float:
        return self.samples / self.front_end.sample_rate

    @property
    def frames(self) -> int:
        return self.front_end.num_frames(self.samples)

    def chunks(self, segment_frames: int, stride: int) -> Iterator[tuple[Tensor, bool, bool]]:
        """Read the file again, as its normalised log-mel.

        Args:
            segment_frames: of a segment.
            stride: frames from the start of a segment to that of the next one.

        Yields:
            float32 [frames, mels], as many whole segments as CHUNK_FRAMES (or GROUP_FRAMES, if smaller) allows, of
            which the first overlaps with the last one of the chunk before as any two do; and whether it is the first
            chunk, and the last. The last one may be shorter.

        Raises:
            AudioFileError: the file cannot be read any more, or has changed since it was measured.
        """
        segments = max(1, (min(CHUNK_FRAMES, GROUP_FRAMES) - segment_frames) // stride + 1)
        advance, start = segments * stride, 0
        chunk_frames = segment_frames - stride + advance
        held = torch.zeros(0, self.front_end.n_mels)
        for frames in self._log_mel():
            held = torch.cat([held, frames])
            while len(held) >= chunk_frames and start + chunk_frames < self.frames:
                yield normalise(held[:chunk_frames], self.statistics), start == 0, False
                held, start = held[advance:], start + advance
        yield normalise(held, self.statistics), start == 0, True

    def _log_mel(self) -> Iterator[Tensor]:
        stream, samples = LogMelStream(self.front_end), 0
        for block in stream_audio(self.path, self.front_end.sample_rate, self.channel):
            samples += len(block)
            yield stream.feed(torch.from_numpy(block))
        if samples != self.samples:
            raise AudioFileError(self.path, "changed while it was read")
        yield stream.finish()


@dataclass(frozen=True)
class Failure:
    """A file that cannot be embedded, and why."""

    reason: str
    seconds: float = 0.0


Clip = ShortClip | LongFile


def load_clip(
    clip: ClipInput, name: str, sample_rate: int, front_end: FrontEnd, channel: str | int = "mix"
) -> Tensor | LongFile:
    """Read one clip.

    Args:
        clip: path of an audio file, or samples [n].
        name: of an array in messages.
        sample_rate: of an array, which is resampled to the front end's; files know their own.
        channel: of a file, see `data.audio.stream_audio`.

    Returns:
        Float32 samples [n] at the front end's rate, or the statistics of a long file.

    Raises:
        InputError: invalid array.
        AudioFileError: invalid file.
        ValueError: no such channel can be.
    """
    check_channel(channel)
    if isinstance(clip, (str, PathLike)):
        return read_file(Path(clip), front_end, channel)
    samples = as_samples(clip, name)
    if sample_rate == front_end.sample_rate:
        return check_samples(samples, name, front_end)
    check_values(samples, name)
    resampled = soxr.resample(samples.cpu().numpy(), sample_rate, front_end.sample_rate, quality="HQ")
    return check_samples(torch.from_numpy(resampled), f"{name}, resampled to {front_end.sample_rate} Hz,", front_end)


def read_file(path: Path, front_end: FrontEnd, channel: str | int = "mix") -> Tensor | LongFile:
    """Samples [n] of a short audio file or the statistics of a long one. AudioFileError for an invalid file."""
    blocks, held, samples = _checked_blocks(path, front_end.sample_rate, channel), [], 0
    for block in blocks:
        held.append(block)
        samples += len(block)
        if samples > LONG_SECONDS * front_end.sample_rate:
            return _measure(path, chain(held, blocks), front_end, channel)
    if samples < front_end.min_samples:
        raise AudioFileError(
            path, f"too short, {samples} samples at {front_end.sample_rate} Hz; {front_end.min_samples} are needed"
        )
    return torch.cat(held)


def _checked_blocks(path: Path, sample_rate: int, channel: str | int) -> Iterator[Tensor]:
    for array in stream_audio(path, sample_rate, channel):
        block = torch.from_numpy(array)
        if fault := fault_in_values(block):
            raise AudioFileError(path, fault)
        yield block


def _measure(path: Path, blocks: Iterable[Tensor], front_end: FrontEnd, channel: str | int) -> LongFile:
    stream, running, samples = LogMelStream(front_end), RunningStats(), 0
    for block in blocks:
        samples += len(block)
        running.add(stream.feed(block))
    running.add(stream.finish())
    return LongFile(path, samples, fixed_statistics(front_end) or running.statistics(), front_end, channel)


def decode_file(path: Path, front_end: FrontEnd, channel: str | int) -> Clip | Failure:
    """Read a file in a worker process; what is wrong with it comes back as a value."""
    try:
        audio = read_file(path, front_end, channel)
    except AudioFileError as error:
        return Failure(error.reason)
    if isinstance(audio, LongFile):
        return audio
    spectrogram = log_mel(audio, front_end)
    spectrogram = normalise(spectrogram, statistics_of(spectrogram, front_end, ddof=1))
    return ShortClip(spectrogram.numpy(), len(audio) / front_end.sample_rate)


def start_worker() -> None:
    """Initialise a process that runs `decode_file`."""
    torch.set_num_threads(1)
    os.nice(5)  # the model gets the CPU first; workers are usually ahead of it
    exit_with_parent()


def group_clips(clips: Iterable[Clip | Failure]) -> Iterator[list[Clip | Failure]]:
    """Split clips, in order, into groups that are encoded together.

    A group ends with the clip that brings it to GROUP_FRAMES, and a long file is a group of its own. The clips alone
    decide, so a run that resumes after a group forms the same groups, and so the same bits, as an uninterrupted one.
    """
    group: list[Clip | Failure] = []
    frames = 0
    for clip in clips:
        if isinstance(clip, LongFile):
            if group:
                yield group
            yield [clip]
            group, frames = [], 0
            continue
        group.append(clip)
        frames += len(clip.spectrogram) if isinstance(clip, ShortClip) else 0
        if frames >= GROUP_FRAMES:
            yield group
            group, frames = [], 0
    if group:
        yield group


def prefetch(pool: Executor, function: Callable[..., T], calls: Iterable[tuple], ahead: int) -> Iterator[T]:
    """`function(*call)` for every call, in order, with up to `ahead` results made in advance by the pool.

    An exception is raised when its turn comes, and later calls are then cancelled.
    """
    calls = iter(calls)
    pending: deque[Future] = deque(pool.submit(function, *call) for call in islice(calls, ahead))
    try:
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, *call) for call in islice(calls, 1))
            yield result
    finally:
        for future in pending:
            future.cancel()


def prefetch_chunks(chunks: Iterator[T]) -> Iterator[T]:
    """The items of an iterator, made in advance by a thread."""
    with ThreadPoolExecutor(1) as pool:  # one thread, since a generator cannot be advanced by two
        for chunk in prefetch(pool, next, repeat((chunks, None)), CHUNKS_AHEAD):
            if chunk is None:
                return
            yield chunk
