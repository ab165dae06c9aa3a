"""The paper's studies: their variants, names, and one training step of every config."""

import importlib
import json
import re
import shutil

import numpy as np
import pytest
import torch

from audio_mamba import models
from audio_mamba.config_names import experiments, short_name, stored_name
from audio_mamba.configs.studies.base import MODELS
from audio_mamba.data import prepare, synthetic
from audio_mamba.data.loader import make_loader, set_epoch
from audio_mamba.hear_api.resolve import get_config, load_config, resolve
from audio_mamba.models.loss import reconstruction_loss
from audio_mamba.schema import flattened
from audio_mamba.training import optim
from audio_mamba.training.checkpoint import save_checkpoint

STUDIES = {
    name: importlib.import_module(f"audio_mamba.{name}")
    for name in experiments()
    if name.startswith("configs.studies.") and name != "configs.studies.base"
}
VARIANTS = [f"{study}:{name}" for study, module in STUDIES.items() for name in module.VARIANTS]
SINGLE = [
    name
    for name in experiments()
    if hasattr(importlib.import_module(f"audio_mamba.{name}"), "load_model") and name not in STUDIES
]


def test_the_studies():
    assert {short_name(name): len(module.VARIANTS) for name, module in STUDIES.items()} == {
        "sizes": 9,
        "patch_sizes": 12,
        "sequence_lengths": 12,
        "data_shares": 12,
        "masking": 30,
    }
    assert {"configs.ssam_tiny_200_16x4", "configs.ssast_tiny_free_audio"} <= set(SINGLE)


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_changes_what_it_says_and_nothing_else(study):
    """Of each model, one variant is the paper's config, and the others differ from it in the keys of the study."""
    keys = {
        "sizes": {"model.arch"},
        "patch_sizes": {"model.model_args.patch_size"},
        "sequence_lengths": {"model.model_args.img_size", "data.num_frames", "data.clip_duration"},
        "data_shares": {"data.fraction"},
        "masking": {"model.model_args.mask_ratio", "model.model_args.masking_mode"},
    }[short_name(study)]
    for model in MODELS:
        papers = flattened(load_config(f"configs.{model}_tiny_200_16x4").to_dict())
        changed = []
        for name in STUDIES[study].VARIANTS:
            if not name.startswith(f"{model}_"):
                continue
            config = flattened(load_config(f"{study}:{name}").to_dict())
            different = {key for key in {*papers, *config} if papers.get(key) != config.get(key)}
            longer = {"model.model_args.img_size", "data.num_frames", "data.clip_duration"}
            allowed = keys | longer if name.endswith("_208_16x16") else keys
            assert different <= allowed, name
            assert (name == f"{model}_tiny_200_16x4") == (not different)
            changed.append(different)
        assert keys <= set.union(*changed) and sum(not one for one in changed) == 1


def test_equal_names_are_equal_configs():
    by_name = {}
    for name in VARIANTS:
        config = load_config(name).to_dict()
        assert by_name.setdefault(short_name(name), config) == config, name
    for name in (f"{model}_{size}_200_16x4" for model in MODELS for size in ("tiny", "small", "base")):
        assert by_name[name] == load_config(f"configs.{name}").to_dict()


@pytest.mark.parametrize("name", VARIANTS)
def test_names_say_what_the_config_has(name):
    """`<model>_<size>_<frames>_<bands>x<frames>`, as the published names."""
    _, size, frames, patch, *rest = short_name(name).split("_")
    config = load_config(name)
    args = config.model.model_args
    assert config.model.arch.endswith(f"_{size}")
    assert args.img_size == (int(frames), 80) and config.data.num_frames == int(frames)
    bands, width = map(int, patch.split("x"))
    assert args.patch_size == (width, bands) and int(frames) % width == 80 % bands == 0
    assert int(frames) in (200, 400, 600, 1000) or (int(frames), width) == (208, 16)
    assert rest[1:] == ["percent"] * bool(rest) or float(rest[1]) == pytest.approx(100 * args.mask_ratio)
    assert rest[1:] != ["percent"] or float(rest[0]) == pytest.approx(100 * config.data.fraction)


