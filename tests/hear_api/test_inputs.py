"""Valid audio embeds, and every documented fault has its error."""

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import audio_mamba
from audio_mamba.data.audio import AudioError
from audio_mamba.hear_api import RuntimeSSAST, clips
from audio_mamba.hear_api.inputs import InputError
from tests.hear_api.test_runtime import config_of

FLOATS = ["float16", "float32", "float64", ">f4"]


@pytest.fixture(scope="module")
def runtime():
    return RuntimeSSAST(config_of("ssam_tiny_200_16x4", depth=1, embed_dim=64), None)


@st.composite
def arrays(draw):
    """Arrays of any rank, length, dtype and content."""
    shape = draw(st.sampled_from([(), (0,), (1,), (2,), (3,), (0, 2), (1, 2, 2)]).map(list))
    length = draw(st.one_of(st.integers(0, 400), st.integers(0, 40_000)))
    if draw(st.booleans()):
        shape = draw(st.sampled_from([[], [1], [2], [3]]))  # favour shapes that are accepted
    shape = (*shape, length)
    dtype = draw(st.sampled_from([*FLOATS, "int16", "int32", "uint8", "bool", "complex64"]))
    scale = draw(st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 50.0, 30_000.0]))
    bad = draw(st.sampled_from([None, None, None, np.nan, np.inf, -np.inf]))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    values = scale * rng.uniform(-1, 1, shape)
    if values.size:
        values.flat[rng.integers(values.size)] = scale
    with np.errstate(invalid="ignore"):
        audio = values.astype(dtype)
    if bad is not None and audio.size and dtype in FLOATS:
        audio.flat[rng.integers(audio.size)] = bad
    return audio


