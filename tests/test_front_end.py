"""Front-end settings travel with archives and checkpoints, and two that differ are refused by name."""

import json

import numpy as np
import pytest
import soundfile
import torch
from ml_collections import ConfigDict

from audio_mamba import train
from audio_mamba.configs.base import ssast_config
from audio_mamba.data.archives import archive_front_end
from audio_mamba.data.features import LogMelStream, log_mel
from audio_mamba.data.loader import make_loader
from audio_mamba.data.prepare import main as prepare
from audio_mamba.data.verify import main as verify
from audio_mamba.front_end import PUBLISHED, FrontEnd, FrontEndError, parse_settings
from audio_mamba.hear_api import RuntimeSSAST
from audio_mamba.hear_api.pretrained import from_pretrained, save_pretrained
from audio_mamba.hear_api.resolve import resolve
from tests.training.runs import arguments

WIDE = FrontEnd(sample_rate=32000, n_fft=800, hop_length=320, n_mels=128, mel_max_hz=16000.0)
WIDE_ENTRIES = ["sample_rate=32000", "n_fft=800", "hop_length=320", "n_mels=128", "mel_max_hz=16000"]


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(96000), 32000)
    return folder


@pytest.fixture(scope="module")
def wide_archive(audio, tmp_path_factory):
    """Of 32 kHz audio with 128 mel bands, made by the command."""
    archive = tmp_path_factory.mktemp("wide") / "archive"
    prepare([str(audio), str(archive), "--dtype", "float32", "--front-end", *WIDE_ENTRIES])
    return archive


@pytest.fixture(scope="module")
def archive_without_manifest(audio, tmp_path_factory):
    """With the published front end, as published archives come."""
    archive = tmp_path_factory.mktemp("published") / "archive"
    prepare([str(audio), str(archive)])
    (archive / "manifest.json").unlink()
    return archive


def wide_run(workdir, archive, *options):
    wide = {f"front_end__{key}": value for key, value in WIDE.settings().items()}
    image = {"model__model_args__img_size": (200, 128)}
    return arguments(workdir, archive, *options, num_epochs=1, batch_size=4, **wide, **image)


def test_another_front_end_equals_its_formula_in_float64():
    audio = np.random.default_rng(1).standard_normal(4000)
    padded, n = np.pad(audio, 400, mode="reflect"), np.arange(800)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 800)
    mel = lambda hz: 2595 * np.log10(1 + hz / 700)  # noqa: E731 - as the formula is written
    edges = 700 * (10 ** (np.linspace(mel(50), mel(16000), 130) / 2595) - 1)
    bank = np.stack(
        [np.interp(np.arange(401) * 40.0, edges[m : m + 3], [0, 1, 0], left=0, right=0) for m in range(128)]
    )
    frames = np.stack([padded[320 * i : 320 * i + 800] for i in range(WIDE.num_frames(4000))])
    expected = np.log(np.abs(np.fft.rfft(frames * window)) ** 2 @ bank.T + 1.1920929e-07)
    audio = torch.from_numpy(audio.astype(np.float32))
    np.testing.assert_allclose(log_mel(audio, WIDE), expected, rtol=0, atol=1e-4)
    stream = LogMelStream(WIDE)
    streamed = torch.cat([*(stream.feed(part) for part in audio.split(333)), stream.finish()])
    torch.testing.assert_close(streamed, log_mel(audio, WIDE), rtol=0, atol=1e-4)


def test_settings_of_the_published_front_end():
    assert (PUBLISHED.frames_per_second, PUBLISHED.min_samples, PUBLISHED.num_frames(32000)) == (100, 201, 201)
    assert FrontEnd.from_settings({"dtype": "float16"}) == FrontEnd.from_settings(PUBLISHED.settings()) == PUBLISHED


@pytest.mark.parametrize(
    "entries, message",
    [
        (["n_mel=3"], "unknown front-end setting 'n_mel'; accepted are sample_rate, n_fft, hop_length, n_mels"),
        (["n_mels=many"], "front_end.n_mels must be a whole number, got 'many'"),
        (["n_mels=0"], "front_end.n_mels must be a whole number of at least 1, got 0"),
        (["n_fft=401"], "front_end.n_fft must be even, got 401"),
        (["mel_max_hz=9000"], "mel_max_hz <= sample_rate / 2 must hold, got 50, 9000 and a sample_rate of 16000"),
        (["mel_max_hz=8000.0001"], "must hold, got 50, 8000.0001 and a sample_rate of 16000"),
        (["mel_min_hz=8000"], "must hold, got 8000, 8000 and a sample_rate of 16000"),
        (["log_offset=0"], "front_end.log_offset must be a positive number, got 0.0"),
        (["log_offset=inf"], "front_end.log_offset must be a positive number, got inf"),
        (["mel_min_hz=nan"], "front_end.mel_min_hz must be a number of at least 0, got nan"),
    ],
)
def test_settings_that_are_not_valid(entries, message):
    with pytest.raises(FrontEndError, match=message):
        parse_settings(entries)


