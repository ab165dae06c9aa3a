"""What makes clips harder: short excerpts, sounds at the same time, other microphones, levels that say nothing.

Each clip draws from a generator of its own, so that it does not depend on the clips before it.
"""

import hashlib

import numpy as np

from experiments.judge.instruments import SAMPLE_RATE

LEVELS = (-35.0, -20.0)  # dB of full scale, of a clip's root mean square
ANCHORS = (80, 200, 500, 1250, 3000, 8000)  # Hz, of a random channel's response
RESPONSE = 10.0  # dB, up or down at most at each


def generator(name: str) -> np.random.Generator:
    """The random numbers of a clip, the same anywhere."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def at_random_level(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[n] at a level drawn from LEVELS, lower if it would be clipped; silence stays silence."""
    level = max(float(np.sqrt(np.mean(np.square(audio)))), 1e-9)
    gain = 10 ** (rng.uniform(*LEVELS) / 20) / level
    return (audio * min(gain, 0.99 / max(float(np.abs(audio).max()), 1e-9))).astype(np.float32)


def excerpt(audio: np.ndarray, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A random part of [n] that is as loud as the whole or louder; all of it if it is shorter."""
    length = round(seconds * SAMPLE_RATE)
    starts = np.arange(0, len(audio) - length + 1, length // 8)
    if not len(starts):
        return audio
    sums = np.concatenate([[0.0], np.cumsum(np.square(audio, dtype=np.float64))])
    energies = sums[starts + length] - sums[starts]
    loud = starts[energies >= min(sums[-1] * length / len(audio), energies.max())]
    return audio[(start := int(rng.choice(loud))) : start + length]


def through_random_channel(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[n] after a smooth random response, as another microphone or room has: straight lines in dB over the logarithm of
    frequency between ANCHORS."""
    frequencies = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    gains = rng.uniform(-RESPONSE, RESPONSE, len(ANCHORS))
    response = 10 ** (np.interp(np.log(np.maximum(frequencies, 1)), np.log(ANCHORS), gains) / 20)
    return np.fft.irfft(np.fft.rfft(audio) * response, len(audio)).astype(np.float32)


def mixed(audio: np.ndarray, other: np.ndarray, ratio_db: float) -> np.ndarray:
    """[n] with another sound, as much of it as is needed, `ratio_db` below it in energy; silence adds nothing."""
    other = np.resize(other, len(audio))  # repeated if it is shorter
    scale = np.linalg.norm(audio) / max(float(np.linalg.norm(other)), 1e-9) * 10 ** (-ratio_db / 20)
    return (audio + scale * other).astype(np.float32)
