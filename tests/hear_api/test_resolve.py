"""The model that the commands find for a config name and weights."""

import importlib
import json
import shutil

import pytest
import torch

from audio_mamba import load_model, train
from audio_mamba.hear_api.pretrained import save_pretrained
from audio_mamba.hear_api.resolve import available_models, load_config, resolve
from audio_mamba.hear_api.runtime import build_runtime
from tests.training.runs import arguments

AUDIO = 0.1 * torch.randn(1, 32000, generator=torch.Generator().manual_seed(0))


def load_runtime(config_name, weights):
    source = resolve(config_name, weights)
    return build_runtime(source, device="cpu"), source.label


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Work folder of a training with another depth, width and layout than in its config module."""
    workdir = tmp_path_factory.mktemp("run")
    train.main(arguments(workdir, num_epochs=1, batch_size=512, scene_layout="bands"))
    return workdir


@pytest.mark.parametrize("args", [None, "x", [1], {"config": "ssam_tiny"}, {"config": {"model": 3}}])
def test_what_other_checkpoints_note_is_no_config(tmp_path, args):
    runtime, _ = load_runtime("ssam_tiny_200_16x4", "untrained")
    torch.save({"model": runtime.model.state_dict(), "args": args}, tmp_path / "other.pth")
    again, _ = load_runtime("ssam_tiny_200_16x4", str(tmp_path / "other.pth"))
    assert torch.equal(again.get_scene_embeddings(AUDIO), runtime.get_scene_embeddings(AUDIO))
    with pytest.raises(ValueError, match="cannot tell which config .*other.pth was trained with"):
        load_runtime(None, str(tmp_path / "other.pth"))


@pytest.mark.parametrize("model", [3, {"arch": [1]}, {"arch": "ssast_tiny", "model_args": "x"}])
def test_a_spoilt_config_json_beside_a_checkpoint_does_not_matter(workdir, tmp_path, model):
    shutil.copy(workdir / "checkpoints" / "checkpoint-0.pth", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": model}))
    loaded, expected = (load_runtime(None, str(folder))[0] for folder in (tmp_path, workdir))
    assert torch.equal(loaded.get_scene_embeddings(AUDIO), expected.get_scene_embeddings(AUDIO))


def copy_without_config(checkpoint, folder):
    """A copy that has the weights alone, as checkpoints of other projects do."""
    torch.save({"model": torch.load(checkpoint, weights_only=True)["model"]}, folder / checkpoint.name)


def changed_run(tmp_path, name, *options, **changes):
    """The first checkpoint of a short run of SSAM with other settings than its config module."""
    small = {"batch_size": 512, "num_epochs": 1, "opt__warmup_epochs": 0, **changes}
    train.main(arguments(tmp_path / name, config="configs.ssam_tiny_200_16x4", **small))
    return tmp_path / name / "checkpoints" / "checkpoint-0.pth"


def test_a_checkpoint_brings_its_config_wherever_it_is_copied(tmp_path, workdir):
    """Nothing beside it, or the config.json of another run: front end and encoder are those of its training."""
    trained = changed_run(tmp_path, "run", front_end__mean=-6, front_end__std=5)
    expected = load_runtime(None, str(tmp_path / "run"))[0]
    assert expected.front_end.mean == -6
    (tmp_path / "alone").mkdir()
    other = shutil.copytree(workdir, tmp_path / "other")
    copies = [tmp_path / "alone" / "weights.pth", other / "best.pth", other / "checkpoints" / "linked.pth"]
    for copy in copies[:2]:
        shutil.copy(trained, copy)
    copies[2].symlink_to(trained)
    for copy in copies:
        loaded, _ = load_runtime(None, str(copy))
        assert torch.equal(loaded.get_scene_embeddings(AUDIO), expected.get_scene_embeddings(AUDIO)), copy
    assert load_runtime(None, str(copies[2]))[1] == "ssam_tiny_200_16x4:linked"  # the run behind it
    for copy in copies[:2]:
        with pytest.raises(ValueError, match=f"{copy} has another front end: mean is -6 there"):
            load_runtime("ssam_tiny_200_16x4", str(copy))
        with pytest.raises(SystemExit, match="mean is -6 there"):
            train.main(arguments(tmp_path / "new", None, "--init", str(copy), config="configs.ssam_tiny_200_16x4"))


def test_an_encoder_of_another_direction_is_refused_wherever_its_checkpoint_is(tmp_path):
    """All shapes fit, and a checkpoint has no other sign of it."""
    runtime, _ = load_runtime("ssam_alternate_tiny_200_16x4", "untrained")
    config = load_config("ssam_alternate_tiny_200_16x4").to_dict()
    torch.save({"model": runtime.model.state_dict(), "args": {"config": config}}, tmp_path / "copy.pth")
    with pytest.raises(ValueError, match="copy.pth and .* differ in model.model_args.direction: 'alternate' there"):
        load_runtime("ssam_tiny_200_16x4", str(tmp_path / "copy.pth"))
    for name in (None, "ssam_alternate_tiny_200_16x4"):
        again, _ = load_runtime(name, str(tmp_path / "copy.pth"))
        assert torch.equal(again.get_scene_embeddings(AUDIO), runtime.get_scene_embeddings(AUDIO))


def test_a_work_folder_has_the_config_of_its_training(workdir):
    runtime, name = load_runtime(None, str(workdir))
    assert name == "ssast_tiny_200_16x4:checkpoint-0"
    assert (runtime.model.depth, runtime.model.embed_dim, runtime.scene_layout) == (1, 48, "bands")
    for weights in (workdir / "checkpoints", workdir / "checkpoints" / "checkpoint-0.pth"):
        again, _ = load_runtime(None, str(weights))
        assert torch.equal(again.get_scene_embeddings(AUDIO), runtime.get_scene_embeddings(AUDIO))


def test_a_work_folder_is_found_from_inside(workdir, monkeypatch):
    monkeypatch.chdir(workdir / "checkpoints")
    for weights in (".", "checkpoint-0.pth"):
        assert load_runtime(None, weights)[0].model.depth == 1


def test_a_saved_model_has_its_config(workdir, tmp_path):
    runtime, _ = load_runtime(None, str(workdir))
    again, name = load_runtime(None, str(save_pretrained(runtime, tmp_path / "mine_1.5")))
    assert name == "mine_1.5:model" and again.scene_layout == "bands"
    assert torch.equal(again.get_scene_embeddings(AUDIO), runtime.get_scene_embeddings(AUDIO))


@pytest.mark.parametrize("named", ["configs.ssast_tiny_200_16x4", "configs.poc.ssast_tiny_200_16x4"])
def test_a_named_config_gets_the_model_that_was_trained(workdir, named):
    """Since the weights fit no other model, as does its front end. Everything else is as in the module."""
    runtime, name = load_runtime(named, str(workdir))
    assert name == "ssast_tiny_200_16x4:checkpoint-0"
    assert (runtime.model.depth, runtime.scene_layout) == (1, "published")
    hear_model = importlib.import_module(named).load_model(str(workdir))
    assert torch.equal(hear_model.get_scene_embeddings(AUDIO), runtime.get_scene_embeddings(AUDIO))


@pytest.mark.parametrize("text", ["[1]", "{", '{"name": null}', '{"name": "configs.ssast_tiny_200_16x4"}'])
def test_a_named_config_needs_no_config_json(workdir, tmp_path, text):
    """Here the weights do not fit it, and the message says so."""
    copy_without_config(workdir / "checkpoints" / "checkpoint-0.pth", tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="checkpoint-0.pth holds another architecture"):
        load_runtime("ssast_tiny_200_16x4", str(tmp_path))


def test_a_config_that_does_not_fit_the_weights_is_refused(workdir):
    with pytest.raises(ValueError, match="holds another architecture"):
        load_runtime("ssam_tiny_200_16x4", str(workdir))
    runtime, name = load_runtime("tests.hear_api.small_config", "untrained")
    assert name == "small_config:untrained" and runtime.scene_layout == "published"


@pytest.mark.parametrize(
    "change, refused",
    [({"direction": "backward"}, True), ({"norm_epsilon": 1e-5}, True), ({"mask_ratio": 0.8}, False), ({}, False)],
)
def test_an_encoder_of_the_same_shapes_with_other_arguments_is_refused(tmp_path, change, refused):
    """Of a saved model, which has no name to tell by; the weights alone would fit."""
    runtime, _ = load_runtime("ssam_tiny_200_16x4", "untrained")
    saved = save_pretrained(runtime, tmp_path / "mine")
    settings = json.loads((saved / "config.json").read_text())
    settings["model_args"] |= change
    (saved / "config.json").write_text(json.dumps(settings))
    if refused:
        (key,) = change
        with pytest.raises(ValueError, match=f"config.json and configs.ssam_tiny_200_16x4 differ in .*{key}"):
            load_runtime("ssam_tiny_200_16x4", str(saved))
    else:
        load_runtime("ssam_tiny_200_16x4", str(saved))


@pytest.mark.parametrize("name, weights", [("", None), (None, ""), ("ssam_tiny_200_16x4", "")])
def test_an_empty_name_is_not_the_default_model(name, weights):
    with pytest.raises(ValueError, match="is empty; is a shell variable unset"):
        load_runtime(name, weights)


def test_only_models_that_can_be_loaded_by_name_are_listed(tmp_path, monkeypatch):
    for name in ("axlstm_tiny_200_16x4", "ssam_base_200_16x4", "whatever"):
        (tmp_path / f"{name}_4x256_fp16_r1").mkdir()
        (tmp_path / f"{name}_4x256_fp16_r1" / "checkpoint-99.pth").touch()
    (tmp_path / "ssast_tiny_200_16x4_4x256_fp16_r1").mkdir()  # without weights
    shipped = available_models()
    monkeypatch.setenv("PT_MAMBA_MODEL_DIR", str(tmp_path))
    assert set(available_models()) - set(shipped) == {"ssam_base_200_16x4"}
    monkeypatch.setenv("PT_AXLSTM_MODEL_DIR", str(tmp_path))
    assert set(available_models()) - set(shipped) == {"ssam_base_200_16x4", "axlstm_tiny_200_16x4"}


def test_a_name_of_weights_counts_beside_a_config():
    source = resolve("ssam_tiny_free_audio", "ssam_tiny_free_audio")
    assert source.weights == resolve("ssam_tiny_free_audio", None).weights
    with pytest.raises(ValueError, match="another architecture"):
        load_model("ssast_tiny_free_audio", weights="ssam_tiny_free_audio")


def test_a_feature_of_another_type_is_a_value_error():
    with pytest.raises(ValueError, match="overlap"):
        resolve(None, None, overlap="0.5")


def test_the_default_is_the_small_model_that_comes_with_the_project():
    assert load_runtime(None, None)[1] == "ssam_tiny_free_audio:model"
    assert load_runtime(None, "untrained")[1] == "ssam_tiny_free_audio:untrained"


def test_weights_may_be_named_as_models_are_listed(tmp_path, monkeypatch):
    assert load_runtime(None, "ssast_tiny_free_audio")[1] == "ssast_tiny_free_audio:model"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ssast_tiny_free_audio").mkdir()  # a work folder of that name
    with pytest.raises(FileNotFoundError, match="in ssast_tiny_free_audio"):
        load_runtime(None, "ssast_tiny_free_audio")


@pytest.mark.parametrize(
    "named, message",
    [
        ("ssam_tiny", "no config module 'ssam_tiny'; did you mean 'configs.ssam_tiny_"),
        ("configs.base", "the module 'configs.base' is not a config"),
        ("configs/ssam_tiny_200_16x4.py", "name the module, not its file: 'configs.ssam_tiny_200_16x4'$"),
        ("./mine/gru.py", "name the module, not its file: 'mine.gru'$"),
        ("/anywhere/gru.py", "name the module, not its file: 'gru'$"),
    ],
)
@pytest.mark.parametrize("weights", [None, "nowhere"])
def test_an_invalid_config_is_reported_before_missing_weights(monkeypatch, named, message, weights):
    monkeypatch.delenv("PT_MAMBA_MODEL_DIR", raising=False)
    with pytest.raises(ValueError, match=message):
        load_runtime(named, weights)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot tell which config .*checkpoint-0.pth was trained with, if it holds weights; name the config"),
        ("{}", "cannot tell which config"),
        ("{", "cannot tell which config"),
        ("[1]", "cannot tell which config"),
        ('{"format": "audio-mamba 1", "arch": "x"}', "does not describe a model"),
        ('{"model": {"arch": 3}}', "config.json: model.arch must be the name of an encoder"),
        ('{"model": {"arch": "x"}, "depth": 1}', "nothing reads the key 'depth'"),
    ],
)
def test_weights_without_a_usable_config_json_need_a_named_config(workdir, tmp_path, text, message):
    copy_without_config(workdir / "checkpoints" / "checkpoint-0.pth", tmp_path)
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_runtime(None, str(tmp_path))
