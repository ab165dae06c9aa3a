"""One importable name: published names are the same modules, and an installed wheel works beside foreign folders."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import numpy as np
import pytest
import soundfile
import torch

from audio_mamba.cli.main import EXTRAS
from audio_mamba.config_names import stored_name
from audio_mamba.hear_api.api import load_model
from audio_mamba.hear_api.export import export
from audio_mamba.system.terminal import hyphenated
from tests.conftest import ROOT

FOREIGN = ("models", "data", "configs", "training", "hear_api")


def python(code, cwd=ROOT, **env):
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("published_first", [True, False])
def test_a_published_name_is_the_same_module(published_first):
    """Each in a process of its own, forked after torch is imported, which takes the most time."""
    code = f"""
import importlib, os, torch
for published in ("hear_api", "configs", "data", "external_sources", "train", "stats_aggregation_v2"):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, published
        continue
    names = [published, "audio_mamba." + published]
    first, second = map(importlib.import_module, names if {published_first} else names[::-1])
    os._exit(first is not second)
"""
    status, output = python(code)
    assert status == 0, output


@pytest.mark.parametrize("published_first", [True, False])
def test_so_are_its_submodules_and_their_classes(published_first):
    imports = [
        "import hear_api.runtime, data.audio, configs.poc.ssam_tiny_200_16x4 as poc, configs.ssam_tiny_200_16x4",
        "import audio_mamba.hear_api.runtime, audio_mamba.data.audio, audio_mamba.configs.ssam_tiny_200_16x4",
    ]
    code = (
        "\n".join(imports if published_first else imports[::-1])
        + """
import sys, importlib, configs, hear_api, data, audio_mamba
assert hear_api.runtime is audio_mamba.hear_api.runtime and data.audio is audio_mamba.data.audio
assert poc is configs.ssam_tiny_200_16x4 is audio_mamba.configs.ssam_tiny_200_16x4
from hear_api import RuntimeSSAST
assert RuntimeSSAST is audio_mamba.RuntimeSSAST is audio_mamba.AudioEncoder
assert isinstance(poc.load_model("untrained"), audio_mamba.RuntimeSSAST)
assert hear_api.runtime.__spec__.name == hear_api.runtime.__name__ == "audio_mamba.hear_api.runtime"
assert importlib.reload(hear_api.runtime) is audio_mamba.hear_api.runtime
try:
    import hear_api.nothing
except ModuleNotFoundError as error:
    assert error.name == "hear_api.nothing"
"""
    )
    status, output = python(code)
    assert status == 0, output


@pytest.mark.parametrize("name", ["models", "training"])
@pytest.mark.parametrize("first", ["", "import audio_mamba.hear_api; "])
def test_other_published_names_are_refused(name, first):
    status, output = python(f"{first}import {name}.anything")
    assert status == 1 and f"import audio_mamba.{name} instead of {name}" in output.splitlines()[-1]


@pytest.mark.slow
def test_an_exported_program_runs_beside_published_names(tmp_path):
    """Registering the operators a second time would break the first ones without a word."""
    runtime = load_model("ssam_tiny_200_16x4", "untrained", "cpu")
    export(runtime, tmp_path / "model.pt2", "bands")
    spectrogram = torch.randn(2, 200, 80)
    np.save(tmp_path / "in.npy", spectrogram.numpy())
    np.save(tmp_path / "out.npy", torch.stack(runtime.encode(list(spectrogram), "bands")).numpy())
    code = f"""
