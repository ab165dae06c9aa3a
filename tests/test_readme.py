"""The documents tell the truth: what they name exists, options are accepted, and their commands run."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
import torch

from audio_mamba import models
from audio_mamba.cli.main import COMMANDS, HEAR_COMMANDS
from audio_mamba.models.loss import reconstruction_loss
from audio_mamba.models.ops import dispatch, selective_scan
from audio_mamba.schema import check_config
from tests.conftest import ROOT
from tests.training.runs import arguments

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
PAGES += [ROOT / "experiments/free_audio/README.md", ROOT / "external_sources/README.md"]
PAGES += sorted((ROOT / "weights").glob("*/README.md"))


def code_blocks(text):
    """Indented or fenced blocks, without their indentation."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    indented = re.findall(r"(?:^    .*\n|^\n(?=    ))+", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return fenced + [re.sub(r"^    ", "", block, flags=re.M).strip("\n") + "\n" for block in indented]


def commands(text):
    """Command lines in code blocks, continuation lines joined, comments and redirections left out."""
    lines = "\n".join(code_blocks(text)).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines]


def python_example():
    """The code block of the README that starts with an import."""
    (block,) = (block for block in code_blocks(README) if block.startswith("import audio_mamba"))
    return block


def test_the_front_page_is_one_page():
    assert len(README.splitlines()) <= 150 and len(README.split()) <= 1200
    assert len(python_example().splitlines()) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), f"{target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_and_modules_that_it_names_exist(page):
    text = page.read_text()
    for name in re.findall(r"(?<![\w/])\./([\w/]+\.sh)|python (\w+\.py)", text):
        script = "".join(name)
        assert (ROOT / script).is_file(), f"{script} does not exist"
    for name in re.findall(r"python -m ([\w.]+)", text):
        if name.split(".")[0] in ("audio_mamba", "benchmarks", "experiments", "data", "hear_api", "external_sources"):
            assert importlib.util.find_spec(
                name if name.startswith(("benchmarks", "experiments", "audio_mamba")) else f"audio_mamba.{name}"
            ), name
    for name in re.findall(r"\bconfigs\.(?:poc\.)?(ss\w+|ax\w+)", text):
        assert (ROOT / "configs" / f"{name}.py").is_file() or name.endswith("_"), f"configs.{name} does not exist"


def help_of(command):
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def test_options_that_the_documents_name_are_accepted():
    wanted = {}
    for page in PAGES:
        for line in commands(page.read_text()):
            words = line.split()
            if "audio-mamba" in words[:1]:
                name = words[1]
                assert name in COMMANDS, line
                start = ["-m", "audio_mamba.cli.main", name]
                if name == "hear" and len(words) > 2:
                    assert words[2] in HEAR_COMMANDS, line
            elif "train.py" in words or "audio_mamba.train" in words:
                start = ["-m", "audio_mamba.cli.main", "train"]
            else:
                continue
            after = words[words.index("train.py") :] if "train.py" in words else words
            wanted.setdefault(tuple(start), set()).update(
                (option.split("=")[0], line) for option in after if option.startswith("--")
            )
    assert {("-m", "audio_mamba.cli.main", name) for name in ("embed", "train", "prepare", "probe")} <= wanted.keys()
    for command, options in wanted.items():
        text = help_of(list(command))
        for option, line in options:
            assert option.replace("_", "-") in text, f"{option} is not an option of: {line}"


def test_every_file_of_the_main_folders_is_in_the_tree_of_the_architecture():
    tree = (ROOT / "docs" / "architecture.md").read_text().split("## The tree")[1]
    named = set(re.findall(r"[\w/]+\.(?:py|sh|html)", tree))
    missing = [name for name in named if not list(ROOT.glob(f"**/{name}"))]
    assert not missing
    for folder in ("models", "data", "training", "hear_api"):
        section = tree.split(f"\n    {folder}/")[1].split("\n\n")[0]
        files = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
        assert files <= set(re.findall(r"\w+\.py", section)), (folder, files - set(re.findall(r"\w+\.py", section)))


def extending(start):
    """The namespace of a Python block of docs/extending.md, run."""
    (block,) = (block for block in code_blocks((ROOT / "docs" / "extending.md").read_text()) if start in block)
    names = {"__name__": "extending"}
    exec(compile(block, "docs/extending.md", "exec"), names)
    return names


def test_the_encoder_of_the_extending_page_trains_and_is_causal():
    names = extending("class GatedSSAST")
    model = names["GatedSSAST"](embed_dim=32, depth=2, img_size=(200, 80), patch_size=(4, 16), frequency_first=False)
    x = torch.randn(2, 1, 200, 80)
    pred, target, mask = model(x)
    loss = reconstruction_loss(pred, target, mask)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    steps = model.forward_features(x, "bands")
    torch.testing.assert_close(model.forward_features(x, "bands", steps=7), steps[:, :7], rtol=0, atol=1e-5)


def test_the_back_end_of_the_extending_page_equals_the_reference(monkeypatch):
    names = extending("it runs on the CPU alone")
    double = types.ModuleType("double")
    double.selective_scan, double.unsupported_reason = names["selective_scan"], names["unsupported_reason"]
    monkeypatch.setitem(selective_scan.BACKENDS, "double", double)
    monkeypatch.setattr(dispatch, "NAMES", (*dispatch.NAMES, "double"))
    u, delta, B, C = torch.randn(2, 4, 9), torch.rand(2, 4, 9), torch.randn(2, 3, 9), torch.randn(2, 3, 9)
    arguments = (u, delta, -torch.rand(4, 3), B, C)
    found = selective_scan.selective_scan(*arguments, backend="double")
    torch.testing.assert_close(found, selective_scan.selective_scan(*arguments, backend="reference"))


