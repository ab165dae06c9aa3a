"""The ways to start a training, and the one name that an experiment has in files."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch

from audio_mamba import train
from audio_mamba.training.records import read_log
from audio_mamba.training.report import read_run
from tests.conftest import ROOT
from tests.training.runs import arguments, losses

NAME = "ssast_tiny_200_16x4"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node=2"]


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch):
    monkeypatch.setattr("audio_mamba.training.figures._save", lambda figure, path: None)


def start(command, folder, **options):
    """A command of python in a foreign folder, as of an installed package."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=options.pop("stderr", subprocess.STDOUT),
        text=True,
        **options,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes of the test would need two GPUs")
@pytest.mark.slow
def test_the_package_trains_from_any_folder_alone_and_under_torchrun(tmp_path, synthetic_archive):
    """`torchrun -m audio_mamba.train`, `python -m audio_mamba.train` and `audio-mamba train`: the same run."""
    commands = {
        "torchrun": ([*TORCHRUN, "-m", "audio_mamba.train"], 2),
        "module": (["-m", "audio_mamba.train"], 4),
        "command": (["-m", "audio_mamba.cli.main", "train"], 4),
    }
    runs = {}
    for name, (command, batch_size) in commands.items():
        options = arguments(tmp_path / name, synthetic_archive, num_epochs=1, batch_size=batch_size)
        runs[name] = start([*command, *options], tmp_path)
    for name, run in runs.items():
        output = run.communicate(timeout=120)[0]
        assert run.returncode == 0, output
        assert re.search(r"epoch 1/1  step 4/4  loss ", output), output
        assert (tmp_path / name / "checkpoints" / "checkpoint-0.pth").is_file()
    assert losses(tmp_path / "module") == losses(tmp_path / "command")
    assert losses(tmp_path / "torchrun") == pytest.approx(losses(tmp_path / "module"), abs=1e-5)


@pytest.mark.slow
def test_training_continues_when_the_reader_of_its_output_goes_away(tmp_path, synthetic_archive):
    """As in `python train.py ... | head`."""
    run = start(
        ["-m", "audio_mamba.train", *arguments(tmp_path, synthetic_archive, num_epochs=2, batch_size=4)],
        tmp_path,
        stderr=subprocess.PIPE,
    )
    assert "parameters" in run.stdout.readline()
    run.stdout.close()
    assert run.wait(timeout=120) == 0
    assert run.stderr.read() == "standard output was closed; continuing without it\n"
    assert len(losses(tmp_path)) == 2


@pytest.fixture
def tracked(monkeypatch):
    """What wandb is given."""
    started = []

    class Wandb:
        def __init__(self, *given):
            started.append(given)

        def log(self, values, step): ...

        def image(self, name, path, step): ...

        def close(self): ...

    monkeypatch.setattr(train, "Wandb", Wandb)
    return started


def run(workdir, archive, config, num_epochs):
    options = arguments(workdir, archive, config=config, num_epochs=num_epochs, batch_size=4)
    options.remove("--no_wandb")
    train.main(options)
    return [line["epoch"] for line in read_log(workdir / "log.txt")]


def test_an_experiment_has_one_stored_name_and_resumes_under_all_its_names(tmp_path, synthetic_archive, tracked):
    names = [NAME, f"configs.{NAME}", f"configs.poc.{NAME}", f"audio_mamba.configs.{NAME}"]
    configs = []
    for number, name in enumerate(names, start=1):
        epochs = run(tmp_path, synthetic_archive, name, number)
        assert epochs == list(range(number)), "each start must resume the same run"
        assert read_run(tmp_path).config_name == NAME
        configs.append(json.loads((tmp_path / "config.json").read_text()))
        assert configs[-1].pop("name") == f"configs.{NAME}"
        assert configs[-1].pop("num_epochs") == number
    assert all(config == configs[0] for config in configs)
    assert len({project for project, *_ in tracked}) == 1
    for number, (_, workdir, config, resumed) in enumerate(tracked, start=1):
        assert (workdir, config["num_epochs"], resumed) == (tmp_path, number, number > 1)
        assert {**config, "num_epochs": 1} == tracked[0][2], "wandb must get the same config under all names"


def test_a_run_that_was_stored_under_the_published_name_is_resumed(tmp_path, synthetic_archive, tracked):
    run(tmp_path, synthetic_archive, NAME, 1)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(f'"configs.{NAME}"', f'"configs.poc.{NAME}"'))
    assert read_run(tmp_path).config_name == NAME
    before = losses(tmp_path)
    assert run(tmp_path, synthetic_archive, f"configs.{NAME}", 2) == [0, 1]
    assert losses(tmp_path)[:1] == before and all(map(math.isfinite, losses(tmp_path)))
    assert json.loads(path.read_text())["name"] == f"configs.{NAME}"
