"""Tiny generated HEAR tasks, and the project's commands run as a user runs them."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT

SAMPLE_RATE = 16000
PITCHES = {"low": 220.0, "mid": 880.0, "high": 3520.0}
LABELS = list(PITCHES)


def write_task(folder: Path, splits: dict[str, int], **metadata) -> None:
    """A task of noisy tones in the format heareval reads; `splits` gives the number of clips of each split."""
    soundfile = pytest.importorskip("soundfile")  # not above, so that GPU tests need no audio libraries
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    is_event = metadata["embedding_type"] == "event"
    seconds = 2.0 if is_event else 0.5
    description = {
        "task_name": folder.name,
        "version": "v1",
        "splits": list(splits),
        "sample_duration": seconds,
        "evaluation_params": {},
        **metadata,
    }
    (folder / "task_metadata.json").write_text(json.dumps(description))
    (folder / "labelvocabulary.csv").write_text("idx,label\n" + "".join(f"{i},{x}\n" for i, x in enumerate(LABELS)))
    for split, clips in splits.items():
        audio_dir = folder / str(SAMPLE_RATE) / split
        audio_dir.mkdir(parents=True)
        truth = {}
        for number in range(clips):
            label = LABELS[number % 3]
            time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
            tone = 0.1 * np.sin(2 * np.pi * PITCHES[label] * time)
            if is_event:
                start = rng.uniform(0.2, 0.8)
                tone *= (time >= start) & (time < start + 1)
                truth[f"{split}{number}.wav"] = [{"start": 1000 * start, "end": 1000 * start + 1000, "label": label}]
            else:
                truth[f"{split}{number}.wav"] = [label]
            noise = 0.5 * rng.standard_normal(len(time)) * (rng.random() < 0.7)  # loud enough for some wrong answers
            soundfile.write(audio_dir / f"{split}{number}.wav", np.clip(tone + noise, -1, 1), SAMPLE_RATE)
        (folder / f"{split}.json").write_text(json.dumps(truth))


@pytest.fixture(scope="session")
def tiny_tasks(tmp_path_factory) -> Path:
    """A scene task, one with folds and one with events, beside entries that are not tasks."""
    directory = tmp_path_factory.mktemp("tasks")
    trainvaltest = {"train": 12, "valid": 6, "test": 9}
    multiclass = {"embedding_type": "scene", "prediction_type": "multiclass", "evaluation": ["top1_acc"]}
    write_task(directory / "scene", trainvaltest, split_mode="trainvaltest", **multiclass)
    write_task(directory / "folds", {f"fold0{k}": 6 for k in range(3)}, split_mode="new_split_kfold", **multiclass)
    write_task(
        directory / "event",
        trainvaltest,
        split_mode="trainvaltest",
        embedding_type="event",
        prediction_type="multilabel",
        evaluation=["event_onset_200ms_fms", "segment_1s_er"],
    )
    (directory / "README.txt").write_text("a stray file")
    (directory / "notes").mkdir()
    return directory


def environment(**variables: str) -> dict[str, str]:
    """Environment variables for the commands: this interpreter is `python`, and the repository can be imported."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def run_command(working_dir: Path, *arguments, status: int = 0, **variables: str) -> subprocess.CompletedProcess:
    """Run a command of the repository in an empty folder; fails on another exit status, or if it leaves files there."""
    program, *rest = map(str, arguments)
    program = [str(ROOT / program)] if program.endswith(".sh") else [sys.executable, *program.split()]
    done = subprocess.run(
        [*program, *rest], cwd=working_dir, env=environment(**variables), text=True, capture_output=True, timeout=300
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    assert not list(working_dir.iterdir()), "a command left files in the user's working directory"
    return done


@pytest.fixture
def command(tmp_path):
    """`run_command` in a folder of this test."""
    working_dir = tmp_path / "working_dir"
    working_dir.mkdir()
    return functools.partial(run_command, working_dir)


def write_scores(folder: Path, scores: dict) -> None:
    """Write the files of a finished task that the tables need."""
    folder.mkdir(parents=True)
    (folder / "task_metadata.json").write_text("{}")
    (folder / "test.predicted-scores.json").write_text(json.dumps(scores))