def test_variants_are_named_and_stored_like_experiments(tmp_path):
    name = "configs.studies.sizes:ssam_small_200_16x4"
    for given in (name, f"audio_mamba.{name}", name.replace("configs.", "configs.poc.")):
        assert stored_name(given) == name
    assert resolve(name, "untrained").label == "ssam_small_200_16x4:untrained"
    for wrong, message in {
        "configs.studies.sizes": "needs a variant, as configs.studies.sizes:VARIANT; choose from ssam_tiny_200_16x4, ",
        "configs.studies.sizes:ssam_smal_200_16x4": "'ssam_smal_200_16x4'; did you mean 'ssam_small_200_16x4'",
        "configs.studies.sizes:": "needs a variant",
        "configs.studies.size:x": "no config module 'configs.studies.size'; did you mean 'configs.studies.sizes'",
        "configs.ssam_tiny_200_16x4:x": "configs.ssam_tiny_200_16x4 has no variants, got 'x'",
        "ssam_tiny_200_16x4:x": "configs.ssam_tiny_200_16x4 has no variants, got 'x'",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_config(wrong)


def test_a_module_of_the_user_may_have_variants(tmp_path, monkeypatch):
    (tmp_path / "my_configs.py").write_text(
        "from audio_mamba.configs.base import ssam_config\ndef get_config(size='tiny'):\n    return ssam_config(size)\n"
    )
    (tmp_path / "needy_configs.py").write_text("def get_config(size):\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert get_config("my_configs").model.arch == "mamba_ssast_tiny"
    assert get_config("my_configs:base").model.arch == "mamba_ssast_base"
    with pytest.raises(ValueError, match="needy_configs needs a variant, as needy_configs:VARIANT"):
        get_config("needy_configs")


@pytest.fixture
def trained(tmp_path):
    """A work folder of a variant of the study of patch sizes, as train.py leaves it."""
    config = load_config("configs.studies.patch_sizes:ssam_tiny_208_16x16")
    config.model.model_args.depth = 1
    model = models.build(config.model.arch, config.model.model_args.to_dict())
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    stored = {"name": "configs.studies.patch_sizes:ssam_tiny_208_16x16", **config.to_dict()}
    (run / "config.json").write_text(json.dumps(stored))
    save_checkpoint(run / "checkpoints" / "checkpoint-3.pth", model=model.state_dict())
    return run


def test_the_hear_functions_of_a_study_take_checkpoints_of_its_variants(trained, tmp_path, monkeypatch):
    study = importlib.import_module("configs.studies.patch_sizes")
    audio = 0.1 * torch.randn(1, 16000 * 3)
    for weights in (trained, trained / "checkpoints" / "checkpoint-3.pth"):
        runtime = study.load_model(str(weights))
        assert runtime.model.grid_size() == (13, 5)
        assert study.get_scene_embeddings(audio, runtime).shape == (1, 960)
        embeddings, times = study.get_timestamp_embeddings(audio, runtime)
        assert embeddings.shape == (1, 19, 960) and times[0, 1] == 160  # 301 frames in patches of 16
    assert resolve(None, trained).label == "ssam_tiny_208_16x16:checkpoint-3"  # embed --weights RUN
    with pytest.raises(ValueError, match="needs a variant"):
        study.load_model()
    with pytest.raises(ValueError, match="needs a variant"):  # weights of another study
        importlib.import_module("configs.studies.masking").load_model(str(trained))
    published = tmp_path / "weights" / "ssam_tiny_208_16x16_4x256_fp16_r1"
    shutil.copytree(trained, published)
    monkeypatch.setenv("PT_MAMBA_MODEL_DIR", str(published.parent))
    assert resolve("configs.studies.patch_sizes:ssam_tiny_208_16x16", None).weights.parents[1] == published


# ---------------------------------------------------------------- one step of each


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two minutes of synthetic audio in clips of ten seconds."""
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.write_audio(folder / "audio", minutes=2)
    prepare.main([str(folder / "audio"), str(folder / "archive"), "--workers", "1"])
    return folder / "archive"


def step_once(name, archive):
    """Train a config's encoder, with two blocks, for one step on two clips; return the loss before and after it."""
    config = load_config(name)
    torch.manual_seed(0)
    model = models.build(config.model.arch, {**config.model.model_args.to_dict(), "depth": 2}, config.model.backend)
    loader = make_loader(
        [archive],
        num_frames=config.data.num_frames,
        fraction=max(config.data.fraction, 0.5),  # of twelve clips
        batch_size=2,
        draw_mask=model.draw_mask,
        strict=True,
    )
    set_epoch(loader, 0)
    batch = next(iter(loader))
    steps, bands = model.grid_size()
    visible = int(steps * bands * (100 - 100 * model.mask_ratio) / 100)
    assert ((batch["mask"] == 0).sum(1) == visible).all()  # no variant splits a time step
    optimizer = optim.make_optimizer(model, config.opt.weight_decay)
    optim.set_learning_rate(optimizer, 1e-4)

    def loss():
        pred, target, mask = model(model.from_time_first(batch["spectrogram"]), batch["mask"])
        return reconstruction_loss(
            pred, target, mask, config.opt.norm_pix_loss, masked_only=config.opt.masked_only_loss
        )

    first = loss()
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    optimizer.step()
    with torch.no_grad():
        return first.item(), loss().item()


def shape_of(name):
    """What decides the shapes of a config's tensors and the kind of its masks."""
    config = load_config(name)
    args = config.model.model_args.to_dict()
    size = {key: value for key, value in args.items() if key not in ("mask_ratio",)}
    return config.model.arch, repr(sorted(size.items()))


# One of each shape, but for the larger ones, which take most of the time.
FAST = {shape_of(name): name for name in [*SINGLE, *VARIANTS] if not re.search("small|base|_600|_1000", name)}.values()
OTHERS = [name for name in [*SINGLE, *VARIANTS] if name not in FAST]


@pytest.mark.parametrize("name", FAST)
def test_every_shape_is_built_and_stepped(name, archive):
    first, second = step_once(name, archive)
    assert np.isfinite(first) and second < first


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_config_is_built_and_stepped(name, archive):
    first, second = step_once(name, archive)
    assert np.isfinite(first) and second < first
