"""The front end against the published numbers, and against its formula written out in float64."""

import numpy as np
import pytest
import torch

from audio_mamba.data.features import LogMelStream, _constants, log_mel, mel_filter_bank
from audio_mamba.data.normalisation import clip_statistics, normalise
from audio_mamba.front_end import PUBLISHED, FrontEnd

LENGTHS = (8000, 16000, 31840, 32000, 50001, 80000)


def golden_audio(n_samples: int, tag: int) -> torch.Tensor:
    """The two clips of golden/runtime.npz, [2, n]."""
    rng, t = np.random.RandomState(tag), np.arange(n_samples) / 16000
    clips = [
        0.3 * np.sin(2 * np.pi * (200 + 150 * i) * t * (1 + 0.1 * t)) + 0.05 * rng.standard_normal(n_samples)
        for i in range(2)
    ]
    return torch.from_numpy(np.stack(clips).astype(np.float32))


@pytest.mark.parametrize("n_samples", LENGTHS)
def test_equals_published_numbers(golden, n_samples):
    expected = np.load(golden / "runtime.npz")
    spectrogram = log_mel(golden_audio(n_samples, int(expected["tag"])))[:, None]  # [2, 1, frames, 80]
    assert list(spectrogram.shape) == expected[f"lms_{n_samples}_shape"].tolist()
    np.testing.assert_allclose(spectrogram[:, :, ::9, ::4], expected[f"raw_{n_samples}"], rtol=0, atol=1e-4)
    normalised = normalise(spectrogram, clip_statistics(spectrogram, ddof=1))
    np.testing.assert_allclose(normalised[:, :, ::9, ::4], expected[f"lms_{n_samples}"], rtol=0, atol=1e-4)


def test_equals_the_formula_frame_by_frame():
    audio = np.random.default_rng(0).standard_normal(1000)
    padded = np.concatenate([audio[200:0:-1], audio, audio[-2:-202:-1]])  # reflection, edge not repeated
    n = np.arange(400)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 400)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(201), n) / 400)
    mels = 2595 * np.log10(1 + np.array([50.0, 8000.0]) / 700)
    edges = 700 * (10 ** (np.linspace(*mels, 82) / 2595) - 1)
    bank = np.stack([np.interp(np.arange(201) * 40.0, edges[m : m + 3], [0, 1, 0], left=0, right=0) for m in range(80)])
    expected = np.stack(
        [
            np.log(bank @ np.abs(dft @ (window * padded[160 * i : 160 * i + 400])) ** 2 + 1.1920929e-07)
            for i in range(PUBLISHED.num_frames(1000))
        ]
    )
    np.testing.assert_allclose(log_mel(torch.from_numpy(audio.astype(np.float32))), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(mel_filter_bank(), bank.T, atol=1e-12)


def test_shapes_at_the_shortest_length_and_with_any_leading_dimensions():
    assert log_mel(torch.randn(PUBLISHED.min_samples)).shape == (2, 80) == (2, 80)
    audio = torch.randn(2, 3, 1600)
    torch.testing.assert_close(log_mel(audio)[1, 2], log_mel(audio[1, 2]), rtol=0, atol=1e-5)


def test_runs_in_float32_under_autocast_and_lets_gradients_through():
    audio = torch.randn(2, 1600)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = log_mel(audio)
    assert torch.equal(under_autocast, log_mel(audio))
    _constants.cache_clear()
    with torch.inference_mode():  # a first use here must not spoil what is kept for later
        log_mel(audio)
    silent_start = torch.cat([torch.zeros(1600), torch.randn(1600)]).requires_grad_()
    log_mel(silent_start).sum().backward()
    assert torch.isfinite(silent_start.grad).all() and silent_start.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "bad, error", [(torch.zeros(200), "200 samples"), (torch.tensor(0.0), "0 samples"), (torch.zeros(0), "0 samples")]
)
def test_refuses_too_few_samples(bad, error):
    with pytest.raises(ValueError, match=error):
        log_mel(bad)


@pytest.mark.parametrize(
    "bad", [torch.zeros(400, dtype=torch.float64), torch.zeros(400, dtype=torch.int16), np.zeros(400, np.float32)]
)
def test_refuses_other_types(bad):
    with pytest.raises(TypeError, match="float32"):
        log_mel(bad)


# ---------------------------------------------------------------- the stream


@pytest.mark.parametrize("samples", [201, 319, 400, 16000, 16001, 40161])
@pytest.mark.parametrize("piece", [1, 160, 333, 1000, 32000])
def test_pieces_of_any_length_give_the_frames_of_the_whole(samples, piece):
    if piece == 1:
        samples = min(samples, 2000)
    audio = torch.from_numpy(np.random.default_rng(samples).standard_normal(samples).astype(np.float32))
    stream = LogMelStream()
    frames = torch.cat([*(stream.feed(part) for part in audio.split(piece)), stream.finish()])
    torch.testing.assert_close(frames, log_mel(audio), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_fft, hop", [(512, 256), (400, 320), (400, 201), (400, 133)])
def test_pieces_give_the_frames_of_the_whole_at_any_hop(n_fft, hop):
    front_end = FrontEnd(n_fft=n_fft, hop_length=hop)
    audio = torch.from_numpy(np.random.default_rng(0).standard_normal(5 * n_fft).astype(np.float32))
    last_windows_end = [n_fft // 2 + n * hop for n in range(1, 7)]  # with the last sample, just before, and just after
    for samples in [front_end.min_samples, *(end + more for end in last_windows_end for more in (-1, 0, 1))]:
        for piece in (60, hop, 700):
            stream = LogMelStream(front_end)
            frames = torch.cat([*(stream.feed(part) for part in audio[:samples].split(piece)), stream.finish()])
            torch.testing.assert_close(frames, log_mel(audio[:samples], front_end), rtol=0, atol=1e-5)


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
