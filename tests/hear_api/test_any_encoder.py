"""What needs a causal encoder or a carried state refuses others; everything else works with any encoder."""

import json
import re

import numpy as np
import pytest
import soundfile
import torch

from audio_mamba import finetune, load_classifier, load_model
from audio_mamba.data.prepare import prepare
from audio_mamba.data.prepare_job import Settings
from audio_mamba.hear_api import RuntimeSSAST, listen, predict
from audio_mamba.hear_api.classifier import save_classifier
from audio_mamba.hear_api.embed import main as embed
from audio_mamba.hear_api.export import ExportError, export
from audio_mamba.hear_api.probe.__main__ import main as probe_main
from audio_mamba.hear_api.resolve import resolve
from audio_mamba.hear_api.runtime import build_model
from audio_mamba.hear_api.streaming import StreamingSSAM
from audio_mamba.models.classifier import Classifier
from audio_mamba.schema import DEFAULTS
from tests.golden_weights import golden_audio, golden_input
from tests.hear_api import mean_config
from tests.hear_api.test_runtime import config_of

SAMPLES = [4000, 33000, 48500]  # segments that are short, or not the last, or whole
MEAN = "tests.hear_api.mean_config"


def runtime_of(name, **settings):
    if name.startswith("mean"):
        config = mean_config.get_config()
        config.model.model_args.causal = name == "mean, causal"
    else:
        config = config_of(f"{name}_tiny_200_16x4", depth=2, embed_dim=96)
    config.scene_layout = "bands"
    config.update(settings)
    return RuntimeSSAST(config, None)


ALL = ["ssam", "ssast", "axlstm", "mean", "mean, causal"]


@pytest.mark.parametrize(
    "name, fault",
    [
        ("ssast", r"SSAST \(ssast_tiny\) is not causal"),
        ("axlstm", r"XLSTMSSAST \(xlstm_ssast_tiny\) is not causal"),
        ("mean", r"MeanSSAST \(mean_ssast_tiny\) is not causal"),
        ("mean, causal", r"MeanSSAST \(mean_ssast_tiny\) carries no state from step to step"),
    ],
)
def test_streaming_refuses_encoders_without_state_in_one_sentence(name, fault):
    with pytest.raises(ValueError) as error:
        StreamingSSAM(runtime_of(name))
    instead = "for live audio use a causal encoder such as ssam_tiny_free_audio, or embed whole recordings"
    sentence = f"{fault}, so it needs whole segments; {instead}"
    assert re.fullmatch(sentence, str(error.value))


