"""The experiments: published values, completion of published config files, unknown keys."""

import importlib
import json
import math
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
import torch
from ml_collections import ConfigDict

from audio_mamba import configs
from audio_mamba.hear_api.resolve import load_config
from audio_mamba.models import ARCHS
from audio_mamba.schema import check_config

NAMES = [f"{model}_{size}_200_16x4" for model in ("ssam", "ssast", "axlstm") for size in ("tiny", "small", "base")]


@pytest.mark.parametrize("name", NAMES)
def test_published_values(name):
    config = load_config(f"configs.{name}")
    prefix = {"ssam": "mamba_ssast", "ssast": "ssast", "axlstm": "xlstm_ssast"}[name.split("_")[0]]
    assert config.model.arch == f"{prefix}_{name.split('_')[1]}"
    args = config.model.model_args.to_dict()
    expected = {"img_size": (200, 80), "patch_size": (4, 16), "mask_ratio": 0.5, "frequency_first": False}
    if prefix == "mamba_ssast":
        expected |= {"rms_norm": False, "fused_add_norm": False}
    assert args == expected
    assert (config.batch_size, config.num_epochs, config.data.num_frames) == (256, 100, 200)
    assert (config.opt.learning_rate, config.opt.weight_decay, config.opt.warmup_epochs) == (1.5e-4, 0.05, 10)
    assert config.data.train_samples == [18988, 1766912, 265408]
    assert [d.rsplit("/", 1)[1] for d in config.data.train_dirs] == [
        "balanced_train",
        "unbalanced_train",
        "unbalanced_train_2",
    ]
    assert config.wandb.project == f"ssast-pytorch-{'xlstm' if prefix == 'xlstm_ssast' else 'mamba'}"


@pytest.mark.parametrize("name", [*NAMES, "ssam_alternate_tiny_200_16x4", "ssam_both_tiny_200_16x4"])
def test_the_parameters_are_counted_as_train_py_counts_them(name):
    (written,) = re.findall(r"([\d.]+) M parameters", importlib.import_module(f"configs.{name}").__doc__)
    config = load_config(f"configs.{name}")
    with torch.device("meta"):
        encoder = ARCHS[config.model.arch](**config.model.model_args.to_dict())
    assert written == f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.2f}"


@pytest.mark.parametrize("name", NAMES)
def test_poc_is_the_same_module(name):
    assert importlib.import_module(f"configs.poc.{name}") is importlib.import_module(f"configs.{name}")


def test_a_broken_config_does_not_break_others_in_poc(tmp_path, monkeypatch):
    (tmp_path / "broken_config.py").write_text("raise RuntimeError('half written')\n")
    (tmp_path / "own_config.py").write_text("def get_config():\n    return 1\n")
    monkeypatch.setattr(configs, "__path__", [*configs.__path__, str(tmp_path)])
    with pytest.raises(RuntimeError, match="half written"):
        importlib.import_module("audio_mamba.configs.poc.broken_config")
    assert importlib.import_module("audio_mamba.configs.poc.own_config").get_config() == 1
    own = sys.modules["audio_mamba.configs.own_config"]
    assert own is sys.modules["audio_mamba.configs.poc.own_config"]
    assert own.__spec__.name == "audio_mamba.configs.own_config"
    assert importlib.reload(own) is own
    with pytest.raises(ModuleNotFoundError, match="configs.poc.absent"):
        importlib.import_module("audio_mamba.configs.poc.absent")


