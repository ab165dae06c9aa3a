"""The three commands, run as a user runs them, on tiny tasks of each kind."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
import soundfile

from audio_mamba.external_sources import layout
from audio_mamba.external_sources.origin import SETTINGS
from tests.conftest import ROOT
from tests.evaluation.conftest import environment, run_command

MODULE = "benchmarks.log_mel_baseline"
GRID = json.dumps({"max_epochs": [3], "hidden_dim": [32], "dropout": [0.1], "lr": [1e-2]})
TASKS = ["event", "folds", "scene"]


@pytest.fixture(scope="module")
def extracted_once(tiny_tasks, tmp_path_factory):
    """OUTPUT_DIR with the embeddings of all tiny tasks."""
    output = tmp_path_factory.mktemp("evaluation") / "output"
    done = run_command(tmp_path_factory.mktemp("working_dir"), "extract_features.sh", tiny_tasks, output, MODULE)
    assert f"skipped {tiny_tasks / 'README.txt'}" in done.stderr and f"skipped {tiny_tasks / 'notes'}" in done.stderr
    return output


@pytest.fixture
def extracted(extracted_once, tmp_path):
    """A copy of it for one test."""
    return shutil.copytree(extracted_once, tmp_path / "output", symlinks=True)


def scores(output, seed, task):
    """The scores of a run without what differs between processes: times and the address of a function."""
    result = json.loads(
        (output / "todo_audioset" / f"{MODULE}_r1_{seed:02d}" / task / "test.predicted-scores.json").read_text()
    )
    del result["hparams"]["initialization"]
    for split in result.values():
        if isinstance(split, dict):
            for key in [key for key in split if key.startswith("time_in_min")]:
                del split[key]
    return result


def score(result):
    return (
        result["aggregated_scores"]["test_score_mean"]
        if "aggregated_scores" in result
        else result["test"]["test_score"]
    )


def test_from_tasks_to_tables(command, extracted, tiny_tasks, tmp_path):
    runs = extracted / "todo_audioset"
    assert sorted(run.name for run in runs.iterdir()) == [f"{MODULE}_r1_0{seed}" for seed in range(10)]
    assert all(sorted(task.name for task in run.iterdir()) == TASKS for run in runs.iterdir())

    command("downstream_experiments.sh", MODULE, extracted, SEEDS="2", GRID=GRID)
    for task in TASKS:
        first, second = scores(extracted, 0, task), scores(extracted, 1, task)
        assert first["hparams"]["lr"] == 0.01 and first["hparams"]["max_epochs"] == 3
        split = "fold00" if task == "folds" else "test"
        assert first[split]["test_loss"] != second[split]["test_loss"], "the seed has no effect"

    # Restart: one task lost its results, another was stopped half-way. Only those two run again, with the same scores.
    before = {task: scores(extracted, 0, task) for task in TASKS}
    lost, stopped = (runs / f"{MODULE}_r1_00" / task for task in ("folds", "scene"))
    for file in ("test.predicted-scores.json", "prediction-done.json"):
        (lost / file).unlink()
    (stopped / "prediction-done.json").unlink()
    (stopped / "stale.predictions.pkl").touch()
    untouched = list(runs.glob("*/*/prediction-done.json"))
    stamps = [done.stat().st_mtime_ns for done in untouched]
    done = command("downstream_experiments.sh", MODULE, runs, SEEDS="2", GRID=GRID)
    assert "4 of 6 runs are already finished" in done.stdout
    assert {task: scores(extracted, 0, task) for task in TASKS} == before
    assert [done.stat().st_mtime_ns for done in untouched] == stamps and len(untouched) == 4
    assert not (stopped / "stale.predictions.pkl").exists()

    command("downstream_experiments.sh", MODULE, extracted, SEEDS="2", status=1)  # the published grid: refused

    command(ROOT / "stats_aggregation_v2.py", "--base_dir", runs, "--output_dir", tmp_path / "tables")
    table = pd.read_csv(tmp_path / "tables" / "summary.csv", index_col="model").loc[f"{MODULE}_r1"]
    for task in TASKS:
        values = [score(scores(extracted, seed, task)) for seed in (0, 1)]
        assert table[task] == pytest.approx(np.mean(values))
        # Student's t for 0.95 and one degree of freedom is 12.706; the standard error of two is half their distance.
        assert table[f"{task} interval"] == pytest.approx(12.7062047 * abs(values[0] - values[1]) / 2)

    stamp = (extracted / "audioset" / MODULE / "scene" / "train.embeddings.npy").stat().st_mtime_ns
    command("extract_features.sh", tiny_tasks, extracted, MODULE)
    assert (extracted / "audioset" / MODULE / "scene" / "train.embeddings.npy").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_weights_and_layouts_of_one_config_are_kept_apart_by_name(command, tiny_tasks, tmp_path):
    tasks, output, config = tmp_path / "tasks", tmp_path / "output", "ssam_tiny_free_audio"
    tasks.mkdir()
    (tasks / "scene").symlink_to(tiny_tasks / "scene")
    command(
        "extract_features.sh", tasks, output, config, NAME="random_published", LAYOUT="published", MODEL="untrained"
    )
    stored = np.fromfile(output / "audioset/random_published/scene/test.embeddings.npy", np.float32).reshape(9, 960)
    model = importlib.import_module(f"configs.{config}").load_model("untrained")
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted((tasks / "scene/16000/test").iterdir())]
    own_layout, model.scene_layout = model.embed(clips), "published"
    expected = model.embed(clips)
    order = np.abs(stored[:, None] - expected[None]).sum(-1).argmin(0)  # the kit shuffles the clips
    np.testing.assert_allclose(stored[order], expected, atol=1e-4)
    assert np.abs(own_layout - expected).max() > 0.01

    note, marker = (output / "audioset/random_published/scene" / file for file in (SETTINGS, layout.DONE_EMBEDDINGS))
    assert note.stat().st_mtime_ns <= marker.stat().st_mtime_ns  # so a done task has a note even after a kill
    again = {"NAME": "random_published", "LAYOUT": "published", "MODEL": "untrained"}
    for spelling in (config, f"configs.poc.{config}", f"audio_mamba.configs.{config}"):
        done = command("extract_features.sh", tasks, output, spelling, **again)
        assert "1 of 1 tasks are already extracted" in done.stdout
    for variable, value in (("MODEL", str(ROOT / "weights" / config)), ("LAYOUT", "bands")):
        done = command("extract_features.sh", tasks, output, config, status=1, **again | {variable: value})
        assert done.stderr.startswith(f"{variable}: {output / 'audioset/random_published/scene'} was embedded with")
        assert done.stderr.count("\n") == 1

    command("downstream_experiments.sh", "random_published", output, SEEDS="1", GRID=GRID, TASKS="none* sc*")
    assert (output / "todo_audioset/random_published_r1_00/scene/prediction-done.json").exists()
    shutil.rmtree(output / "audioset")
    command("extract_features.sh", tasks, output, config, **again | {"LAYOUT": "bands"})
    done = command("downstream_experiments.sh", "random_published", output, status=1, SEEDS="1", GRID=GRID)
    assert done.stderr.startswith("LAYOUT: ") and "layout published, but the present ones were made" in done.stderr
    for arguments, variables, sentence in (
        ((config, MODULE), {"NAME": "x"}, "needs one CONFIG only, got 2"),
        ((MODULE,), {"TASKS": "drum* x"}, "TASKS: drum* x matches none of scene"),
    ):
        assert sentence in command("extract_features.sh", tasks, output, *arguments, status=1, **variables).stderr


def test_a_failed_run_is_listed_and_the_others_finish(command, extracted):
    runs = extracted / "todo_audioset" / f"{MODULE}_r1_00"
    (runs / "scene" / "labelvocabulary.csv").unlink()
    (runs / "scene" / "labelvocabulary.csv").write_text("idx,label\n0,low\n7,mid\n")
    done = command("downstream_experiments.sh", MODULE, extracted, SEEDS="1", GRID=GRID, status=1)
    log = runs / "scene" / "downstream.log"
    assert done.stderr.endswith(f"failed:\n{log}\n")
    assert "AssertionError" in log.read_text()
    assert (runs / "folds" / "prediction-done.json").exists() and (runs / "event" / "prediction-done.json").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_stopped_command_leaves_no_process_and_no_partial_result(extracted, stop):
    grid = json.dumps({"max_epochs": [100000], "patience": [100000]})
    process = subprocess.Popen(
        [ROOT / "downstream_experiments.sh", MODULE, extracted],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(SEEDS="1", GRID=grid, JOBS="2"),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # it is ignored if the tests run in the background
    logs = extracted / "todo_audioset" / f"{MODULE}_r1_00"
    wait_for(lambda: len(list(logs.glob("*/lightning_logs/*/metrics.csv"))) == 2, "training has not started")
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)  # as a terminal does
    else:
        process.kill()
    _, error = process.communicate(timeout=30)  # its children hold the pipe until they end
    assert process.returncode == -stop and "Traceback" not in error  # so that a loop of a shell stops as well
    wait_for(lambda: not group_is_alive(process.pid), "processes are still running")
    assert not list(logs.glob("*/prediction-done.json")) and not list(logs.glob("*/test.predicted-scores.json"))


def group_is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, complaint, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, complaint
        time.sleep(0.1)


def test_hidden_tasks_are_taken_on_request(command, tiny_tasks, tmp_path):
    tasks, output = tmp_path / "tasks:1", tmp_path / "out:1"
    for name in ("scene", ".scene", "@eaDir"):
        shutil.copytree(tiny_tasks / "scene", tasks / name)
    shutil.copytree(tasks / "scene" / "16000" / "train", tasks / "scene" / "16000" / ".ipynb_checkpoints")
    done = command("extract_features.sh", tasks, output, MODULE)
    embedded = output / "audioset" / MODULE
    assert os.listdir(embedded) == ["scene"]
    assert f"left out hidden or system files and folders: 2, the first is {tasks}/.scene" in done.stderr
    assert done.stderr.count("skipped") == 0
    done = command("extract_features.sh", tasks, output, MODULE, "--hidden")
    assert sorted(os.listdir(embedded)) == [".scene", "@eaDir", "scene"] and "left out" not in done.stderr
    assert sorted(os.listdir(output / "todo_audioset" / f"{MODULE}_r1_00")) == [".scene", "@eaDir", "scene"]


def test_mistakes_get_one_sentence(command, tiny_tasks, tmp_path):
    for arguments, sentence in (
        (("extract_features.sh", tmp_path / "none", tmp_path / "o"), "none is not a folder"),
        (("extract_features.sh", tiny_tasks / "notes", tmp_path / "o"), "contains no HEAR task"),
        (
            ("extract_features.sh", tiny_tasks / "scene", tmp_path / "o"),
            "scene is a task itself; give the folder",
        ),
        (("extract_features.sh", tiny_tasks, tmp_path / "o", "configs.nothing"), "CONFIG: no module"),
        (("downstream_experiments.sh", "x", tmp_path / "none"), "extract_features.sh makes it"),
    ):
        done = command(*arguments, status=1)
        assert sentence in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_real_recordings_score_as_measured_before(command, shared_tasks, tmp_path):
    """Guitar chords with the published grid: heareval's head scores 0.85 on mean and deviation of log-mels."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "guitar").symlink_to(shared_tasks / "guitar_chords-v1-full")
    command("extract_features.sh", tasks, tmp_path / "output", MODULE)
    command("downstream_experiments.sh", MODULE, tmp_path / "output", SEEDS="2")
    for seed in (0, 1):
        assert score(scores(tmp_path / "output", seed, "guitar")) == pytest.approx(0.85, abs=0.04)
