"""The runtime gives the published model's numbers and follows the HEAR API."""

import importlib

import numpy as np
import pytest
import torch

from audio_mamba.hear_api import RuntimeSSAST
from audio_mamba.hear_api.weights import find_checkpoint
from audio_mamba.training.checkpoint import CheckpointError
from tests.golden_weights import fill_by_rule, golden_audio

LENGTHS = [8000, 16000, 31840, 32000, 50001, 80000]


def config_of(name, **model_args):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.model_args.update(model_args)
    return config


@pytest.fixture(scope="module")
def numbers(golden):
    return np.load(golden / "runtime.npz")


@pytest.fixture(scope="module", params=["ssam_tiny_200_16x4", "ssast_tiny_200_16x4"])
def named_runtime(request):
    runtime = RuntimeSSAST(config_of(request.param), None)
    fill_by_rule(runtime.model)
    return request.param, runtime


@pytest.fixture(scope="module")
def small_runtime():
    return RuntimeSSAST(config_of("ssam_tiny_200_16x4", depth=1), None)


def assert_close(ours, published, tolerance=2e-4):
    np.testing.assert_allclose(ours.numpy(), published, rtol=0, atol=tolerance)


@pytest.mark.parametrize("samples", LENGTHS)
def test_published_embeddings_scenes_and_timestamps(named_runtime, numbers, samples):
    name, runtime = named_runtime
    audio = golden_audio(samples)
    embeddings, timestamps = runtime.features(audio, layout="published")
    key = f"{name}_{samples}"
    assert list(embeddings.shape) == list(numbers[f"{key}_shape"])
    assert_close(embeddings[:, ::13, ::23], numbers[f"{key}_emb"])
    assert_close(timestamps, numbers[f"{key}_ts"], tolerance=1e-2)
    assert_close(runtime.get_scene_embeddings(audio)[:, ::11], numbers[f"{key}_scene"])


@pytest.mark.parametrize("samples", LENGTHS)
def test_normalised_spectrogram(small_runtime, numbers, samples):
    spectrogram = small_runtime.spectrogram(golden_audio(samples)).unsqueeze(1)  # [2, 1, frames, 80]
    assert list(spectrogram.shape) == list(numbers[f"lms_{samples}_shape"])
    assert_close(spectrogram[:, :, ::9, ::4], numbers[f"lms_{samples}"], tolerance=1e-4)


def test_timestamps_are_the_starts_of_the_patches_within_the_clip(small_runtime):
    audio = golden_audio(50001)
    embeddings, timestamps = small_runtime.get_timestamp_embeddings(audio)
    assert embeddings.dtype == timestamps.dtype == torch.float32
    assert embeddings.shape == (2, 79, small_runtime.timestamp_embedding_size)
    np.testing.assert_array_equal(timestamps, np.tile(40.0 * np.arange(79), (2, 1)))
    assert timestamps.max() <= 50001 / 16


def test_timestamp_embeddings_are_local_in_time(small_runtime):
    """A click at 1.2 s changes the causal encoder's embeddings from there on, but none before.

    Both clips are normalised by the same statistics; their own would spread the click everywhere.
    """
    spectrogram = small_runtime.spectrogram(golden_audio(31840)[:1])
    clicked = spectrogram.clone()
    clicked[:, 120:124] += 3
    model = small_runtime.model
    pad = (0, 0, 0, 200 - spectrogram.shape[1])
    with torch.no_grad():
        before, after = (
            model.forward_features(torch.nn.functional.pad(s, pad)[:, None], "bands") for s in (spectrogram, clicked)
        )
    changed = (before - after).abs().amax(dim=(0, 2)) > 1e-5
    assert changed.nonzero()[0].item() == 30 and changed[30:].all()


def test_bands_layout_for_scenes_is_the_mean_of_the_timestamp_embeddings():
    config = config_of("ssam_tiny_200_16x4", depth=1)
    config.scene_layout = "bands"
    runtime, audio = RuntimeSSAST(config, None), golden_audio(50001)
    torch.testing.assert_close(runtime.get_scene_embeddings(audio), runtime.get_timestamp_embeddings(audio)[0].mean(1))


def test_silence_gives_finite_embeddings_of_a_zero_spectrogram(small_runtime):
    silence = torch.zeros(1, 16000)
    assert small_runtime.spectrogram(silence).count_nonzero() == 0
    assert small_runtime.get_scene_embeddings(silence).isfinite().all()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_lower_precision_is_near_float32(small_runtime, precision):
    runtime = RuntimeSSAST(config_of("ssam_tiny_200_16x4", depth=1), None, precision=precision)
    audio = golden_audio(16000)
    full, low = small_runtime.get_scene_embeddings(audio), runtime.get_scene_embeddings(audio)
    assert low.dtype == torch.float32
    assert 0 < (full - low).abs().max() < 0.05


def test_published_checkpoint_loads_and_the_highest_epoch_is_chosen(golden, tmp_path):
    config = config_of("ssam_tiny_200_16x4", depth=2)
    runtime = RuntimeSSAST(config, golden / "published_layout")
    expected = fill_by_rule(RuntimeSSAST(config, None).model).state_dict()
    for key, tensor in runtime.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=5e-6 if key == "pos_embed" else 0)
    for epoch in (8, 99, 100):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / f"checkpoint-{epoch}.pth").touch()
    assert find_checkpoint(tmp_path).name == "checkpoint-100.pth"


def test_weights_of_another_architecture_are_refused_by_key(golden):
    with pytest.raises(CheckpointError, match="blocks.2.mixer.A_log"):
        RuntimeSSAST(config_of("ssam_tiny_200_16x4"), golden / "published_layout")


def test_untrained_weights_are_the_same_each_time_and_do_not_touch_the_generator():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (RuntimeSSAST(config_of("ssast_tiny_200_16x4", depth=1), None).model for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.pred[0].weight, second.pred[0].weight)


def test_the_back_end_of_a_training_run_is_not_a_property_of_its_weights(monkeypatch):
    config = config_of("ssam_tiny_200_16x4", depth=1)
    config.model.backend = "triton"
    runtime = RuntimeSSAST(config, None)
    assert runtime.model.blocks[0].mixer.backend == "auto"
    assert runtime.get_scene_embeddings(golden_audio(8000)).isfinite().all()
    monkeypatch.setenv("AUDIO_MAMBA_BACKEND", "reference")
    assert RuntimeSSAST(config, None).model.blocks[0].mixer.backend == "reference"


def test_unknown_names_are_refused(golden):
    with pytest.raises(ValueError, match="unknown precision 'fp16'"):
        RuntimeSSAST(config_of("ssam_tiny_200_16x4"), None, precision="fp16")
    config = config_of("ssam_tiny_200_16x4")
    config.model.arch = "mamba_tiny"
    with pytest.raises(ValueError, match="unknown model.arch 'mamba_tiny'"):
        RuntimeSSAST(config, None)
    config = config_of("ssam_tiny_200_16x4")
    config.scene_layout = "time"
    with pytest.raises(ValueError, match="unknown layout 'time'"):
        RuntimeSSAST(config, None)
    with pytest.raises(FileNotFoundError, match="no checkpoint-<epoch>.pth"):
        RuntimeSSAST(config_of("ssam_tiny_200_16x4"), golden)
