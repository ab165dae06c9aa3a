"""Pieces against the whole."""

import numpy as np
import pytest
import torch

from audio_mamba.data.feature_stream import LogMelStream
from audio_mamba.data.features import log_mel


@pytest.mark.parametrize("samples", [201, 319, 400, 16000, 16001, 40161])
@pytest.mark.parametrize("piece", [1, 160, 333, 1000, 32000])
def test_pieces_of_any_length_give_the_frames_of_the_whole(samples, piece):
    if piece == 1:
        samples = min(samples, 2000)
    audio = torch.from_numpy(np.random.default_rng(samples).standard_normal(samples).astype(np.float32))
    stream = LogMelStream()
    frames = torch.cat([*(stream.feed(part) for part in audio.split(piece)), stream.finish()])
    torch.testing.assert_close(frames, log_mel(audio), rtol=0, atol=1e-5)


def test_a_frame_comes_with_the_last_sample_of_its_window_and_memory_stays_small():
    stream, audio = LogMelStream(), torch.randn(16000)
    arrivals = [sample for sample in range(16000) if len(stream.feed(audio[sample : sample + 1]))]
    assert arrivals[0] == 200 and arrivals[1:] == list(range(359, 16000, 160))
    assert len(stream._held) < 1000


def test_too_little_audio_is_refused_at_the_end():
    stream = LogMelStream()
    assert len(stream.feed(torch.zeros(200))) == 0
    with pytest.raises(ValueError, match="200 samples"):
        stream.finish()