def test_the_free_audio_pair_differs_only_in_the_model():
    ssam, ssast = (load_config(f"configs.{model}_tiny_free_audio").to_dict() for model in ("ssam", "ssast"))
    for ours, papers in ((ssam, "ssam"), (ssast, "ssast")):
        assert ours.pop("model") == load_config(f"configs.{papers}_tiny_200_16x4").model.to_dict()
    assert ssam == ssast
    crops = ssam["num_epochs"] * (sum(ssam["data"]["train_samples"]) // ssam["batch_size"]) * ssam["batch_size"]
    assert crops == 32000 and ssam["opt"]["learning_rate"] * ssam["batch_size"] / 256 == 5e-4


def test_the_long_run_differs_from_the_short_one_in_data_front_end_and_rate_alone():
    short, long = (load_config(f"configs.ssam_tiny_free_audio{hours}").to_dict() for hours in ("", "_18h"))
    assert long["opt"]["learning_rate"] * long["batch_size"] / 256 == 6.25e-4
    assert long["front_end"]["mean"] == -4 and long["front_end"]["std"] == 5
    for config in (short, long):
        del config["data"], config["num_epochs"]
        for key in ("mean", "std"):
            del config["front_end"][key]
        for key in ("learning_rate", "schedule", "warmup_epochs", "decay_epochs"):
            del config["opt"][key]
    assert short == long


@pytest.mark.parametrize("direction", ["alternate", "both"])
def test_other_directions_differ_from_the_paper_in_nothing_else(direction):
    ours, papers = (load_config(f"configs.ssam_{name}_200_16x4").to_dict() for name in (f"{direction}_tiny", "tiny"))
    assert ours["model"]["model_args"].pop("direction") == direction
    assert ours == papers


@pytest.mark.parametrize("name", ["teacher", "joint"])
def test_the_objectives_differ_from_the_paper_only_in_the_loss(name):
    ours, papers = (load_config(f"configs.ssam_{of}_200_16x4").to_dict() for of in (f"{name}_tiny", "tiny"))
    assert ours["opt"].pop("objective") == name and papers["opt"].pop("objective") == "reconstruction"
    args = {"teacher": {"last_blocks": 8, "reconstruction_weight": 0.0}, "joint": {"generative_weight": 10.0}}
    assert ours["opt"].pop("objective_args") == args[name] and papers["opt"].pop("objective_args") == {}
    assert ours["model"]["model_args"].pop("masked_positions") is True
    assert ours == papers


def test_configs_import_without_torch_and_without_weights():
    code = (
        "import sys, configs.poc.ssam_tiny_200_16x4 as c; c.get_config(); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": ""})


