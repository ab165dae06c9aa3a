"""The curve of scores by the number of training clips."""

import json

import numpy as np
import pytest

from audio_mamba.external_sources import layout
from experiments.judge import sizes
from experiments.judge.clips import Clip
from experiments.judge.instruments import SAMPLE_RATE

SEED_SCORES = {125: (0.25, 0.35), 500: (0.5, 0.6)}


@pytest.fixture
def few(monkeypatch):
    """Sound fonts in which every note is a quiet tone, and two small sizes."""

    def play(font, slots, seconds):
        return [np.full(round(seconds * SAMPLE_RATE), note.key / 1000, np.float32) for (note,) in slots]

    monkeypatch.setattr(sizes, "play", play)
    monkeypatch.setattr(sizes, "SIZES", (20, 40))
    monkeypatch.setattr(sizes, "HELD_OUT", 15)
    monkeypatch.setattr(sizes, "KEYS", range(60, 62))


def names(folder, split):
    return json.loads((folder / f"{split}.json").read_text())


def test_smaller_tasks_are_part_of_larger_ones_and_share_the_clips_held_out(few, tmp_path):
    sizes.make(tmp_path, tmp_path / "tasks")
    small, large = (tmp_path / "tasks" / f"families_of_{size}-v1-full" for size in (20, 40))
    assert len(names(small, "train")) == 20 and len(names(large, "train")) == 40
    assert names(small, "train").items() < names(large, "train").items()
    for split in ("valid", "test"):
        assert names(small, split) == names(large, split) and len(names(small, split)) == 15
    instruments = {
        split: {name.rsplit("_", 1)[0] for name in names(large, split)} for split in ("train", "valid", "test")
    }
    assert not instruments["train"] & (instruments["valid"] | instruments["test"])


def test_too_few_clips_are_an_error():
    clips = [Clip("a", split, "x", f"{split}{number}", np.zeros(1)) for split in sizes.SPLITS for number in range(500)]
    assert len(list(sizes.of_size(clips, 500))) == 1500
    with pytest.raises(ValueError, match="500 clips for train, 501 wanted"):
        list(sizes.of_size(clips, 501))


def finished_heads(folder, model="ssam"):
    for size, scores in SEED_SCORES.items():
        for seed, score in enumerate(scores):
            task = folder / layout.RUNS / layout.run_name(model, seed) / f"families_of_{size}-v1-full"
            task.mkdir(parents=True)
            (task / layout.METADATA).write_text("{}")
            (task / layout.SCORES).write_text(json.dumps({"test": {"test_score": score}}))
            (task / layout.DONE_PREDICTIONS).write_text("{}")
    return folder


def test_the_table_has_the_mean_over_seeds_of_each_size(tmp_path, capsys):
    heads = finished_heads(tmp_path / "out")
    judged = tmp_path / "tasks.csv"
    judged.write_text(
        "task,model,layer,pooling,width,valid,valid_low,valid_high,test,test_low,test_high\n"
        "families_of_500-v1-full,ssam,output,mean_std,8,0.5,0.4,0.6,0.71,0.6,0.8\n"
    )
    sizes.main(["curve", str(tmp_path / "f.png"), "--heads", f"published={heads}", "--judge", str(judged)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| training clips | 125 | 500 |"
    assert lines[2:] == ["| published | 30.0 | 55.0 |", "| logistic regression | - | 71.0 |"]
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_heads_of_two_models_are_refused(tmp_path):
    finished_heads(finished_heads(tmp_path), "ssast")
    with pytest.raises(ValueError, match="heads of 2 models"):
        sizes.scores_of_heads(tmp_path)