@pytest.mark.parametrize("start", ["load_model, get_scene_embeddings", '"n_mels": 128'])
def test_the_configs_of_the_extending_page_are_valid(start):
    config = check_config(extending(start)["get_config"](), models.ARCHS, "docs/extending.md")
    model = models.build(config.model.arch, config.model.model_args.to_dict() | {"depth": 1})
    assert model.n_mels == config.front_end.n_mels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of a few seconds, as the documents' examples name them."""
    folder, rng = tmp_path_factory.mktemp("user"), np.random.default_rng(0)
    (folder / "recordings").mkdir()
    for name in ("my.wav", "recording.wav", "dog.wav", "recordings/a.wav", "recordings/b.flac", "more/c.flac"):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, 0.1 * rng.standard_normal(40000), 16000)
    for name in ("recording.mp3", "speech.mp3"):
        shutil.copy(folder / "my.wav", folder / name)  # a mislabelled file must do as well
    return folder


def test_the_python_example(folder, monkeypatch):
    monkeypatch.chdir(folder)
    code = python_example().replace(
        'load_model("ssam_tiny_free_audio")', 'load_model("ssam_tiny_free_audio", device="cpu")'
    )
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["embeddings"].shape == (2, 960) and names["embeddings"].dtype == np.float32


# The commands that the README of version 1 printed, but those for GPUs, clusters and those that tests/evaluation runs.
OLD_COMMANDS = """
python -m data.prepare AUDIO ARCHIVES
python -m data.prepare AUDIO BOTH --validation 0.5
python -m data.inspect ARCHIVES
python -m data.verify ARCHIVES
python -m data.index ARCHIVES
python train.py TRAIN_OPTIONS
python -m hear_api.embed my.wav
python -m hear_api.embed recordings/ more/*.flac --weights RUN --out scenes.parquet
python -m hear_api.embed recordings/ --weights RUN --out steps.npz --kind timestamps
python -m hear_api.listen recording.wav --weights RUN
python -m hear_api.export --config ssam_tiny_200_16x4 --weights RUN --out model.pt2
python -m external_sources.validate configs.ssam_tiny_200_16x4 -m untrained
python -m audio_mamba.training.report RUN RUN --out report.html
"""
OLD_PYTHON = """
import torch
from configs.ssam_tiny_200_16x4 import load_model
from data.audio import load_audio
model = load_model("RUN")
audio = torch.from_numpy(load_audio("recording.mp3"))[None]
scene = model.get_scene_embeddings(audio)
steps, times_ms = model.get_timestamp_embeddings(audio)
scenes = model.embed(["recording.mp3", audio[0].numpy()])
assert scene.shape == (1, 960) and steps.shape[:2] == times_ms.shape and scenes.shape == (2, 960)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_commands_of_the_first_version_still_work(folder, tmp_path):
    for name in ("recordings", "more", "my.wav", "recording.wav", "recording.mp3"):
        (tmp_path / name).symlink_to(folder / name)
    env = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    options = arguments("RUN", "ARCHIVES", config="configs.poc.ssam_tiny_200_16x4", num_epochs=1, batch_size=2)
    options = [option.replace("model.model_args.embed_dim=48", "model.model_args.embed_dim=192") for option in options]
    for line in OLD_COMMANDS.strip().splitlines():
        words = [word.replace("AUDIO", "recordings") if word == "AUDIO" else word for word in line.split()]
        words = [part for word in words for part in (options if word == "TRAIN_OPTIONS" else [word])]
        words = [str(ROOT / "train.py") if word == "train.py" else word for word in words]
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    done = subprocess.run([sys.executable, "-c", OLD_PYTHON], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-m", "training.report"], cwd=ROOT, capture_output=True, text=True)
    assert "import audio_mamba.training instead of training" in done.stderr
    assert "python -m training.report" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_quickstart_in_a_fresh_clone(tmp_path):
    clone = tmp_path / "clone"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode()
    for name in files.rstrip("\0").split("\0"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    env = {key: value for key, value in os.environ.items() if key not in ("VENV", "VIRTUAL_ENV", "PYTHONPATH")}
    env |= {"CROPS": "200", "PATH": re.sub(r"[^:]*/venv/bin:|[^:]*/\.venv/bin:", "", env["PATH"])}
    done = subprocess.run(["./quickstart.sh"], cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ("log_mel_baseline", "ssam_tiny_200_16x4", "ssam_tiny_free_audio"):
        assert re.search(rf"{row}_r1 \| \d+\.\d ±", done.stdout), row
    assert "WARNING" not in done.stdout + done.stderr
    out = clone / "quickstart_output"
    for name in ("ssam_tiny/reconstructions.png", "ssam_tiny/curves.png", "results/results.md"):
        assert (out / name).stat().st_size > 0
    subprocess.run(
        [clone / ".venv/bin/python", "-m", "hear_api.embed", next((out / "audio").rglob("*.wav"))],
        cwd=clone,
        env=env,
        check=True,
    )
    assert (clone / "embeddings.npz").stat().st_size > 0
