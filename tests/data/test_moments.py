"""Statistics of parts against those of the whole."""

import numpy as np
import pytest
import torch

from audio_mamba.data.moments import Moments


def test_parts_give_the_moments_of_the_whole():
    values = torch.randn(1000, 80) * 3 - 7
    moments = Moments()
    for part in values.split([1, 0, 99, 400, 500]):
        moments.add(part)
    expected = values.double().mean().item(), values.double().std().item()
    np.testing.assert_allclose(moments.mean_and_std(), expected, rtol=1e-10)
    assert moments.frames == 1000


def test_a_constant_has_no_deviation_at_all_and_nothing_has_no_statistics():
    moments = Moments()
    with pytest.raises(ValueError, match="no frames"):
        moments.mean_and_std()
    for length in (3, 1000, 17):
        moments.add(torch.full((length, 80), -15.942385))
    assert moments.mean_and_std() == (torch.tensor(-15.942385).double().item(), 0.0)
