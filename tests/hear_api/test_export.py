"""Exported folders, programs and ONNX models give the numbers of the model they came from."""

import contextlib
import json
import resource

import numpy as np
import pytest
import torch

from audio_mamba.hear_api import RuntimeSSAST
from audio_mamba.hear_api.export import ExportError, export, main
from audio_mamba.hear_api.pretrained import from_pretrained, save_pretrained
from audio_mamba.models import SSAST
from audio_mamba.models.ops.selective_scan import selective_scan
from audio_mamba.training.checkpoint import CheckpointError
from tests.golden_weights import fill_by_rule, golden_audio, golden_input
from tests.hear_api.test_runtime import config_of


@pytest.fixture(scope="module", params=["ssam_tiny_200_16x4", "ssast_tiny_200_16x4"])
def runtime(request):
    runtime = RuntimeSSAST(config_of(request.param, depth=1, embed_dim=96), None)
    fill_by_rule(runtime.model)
    return runtime


def test_a_saved_folder_loads_as_the_same_model(runtime, tmp_path):
    runtime.scene_layout = "bands"
    again = from_pretrained(save_pretrained(runtime, tmp_path / "saved"))
    assert again.scene_layout == "bands"
    torch.testing.assert_close(
        again.get_scene_embeddings(golden_audio(16000)),
        runtime.get_scene_embeddings(golden_audio(16000)),
        rtol=0,
        atol=0,
    )


def test_a_published_checkpoint_can_be_saved_as_a_folder(golden, tmp_path):
    runtime = RuntimeSSAST(config_of("ssam_tiny_200_16x4", depth=2), golden / "published_layout")
    again = from_pretrained(save_pretrained(runtime, tmp_path))
    for key, value in runtime.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])


def test_half_precision_halves_the_file_and_loads_as_float32(runtime, tmp_path):
    sizes = [
        (save_pretrained(runtime, tmp_path / dtype, dtype) / "model.safetensors").stat().st_size
        for dtype in ("float32", "float16")
    ]
    assert sizes[1] < 0.55 * sizes[0]
    again = from_pretrained(tmp_path / "float16")
    for key, value in runtime.model.state_dict().items():
        assert torch.equal(value.half().float(), again.model.state_dict()[key])
    by_config = RuntimeSSAST(runtime.config, tmp_path / "float16")  # weights_dir may be a saved folder
    assert torch.equal(by_config.model.mask_token, again.model.mask_token)


def test_the_folder_of_a_training_run_is_not_touched(runtime, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"name": "configs.mine"}')
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_text("of another program")
    for name in ("run", "other", "weights"):
        before = list((tmp_path / name).iterdir())
        with pytest.raises(ValueError, match=f"{name} holds something else, "):
            save_pretrained(runtime, tmp_path / name)
        assert list((tmp_path / name).iterdir()) == before
    save_pretrained(runtime, save_pretrained(runtime, tmp_path / "mine"))


