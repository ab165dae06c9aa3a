"""The log-mel of audio that arrives in pieces: the frames of `data.features.log_mel`, as soon as they are complete."""

import torch
from torch import Tensor

from audio_mamba.data.features import HOP_LENGTH, MIN_SAMPLES, N_FFT, N_MELS, log_mel

HALF_WINDOW = N_FFT // 2
# Frames before the next one whose samples are kept, so that the window of the next one needs no reflection.
FRAMES_KEPT = -(-HALF_WINDOW // HOP_LENGTH)


class LogMelStream:
    """Feed pieces of any length, then `finish`; the frames that both return together are `log_mel` of the whole."""

    def __init__(self):
        self._held = torch.zeros(0)
        self._held_frame = 0  # on which the held samples begin
        self.frames = 0  # returned so far

    def feed(self, samples: Tensor) -> Tensor:
        """Float32 samples [n], any n -> the frames that are now complete, float32 [frames, 80], perhaps none."""
        self._held = torch.cat([self._held.to(samples.device), samples])
        complete = self._held_frame + (len(self._held) - HALF_WINDOW) // HOP_LENGTH + 1
        if len(self._held) < MIN_SAMPLES or complete <= self.frames:
            return samples.new_zeros(0, N_MELS)
        new = self._frames_until(complete)
        dropped = max(0, complete - FRAMES_KEPT - self._held_frame)
        self._held = self._held[dropped * HOP_LENGTH :].clone()  # a view would keep all samples in memory
        self._held_frame += dropped
        return new

    def finish(self) -> Tensor:
        """The last frames, whose windows pass the end [frames, 80]. ValueError after fewer than 201 samples in all."""
        return self._frames_until(None)

    def _frames_until(self, end: int | None) -> Tensor:
        spectrogram = log_mel(self._held)  # begins with frame _held_frame
        new = spectrogram[self.frames - self._held_frame : None if end is None else end - self._held_frame]
        self.frames += len(new)
        return new
