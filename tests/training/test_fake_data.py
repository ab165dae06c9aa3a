import numpy as np

from audio_mamba.training.fake_data import RandomSpectrograms


def test_samples_depend_on_seed_epoch_and_index_alone():
    def sample(item, seed=0):
        return RandomSpectrograms(10, 20, 8, seed, lambda rng: rng.random(5, dtype=np.float32))[item]

    first = sample((1, 2))
    assert first["spectrogram"].shape == (1, 20, 8) and first["mask"].shape == (5,) and first["index"] == 2
    again = sample((1, 2))
    assert (first["spectrogram"] == again["spectrogram"]).all() and (first["mask"] == again["mask"]).all()
    for other in (sample((0, 2)), sample((1, 3)), sample((1, 2), seed=1)):
        assert not (first["spectrogram"] == other["spectrogram"]).any()