@contextlib.contextmanager
def full_disk(size):
    """No file can grow beyond `size` bytes, which fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_model_stays_as_it_was_if_another_cannot_be_written(runtime, tmp_path):
    folder = save_pretrained(runtime, tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with full_disk(10_000), pytest.raises(OSError):
        save_pretrained(runtime, folder, "float16")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_program_that_cannot_be_written_is_an_error_and_leaves_nothing(runtime, tmp_path):
    with full_disk(10_000), pytest.raises(OSError):
        export(runtime, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_not_exported_onto_itself(runtime, tmp_path, monkeypatch):
    save_pretrained(runtime, tmp_path / "saved")
    before = (tmp_path / "saved" / "model.safetensors").read_bytes()
    monkeypatch.chdir(tmp_path)
    for weights in ("saved", "saved/model.safetensors"):
        with pytest.raises(SystemExit, match="--out saved is the model itself"):
            main(["--weights", weights, "--out", "saved", "--dtype", "float16"])
    assert (tmp_path / "saved" / "model.safetensors").read_bytes() == before


def test_files_beside_the_exported_one_stay(runtime, tmp_path):
    mine = [tmp_path / "model.tmp.onnx", tmp_path / "model.tmp.pt2"]
    for path in mine:
        path.write_text("precious")
    export(runtime, tmp_path / "model.pt2")
    if runtime.model.causal:
        with pytest.raises(ExportError):
            export(runtime, tmp_path / "model.onnx")
    assert [path.read_text() for path in mine] == ["precious"] * 2
    assert sorted(tmp_path.iterdir()) == [tmp_path / "model.pt2", *mine]


def test_damaged_folders_are_refused_by_name(runtime, tmp_path):
    with pytest.raises(CheckpointError, match="not a saved model"):
        from_pretrained(tmp_path / "absent")
    folder = save_pretrained(runtime, tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_args": {"depth": 1, "embed_dim": 48}}))
    with pytest.raises(CheckpointError, match="another architecture"):
        from_pretrained(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="its format is not"):
        from_pretrained(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    save_pretrained(runtime, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="model.safetensors: damaged"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "resnet"},
        {"model_args": {"img_size": [201, 80]}},
        {"model_args": []},
        {"model_args": {"width": 3}},
        {"scene_layout": "mel"},
    ],
)
def test_a_config_that_does_not_describe_a_model_is_refused_by_name(runtime, tmp_path, change):
    path = save_pretrained(runtime, tmp_path / "saved") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match="config.json: does not describe a model"):
        from_pretrained(tmp_path / "saved")


def test_unknown_precisions_are_refused_before_anything_is_written(runtime, tmp_path):
    with pytest.raises(ValueError, match="unknown precision 'float64'; choose from float32"):
        save_pretrained(runtime, tmp_path / "saved", "float64")
    assert not (tmp_path / "saved").exists()
    save_pretrained(runtime, tmp_path / "saved")
    with pytest.raises(ValueError, match="^unknown precision 'int8'; choose from auto"):
        from_pretrained(tmp_path / "saved", "int8")


@pytest.mark.parametrize("layout", ["published", "bands"])
def test_a_program_gives_the_features_for_any_batch(runtime, tmp_path, layout):
    export(runtime, tmp_path / "new" / "model.pt2", layout)
    program = torch.export.load(tmp_path / "new" / "model.pt2").module()
    segments = golden_input().repeat(4, 1, 1, 1)[:7]
    with torch.no_grad():
        torch.testing.assert_close(
            program(segments), runtime.model.forward_features(segments, layout), rtol=0, atol=1e-5
        )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.pt2"]


@pytest.mark.parametrize("args", [{"direction": "alternate"}, {"direction": "both", "cls_position": "middle"}])
def test_a_program_of_a_bidirectional_encoder(tmp_path, args):
    runtime = RuntimeSSAST(config_of("ssam_tiny_200_16x4", depth=2, embed_dim=96, **args), None)
    export(runtime, tmp_path / "model.pt2", "bands")
    program, segments = torch.export.load(tmp_path / "model.pt2").module(), golden_input().repeat(3, 1, 1, 1)[:5]
    with torch.no_grad():
        expected = runtime.model.forward_features(segments, "bands")
        torch.testing.assert_close(program(segments), expected, rtol=0, atol=1e-5)


def test_onnx_of_ssast(tmp_path):
    pytest.importorskip("onnxscript")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    runtime = RuntimeSSAST(config_of("ssast_tiny_200_16x4", depth=1, embed_dim=96), None)
    export(runtime, tmp_path / "model.onnx")
    segments = golden_input()
    ours = evaluator(str(tmp_path / "model.onnx")).run(None, {"segments": segments.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(ours, runtime.model.forward_features(segments, "bands").numpy(), rtol=0, atol=1e-4)


class Counting(SSAST):
    """An encoder that torch cannot trace for any batch size."""

    def forward_features(self, x, *arguments, **options):
        return super().forward_features(x[: len(x)].reshape(int(len(x)), *x.shape[1:]), *arguments, **options)


class Scanning(SSAST):
    """An encoder with a scan of its own."""

    def forward_features(self, x, *arguments, **options):
        features = super().forward_features(x, *arguments, **options)  # [B, t, width]
        u = features.mT.contiguous()  # [B, width, t]
        ones = u.new_ones(u.shape[0], 1, u.shape[2])
        return selective_scan(u, torch.ones_like(u), -u.new_ones(u.shape[1], 1), ones, ones).mT


def test_an_encoder_that_cannot_be_traced_is_named(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = RuntimeSSAST(config_of("ssast_tiny_200_16x4", depth=1, embed_dim=48), None)
    small = {"depth": 1, "embed_dim": 48, "img_size": (80, 200), "patch_size": (16, 4)}
    for cls, suffix, message in (
        (Counting, ".pt2", "torch cannot export Counting: "),
        (Scanning, ".onnx", "ONNX has no operator for audio_mamba.selective_scan"),
    ):
        runtime.model = cls(**small).eval()
        with pytest.raises(ExportError, match=message):
            export(runtime, tmp_path / f"model{suffix}")
        assert not list(tmp_path.iterdir())


def test_impossible_exports_are_refused(runtime, tmp_path):
    if runtime.model.causal:
        with pytest.raises(ExportError, match="ONNX has no operator for the selective scan"):
            export(runtime, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="write it as .pt2, .onnx"):
        export(runtime, tmp_path / "model.tflite")
    model = ["--config", "tests.hear_api.small_config", "--weights", "untrained", "--out"]
    for options, message in (
        ((str(tmp_path / "m"), "--layout", "bands"), "--layout bands: it applies to .pt2 and .onnx only"),
        ((str(tmp_path / "m.pt2"), "--dtype", "float16"), "--dtype float16: it applies to a folder only"),
    ):
        with pytest.raises(SystemExit, match=f"export: {message}"):
            main([*model, *options])
    with pytest.raises(SystemExit, match="export: .*no config module"):
        main(["--config", "absent", "--weights", "untrained", "--out", str(tmp_path / "m")])
