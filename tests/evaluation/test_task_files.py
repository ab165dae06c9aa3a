"""Embeddings, heads and tables are refused once the labels or the audio of their task have changed."""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile

from audio_mamba import stats_aggregation_v2
from audio_mamba.external_sources import downstream, embeddings, layout, origin, task_files, worker
from tests.evaluation.conftest import write_task

MODULE = "benchmarks.log_mel_baseline"


@pytest.fixture
def task(tmp_path):
    """A scene task of six clips in TASKS_DIR."""
    folder = tmp_path / "tasks" / "scene"
    kinds = {"embedding_type": "scene", "prediction_type": "multiclass", "evaluation": ["top1_acc"]}
    write_task(folder, {"train": 3, "valid": 3, "test": 3}, split_mode="trainvaltest", **kinds)
    return folder


@pytest.fixture
def evaluated(task, tmp_path):
    """OUTPUT_DIR with its embeddings, and with the results of one seed as a head would leave them."""
    output = tmp_path / "output"
    embeddings.main([str(task.parent), str(output), MODULE])
    run = output / layout.RUNS / f"{MODULE}_r1_00" / "scene"
    note = worker.read_note(run)
    (run / worker.SETTINGS).write_text(json.dumps({"seed": 0, "grid": "fast", "embeddings": note}))
    (run / layout.SCORES).write_text(json.dumps({"test": {"test_score": 1.0}}))
    (run / layout.DONE_PREDICTIONS).write_text("{}")
    return output


def extract(task, output, *options):
    embeddings.main([str(task.parent), str(output), MODULE, *options])


def heads(output, *options):
    downstream.main([MODULE, str(output), "--seeds", "1", "--grid", "fast", *options])


def table(output, tmp_path):
    stats_aggregation_v2.main(["--base-dir", str(output / layout.RUNS), "--output-dir", str(tmp_path / "tables")])


def rotate_labels(task):
    """Give every test clip another label."""
    labels = json.loads((task / "test.json").read_text())
    names = {"low": "mid", "mid": "high", "high": "low"}
    (task / "test.json").write_text(json.dumps({clip: [names[label] for label in of] for clip, of in labels.items()}))


def test_unchanged_files_are_accepted_whatever_their_times(task, evaluated, tmp_path):
    for path in task.rglob("*.*"):
        os.utime(path, (0, 0))
    extract(task, evaluated)
    heads(evaluated)
    table(evaluated, tmp_path)
    moved = tmp_path / "moved" / "scene"
    shutil.copytree(task, moved)
    shutil.rmtree(task)
    extract(moved, evaluated)
    heads(evaluated)  # the task is no longer where it was embedded: not compared
    table(evaluated, tmp_path)


def test_changed_labels_are_refused_by_name_by_every_command(task, evaluated, tmp_path, monkeypatch):
    rotate_labels(task)
    for command in (lambda: extract(task, evaluated), lambda: heads(evaluated), lambda: table(evaluated, tmp_path)):
        with pytest.raises(SystemExit, match=f"^TASKS_DIR: {task}/test.json changed since .*REDO=1"):
            command()

    extract(task, evaluated, "--redo")
    folder = evaluated / layout.EMBEDDINGS / MODULE / "scene"
    assert json.loads((folder / "test.json").read_text()) == json.loads((task / "test.json").read_text())
    extract(task, evaluated)
    for command in (lambda: heads(evaluated), lambda: table(evaluated, tmp_path)):
        with pytest.raises(SystemExit, match="^TASKS_DIR: .*scene was trained on embeddings made with task files"):
            command()

    trained = []
    monkeypatch.setattr(downstream, "run_jobs", lambda jobs, grid, at_once: (trained.extend(jobs), ([], []))[1])
    heads(evaluated, "--redo")
    assert [job.task.name for job in trained] == ["scene"] and not trained[0].is_done()


def test_embeddings_of_an_interrupted_extraction_are_refused(task, evaluated, tmp_path):
    folder = evaluated / layout.EMBEDDINGS / MODULE / "scene"
    (folder / origin.SETTINGS).unlink()
    for command in (lambda: heads(evaluated), lambda: table(evaluated, tmp_path)):
        with pytest.raises(SystemExit, match="scene was trained on other embeddings than the present ones"):
            command()
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for command in (lambda: heads(evaluated), lambda: table(evaluated, tmp_path)):
        with pytest.raises(SystemExit, match=f"{folder} is incomplete; run extract_features.sh again"):
            command()
    folder.rmdir()
    table(evaluated, tmp_path)  # they are gone for good: the scores are kept


def test_changed_audio_is_refused_even_at_the_same_size(task, evaluated):
    clip = task / "16000" / "valid" / "valid0.wav"
    audio, rate = soundfile.read(clip)
    soundfile.write(clip, -audio, rate)
    os.utime(clip, (0, 0))
    with pytest.raises(SystemExit, match=f"^TASKS_DIR: {clip} changed since .*embedded"):
        extract(task, evaluated)
    (task / "16000" / "train" / "train0.wav").unlink()
    with pytest.raises(SystemExit, match=f"{task}/16000/train/train0.wav and 1 other files changed"):
        extract(task, evaluated)


def test_labels_of_embeddings_without_a_note_are_compared_with_the_kits_copies(task, evaluated):
    folder = evaluated / layout.EMBEDDINGS / MODULE / "scene"
    (folder / task_files.NOTE).unlink()
    extract(task, evaluated)
    rotate_labels(task)
    with pytest.raises(SystemExit, match=f"^TASKS_DIR: {task}/test.json changed"):
        extract(task, evaluated)


def test_heads_of_earlier_versions_on_replaced_embeddings_are_refused(evaluated):
    run = evaluated / layout.RUNS / f"{MODULE}_r1_00" / "scene"
    settings = json.loads((run / worker.SETTINGS).read_text())
    del settings["embeddings"]["task_sha256"]
    (run / worker.SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match="made with unknown task files, but the present ones were made with task"):
        heads(evaluated)


def test_the_digest_covers_names_and_contents(task):
    before = task_files.read_files(task, 16000)
    assert before.sample_rate == 16000 and len(before.files) == 5 + 9
    assert before.digest() == task_files.read_files(task, 16000).digest()
    soundfile.write(task / "16000" / "test" / "test1.wav", np.zeros(8000), 16000)
    assert before.digest() != task_files.read_files(task, 16000).digest()
