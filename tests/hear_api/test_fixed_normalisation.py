"""Encoders whose log-mels are normalised by constants: training, embedding, windows and live audio alike."""

import numpy as np
import pytest
import soundfile
import torch
from ml_collections import ConfigDict

from audio_mamba import load_model, train
from audio_mamba.data.archives import archive_front_end
from audio_mamba.data.dataset import LogMelDataset
from audio_mamba.data.features import log_mel
from audio_mamba.data.labelled import LabelledDataset, read_labelled
from audio_mamba.data.prepare import prepare
from audio_mamba.data.prepare_job import Settings
from audio_mamba.data.samples import ArchiveError
from audio_mamba.front_end import PUBLISHED, FrontEnd, FrontEndError
from audio_mamba.hear_api import clips
from audio_mamba.hear_api.pretrained import from_pretrained, save_pretrained
from audio_mamba.hear_api.probe.clips import read_clips
from audio_mamba.hear_api.probe.features import embeddings, find_model
from audio_mamba.hear_api.resolve import resolve
from audio_mamba.hear_api.runtime import RuntimeSSAST
from audio_mamba.hear_api.streaming import StreamingSSAM
from tests.hear_api.small_config import get_config
from tests.training.runs import arguments

MEAN, STD = -6.0, 5.0
FIXED = FrontEnd(mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def runtime():
    config = get_config()
    config.scene_layout = "bands"
    config.front_end = ConfigDict(FIXED.settings())
    return RuntimeSSAST(config, None)


@pytest.fixture(scope="module")
def audio_dir(tmp_path_factory):
    """Six recordings of two labels, of 5.3 s, each half as loud as the one before."""
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    for number in range(6):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        path = folder / "ab"[number % 2] / f"{number}.wav"
        soundfile.write(path, 0.3 * 0.5**number * rng.standard_normal(84800), 16000, subtype="FLOAT")
    return folder


def remove_index(archive):
    for path in archive.glob("*.index.*"):
        path.unlink()


def audio_of(path):
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def normalised(audio):
    """float32 [frames, mels] by the formula, in float64."""
    return torch.from_numpy((log_mel(audio[None])[0].double().numpy() - MEAN) / STD).float()


def expected_rows(runtime, path):
    return runtime.encode([normalised(audio_of(path))], "bands")[0]


def test_all_ways_to_embed_use_the_constants(runtime, audio_dir, monkeypatch):
    paths = sorted(audio_dir.rglob("*.wav"))
    expected = torch.stack([expected_rows(runtime, path).mean(dim=0) for path in paths])
    assert (expected[0] - expected[4]).abs().max() > 0.01, "level counts"
    found = runtime.embed(paths, output="torch")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        runtime.get_scene_embeddings(torch.stack([audio_of(path) for path in paths])), expected, rtol=0, atol=1e-5
    )
    worker = clips.decode_file(paths[0], runtime.front_end, "mix")
    np.testing.assert_allclose(worker.spectrogram, normalised(audio_of(paths[0])).numpy(), atol=1e-5)
    monkeypatch.setattr(clips, "LONG_SECONDS", 1)
    monkeypatch.setattr(clips, "CHUNK_FRAMES", 400)
    torch.testing.assert_close(runtime.embed(paths, output="torch"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("index", [True, False])
def test_training_and_fine_tuning_read_the_same_values(runtime, audio_dir, tmp_path, dtype, index):
    prepare(audio_dir, tmp_path / "archive", settings=Settings(dtype=dtype))
    if not index:
        remove_index(tmp_path / "archive")
    files = sorted(audio_dir.rglob("*.wav"))
    whole = {path.stem: normalised(audio_of(path)) for path in files}
    tolerance = 0.01 if dtype == "float16" else 1e-5
    crops = LogMelDataset([tmp_path / "archive"], 200, FIXED)
    labelled = LabelledDataset(read_labelled([tmp_path / "archive"], FIXED), np.arange(6))
    own = LogMelDataset([tmp_path / "archive"], 200, PUBLISHED)
    for number in range(6):
        clip = whole[crops.name(number).rsplit("_", 1)[1]]
        crop = crops[(0, number)]["spectrogram"][0]
        distances = [(clip[start : start + 200] - crop).abs().max() for start in range(len(clip) - 199)]
        assert min(distances) < tolerance
        statistics = clip.mean(), clip.std(correction=0)
        by_clip = own[(0, number)]["spectrogram"][0] * statistics[1] + statistics[0]
        torch.testing.assert_close(by_clip, crop, rtol=0, atol=3 * tolerance)
        batch, faults = labelled.__getitems__([(0, number)])
        torch.testing.assert_close(batch["spectrogram"][0, 0], clip, rtol=0, atol=tolerance)
        assert not faults


@pytest.mark.parametrize("index", [True, False])
def test_damage_is_found_all_the_same(audio_dir, tmp_path, index):
    """NaN in a crop, in clips with and without an index."""
    prepare(audio_dir, tmp_path / "archive", settings=Settings(dtype="float32"))
    clips_of = read_labelled([tmp_path / "archive"], FIXED)
    shard, offset, size = clips_of.places[2]
    with open(clips_of.shards[shard], "r+b") as file:
        file.seek(offset + size - 80 * 300 * 4)
        file.write(np.full(80 * 200, np.nan, np.float32).tobytes())
    if not index:
        remove_index(tmp_path / "archive")
    dataset = LogMelDataset([tmp_path / "archive"], 530, FIXED, strict=True)
    with pytest.raises(ArchiveError, match="NaN or Inf"):
        dataset[(0, 2)]
    with pytest.raises(ArchiveError, match="NaN or Inf"):
        LabelledDataset(clips_of, np.arange(6)).__getitems__([(0, 2)])


def test_saved_models_and_the_probe_keep_them(runtime, audio_dir, tmp_path):
    saved = save_pretrained(runtime, tmp_path / "saved")
    assert from_pretrained(saved).front_end == FIXED
    assert load_model(saved, device="cpu").front_end == FIXED
    prepare(audio_dir, tmp_path / "archive", settings=Settings(dtype="float32"))
    assert archive_front_end(tmp_path / "archive") == PUBLISHED, "archives are not normalised"
    archive = read_clips(tmp_path / "archive")
    found = embeddings(find_model(str(saved)), archive, tmp_path / "embeddings", "cpu")
    files = sorted(audio_dir.rglob("*.wav"))
    expected = torch.stack([expected_rows(runtime, path).mean(dim=0) for path in files])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_weights_of_another_normalisation_are_refused_by_name(runtime, tmp_path, audio_dir):
    prepare(audio_dir, tmp_path / "archive")
    options = {"front_end__mean": MEAN, "front_end__std": STD, "num_epochs": 1, "batch_size": 2}
    train.main(arguments(tmp_path / "run", tmp_path / "archive", **options))
    for config in (None, "configs.ssast_tiny_200_16x4"):  # they travel with the weights, also of a named config
        assert RuntimeSSAST(resolve(config, tmp_path / "run").config, None).front_end == FIXED
    saved = save_pretrained(load_model(tmp_path / "run", device="cpu"), tmp_path / "saved")
    for weights in (tmp_path / "run", saved):
        with pytest.raises(FrontEndError, match="config.json has another front end: mean is -6 there"):
            resolve("ssast_small_200_16x4", weights)
    options["front_end__std"] = 4.0
    with pytest.raises(SystemExit, match="std is 5 there and 4 here"):
        train.main(arguments(tmp_path / "other", tmp_path / "archive", "--init", str(tmp_path / "run"), **options))
    del options["front_end__mean"], options["front_end__std"]
    with pytest.raises(SystemExit, match="mean is -6 there and that of each clip here"):
        train.main(arguments(tmp_path / "other", tmp_path / "archive", "--init", str(tmp_path / "run"), **options))


@pytest.mark.parametrize("mean, std", [(1.0, None), (None, 1.0), (0.0, 0.0), (float("nan"), 1.0), ("a", 1.0)])
def test_constants_that_are_not_valid(mean, std):
    with pytest.raises(FrontEndError, match="front_end.mean and front_end.std must be two numbers"):
        FrontEnd(mean=mean, std=std)


def test_live_audio_equals_offline_without_statistics(runtime, audio_dir):
    audio = audio_of(sorted(audio_dir.rglob("*.wav"))[0])
    stream, rows = StreamingSSAM(runtime), []
    for piece in audio.split(1111):
        rows.append(stream.feed(piece)[0])
    rows.append(stream.finish()[0])
    torch.testing.assert_close(torch.cat(rows), runtime.get_timestamp_embeddings(audio[None])[0][0], rtol=0, atol=1e-4)
    for statistics in ("running", "warmup", (0.0, 1.0)):
        with pytest.raises(ValueError, match="statistics do not apply: the model has its own, -6 and 5"):
            StreamingSSAM(runtime, statistics)