def test_listen_refuses_them_too(tmp_path):
    soundfile.write(tmp_path / "a.wav", golden_audio(16000)[0].numpy(), 16000)
    command = [str(tmp_path / "a.wav"), "--config", MEAN, "--weights", "untrained", "--device", "cpu"]
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit, match=r"^listen: MeanSSAST \(mean_ssast_tiny\) is not causal"):
            listen.main(command)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_embeddings_equal_those_of_whole_segments(name, overlap):
    """Each segment is encoded whole by hand, with its padding; context and what is beyond the clip are cut off."""
    runtime = runtime_of(name, overlap=overlap)
    causal = name in ("ssam", "mean, causal")
    assert runtime.model.causal == causal
    before, after = (0, 0) if not overlap else (25, 0) if causal else (13, 12)
    for samples in SAMPLES:
        spectrogram = runtime.spectrogram(golden_audio(samples)[:1])[0]
        steps, rows, start = -(-len(spectrogram) // 4), [], 0
        while True:
            frames = spectrogram[4 * start : 4 * start + 200]
            frames = torch.nn.functional.pad(frames, (0, 0, 0, 200 - len(frames)))
            with torch.no_grad():
                tokens = runtime.model.encode(runtime.model.embed(frames[None, None]))  # [1, 250, D]
            last = start + 50 >= steps
            features = tokens.reshape(50, -1)[: steps - start]
            rows.append(features[before if start else 0 : None if last else 50 - after])
            if last:
                break
            start += 50 - before - after
        expected = torch.cat(rows)
        ours, times = runtime.get_timestamp_embeddings(golden_audio(samples)[:1])
        torch.testing.assert_close(ours[0], expected, rtol=0, atol=5e-5)
        assert times[0].tolist() == [40 * step for step in range(steps)]
        scene = runtime.get_scene_embeddings(golden_audio(samples)[:1])
        torch.testing.assert_close(scene[0], expected.mean(0), rtol=0, atol=5e-5)


@pytest.mark.parametrize("name, tokens", [("mean", 250), ("mean, causal", 5 * 10)])
def test_an_instance_decides_whether_tokens_are_skipped(name, tokens, monkeypatch):
    model, seen = runtime_of(name).model, []
    encode, x = model.encode, golden_input()
    expected = model.forward_features(x, "bands")[:, :10]
    monkeypatch.setattr(model, "encode", lambda tokens: seen.append(tokens.shape[1]) or encode(tokens))
    torch.testing.assert_close(model.forward_features(x, "bands", steps=10), expected, rtol=0, atol=1e-5)
    assert seen == [tokens] and type(model).causal is False


@pytest.mark.parametrize("name", [pytest.param("axlstm", marks=pytest.mark.slow), "mean", "mean, causal"])
def test_folders_and_programs_of_any_encoder_give_its_numbers(name, tmp_path):
    runtime = runtime_of(name)
    export(runtime, tmp_path / "saved")
    again = load_model(tmp_path / "saved", device="cpu")
    audio = golden_audio(20000)
    assert torch.equal(again.get_scene_embeddings(audio), runtime.get_scene_embeddings(audio))
    export(runtime, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        expected = runtime.model.forward_features(golden_input(), "bands")
        torch.testing.assert_close(program(golden_input()), expected, rtol=0, atol=1e-5)


def test_onnx_is_refused_for_the_scan_not_for_causality(tmp_path):
    """A causal encoder without a scan can be written; one with a scan cannot, causal or not."""
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    pytest.importorskip("onnxscript")
    runtime = runtime_of("mean, causal")
    export(runtime, tmp_path / "mean.onnx")
    ours = evaluator(str(tmp_path / "mean.onnx")).run(None, {"segments": golden_input().numpy()})[0]
    with torch.no_grad():
        expected = runtime.model.forward_features(golden_input(), "bands")
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-4)
    scanning = runtime_of("ssam")
    scanning.model.causal = False  # as with another direction
    with pytest.raises(ExportError, match="ONNX has no operator for the selective scan"):
        export(scanning, tmp_path / "ssam.onnx")


def test_the_commands_embed_probe_and_predict(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for kind, hertz in (("low", 200), ("high", 2500)):
        (tmp_path / "clips" / kind).mkdir(parents=True)
        for number in range(5):
            tone = np.sin(2 * np.pi * hertz * np.arange(12000) / 16000) + 0.1 * rng.standard_normal(12000)
            soundfile.write(tmp_path / "clips" / kind / f"{number}.wav", 0.1 * tone, 16000)
    model = load_model(MEAN, "untrained", "cpu")
    files = sorted((tmp_path / "clips").rglob("*.wav"))

    command = [str(tmp_path / "clips"), "--config", MEAN, "--weights", "untrained", "--workers", "1", "--device", "cpu"]
    embed([*command, "--out", str(tmp_path / "rows.npz")])
    with np.load(tmp_path / "rows.npz") as stored:
        np.testing.assert_allclose(stored["embedding"], model.embed(files), rtol=0, atol=1e-4)

    probe_main(
        [str(tmp_path / "clips"), "--model", f"{MEAN}:untrained", "--out", str(tmp_path / "probe"), "--device", "cpu"]
    )
    assert "logistic" in capsys.readouterr().out

    config = resolve(MEAN, "untrained").config
    config.head, config.front_end = {"pooling": "mean"}, DEFAULTS["front_end"]
    torch.manual_seed(0)
    trained = Classifier(build_model(config), 2).eval()
    torch.nn.init.normal_(trained.head[1].weight)
    notes = {"loss": "single", "temperature": 1.0, "notes": {}}
    save_classifier(tmp_path / "classifier", trained.state_dict(), config, classes=["low", "high"], **notes)
    command = ["--weights", str(tmp_path / "classifier"), "--out", str(tmp_path / "labels.csv"), "--device", "cpu"]
    predict.main([str(files[0]), *command, "--workers", "1"])
    with torch.no_grad():
        spectrogram = model.spectrogram(torch.from_numpy(soundfile.read(files[0], dtype="float32")[0]))
        expected = trained(spectrogram[:, None]).softmax(dim=1)[0]
    found = load_classifier(tmp_path / "classifier", "cpu").probabilities([files[0]])[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)
    assert (tmp_path / "labels.csv").read_text().count("0.wav") >= 1


def test_finetune_takes_an_encoder_of_a_module(tmp_path):
    labels = ["file,label,fold"]
    for number in range(12):
        hertz = (200, 2500)[number % 2]
        audio = 0.1 * np.sin(2 * np.pi * hertz * np.arange(6400) / 16000)
        (tmp_path / "audio").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "audio" / f"{number}.wav", audio, 16000)
        labels.append(f"{number}.wav,{hertz},{number // 2 % 3 + 1}")
    (tmp_path / "labels.csv").write_text("\n".join(labels))
    prepare(tmp_path / "audio", tmp_path / "archive", tmp_path / "labels.csv", settings=Settings(), fold_column="fold")
    finetune.main(
        [
            *("--workdir", str(tmp_path / "run"), "--data", str(tmp_path / "archive"), "--model", MEAN),
            *("--init", "random", "--no-wandb", "--num-workers", "0", "--device", "cpu", "--fold", "1"),
            *("--set", "num_epochs=1", "opt.warmup_epochs=0", "batch_size=4"),
        ]
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["arch"] == "mean_ssast_tiny"
    found = load_classifier(tmp_path / "run", "cpu").probabilities([tmp_path / "audio" / "0.wav"])
    assert found.shape == (1, 2) and np.isclose(found.sum(), 1)
