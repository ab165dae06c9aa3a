"""Augmentation of labelled log-mels: gain, filters, mixup, shifts, and the masks of SpecAugment.

Every function draws from the numpy generator it is given, so a sample's augmentation depends on nothing else.
"""

import dataclasses

import numpy as np

from audio_mamba.schema import is_finite, is_whole

FILTER_POINTS = 3, 6  # fewest and most frequencies between which the gain of a filter changes
MOST_PLACES = 1_000_000  # frames or mel bands; more is a slip
MOST_DECIBELS = 100  # a few times more, and float32 overflows
MIXUP_ALPHA = 10.0  # of the Beta distribution of the share, as AST (Gong et al. 2021): shares are near one half


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How much of each; 0 is none.

    Attributes:
        gain: the largest change of level, up or down, in dB. A clip is normalised, so this
            moves its quiet parts relative to the front end's floor.
        filter: the same for a gain that varies with the frequency, as microphones, rooms and voices do
            (FilterAugment, Nam et al. 2022, arXiv 2110.03282).
        mixup: probability that a clip is mixed with another one (Zhang et al. 2018).
        time_shift: the largest shift, in frames, around the end of the crop.
        freq_shift: the largest shift, up or down, in mel bands; the outermost band fills what is left.
        time_mask, freq_mask: width of the widest mask, in frames and in mel bands (Park et al. 2019); there is one of
            each.
    """

    gain: float = 0.0
    filter: float = 0.0
    mixup: float = 0.0
    time_shift: int = 0
    freq_shift: int = 0
    time_mask: int = 0
    freq_mask: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, whole = getattr(self, field.name), field.type is int
            if field.name == "mixup":
                most = 1
            else:
                most = MOST_PLACES if whole else MOST_DECIBELS
            if not (is_whole(value, least=0) if whole else is_finite(value)) or not 0 <= value <= most:
                kind = "a whole number" if whole else "a number"
                raise ValueError(f"augment.{field.name} must be {kind} from 0 to {most}, got {value!r}")


def draw_gain(rng: np.random.Generator, most: float) -> float:
    """A gain in dB, evenly from -most to most."""
    return float(rng.uniform(-most, most))


def draw_filter(rng: np.random.Generator, most: float, mels: int) -> np.ndarray:
    """Gains in dB of the mel bands, float64 [mels]: evenly from -most to most at three to six bands, the lowest and the
    highest among them, and on straight lines between them."""
    count = min(int(rng.integers(FILTER_POINTS[0], FILTER_POINTS[1] + 1)), mels)
    inner = np.sort(rng.choice(np.arange(1, mels - 1), max(0, count - 2), replace=False))
    bands = np.concatenate([[0], inner, [mels - 1]])
    return np.interp(np.arange(mels), bands, rng.uniform(-most, most, len(bands)))


def apply_gain(log_mel: np.ndarray, decibels: float | np.ndarray, log_offset: float) -> np.ndarray:
    """The log-mel, not normalised, that the front end would give for audio that is so much louder.

    log_mel is float32 [..., mels]; `decibels` is one number, or one for each mel band.

    A log-mel is log(power + log_offset), and it is the power that is scaled.
    """
    power = np.maximum(np.exp(log_mel) - np.float32(log_offset), 0)  # rounding may have made it negative
    return np.log(power * np.float32(10 ** (np.asarray(decibels) / 10)) + np.float32(log_offset))


def draw_share(rng: np.random.Generator, probability: float) -> float:
    """The share of the first clip in a mixture: 1 without mixup, else from Beta(10, 10)."""
    return float(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA)) if rng.random() < probability else 1.0


def mix(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Normalised log-mels of one shape, mixed as powers: log(share e^first + (1 - share) e^second), as in BYOL-A
    (Niizumi et al. 2021)."""
    return np.logaddexp(first + np.float32(np.log(share)), second + np.float32(np.log1p(-share)))


def shift(crop: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    """Roll a crop [frames, mels] by -most to most frames; what leaves at one end enters at the other."""
    return np.roll(crop, rng.integers(-most, most + 1), axis=0)


def shift_bands(crop: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    """Move a crop [frames, mels] by -most to most mel bands; the outermost one is repeated."""
    by, mels = int(rng.integers(-most, most + 1)), crop.shape[1]
    return crop[:, np.clip(np.arange(mels) - by, 0, mels - 1)]


def mask(crop: np.ndarray, rng: np.random.Generator, time_mask: int, freq_mask: int) -> None:
    """Set a run of frames and a run of mel bands of a normalised crop [frames, mels] to 0, its mean, in place.

    The widths are drawn evenly from 0 to the given ones; never is all of the crop masked.
    """
    frames, mels = crop.shape
    width, begin = _run(rng, frames, time_mask)
    crop[begin : begin + width] = 0
    width, begin = _run(rng, mels, freq_mask)
    crop[:, begin : begin + width] = 0


def _run(rng: np.random.Generator, length: int, widest: int) -> tuple[int, int]:
    """Width and begin of a run within `length` places."""
    width = int(rng.integers(min(widest, length - 1) + 1))
    return width, int(rng.integers(length - width + 1))
