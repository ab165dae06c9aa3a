"""Augmentation against what it stands for: louder audio, mixtures of powers, rolled and masked frames."""

import numpy as np
import pytest
import torch

from audio_mamba.data import augment
from audio_mamba.data.features import log_mel
from audio_mamba.front_end import PUBLISHED


@pytest.mark.parametrize("decibels", [-20.0, 6.0])
def test_gain_is_the_log_mel_of_louder_audio(decibels):
    audio = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    audio[4000:] *= 1e-4  # near the floor, where gain is more than a shift
    louder = log_mel(audio * 10 ** (decibels / 20)).numpy()
    found = augment.apply_gain(log_mel(audio).numpy(), decibels, PUBLISHED.log_offset)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:20], louder[:20], atol=1e-4)
    np.testing.assert_allclose(found, louder, atol=0.05)  # float32 holds few digits of what is below the floor
    shifted = log_mel(audio).numpy() + decibels * np.log(10) / 10
    assert abs(shifted - louder).max() > 0.2


def test_filters_are_lines_between_a_few_bands():
    rng, counts, highest = np.random.default_rng(0), set(), 0.0
    for _ in range(300):
        gains = augment.draw_filter(rng, 6.0, 80)
        bends = np.abs(np.diff(gains, 2)) > 1e-9
        counts.add(int(bends.sum()) + 2)
        highest = max(highest, np.abs(gains).max())
    assert gains.shape == (80,) and max(counts) == 6 and min(counts) == 3
    assert 5.9 < highest <= 6
    assert np.all(augment.draw_filter(rng, 0.0, 80) == 0)


def test_a_filter_is_the_log_mel_of_filtered_audio():
    """Half of the spectrum 12 dB softer, by the Fourier transform of the whole clip."""
    audio = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.rfft(audio)
    spectrum[4000:] *= 10 ** (-12 / 20)
    filtered = log_mel(torch.fft.irfft(spectrum)[None])[0].numpy()
    gains = np.where(np.arange(80) < 55, 0.0, -12.0)  # band 55 is near 4 kHz
    found = augment.apply_gain(log_mel(audio[None])[0].numpy(), gains, PUBLISHED.log_offset)
    assert found.dtype == np.float32
    clear = np.r_[0:50, 62:79]
    np.testing.assert_allclose(found[10:-10, clear], filtered[10:-10, clear], atol=0.05)


def test_bands_move_both_ways_and_the_edge_is_repeated():
    crop = np.arange(5, dtype=np.float32)[None].repeat(3, 0)
    rng = np.random.default_rng(0)
    found = {tuple(augment.shift_bands(crop, rng, 2)[1].tolist()) for _ in range(100)}
    assert found == {(2, 3, 4, 4, 4), (1, 2, 3, 4, 4), (0, 1, 2, 3, 4), (0, 0, 1, 2, 3), (0, 0, 0, 1, 2)}


def test_a_mixture_adds_powers():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(
        augment.mix(first, second, 0.3), np.log(0.3 * np.exp(first) + 0.7 * np.exp(second)), rtol=1e-5, atol=1e-6
    )
    assert augment.mix(first, second, 0.3).dtype == np.float32


def test_shares_of_mixtures():
    rng = np.random.default_rng(0)
    shares = np.array([augment.draw_share(rng, 0.4) for _ in range(4000)])
    assert np.mean(shares < 1) == pytest.approx(0.4, abs=0.03)
    assert shares[shares < 1].mean() == pytest.approx(0.5, abs=0.02) and shares.min() > 0
    assert {augment.draw_share(rng, 0.0) for _ in range(10)} == {1.0}


def test_shifts_go_round_both_ways():
    crop = np.arange(6, dtype=np.float32)[:, None].repeat(2, 1)
    rng = np.random.default_rng(0)
    firsts = {int(augment.shift(crop, rng, 2)[0, 0]) for _ in range(100)}
    assert firsts == {0, 1, 2, 4, 5}
    assert sorted(augment.shift(crop, rng, 2)[:, 0]) == list(range(6))


@pytest.mark.parametrize("widest", [3, 500])
def test_masks_are_one_run_each_and_leave_something(widest):
    rng, widths = np.random.default_rng(0), set()
    for _ in range(300):
        crop = np.ones((12, 8), np.float32)
        augment.mask(crop, rng, widest, widest)
        frames, bands = (crop == 0).all(1), (crop == 0).all(0)
        assert (crop == 0).sum() == frames.sum() * 8 + bands.sum() * 12 - frames.sum() * bands.sum()
        for masked in (frames, bands):
            assert np.abs(np.diff(masked.astype(int))).sum() <= 2  # one run
        widths.add(int(frames.sum()))
    assert widths == set(range(min(widest, 11) + 1))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mixup": 1.5}, "augment.mixup must be a number from 0 to 1, got 1.5"),
        ({"time_mask": 2.5}, "augment.time_mask must be a whole number from 0 to 1000000, got 2.5"),
        ({"time_shift": 10**30}, "augment.time_shift must be a whole number from 0 to 1000000, got 10+$"),
        ({"gain": -1.0}, "augment.gain must be a number from 0 to 100, got -1.0"),
        ({"filter": float("nan")}, "augment.filter must be a number from 0 to 100, got nan"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        augment.Augmentation(**settings)


@pytest.mark.parametrize("name", ["time_shift", "freq_shift", "time_mask", "freq_mask"])
@pytest.mark.parametrize("most", [1000, 1_000_000])
def test_clips_longer_than_ten_seconds_may_be_shifted_and_masked_as_far(name, most):
    settings = augment.Augmentation(**{name: most})
    crop, rng = np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32), np.random.default_rng(0)
    moved = augment.shift_bands(augment.shift(crop, rng, settings.time_shift), rng, settings.freq_shift)
    augment.mask(moved, rng, settings.time_mask, settings.freq_mask)
    assert moved.shape == crop.shape and np.isfinite(moved).all() and moved.any()
    assert not np.array_equal(moved, crop)