@pytest.mark.parametrize("name", ["n_mels", "log_offset"])
def test_true_is_no_number(name):
    """Though Python takes it for 1."""
    with pytest.raises(FrontEndError, match=f"front_end.{name} must be a .*number of at least ., got True"):
        FrontEnd.from_settings({name: True})
    with pytest.raises(FrontEndError, match="mean and front_end.std must be two numbers, .*got True and True"):
        FrontEnd.from_settings({"mean": True, "std": True})


def test_a_difference_is_printed_with_all_digits():
    """Settings are compared exactly."""
    theirs = FrontEnd(log_offset=1.1920928955078125e-07, mel_max_hz=7000.0001, mean=-6.0, std=4)
    with pytest.raises(FrontEndError) as raised:
        FrontEnd(mel_max_hz=7000.0002).check_same(theirs, "a")
    assert str(raised.value) == (
        "a has another front end: mel_max_hz is 7000.0001 there and 7000.0002 here, "
        "log_offset is 1.1920928955078125e-07 there and 1.1920929e-07 here, "
        "mean is -6 there and that of each clip here, std is 4 there and that of each clip here"
    )


def test_the_manifest_holds_it_and_verify_follows_it(wide_archive, capsys):
    assert archive_front_end(wide_archive) == WIDE
    verify([str(wide_archive)])
    (batch,) = make_loader([wide_archive], num_frames=200, batch_size=4, front_end=WIDE)
    assert batch["spectrogram"].shape == (4, 1, 200, 128)


def test_a_loader_refuses_an_archive_of_another_front_end_by_name(wide_archive, archive_without_manifest):
    with pytest.raises(FrontEndError, match="archive .*: sample_rate is 32000 there and 16000 here, n_fft is 80"):
        make_loader([wide_archive], num_frames=200, batch_size=4)
    with pytest.raises(FrontEndError, match="n_mels is 80 there and 128 here"):  # an archive without a manifest
        make_loader([archive_without_manifest], num_frames=200, batch_size=4, front_end=WIDE)


def test_training_and_runtime_have_it_from_the_config(wide_archive, tmp_path):
    train.main(wide_run(tmp_path / "run", wide_archive))
    source = resolve(None, tmp_path / "run")
    runtime = RuntimeSSAST(source.config, source.weights)
    assert runtime.front_end == WIDE and runtime.sample_rate == 32000 and runtime.step_ms == 40
    audio = 0.1 * torch.randn(1, 64000, generator=torch.Generator().manual_seed(0))
    embeddings, timestamps = runtime.get_timestamp_embeddings(audio)
    assert embeddings.shape == (1, 51, 8 * 48) and timestamps[0, 1] == 40
    again = from_pretrained(save_pretrained(runtime, tmp_path / "saved"))
    assert again.front_end == WIDE and torch.equal(again.get_timestamp_embeddings(audio)[0], embeddings)
    assert resolve(None, tmp_path / "saved").config.front_end.sample_rate == 32000


def test_weights_and_archives_of_another_front_end_are_refused(wide_archive, archive_without_manifest, tmp_path):
    train.main(wide_run(tmp_path / "run", wide_archive))
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("*.pth"))
    for option in ("--init", "--resume"):
        with pytest.raises(SystemExit, match="another front end: sample_rate is 32000 there and 16000 here"):
            train.main(arguments(tmp_path / option, archive_without_manifest, option, str(checkpoint), batch_size=4))
    with pytest.raises(SystemExit, match="another front end: sample_rate is 16000 there and 32000 here"):
        train.main(wide_run(tmp_path / "other", archive_without_manifest))
    with pytest.raises(SystemExit, match="front_end.n_mels is 80, but the model reads 128 mel bands"):
        options = {"model__model_args__img_size": (200, 128)}
        train.main(arguments(tmp_path / "mels", archive_without_manifest, batch_size=4, **options))


def test_a_run_from_before_the_settings_were_written_resumes(archive_without_manifest, tmp_path):
    train.main(arguments(tmp_path, archive_without_manifest, num_epochs=1, batch_size=4))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["front_end"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    train.main(arguments(tmp_path, archive_without_manifest, num_epochs=2, batch_size=4))


def test_a_model_of_other_mel_bands_than_its_front_end_is_refused():
    config = ConfigDict(ssast_config("tiny"))
    config.front_end = WIDE.settings()
    with pytest.raises(ValueError, match="the model reads 80 mel bands, but front_end.n_mels is 128"):
        RuntimeSSAST(config, None)
