"""All units of all clips at once, the last ones cut: the numbers of each clip alone and whole."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch

from audio_mamba.hear_api import RuntimeSSAST
from audio_mamba.hear_api.segments import TOKENS_PER_BATCH, batch_segments, plan_segments
from tests.golden_weights import fill_by_rule
from tests.hear_api.test_runtime import config_of

LENGTHS = [201, 4000, 16000, 31840, 32000, 33000, 70000]
CLIPS = [np.random.default_rng(n).uniform(-0.5, 0.5, n).astype(np.float32) for n in LENGTHS]


@pytest.fixture(scope="module", params=["ssam_tiny_200_16x4", "ssast_tiny_200_16x4"])
def runtime(request):
    runtime = RuntimeSSAST(config_of(request.param, depth=2), None)
    fill_by_rule(runtime.model)
    return runtime


def unit_by_unit(runtime, clip, layout):
    """The published procedure: every unit whole, one after another."""
    spectrogram = runtime.spectrogram(torch.from_numpy(clip))[0]
    units = [torch.nn.functional.pad(part, (0, 0, 0, 200 - len(part)))[None, None] for part in spectrogram.split(200)]
    with torch.no_grad():
        features = torch.cat([whole_features(runtime.model, unit, layout) for unit in units])
    return features[: -(-len(spectrogram) // 4)].numpy()


def whole_features(model, unit, layout):
    tokens = model.encode(model.embed(unit))[0]  # [250, D], all of them
    if layout == "published":
        tokens = tokens.reshape(5, 50, -1).transpose(0, 1)
    return tokens.reshape(50, -1)


@pytest.mark.parametrize("layout", ["published", "bands"])
def test_a_mixed_list_gives_each_clip_its_numbers(runtime, layout):
    features = runtime.encode([runtime.spectrogram(torch.from_numpy(clip))[0] for clip in CLIPS], layout)
    for clip, ours in zip(CLIPS, features, strict=True):
        np.testing.assert_allclose(ours.numpy(), unit_by_unit(runtime, clip, layout), rtol=0, atol=5e-5)


def test_embed_equals_the_hear_functions(runtime, tmp_path):
    paths = [tmp_path / f"{len(clip)}.wav" for clip in CLIPS]
    for path, clip in zip(paths, CLIPS):
        soundfile.write(path, clip, 16000, subtype="FLOAT")
    scenes, timed = runtime.embed([*CLIPS[:3], *paths[3:]]), runtime.embed(paths, kind="timestamps", output="torch")
    assert scenes.shape == (len(CLIPS), 960) and scenes.dtype == np.float32
    for clip, scene, (rows, times) in zip(CLIPS, scenes, timed, strict=True):
        audio = torch.from_numpy(clip)
        np.testing.assert_allclose(scene, runtime.get_scene_embeddings(audio)[0], rtol=0, atol=5e-5)
        expected_rows, expected_times = runtime.get_timestamp_embeddings(audio)
        torch.testing.assert_close(rows, expected_rows[0], rtol=0, atol=5e-5)
        torch.testing.assert_close(times, expected_times[0])


def test_one_path_one_clip_a_batch_and_nothing(runtime, tmp_path):
    soundfile.write(tmp_path / "a.flac", CLIPS[2], 16000)
    assert runtime.embed(tmp_path / "a.flac").shape == runtime.embed(CLIPS[2]).shape == (1, 960)
    assert runtime.embed(np.stack([CLIPS[2]] * 2)).shape == (2, 960)
    assert runtime.embed([]).shape == (0, 960) and runtime.embed([], kind="timestamps") == []


def test_another_sample_rate_is_resampled_where_the_caller_names_it(runtime):
    def tone(rate):
        return 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    at_16k, at_48k = runtime.embed(tone(16000)), runtime.embed(tone(48000), sample_rate=48000)
    assert np.corrcoef(at_16k[0], at_48k[0])[0, 1] > 0.99
    assert np.corrcoef(at_16k[0], runtime.embed(tone(48000))[0])[0, 1] < 0.99


def test_groups_and_blocks_of_long_input_change_nothing(runtime, monkeypatch):
    before = runtime.embed(CLIPS)
    monkeypatch.setattr("audio_mamba.hear_api.clips.GROUP_FRAMES", 150)
    monkeypatch.setattr("audio_mamba.hear_api.runtime.BLOCK_SAMPLES", 5000)
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 300)
    np.testing.assert_allclose(runtime.embed(CLIPS), before, rtol=0, atol=5e-5)


def test_callers_in_threads_get_their_own_results(runtime):
    alone = [runtime.embed(clip) for clip in CLIPS]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(runtime.embed, CLIPS * 3))
    for ours, expected in zip(together, alone * 3):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout, tokens", [("bands", 250 + 5 * 1), ("published", 250 + 200 + 1)])
def test_the_last_unit_of_a_causal_encoder_is_cut(runtime, layout, tokens, monkeypatch):
    seen, encode = [], runtime.model.encode
    monkeypatch.setattr(runtime.model, "encode", lambda x: seen.append(x.shape[0] * x.shape[1]) or encode(x))
    runtime.encode([torch.zeros(201, 80)], layout)
    if not runtime.model.causal:
        tokens = 500
    padding = 50 if tokens == 451 else 0  # one token less is not worth a batch of its own
    assert tokens <= sum(seen) <= tokens + padding


def test_batches_hold_every_unit_once_and_pad_little():
    steps = list(np.random.default_rng(0).integers(1, 400, 300))
    units = plan_segments(steps, 50, lambda kept: 5 * kept)
    batches = list(batch_segments(units, "cpu"))
    assert sorted((unit.clip, unit.first) for batch in batches for unit in batch) == [
        (clip, first) for clip, count in enumerate(steps) for first in range(0, count, 50)
    ]
    assert all(len(batch) * batch[0].tokens <= TOKENS_PER_BATCH["cpu"] for batch in batches)
    padded = sum(len(batch) * max(unit.tokens for unit in batch) for batch in batches)
    assert padded < 1.02 * sum(unit.tokens for unit in units)
