"""Pooling over time and overlapping segments, against loops written out here."""

import numpy as np
import pytest
import soundfile
import torch

import audio_mamba
from audio_mamba import schema
from audio_mamba.data.features import log_mel
from audio_mamba.hear_api import RuntimeSSAST, clips
from audio_mamba.hear_api.embed import main
from audio_mamba.hear_api.pretrained import from_pretrained, save_pretrained
from audio_mamba.hear_api.segments import Cut, plan_segments
from audio_mamba.hear_api.streaming import StreamingSSAM
from audio_mamba.hear_api.writers import read_settings
from audio_mamba.models import ARCHS
from audio_mamba.models.pooling import RunningPool
from tests.golden_weights import fill_by_rule, golden_audio
from tests.hear_api.test_runtime import config_of

SAMPLES = [4000, 32000, 33000, 48500, 64700, 80000]


def runtime_of(name, **settings):
    config = config_of(name, depth=2, embed_dim=64) if "ssam" in name else config_of(name, depth=2)
    config.scene_layout = "bands"
    config.update(settings)
    runtime = RuntimeSSAST(config, None)
    fill_by_rule(runtime.model)
    return runtime


def by_hand(runtime, spectrogram, before, after):
    """Embeddings [t, width] of a log-mel [frames, 80]: every segment is encoded whole, and its context is cut off."""
    steps, rows, start = -(-len(spectrogram) // 4), [], 0
    while True:
        frames = spectrogram[4 * start : 4 * start + 200]
        frames = torch.nn.functional.pad(frames, (0, 0, 0, 200 - len(frames)))
        with torch.no_grad():
            features = runtime.model.forward_features(frames[None, None], "bands")[0][: steps - start]
        last = start + 50 >= steps
        rows.append(features[before if start else 0 : None if last else 50 - after])
        if last:
            return torch.cat(rows)
        start += 50 - before - after


@pytest.mark.parametrize("overlap, shared", [(0.25, 12), (0.5, 25)])
@pytest.mark.parametrize("name", ["ssam_tiny_200_16x4", "ssast_tiny_200_16x4"])
def test_steps_keep_their_context(name, overlap, shared):
    runtime = runtime_of(name, overlap=overlap)
    before, after = (shared, 0) if "ssam" in name else (shared - shared // 2, shared // 2)
    spectrograms = [runtime.spectrogram(golden_audio(samples)[:1])[0] for samples in SAMPLES]
    for spectrogram, ours in zip(spectrograms, runtime.encode(spectrograms, "bands"), strict=True):
        expected = by_hand(runtime, spectrogram, before, after)
        assert ours.shape == expected.shape == (-(-len(spectrogram) // 4), runtime.timestamp_embedding_size)
        torch.testing.assert_close(ours, expected, rtol=0, atol=5e-5)


def test_every_step_is_kept_once_and_has_its_context():
    rng = np.random.default_rng(0)
    for _ in range(300):
        length = int(rng.integers(1, 60))
        before, after = rng.multinomial(rng.integers(0, length), [0.5, 0.5]).tolist()
        steps = rng.integers(0, 300, 4).tolist()
        segments = plan_segments(steps, Cut(length, before, after), lambda read: read)
        kept = [(part.clip, step) for part in segments for step in range(part.first, part.end)]
        assert kept == [(clip, step) for clip, count in enumerate(steps) for step in range(count)]
        for part in segments:
            assert 0 < part.read <= length and part.start + part.read <= steps[part.clip]
            assert part.start <= part.first < part.end <= part.start + part.read
            assert part.start == 0 or part.first - part.start == before
            assert part.end in (steps[part.clip], part.start + length - after)


@pytest.mark.parametrize("kind", ["scene", "timestamps"])
@pytest.mark.parametrize("name, overlap", [("ssam_tiny_200_16x4", 0.25), ("ssast_tiny_200_16x4", 0.5)])
def test_long_files_give_the_numbers_of_short_ones(name, overlap, kind, tmp_path, monkeypatch):
    runtime = runtime_of(name, overlap=overlap, scene_pooling="mean_std")
    paths = [tmp_path / f"{samples}.wav" for samples in SAMPLES]
    for path, samples in zip(paths, SAMPLES):
        soundfile.write(path, golden_audio(samples)[0].numpy(), 16000, subtype="FLOAT")
    whole = runtime.embed(paths, kind=kind)
    monkeypatch.setattr(clips, "LONG_SECONDS", 0.1)
    monkeypatch.setattr(clips, "CHUNK_FRAMES", 330)  # one segment, or two that overlap by half
    for ours, expected in zip(runtime.embed(paths, kind=kind), whole, strict=True):
        ours, expected = (ours[0], expected[0]) if kind == "timestamps" else (ours, expected)
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("piece", [700, 80000])
def test_live_embeddings_equal_those_of_the_whole_clip(overlap, piece):
    runtime, audio = runtime_of("ssam_tiny_200_16x4", overlap=overlap), golden_audio(80000)[0]
    streaming = StreamingSSAM(runtime, (-7.0, 4.0))
    parts = [streaming.feed(part) for part in audio.split(piece)] + [streaming.finish()]
    expected = runtime.encode([(log_mel(audio, runtime.front_end) + 7.0) / 4.0], "bands")[0]
    torch.testing.assert_close(torch.cat([rows for rows, _ in parts]), expected, rtol=0, atol=1e-4)


def test_mean_and_deviation_over_time():
    runtime, audio = runtime_of("ssam_tiny_200_16x4", scene_pooling="mean_std"), golden_audio(48500)
    steps = runtime.get_timestamp_embeddings(audio)[0].numpy().astype(np.float64)
    expected = np.concatenate([steps.mean(axis=1), steps.std(axis=1)], axis=1)
    assert runtime.scene_embedding_size == 2 * runtime.timestamp_embedding_size == 640
    np.testing.assert_allclose(runtime.get_scene_embeddings(audio), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(runtime.embed(audio), expected, rtol=0, atol=5e-5)
    one_step = runtime.get_scene_embeddings(golden_audio(201))
    assert (one_step[:, 320:] == 0).all() and one_step.isfinite().all()


def test_a_running_pool_equals_numpy_in_float64():
    rows = np.random.default_rng(0).normal(1000.0, 1e-3, (500, 6))  # squares summed in the naive way would cancel
    running = RunningPool("mean_std", 6)
    for start, end in [(0, 1), (1, 7), (7, 300), (300, 500)]:
        running.add(torch.from_numpy(rows[start:end]))
    expected = np.concatenate([rows.mean(axis=0), rows.std(axis=0)])
    np.testing.assert_allclose(running.result()[0], expected, rtol=1e-6)


def test_the_published_configs_keep_the_published_values():
    config = config_of("ssam_tiny_200_16x4")
    assert (config.scene_pooling, config.overlap) == ("mean", 0.0)
    assert RuntimeSSAST(config, None).scene_embedding_size == 960


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scene_pooling": "max"}, "scene_pooling must be one of mean, mean_std, got 'max'"),
        ({"overlap": 0.9}, "overlap must be a number from 0 to 0.75, got 0.9"),
        ({"overlap": "half"}, "overlap must be a number from 0 to 0.75, got 'half'"),
        ({"overlap": 0.5, "scene_layout": "published"}, 'overlap needs scene_layout "bands"'),
    ],
)
def test_a_config_refuses_other_values(changes, message):
    config = config_of("ssam_tiny_200_16x4")
    with config.ignore_type():
        config.update({"scene_layout": "bands", **changes})
    with pytest.raises(ValueError, match=message):
        schema.check_config(config, ARCHS, source="a config")


def test_the_published_layout_refuses_an_overlap():
    runtime = runtime_of("ssam_tiny_200_16x4", overlap=0.5)
    with pytest.raises(ValueError, match="a row of the published one has no single time"):
        runtime.features(golden_audio(16000), layout="published")


def test_load_model_and_saved_models_keep_the_choices(tmp_path):
    model = audio_mamba.load_model("ssam_tiny_free_audio", "untrained", "cpu", pooling="mean_std", overlap=0.25)
    assert (model.scene_layout, model.scene_pooling, model.overlap) == ("bands", "mean_std", 0.25)
    save_pretrained(model, tmp_path / "saved")
    for again in (from_pretrained(tmp_path / "saved"), audio_mamba.load_model(tmp_path / "saved")):
        assert (again.scene_layout, again.scene_pooling, again.overlap) == ("bands", "mean_std", 0.25)
        assert again.scene_embedding_size == 1920
    with pytest.raises(ValueError, match="scene_pooling must be one of mean, mean_std"):
        audio_mamba.load_model("ssam_tiny_free_audio", "untrained", pooling="median")


def test_time_steps_may_overlap_whatever_the_layout_of_scenes(tmp_path):
    soundfile.write(tmp_path / "a.wav", golden_audio(70000)[0].numpy(), 16000)
    command = [str(tmp_path / "a.wav"), "--config", "tests.hear_api.small_config", "--weights", "untrained"]
    command += ["--workers", "1", "--device", "cpu", "--overlap", "0.5", "--out", str(tmp_path / "out.npz")]
    main([*command, "--kind", "timestamps"])
    assert read_settings(tmp_path / "out.npz")["overlap"] == 0.5
    config = "tests.hear_api.small_config"
    assert audio_mamba.load_model(config, "untrained", "cpu").scene_layout == "published"
    model = audio_mamba.load_model(config, "untrained", "cpu", layout="bands", overlap=0.5)
    [(expected, _)] = model.embed([tmp_path / "a.wav"], kind="timestamps")
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["embedding"], expected, rtol=0, atol=1e-4)
    with pytest.raises(SystemExit, match='overlap needs scene_layout "bands"'):
        main([*command[:-1], str(tmp_path / "scenes.npz")])


def test_the_embed_command_records_the_choices_and_refuses_others_on_resume(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", golden_audio(70000)[0].numpy(), 16000)
    command = [str(tmp_path / "a.wav"), "--config", "tests.hear_api.small_config", "--weights", "untrained"]
    command += ["--workers", "1", "--device", "cpu", "--out", str(tmp_path / "out.npz"), "--layout", "bands"]
    main([*command, "--pooling", "mean_std", "--overlap", "0.5"])
    settings = read_settings(tmp_path / "out.npz")
    assert (settings["pooling"], settings["overlap"]) == ("mean_std", 0.5)
    model = audio_mamba.load_model(
        "tests.hear_api.small_config", "untrained", "cpu", layout="bands", pooling="mean_std", overlap=0.5
    )
    expected = model.embed([tmp_path / "a.wav"])
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["embedding"], expected, rtol=0, atol=1e-4)
    with pytest.raises(SystemExit, match=r"was made with another pooling \('mean_std', now 'mean'\)"):
        main([*command, "--overlap", "0.5", "--resume"])
    with pytest.raises(SystemExit, match=r"was made with another overlap \(0.5, now 0.0\)"):
        main([*command, "--pooling", "mean_std", "--resume"])