def fault_of(audio):
    """The first documented fault of an array, or None."""
    if audio.dtype.kind != "f":
        return "floating-point"
    if audio.ndim not in (1, 2) or audio.ndim == 2 and len(audio) == 0:
        return "n_samples"
    if audio.shape[-1] <= 200:
        return "at least 201 samples"
    for clip in np.atleast_2d(audio.astype("float64")):
        if not np.isfinite(clip).all():
            return "NaN or Inf"
        if np.abs(clip).max() > 100:
            return "integer PCM"
    return None


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(audio=arrays())
def test_valid_audio_embeds_and_only_documented_faults_raise(runtime, audio):
    fault = fault_of(audio)
    if fault:
        with pytest.raises(InputError, match=fault.replace("[", r"\[")):
            runtime.embed(audio)
        return
    clips, frames = (len(audio) if audio.ndim == 2 else 1), 1 + audio.shape[-1] // 160
    scenes, timed = runtime.embed(audio), runtime.embed(audio, kind="timestamps")
    assert scenes.shape == (clips, 320) and np.isfinite(scenes).all()
    assert len(timed) == clips
    for rows, times in timed:
        assert rows.shape == (-(-frames // 4), 320) and np.isfinite(rows).all()
        assert times[-1] <= 1000 * audio.shape[-1] / 16000
    hear = runtime.get_scene_embeddings(audio)
    assert hear.shape == (clips, 320)
    np.testing.assert_allclose(hear.numpy(), scenes, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "audio, message",
    [
        (torch.zeros(1, 200), "clip 0 of 1 must have at least 201 samples"),
        (torch.zeros(1, 1, 16000), r"\[n_sounds, n_samples\]"),
        (torch.zeros(0, 16000), "at least one sound"),
        (torch.zeros(1, 16000, dtype=torch.int16), "int16; integer PCM needs scaling"),
        (torch.full((3, 16000), float("nan")), "clip 0 of 3 holds NaN or Inf"),
        ([[0.0] * 16000], "floating-point samples in .* got list"),
    ],
)
def test_invalid_audio_is_refused_in_one_sentence(runtime, audio, message):
    with pytest.raises(ValueError, match=message):
        runtime.get_scene_embeddings(audio)


@pytest.mark.parametrize(
    "clips, arguments, message",
    [
        ([np.zeros(16000), np.zeros((2, 16000))], {}, r"clip 1 of 2 must be \[n_samples\], got \[2, 16000\]"),
        ([np.zeros(16000), np.zeros(200)], {}, "clip 1 of 2 must have at least 201 samples"),
        ([np.zeros(300)], {"sample_rate": 48000}, "clip 0 of 1, resampled to 16000 Hz, must have at least 201 samples"),
        ([np.zeros(16000)], {"sample_rate": 0}, "sample_rate must be a number of Hz, 200 or more, got 0"),
        ([np.zeros(16000)], {"sample_rate": 16}, "sample_rate must be a number of Hz, 200 or more, got 16"),
        ([np.zeros(16000)], {"channel": "middle"}, "channel must be a number or one of mix, left, right, got 'middle'"),
        ([np.zeros(16000)], {"kind": "event"}, "unknown kind 'event'; choose from scene, timestamps"),
        ([np.zeros(16000)], {"output": "jax"}, "unknown output 'jax'"),
        (None, {}, "clips must be an array, a path or a list of them, got NoneType"),
        (b"a.wav", {}, "clips must be an array, a path or a list of them, got bytes"),
        ([0.0] * 16000, {}, r"a list of numbers; pass the samples of a clip as numpy.array\(...\)"),
        ((0, 1), {}, "a tuple of numbers; pass the samples"),
        (list(np.zeros(300, np.float32)), {}, "a list of numbers; pass the samples"),
        (["a.wav", 3], {}, "a list of numbers; pass the samples"),
        ([[0.0] * 300], {}, "clip 0 of 1 must be an array or tensor of floating-point samples in .* got list$"),
        (np.array(["a.wav"]), {}, "got <U5; pass paths, or clips of several lengths, as a list$"),
        (np.array(["a.wav"], object), {}, "got object; pass paths, or clips of several lengths, as a list$"),
        ("absent.wav", {}, "absent.wav: no such audio file"),
    ],
)
def test_embed_names_the_clip_and_the_fault(runtime, clips, arguments, message):
    with pytest.raises(ValueError, match=message):
        runtime.embed(clips, **arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_type_point_to_the_precision(dtype):
    model = audio_mamba.load_model(device="cpu").to(dtype)
    with pytest.raises(ValueError, match=f"the weights are {dtype}; keep them float32 and load the model with prec"):
        model.embed([np.zeros(16000)])


def test_minimum_length_counts_after_resampling(runtime):
    clip = 0.1 * np.sin(np.arange(150))
    assert runtime.embed(clip, sample_rate=np.int64(8000)).shape == (1, 320)
    np.testing.assert_array_equal(runtime.embed(clip, sample_rate=8000), runtime.embed([clip], sample_rate=8000))


@pytest.mark.filterwarnings("error")
def test_read_only_and_huge_samples_cause_no_warnings(runtime):
    clip = np.full(16000, 0.1, np.float32)
    clip.flags.writeable = False
    runtime.embed([clip])
    with pytest.raises(InputError, match="NaN or Inf"):
        runtime.embed(np.full(16000, 1e300))


def test_truncated_and_mislabelled_files(runtime, tmp_path):
    tone = 0.3 * np.sin(np.arange(48000) / 10)
    for name in ("whole.flac", "wave.wav"):
        soundfile.write(tmp_path / name, tone, 16000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:3000])
    (tmp_path / "text.wav").write_text("not audio")
    for name in ("cut.flac", "text.wav"):
        with pytest.raises(AudioError, match=name):
            runtime.embed(tmp_path / name)
    expected = runtime.embed(tmp_path / "wave.wav")
    (tmp_path / "wave.wav").rename(tmp_path / "mislabelled.mp3")  # the content decides, not the suffix
    np.testing.assert_array_equal(runtime.embed(tmp_path / "mislabelled.mp3"), expected)


@pytest.mark.parametrize("long_seconds", [120, 0.5])
def test_a_channel_of_files_is_embedded(runtime, tmp_path, monkeypatch, long_seconds):
    monkeypatch.setattr(clips, "LONG_SECONDS", long_seconds)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 16000)).astype(np.float32)
    for count in (1, 2, 3):
        soundfile.write(tmp_path / f"{count}.wav", samples[:count].T, 16000, subtype="FLOAT")
    paths, alone = [tmp_path / f"{count}.wav" for count in (1, 2, 3)], runtime.embed(samples)
    for channel, expected in (("left", alone[[0, 0, 0]]), ("right", alone[[0, 1, 1]]), (0, alone[[0, 0, 0]])):
        np.testing.assert_allclose(runtime.embed(paths, channel=channel), expected, rtol=0, atol=2e-4)
    np.testing.assert_allclose(runtime.embed(paths[2], channel=2), alone[[2]], rtol=0, atol=2e-4)
    with pytest.raises(AudioError, match="1.wav: has no channel 1, it has 1"):
        runtime.embed(paths, channel=1)
    with pytest.raises(ValueError, match="channel must be a number or one of mix, left, right, got 'each'"):
        runtime.embed(paths, channel="each")


def test_more_than_two_channels_are_mixed_with_a_warning(runtime, tmp_path, caplog):
    tone = 0.3 * np.sin(np.arange(16000) / 10)
    for channels in (2, 4):
        soundfile.write(tmp_path / f"{channels}.wav", np.stack([tone] * channels, axis=1), 16000)
    two = runtime.embed(tmp_path / "2.wav")
    assert not caplog.records
    np.testing.assert_allclose(runtime.embed(tmp_path / "4.wav"), two, rtol=0, atol=1e-4)
    assert "4.wav: its 4 channels are mixed into one" in caplog.text
