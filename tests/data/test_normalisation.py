"""Normalisation against numpy in float64, of whole clips, crops and parts."""

import numpy as np
import pytest
import torch

from audio_mamba.data.features import log_mel
from audio_mamba.data.normalisation import RunningStats, Statistics, clip_statistics, normalise


def normalised(spectrogram, ddof):
    return normalise(spectrogram, clip_statistics(spectrogram, ddof))


@pytest.mark.parametrize("ddof", [0, 1])
def test_normalise_is_mean_and_deviation_of_each_clip(ddof):
    clips = torch.randn(3, 50, 80) * 4 - 6
    expected = np.stack([(clip - clip.mean()) / (clip.std(ddof=ddof) + 1e-8) for clip in clips.double().numpy()])
    np.testing.assert_allclose(normalised(clips, ddof), expected, rtol=0, atol=1e-5)
    half = normalised(clips.half().float(), ddof)
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("ddof", [0, 1])
def test_a_constant_spectrogram_normalises_to_exactly_zero(ddof):
    assert not normalised(torch.full((201, 80), -15.942385), ddof).any()
    assert not normalised(log_mel(torch.zeros(16000)), ddof).any()


def test_normalise_gives_the_same_bits_for_any_number_of_threads():
    clip, threads = torch.randn(1001, 80), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = normalised(clip, 0)
        torch.set_num_threads(4)
        assert torch.equal(normalised(clip, 0), alone)
    finally:
        torch.set_num_threads(threads)


def test_a_crop_normalises_in_place_as_part_of_its_clip():
    clip = torch.randn(300, 80) * 3 - 7
    mean, std = (float(value) for value in clip_statistics(clip.double(), ddof=0))
    crop = clip[100:200].clone()
    assert normalise(crop, Statistics(mean, std), out=crop) is crop
    torch.testing.assert_close(crop, normalised(clip, 0)[100:200], rtol=0, atol=1e-5)


def test_parts_give_the_statistics_of_the_whole():
    values = torch.randn(1000, 80) * 3 - 7
    stats = RunningStats()
    for part in values.split([1, 0, 99, 400, 500]):
        stats.add(part)
    expected = values.double().mean().item(), values.double().std().item()
    np.testing.assert_allclose(stats.statistics(), expected, rtol=1e-10)
    assert stats.frames == 1000


def test_a_constant_has_no_deviation_at_all_and_nothing_has_no_statistics():
    stats = RunningStats()
    with pytest.raises(ValueError, match="no frames"):
        stats.statistics()
    for length in (3, 1000, 17):
        stats.add(torch.full((length, 80), -15.942385))
    assert stats.statistics() == (torch.tensor(-15.942385).double().item(), 0.0)