def test_published_file_with_fewer_keys_is_completed(monkeypatch):
    published = ConfigDict(
        {
            "model": {"arch": "ssast_tiny", "model_args": {"img_size": (200, 80)}},
            "opt": {"learning_rate": 3e-4},
            "batch_size": 32,
            "half_precision": False,
        }
    )
    module = types.ModuleType("dropped_in")
    module.get_config = lambda: published
    monkeypatch.setitem(sys.modules, "dropped_in", module)
    config = load_config("dropped_in")
    assert (config.batch_size, config.opt.learning_rate, config.opt.grad_accum_steps) == (32, 3e-4, 1)
    assert config.model.model_args.to_dict() == {"img_size": (200, 80)}
    assert "grad_accum_steps" not in published.opt


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"opt": {"learningrate": 1}}, "'opt.learningrate'; did you mean 'opt.learning_rate'"),
        ({"batchsize": 1}, "'batchsize'; did you mean 'batch_size'"),
        ({"model": {"model_args": {"maskratio": 0.5}}}, "did you mean 'model.model_args.mask_ratio'"),
        (
            {"model": {"arch": "ssast_tiny", "model_args": {"rms_norm": True}}},
            "with model.arch 'ssast_tiny': nothing reads the key 'model.model_args.rms_norm'",
        ),
        ({"opt": {"lr": 1}}, "'opt.lr'; accepted are clip_grad_value, .* learning_rate, "),
        ({"data": "here"}, "data must be a section"),
        ({"model": 3}, "model must be a section with keys "),
        ({"model": {"arch": None}}, "model.arch must be the name of an encoder, got None"),
        ({"model": {"model_args": 3}}, "model.model_args must be a section"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(ConfigDict(changes), ARCHS, "the config")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"num_epochs": 1.5}, "num_epochs must be a whole number of at least 1, got 1.5"),
        ({"log_every_steps": True}, "log_every_steps must be a whole number"),
        ({"opt": {"grad_accum_steps": 0}}, "opt.grad_accum_steps must be a whole number of at least 1, got 0"),
        ({"opt": {"learning_rate": None}}, "opt.learning_rate must be a finite number of at least 0, got None"),
        ({"opt": {"warmup_epochs": -1}}, "opt.warmup_epochs must be a finite number of at least 0, got -1"),
        ({"opt": {"learning_rate": float("inf")}}, "opt.learning_rate must be a finite number of at least 0, got inf"),
        ({"opt": {"weight_decay": float("nan")}}, "opt.weight_decay must be a finite number of at least 0, got nan"),
        ({"opt": {"clip_grad_value": -1.0}}, "opt.clip_grad_value must be a finite number of at least 0, got -1.0"),
        *(
            ({"data": {"fraction": value}}, f"data.fraction must be a number above 0, up to 1, got {value!r}")
            for value in (0.0, -0.5, 1.5, float("nan"), None, "half")
        ),
        ({"data": {"fraction": True}}, "data.fraction must be a number, got True"),
        ({"opt": {"learning_rate": np.bool_(True)}}, "opt.learning_rate must be a number, got True"),
        ({"overlap": False}, "overlap must be a number, got False"),
        ({"scene_layout": "band"}, "scene_layout must be one of published, bands, got 'band'"),
        ({"scene_pooling": ["mean"]}, r"scene_pooling must be one of mean, mean_std, got \['mean'\]"),
        ({"opt": {"schedule": None}}, "opt.schedule must be a string, got None"),
        ({"opt": {"optimizer": 1}}, "opt.optimizer must be a string, got 1"),
        ({"precision": None}, "precision must be a string, got None"),
        ({"data": {"val_dir": 5}}, "data.val_dir must be a string, got 5"),
        ({"data": {"train_dirs": [5]}}, r"data.train_dirs must be a list of strings, got \[5\]"),
        ({"data": {"train_dirs": "a"}}, "data.train_dirs must be a list of strings, got 'a'"),
        ({"data": {"train_samples": ["a"]}}, r"data.train_samples must be a list of whole numbers, got \['a'\]"),
        ({"data": {"train_samples": [True]}}, r"data.train_samples must be a list of whole numbers, got \[True\]"),
        ({"data": {"train_samples": 5}}, "data.train_samples must be a list of whole numbers, got 5"),
        *(
            ({"opt": {"norm_pix_loss": value}}, f"opt.norm_pix_loss must be True or False, got {value!r}")
            for value in ("False", 0.3, None)
        ),
        ({"opt": {"masked_only_loss": np.float32(0.5)}}, "opt.masked_only_loss must be True or False, got 0.5"),
        ({"model": {"model_args": {"depth": np.ones(1)}}}, r"model_args.depth must be a number, .* got array\(\[1"),
        ({"model": {"model_args": {"ssm_kwargs": {"dt_rank": {3}}}}}, "model_args.ssm_kwargs.dt_rank must be a number"),
        ({"opt": {"objective_args": {"norm": print}}}, "opt.objective_args.norm must be a number, a string, None or a"),
        (
            {"data": {"train_dirs": [types]}},
            "data.train_dirs must be a number, a string, None or a list of them, got <",
        ),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(ConfigDict(changes), ARCHS, "the config")