import hear_api.runtime, configs.ssam_tiny_200_16x4, audio_mamba.models, torch, numpy as np
program = torch.export.load("{tmp_path}/model.pt2").module()
out = program(torch.from_numpy(np.load("{tmp_path}/in.npy"))[:, None])
torch.testing.assert_close(out.detach(), torch.from_numpy(np.load("{tmp_path}/out.npy")), rtol=1e-4, atol=1e-4)
configs.ssam_tiny_200_16x4.load_model("untrained").get_scene_embeddings(torch.zeros(1, 16000))
"""
    status, output = python(code)
    assert status == 0, output


@pytest.mark.slow
def test_spawned_workers_of_a_published_command(tmp_path):
    """They import the main module again, by its published name."""
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", np.random.default_rng(0).normal(0, 0.1, 48000), 16000)
    for command in (["data.prepare", "audio", "out"], ["hear_api.embed", "audio"], ["data.verify", "out"]):
        code = (
            "import multiprocessing, runpy; multiprocessing.set_start_method('spawn'); "
            f"runpy.run_module('{command[0]}', run_name='__main__', alter_sys=True)"
        )
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.argv = {command!r}; {code}"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_foreign_folders_of_published_names_stay_what_they_are(tmp_path):
    for name in FOREIGN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n")
    code = f"import audio_mamba, {', '.join(FOREIGN)}; audio_mamba.load_model; assert hear_api.MINE and models.MINE"
    status, output = python(
        f"{code}; import audio_mamba.hear_api.runtime as r; assert r.models is not models",
        tmp_path,
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    assert status == 0, output


def test_a_copy_without_links_says_so(tmp_path):
    package = tmp_path / "audio_mamba"
    package.mkdir()
    for path in (ROOT / "audio_mamba").iterdir():
        if path.is_symlink():
            (package / path.name).write_text(os.readlink(path))
        elif path.is_file():
            shutil.copy(path, package)
    status, output = python("import audio_mamba", tmp_path)
    assert status == 1 and output.splitlines()[-1].startswith("ImportError: ") and "symbolic link" in output


@pytest.mark.parametrize(
    "name",
    [
        "ssam_tiny_200_16x4",
        "configs.ssam_tiny_200_16x4",
        "configs.poc.ssam_tiny_200_16x4",
        "audio_mamba.configs.ssam_tiny_200_16x4",
        "audio_mamba.configs.poc.ssam_tiny_200_16x4",
    ],
)
def test_one_experiment_has_one_stored_name(name):
    assert stored_name(name) == "configs.ssam_tiny_200_16x4"


def test_other_modules_keep_their_names():
    assert [stored_name(name) for name in ("json", "benchmarks.log_mel_baseline", "hear_configs.x", "base_x")] == [
        "json",
        "benchmarks.log_mel_baseline",
        "hear_configs.x",
        "base_x",
    ]


def test_published_options():
    assert hyphenated(["--num_workers=0", "--set", "a_b=--c_d", "-x_y", "--out", "a_b"]) == [
        "--num-workers=0",
        "--set",
        "a_b=--c_d",
        "-x_y",
        "--out",
        "a_b",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_installed_wheel(tmp_path):
    """sdist -> wheel -> an environment of its own, beside folders of the user's that have the published names."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path / "dist", build_sdist(tmp_path)],
        check=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"audio_mamba"}
    for data in (
        "py.typed",
        "weights/ssam_tiny_free_audio/model.safetensors",
        "training/report.html",
        "models/ops/native/csrc/vec.h",
    ):
        assert f"audio_mamba/{data}" in names
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            tmp_path / "env/bin/python",
            "install",
            "--quiet",
            "--no-deps",
            wheel,
        ],
        check=True,
    )
    (site / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")

    user = tmp_path / "user"
    for name in FOREIGN:
        (user / name).mkdir(parents=True)
        (user / name / "__init__.py").write_text("raise RuntimeError('not yours')\n")
    soundfile.write(user / "a.wav", np.random.default_rng(0).normal(0, 0.1, 40000), 16000)
    blocked = "torchdata webdataset matplotlib jinja2 tensorboard wandb pandas scipy sklearn pytorch_lightning heareval"
    (site / "block.py").write_text(f"""import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked.split()}:
            raise ImportError(name + ' is not installed')
sys.meta_path.insert(0, Block())
""")
    (site / "zz_block.pth").write_text("import block\n")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    code = (
        "import audio_mamba, pathlib; assert 'site-packages' in audio_mamba.__file__; "
        "print(audio_mamba.list_models()); print(audio_mamba.load_model('ssam_tiny_free_audio').embed(['a.wav']).shape)"
    )
    for command in (
        [tmp_path / "env/bin/python", "-c", code],
        [tmp_path / "env/bin/audio-mamba", "embed", "a.wav"],
        [tmp_path / "env/bin/python", "-m", "audio_mamba.hear_api.embed", "a.wav", "--out", "b.npz"],
    ):
        done = subprocess.run(command, cwd=user, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        if "-c" in command:
            names = ["ssam_tiny_free_audio", "ssam_tiny_free_audio_18h", "ssast_tiny_free_audio"]
            assert done.stdout.splitlines() == [str(names), "(1, 960)"]
    with np.load(user / "embeddings.npz") as ours, np.load(user / "b.npz") as again:
        assert ours["embedding"].shape == (1, 960) and np.array_equal(ours["embedding"], again["embedding"])


# Packages of the extras, by the names of requirements and of imports.
IN_EXTRAS = {"scikit-learn": "sklearn"} | {
    name: name for name in ("webdataset", "torchdata", "matplotlib", "jinja2", "tensorboard", "wandb", "pandas")
}


def without_the_packages_beyond(extra):
    """Code that makes imports of packages fail that neither the project itself nor `extra` requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.split("[>=<;[]", line)[0] for line in project["optional-dependencies"].get(extra, [])}
    blocked = {module for name, module in IN_EXTRAS.items() if name not in required}
    return f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules.update(dict.fromkeys({sorted(blocked)}))\n"


@pytest.mark.parametrize("command", sorted({"train", "prepare", "finetune", "probe", "report"}))
def test_the_extra_of_a_command_is_enough_to_start_it(command):
    code = f"from audio_mamba.cli.main import load\nload({command!r})(['--help'], {command!r})"
    code = without_the_packages_beyond(EXTRAS[command]) + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["usage:", command]), done.stderr


def test_the_extra_of_the_probe_is_enough_to_run_it(tmp_path):
    draw = np.random.default_rng(0)
    for label in ("low", "high"):
        (tmp_path / "sounds" / label).mkdir(parents=True)
        for number in range(10):
            noise = draw.normal(0, 0.1 if label == "high" else 0.01, 8000)
            soundfile.write(tmp_path / "sounds" / label / f"{number}.wav", noise, 16000)
    code = (
        "from audio_mamba.hear_api.probe.__main__ import main\nmain(['sounds', '--model', 'logmel', '--out', 'table'])"
    )
    code = without_the_packages_beyond("probe") + code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "table" / "results.csv").exists(), done.stderr


def build_sdist(tmp_path):
    """Of the files that git knows, links as links; pip builds the wheel from it."""
    source = tmp_path / "source"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    code = "from setuptools.build_meta import build_sdist; print(build_sdist('..'))"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", tmp_path / "tools", "setuptools>=77"],
        check=True,
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "tools")},
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym()]
    return sdist
