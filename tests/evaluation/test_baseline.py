import numpy as np
import torch

from audio_mamba.data.features import log_mel
from benchmarks import log_mel_baseline


def test_scene_embedding_is_mean_and_deviation():
    audio = torch.randn(3, 8000, generator=torch.Generator().manual_seed(0)) / 10
    embedding = log_mel_baseline.get_scene_embeddings(audio, log_mel_baseline.load_model())
    spectrogram = log_mel(audio).numpy()
    expected = np.concatenate([spectrogram.mean(1), spectrogram.std(1)], axis=1)
    np.testing.assert_allclose(embedding.numpy(), expected, atol=1e-4)


def test_timestamp_embedding_is_the_mean_of_40_ms():
    audio = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)) / 10
    embeddings, timestamps = log_mel_baseline.get_timestamp_embeddings(audio, log_mel_baseline.load_model())
    spectrogram = log_mel(audio).numpy()  # 101 frames: 25 steps of 4, and one frame
    assert embeddings.shape == (2, 26, 80)
    np.testing.assert_allclose(embeddings[:, 3].numpy(), spectrogram[:, 12:16].mean(1), atol=1e-4)
    np.testing.assert_allclose(embeddings[:, 25].numpy(), spectrogram[:, 100], atol=1e-4)
    np.testing.assert_allclose(timestamps.numpy(), np.tile(40.0 * np.arange(26), (2, 1)))


def test_hear_validator_accepts_the_baseline(command):
    command("-m external_sources.validate", "benchmarks.log_mel_baseline", "-d", "cpu")


def test_hear_validator_rejects_a_module_without_the_api(command):
    done = command("-m external_sources.validate", "json", "-d", "cpu", status=1)
    assert "load_model" in done.stderr
