"""Mistakes in a task get a sentence that names the file, not an AssertionError of the kit."""

import json
import re
import shutil
import unicodedata

import numpy as np
import pytest
import soundfile

from audio_mamba.external_sources import compat, embeddings
from audio_mamba.external_sources.task_check import SCORES, check_task
from audio_mamba.external_sources.task_files import TaskError


@pytest.fixture
def tasks(tiny_tasks, tmp_path):
    """Copies of the tiny tasks to spoil."""
    return shutil.copytree(tiny_tasks, tmp_path / "tasks")


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(task, key):
    path = task / "task_metadata.json"
    metadata = json.loads(path.read_text())
    del metadata[key]
    path.write_text(json.dumps(metadata))


def write_audio(path, channels=1, rate=16000, samples=8000):
    soundfile.write(path, np.zeros((samples, channels)), rate)


def test_tasks_that_the_kit_can_use_are_accepted(tasks):
    for name in ("scene", "folds", "event"):
        check_task(tasks / name, 16000)


def test_real_tasks_are_accepted(shared_tasks):
    for task in shared_tasks.glob("*-v1-*"):
        check_task(task, 16000)


MISTAKES = {
    "bare label": (
        lambda task: change(task / "test.json", **{"test3.wav": "low"}),
        "test.json: test3.wav: the labels must be a list, such as ['low'], got 'low'",
    ),
    "two labels": (
        lambda task: change(task / "test.json", **{"test3.wav": ["low", "mid"]}),
        "test.json: test3.wav: a clip of a multiclass task has one label, got 2",
    ),
    "unknown label": (
        lambda task: change(task / "test.json", **{"test3.wav": ["lowest"]}),
        "test.json: test3.wav: the label 'lowest' is not in labelvocabulary.csv",
    ),
    "missing split": (lambda task: (task / "valid.json").unlink(), "valid.json cannot be read (No such file"),
    "damaged split": (lambda task: (task / "valid.json").write_text("{"), "valid.json is not JSON"),
    "empty split": (lambda task: (task / "valid.json").write_text("{}"), "valid.json lists no audio"),
    "splits": (lambda task: change(task / "task_metadata.json", splits="train"), "splits must be a list of names"),
    "kind": (
        lambda task: change(task / "task_metadata.json", embedding_type="clip"),
        "embedding_type must be scene or event, got 'clip'",
    ),
    "one split": (
        lambda task: change(task / "task_metadata.json", splits=["train"]),
        "task_metadata.json: with split_mode trainvaltest, splits must have valid and test",
    ),
    "two folds": (
        lambda task: change(task / "task_metadata.json", split_mode="presplit_kfold", splits=["train", "test"]),
        "with split_mode presplit_kfold, splits must be 3 folds or more, got 2",
    ),
    "splits twice": (
        lambda task: change(task / "task_metadata.json", splits=["train", "valid", "test", "test"]),
        "splits has a name twice",
    ),
    "no mode": (lambda task: drop(task, "split_mode"), "split_mode must be trainvaltest or new_split_kfold or"),
    "no name": (lambda task: drop(task, "task_name"), "task_name must be text, got None"),
    "no scores": (lambda task: drop(task, "evaluation"), "evaluation must be a list of top1_acc, "),
    "unknown score": (
        lambda task: change(task / "task_metadata.json", evaluation=["accuracy"]),
        "d_prime, aucroc; got ['accuracy']",
    ),
    "score of events": (
        lambda task: change(task / "task_metadata.json", evaluation=["segment_1s_er"]),
        "evaluation must be a list of top1_acc, ",
    ),
    "no duration": (lambda task: drop(task, "sample_duration"), "sample_duration is missing: seconds, or null for"),
    "duration": (
        lambda task: change(task / "task_metadata.json", sample_duration=True),
        "sample_duration must be seconds or null, got True",
    ),
    "name of the kit": (
        lambda task: change(task / "test.json", **{"a.embedding.npy.wav": ["low"]}),
        "test.json: a.embedding.npy.wav: the kit needs a name without embedding.npy",
    ),
    "vocabulary": (
        lambda task: (task / "labelvocabulary.csv").write_text("idx,label\n0,low\n7,mid\n"),
        "labelvocabulary.csv: its 2 rows must have the ids 0 to 1",
    ),
    "no vocabulary": (lambda task: (task / "labelvocabulary.csv").unlink(), "labelvocabulary.csv cannot be read"),
    "vocabulary of AudioSet": (
        lambda task: (task / "labelvocabulary.csv").write_text("index,mid\n0,low\n1,mid\n2,high\n"),
        "labelvocabulary.csv has no column idx; it has index, mid",
    ),
    "zeros": (
        lambda task: (task / "labelvocabulary.csv").write_text("idx,label\n0,01\n1,02\n2,03\n"),
        "labelvocabulary.csv: the kit reads the label '01' as 1; choose another name",
    ),
    "no audio": (lambda task: shutil.rmtree(task / "16000"), "no audio at the model's sample rate: "),
    "missing clip": (
        lambda task: (task / "16000/test/test3.wav").unlink(),
        "16000/test/test3.wav is missing, but test.json lists it",
    ),
    "wrong rate": (
        lambda task: write_audio(task / "16000/test/test3.wav", rate=44100),
        "16000/test/test3.wav has 44100 Hz, but its folder is for 16000 Hz",
    ),
    "stereo": (lambda task: write_audio(task / "16000/test/test3.wav", channels=2), "test3.wav has 2 channels"),
    "not audio": (
        lambda task: (task / "16000/test/test3.wav").write_text("?"),
        "test3.wav cannot be read as audio",
    ),
    "lengths": (
        lambda task: write_audio(task / "16000/test/test3.wav", samples=7999),
        'test3.wav has 7999 samples, but test0.wav has 8000; clips of different lengths need "sample_duration": null',
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_task_get_one_sentence(tasks, mistake):
    spoil, sentence = MISTAKES[mistake]
    spoil(tasks / "scene")
    with pytest.raises(TaskError, match=re.escape(sentence)) as error:
        check_task(tasks / "scene", 16000)
    assert "\n" not in str(error.value) and str(tasks / "scene") in str(error.value)


def test_events_of_a_multiclass_task_are_refused(tasks):
    change(tasks / "event" / "task_metadata.json", prediction_type="multiclass")
    with pytest.raises(TaskError, match="prediction_type must be multilabel for events, got 'multiclass'"):
        check_task(tasks / "event", 16000)


def test_the_scores_are_those_of_the_kit():
    pytest.importorskip("heareval")
    with compat.stand_ins():
        from heareval.score import available_scores
    assert set(available_scores) == {score for scores in SCORES.values() for score in scores}


@pytest.mark.parametrize(
    "event, sentence",
    [
        ({"label": "low", "start": 0}, "an event needs label, start and end (in ms)"),
        ("low", "an event needs label, start and end (in ms)"),
        ({"label": "low", "start": "5", "end": "6"}, "start and end of an event must be numbers (in ms), got '5'"),
        ({"label": "low", "start": 5, "end": float("inf")}, "end of an event must be numbers (in ms), got inf"),
        ({"label": "low", "start": False, "end": 6}, "start and end of an event must be numbers (in ms), got False"),
        ({"label": "low", "start": 5, "end": 4}, "an event ends at 4.0 ms, before its start at 5.0 ms"),
    ],
)
def test_mistakes_in_events_get_one_sentence(tasks, event, sentence):
    change(tasks / "event" / "train.json", **{"train0.wav": [event]})
    with pytest.raises(TaskError, match=re.escape(sentence)):
        check_task(tasks / "event", 16000)


DECOMPOSED, COMPOSED = (unicodedata.normalize(form, "sirène") for form in ("NFD", "NFC"))


def rename_label(task, in_vocabulary, in_splits):
    """Another name for the label "low"."""
    for name in ("labelvocabulary.csv", "train.json", "valid.json", "test.json"):
        label = in_vocabulary if name.endswith(".csv") else in_splits
        path = task / name
        path.write_text(path.read_text().replace("low", label), encoding="utf-8")


def test_labels_are_compared_as_the_kit_does(tasks):
    rename_label(tasks / "scene", DECOMPOSED, DECOMPOSED)
    check_task(tasks / "scene", 16000)


@pytest.mark.parametrize("in_vocabulary, in_splits", [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED)])
def test_labels_in_two_unicode_forms_are_refused(tasks, in_vocabulary, in_splits):
    rename_label(tasks / "scene", in_vocabulary, in_splits)
    with pytest.raises(TaskError, match=f"the label '{in_splits}' is not in labelvocabulary.csv in the same Unicode"):
        check_task(tasks / "scene", 16000)


@pytest.mark.parametrize("label, read_as", [("NA", "nan"), ("nan", "nan"), (" low", " low")])
def test_labels_that_the_kit_reads_otherwise_are_refused(tasks, label, read_as):
    rename_label(tasks / "scene", label, label)
    with pytest.raises(TaskError, match=f"labelvocabulary.csv: the kit reads the label '.*' as {read_as};"):
        check_task(tasks / "scene", 16000)


def test_clips_of_any_length_are_accepted_without_a_duration(tasks):
    write_audio(tasks / "scene/16000/test/test3.wav", samples=7999)
    change(tasks / "scene" / "task_metadata.json", sample_duration=None)
    check_task(tasks / "scene", 16000)


def test_the_other_tasks_are_still_extracted(tasks, tmp_path, capsys):
    change(tasks / "scene" / "test.json", **{"test3.wav": "low"})
    with pytest.raises(SystemExit) as error:
        embeddings.main([str(tasks), str(tmp_path / "output"), "benchmarks.log_mel_baseline"])
    first, *sentences = str(error.value).splitlines()
    assert first == "not extracted:" and len(sentences) == 1
    assert "on scene: " in sentences[0] and "the labels must be a list" in sentences[0]
    done = tmp_path / "output" / "audioset" / "benchmarks.log_mel_baseline"
    assert sorted(path.parent.name for path in done.glob("*/.done.embeddings")) == ["event", "folds"]
    assert "Traceback" not in capsys.readouterr().err