def test_numbers_of_numpy_become_pythons_own():
    given = {
        "opt": {"learning_rate": np.sqrt(0.5), "warmup_epochs": np.int64(3), "norm_pix_loss": np.bool_(True)},
        "data": {"fraction": np.float32(0.5), "train_samples": [np.int64(7)]},
        "model": {
            "arch": np.str_("mamba_ssast_tiny"),
            "model_args": {
                "depth": np.int64(2),
                "img_size": (np.int32(200), 80),
                "ssm_kwargs": {"d_state": np.int8(4)},
            },
        },
        "batch_size": np.uint8(8),
    }
    written = json.dumps(check_config(ConfigDict(given), ARCHS, "the config").to_dict())
    read = check_config(ConfigDict(json.loads(written)), ARCHS, "config.json")
    assert (read.opt.learning_rate, read.opt.warmup_epochs, read.opt.norm_pix_loss) == (math.sqrt(0.5), 3.0, True)
    assert (read.data.fraction, read.data.train_samples, read.batch_size) == (0.5, [7], 8)
    assert read.model.arch == "mamba_ssast_tiny"
    assert read.model.model_args.to_dict() == {"depth": 2, "img_size": [200, 80], "ssm_kwargs": {"d_state": 4}}


def test_missing_modules_and_weights_are_explained(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no config module 'configs.nothing'"):
        load_config("configs.nothing")
    with pytest.raises(ValueError, match="no get_config"):
        load_config("json")
    module = importlib.import_module("audio_mamba.configs.ssam_tiny_200_16x4")
    monkeypatch.delenv("PT_MAMBA_MODEL_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match="set PT_MAMBA_MODEL_DIR to the folder that holds ssam_tiny_200_"):
        module.load_model()
    monkeypatch.setenv("PT_MAMBA_MODEL_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="has no folder .*ssam_tiny_200_16x4_4x256_fp16_r1"):
        module.load_model()
    monkeypatch.setattr(module, "get_config", lambda: ConfigDict({"batch_sise": 1}))
    with pytest.raises(ValueError, match="did you mean 'batch_size'"):  # reported before missing weights
        module.load_model()


def test_shipped_weights_are_the_default(monkeypatch, tmp_path):
    from audio_mamba.hear_api import RuntimeSSAST, embed
    from audio_mamba.hear_api.pretrained import save_pretrained

    config = load_config("configs.ssam_tiny_free_audio")
    torch.manual_seed(7)
    shipped = RuntimeSSAST(config, None)
    torch.nn.init.normal_(shipped.model.mask_token)
    save_pretrained(shipped, tmp_path / "weights/ssam_tiny_free_audio", "float16")
    monkeypatch.setattr("audio_mamba.hear_api.resolve.SHIPPED_WEIGHTS", tmp_path / "weights")
    expected = shipped.model.mask_token.half().float()

    monkeypatch.delenv("PT_MAMBA_MODEL_DIR", raising=False)
    module = importlib.import_module("audio_mamba.configs.ssam_tiny_free_audio")
    assert torch.equal(module.load_model().model.mask_token, expected)
    monkeypatch.setenv("PT_MAMBA_MODEL_DIR", str(tmp_path))  # it has no weights of this config
    assert torch.equal(module.load_model().model.mask_token, expected)

    soundfile.write(tmp_path / "my.wav", 0.1 * torch.randn(16000).numpy(), 16000)
    monkeypatch.chdir(tmp_path)
    embed.main(["my.wav", "--workers", "1"])
    with np.load("embeddings.npz") as stored:
        assert stored["embedding"].shape == (1, 960) and str(stored["model"]) == "ssam_tiny_free_audio:model"


def test_load_model_takes_the_published_folder(monkeypatch, tmp_path, golden):
    folder = tmp_path / "ssam_tiny_200_16x4_4x256_fp16_r1"
    folder.symlink_to(golden / "published_layout")
    monkeypatch.setenv("PT_MAMBA_MODEL_DIR", str(tmp_path))
    module = importlib.import_module("audio_mamba.configs.ssam_tiny_200_16x4")
    with pytest.raises(ValueError, match="checkpoint-99.pth holds another architecture"):  # it has only two blocks
        module.load_model()
