"""The log-mel front end: every spectrogram of the project, in preparation, training and inference, comes from here."""

import functools

import numpy as np
import torch
from torch import Tensor

from audio_mamba.front_end import PUBLISHED, FrontEnd


def log_mel(audio: Tensor, front_end: FrontEnd = PUBLISHED) -> Tensor:
    """Log-mel spectrogram, differentiable, on the device of the audio.

    Args:
        audio: float32 [..., n] at the front end's rate, n >= `front_end.min_samples`.

    Returns:
        float32 [..., 1 + n // hop_length, n_mels]: log(mel power + log_offset), not normalised. It is computed in
        float32 under autocast too, since power spectra overflow float16.

    Raises:
        TypeError: audio is not a float32 tensor.
        ValueError: too few samples.
    """
    if not isinstance(audio, Tensor) or audio.dtype != torch.float32:
        found = audio.dtype if isinstance(audio, Tensor) else type(audio).__name__
        raise TypeError(f"audio must be a float32 tensor of samples in [-1, 1], got {found}")
    n_samples = audio.shape[-1] if audio.dim() else 0
    if n_samples < front_end.min_samples:
        raise ValueError(f"audio has {n_samples} samples; at least {front_end.min_samples} are needed")

    window, mel_bank = _constants(front_end, audio.device)
    with torch.autocast(audio.device.type, enabled=False):
        spectrum = torch.stft(
            audio.reshape(-1, n_samples),
            front_end.n_fft,
            front_end.hop_length,
            window=window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )  # [B, n_fft / 2 + 1, frames]
        power = torch.view_as_real(spectrum).square().sum(-1)  # |.|^2, differentiable at 0
        mel = power.transpose(1, 2) @ mel_bank  # [B, frames, n_mels]
        spectrogram = torch.log(mel + front_end.log_offset)
    return spectrogram.reshape(*audio.shape[:-1], front_end.num_frames(n_samples), front_end.n_mels)


@functools.cache
def _constants(front_end: FrontEnd, device: torch.device) -> tuple[Tensor, Tensor]:
    """Periodic Hann window [n_fft] and mel bank [n_fft / 2 + 1, n_mels] on a device, made once."""
    # Tensors made in inference mode could not take part in a later backward pass.
    with torch.inference_mode(False):
        window = torch.hann_window(front_end.n_fft, periodic=True, dtype=torch.float32)
        return window.to(device), torch.from_numpy(mel_filter_bank(front_end).astype(np.float32)).to(device)


def mel_filter_bank(front_end: FrontEnd = PUBLISHED) -> np.ndarray:
    """Triangular filters on the HTK mel scale, peak height 1 (no area normalisation).

    Returns:
        float64 [n_fft / 2 + 1, n_mels]: weight of each FFT bin in each band.
    """
    bin_hz = np.linspace(0, front_end.sample_rate / 2, front_end.n_fft // 2 + 1)
    edges_mel = np.linspace(_hz_to_mel(front_end.mel_min_hz), _hz_to_mel(front_end.mel_max_hz), front_end.n_mels + 2)
    edges_hz = _mel_to_hz(edges_mel)
    lower, centre, upper = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]  # [n_mels] each
    rising = (bin_hz[:, None] - lower) / (centre - lower)  # [n_fft / 2 + 1, n_mels]
    falling = (upper - bin_hz[:, None]) / (upper - centre)
    return np.clip(np.minimum(rising, falling), 0, None)


def _hz_to_mel(hz: float) -> float:
    return 2595 * np.log10(1 + hz / 700)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)


class LogMelStream:
    """Feed pieces of any length, then `finish`; the frames that both return together are `log_mel` of the whole."""

    def __init__(self, front_end: FrontEnd = PUBLISHED):
        self.front_end = front_end
        self.frames = 0  # returned so far
        self._half_window = front_end.n_fft // 2
        # Frames before the next one whose samples are kept, so that the window of the next one needs no reflection. Two
        # at least: then `finish` has a sample more than half a window, which the reflection at the end needs.
        self._frames_kept = max(2, -(-self._half_window // front_end.hop_length))
        self._held = torch.zeros(0)
        self._held_frame = 0  # on which the held samples begin

    def feed(self, samples: Tensor) -> Tensor:
        """Float32 samples [n], any n -> the frames that are now complete, float32 [frames, n_mels]; there may be 0."""
        hop_length = self.front_end.hop_length
        self._held = torch.cat([self._held.to(samples.device), samples])
        complete = self._held_frame + (len(self._held) - self._half_window) // hop_length + 1
        if len(self._held) < self.front_end.min_samples or complete <= self.frames:
            return samples.new_zeros(0, self.front_end.n_mels)
        new = self._frames_until(complete)
        dropped = max(0, complete - self._frames_kept - self._held_frame)
        self._held = self._held[dropped * hop_length :].clone()  # a view would keep all samples in memory
        self._held_frame += dropped
        return new

    def finish(self) -> Tensor:
        """The last frames, whose windows reach beyond the end, [frames, n_mels]. ValueError after too few samples."""
        return self._frames_until(None)

    def _frames_until(self, end: int | None) -> Tensor:
        spectrogram = log_mel(self._held, self.front_end)  # begins with frame _held_frame
        new = spectrogram[self.frames - self._held_frame : None if end is None else end - self._held_frame]
        self.frames += len(new)
        return new
