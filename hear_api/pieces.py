"""Audio files as normalised log-mels, short ones whole, long ones piece by piece, so that memory stays bounded."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audio_mamba.data.audio import AudioError, stream_audio
from audio_mamba.data.feature_stream import LogMelStream
from audio_mamba.data.features import MIN_SAMPLES, SAMPLE_RATE, STD_OFFSET, log_mel, normalise
from audio_mamba.data.moments import Moments
from audio_mamba.hear_api.inputs import InputError, check_finite
from audio_mamba.system.workers import follow_parent

LONG_SECONDS = 120  # files beyond are read twice: for the statistics, then for the pieces


@dataclass(frozen=True)
class Decoded:
    """What a worker found out about a file; either `error`, or the rest."""

    error: str | None = None
    samples: int = 0  # at 16 kHz
    spectrogram: np.ndarray | None = None  # float32 [frames, 80], normalised; None for a long file,
    mean: float = 0.0  # which has the statistics of its log-mel instead
    std: float = 0.0

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE


def decode(path: Path) -> Decoded:
    """Read a file: its spectrogram if it is short, its statistics if it is long."""
    held, samples, long = [], 0, None
    try:
        for block in stream_audio(path):
            samples += len(block)
            check_finite(torch.from_numpy(block), "the file")
            if long is None:
                held.append(block)
                if samples <= LONG_SECONDS * SAMPLE_RATE:
                    continue
                stream, long, block, held = LogMelStream(), Moments(), np.concatenate(held), []
            long.add(stream.feed(torch.from_numpy(block)))
        if samples < MIN_SAMPLES:
            raise AudioError(f"{path}: too short, {samples} samples at {SAMPLE_RATE} Hz; {MIN_SAMPLES} are needed")
        if long is not None:
            long.add(stream.finish())
            return Decoded(None, samples, None, *long.mean_and_std())
    except (AudioError, InputError) as error:
        return Decoded(str(error).removeprefix(f"{path}: "))
    spectrogram = normalise(log_mel(torch.from_numpy(np.concatenate(held))), ddof=1)
    return Decoded(None, samples, spectrogram.numpy())


def stream_pieces(path: Path, mean: float, std: float, piece_frames: int) -> Iterator[Tensor]:
    """The normalised log-mel of a long file again, in pieces [piece_frames, 80], the last one shorter."""
    stream, held = LogMelStream(), []

    def frames() -> Iterator[Tensor]:
        for block in stream_audio(path):
            yield stream.feed(torch.from_numpy(block))
        yield stream.finish()

    for new in frames():
        held.append((new - mean) / (std + STD_OFFSET))
        joined = torch.cat(held)
        whole = len(joined) // piece_frames * piece_frames
        yield from joined[:whole].split(piece_frames) if whole else ()
        held = [joined[whole:]]
    if len(held[0]):
        yield held[0]


def start_worker() -> None:
    """Initialises a decoding process."""
    torch.set_num_threads(1)
    os.nice(5)  # the model comes first: workers are ahead of it most of the time
    follow_parent()
