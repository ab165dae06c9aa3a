"""openSMILE as a HEAR module, where it is installed: its licence keeps it out of the project's own requirements."""

import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import opensmile_features


@pytest.fixture
def audio():
    """Two clips of a second: a voiced sound with harmonics of 150 Hz, and noise."""
    time = np.arange(16000) / 16000
    voiced = sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 20))
    noise = np.random.default_rng(0).standard_normal(16000)
    return torch.tensor(np.stack([0.1 * voiced, 0.1 * noise]), dtype=torch.float32)


def test_features_are_opensmiles_own(audio):
    opensmile = pytest.importorskip("opensmile", reason="pip install -r benchmarks/requirements-opensmile.txt")
    model = opensmile_features.load_model()
    scenes = opensmile_features.get_scene_embeddings(audio, model)
    steps, timestamps = opensmile_features.get_timestamp_embeddings(audio, model)
    assert scenes.shape == (2, model.scene_embedding_size) == (2, 88)
    assert steps.shape == (2, timestamps.shape[1], model.timestamp_embedding_size) and steps.shape[2] == 25
    chosen, level = opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel
    frames = opensmile.Smile(chosen, level.LowLevelDescriptors).process_signal(audio[0].numpy(), 16000)
    np.testing.assert_allclose(steps[0, 3], frames.iloc[12:16].mean(), rtol=1e-4, atol=1e-4)
    assert timestamps[1, :3].tolist() == [0.0, 40.0, 80.0]
    pitch = opensmile.Smile(chosen, level.Functionals).feature_names.index("F0semitoneFrom27.5Hz_sma3nz_amean")
    assert scenes[0, pitch].item() == pytest.approx(12 * np.log2(150 / 27.5), abs=0.2)
    assert opensmile_features.get_scene_embeddings(audio[:, :400], model).isfinite().all()
    with pytest.raises(ValueError, match="unknown feature set GeMAP; choose from ComParE_2016"):
        opensmile_features.load_model("GeMAP")


def test_shapes_and_times_without_opensmile(audio, monkeypatch):
    """With a stand-in that returns the number of each frame, so that this part is tested everywhere."""

    class Smile:
        def __init__(self, feature_set, feature_level):
            self.rows, self.num_features = (1, 88) if feature_level == "functionals" else (96, 25)

        def process_signal(self, signal, rate):
            assert rate == 16000 and signal.dtype == np.float32 and signal.shape == (16000,)
            return pd.DataFrame(np.arange(self.rows)[:, None] + np.zeros(self.num_features))

    stand_in = types.ModuleType("opensmile")
    stand_in.Smile = Smile
    stand_in.FeatureSet = type("FeatureSet", (dict,), {"__members__": {"eGeMAPSv02": 0}})(eGeMAPSv02=0)
    stand_in.FeatureLevel = types.SimpleNamespace(Functionals="functionals", LowLevelDescriptors="descriptors")
    monkeypatch.setitem(sys.modules, "opensmile", stand_in)
    model = opensmile_features.load_model()
    assert opensmile_features.get_scene_embeddings(audio, model).shape == (2, 88)
    steps, timestamps = opensmile_features.get_timestamp_embeddings(audio, model)
    assert steps.shape == (2, 24, 25) and steps[0, :3, 0].tolist() == [1.5, 5.5, 9.5]
    assert timestamps.shape == (2, 24) and timestamps[0, 23] == 23 * 40
