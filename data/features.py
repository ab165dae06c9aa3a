"""The one log-mel front end of the project (paper section 3.1; values in the published configuration).

Everything that turns audio into a spectrogram, in preparation, training or inference, goes through `log_mel`, and
everything that normalises one goes through `normalise`.
"""

import functools

import numpy as np
import torch

SAMPLE_RATE = 16000
N_FFT = 400  # 25 ms window
HOP_LENGTH = 160
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH  # 100
N_FREQS = N_FFT // 2 + 1  # 201 bins, 0 to 8000 Hz
N_MELS = 80
MEL_MIN_HZ = 50.0
MEL_MAX_HZ = 8000.0
LOG_OFFSET = 1.1920929e-07  # float32 machine epsilon
STD_OFFSET = 1e-8
MIN_SAMPLES = N_FFT // 2 + 1  # reflection by half a window needs one sample more than that


def num_frames(n_samples: int) -> int:
    """Frames of the spectrogram of `n_samples` samples: one each 10 ms, the first centred on sample 0."""
    return 1 + n_samples // HOP_LENGTH


def log_mel(audio: torch.Tensor) -> torch.Tensor:
    """Log-mel spectrogram, differentiable, on the device of the audio.

    Args:
        audio: float32 [..., n], 16 kHz, n >= 201.

    Returns:
        float32 [..., 1 + n // 160, 80]: log(mel power + 1.19e-7), not normalised. It is computed in float32 under
        autocast too, since power spectra overflow float16.

    Raises:
        TypeError: audio is not a float32 tensor.
        ValueError: fewer than 201 samples.
    """
    if not isinstance(audio, torch.Tensor) or audio.dtype != torch.float32:
        found = audio.dtype if isinstance(audio, torch.Tensor) else type(audio).__name__
        raise TypeError(f"audio must be a float32 tensor of samples in [-1, 1], got {found}")
    n_samples = audio.shape[-1] if audio.dim() else 0
    if n_samples < MIN_SAMPLES:
        raise ValueError(f"audio has {n_samples} samples; at least {MIN_SAMPLES} (12.6 ms at 16 kHz) are needed")

    window, mel_bank = _constants(audio.device)
    with torch.autocast(audio.device.type, enabled=False):
        spectrum = torch.stft(
            audio.reshape(-1, n_samples),
            N_FFT,
            HOP_LENGTH,
            window=window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )  # [B, 201, frames]
        power = torch.view_as_real(spectrum).square().sum(-1)  # |.|^2, differentiable at 0
        mel = power.transpose(1, 2) @ mel_bank  # [B, frames, 80]
        spectrogram = torch.log(mel + LOG_OFFSET)
    return spectrogram.reshape(*audio.shape[:-1], num_frames(n_samples), N_MELS)


def normalise(spectrogram: torch.Tensor, ddof: int) -> torch.Tensor:
    """Zero mean and unit deviation over each whole clip: (x - mean) / (std + 1e-8).

    Args:
        spectrogram: [..., frames, mels]; every leading index is a clip of its own.
        ddof: 0 divides the variance by the number of elements n (training), 1 by n - 1 (published runtime).

    Returns:
        float32, same shape. A constant spectrogram (digital silence) gives exactly 0. The bits do not depend on the
        number of threads.
    """
    spectrogram = spectrogram.float()
    count = spectrogram.shape[-2] * spectrogram.shape[-1]
    # Taking one element off first changes neither result, and makes a constant exactly 0 before any rounding.
    centred = spectrogram - spectrogram[..., :1, :1]
    centred = centred - _clip_sum(centred) / count
    std = (_clip_sum(centred.square()) / (count - ddof)).sqrt()
    return centred / (std + STD_OFFSET)


def clip_statistics(spectrogram: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) of a clip [frames, mels], with which any crop of it can be normalised.

    `normalise_crop` then gives what `normalise` gives for the whole clip, but for the rounding of float32.
    """
    spectrogram = spectrogram.astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN or Inf in the clip make NaN of both
        mean = spectrogram.mean()
        return float(mean), float(np.sqrt(np.square(spectrogram - mean).mean()))


def normalise_crop(crop: np.ndarray, mean: np.float32, std: np.float32) -> None:
    """Normalise a crop, float32 of any shape, in place by the statistics of its whole clip."""
    crop -= mean
    crop *= np.float32(1 / (float(std) + STD_OFFSET))


def _clip_sum(x: torch.Tensor) -> torch.Tensor:
    """[..., frames, mels] -> [..., 1, 1]. Row by row: threads then share rows, never the terms of one sum."""
    return x.sum(-1, keepdim=True).sum(-2, keepdim=True)


@functools.cache
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Periodic Hann window [400] and mel bank [201, 80] on a device, made once."""
    # Tensors made in inference mode could not take part in a later backward pass.
    with torch.inference_mode(False):
        window = torch.hann_window(N_FFT, periodic=True, dtype=torch.float32)
        return window.to(device), torch.from_numpy(mel_filter_bank().astype(np.float32)).to(device)


def mel_filter_bank() -> np.ndarray:
    """Triangular filters on the HTK mel scale, 50 to 8000 Hz, peak height 1 (no area normalisation).

    Returns:
        float64 [201, 80]: weight of each FFT bin in each band.
    """
    bin_hz = np.linspace(0, SAMPLE_RATE / 2, N_FREQS)
    edges_hz = _mel_to_hz(np.linspace(_hz_to_mel(MEL_MIN_HZ), _hz_to_mel(MEL_MAX_HZ), N_MELS + 2))
    lower, centre, upper = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]  # [80] each
    rising = (bin_hz[:, None] - lower) / (centre - lower)  # [201, 80]
    falling = (upper - bin_hz[:, None]) / (upper - centre)
    return np.clip(np.minimum(rising, falling), 0, None)


def _hz_to_mel(hz: float) -> float:
    return 2595 * np.log10(1 + hz / 700)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)
