"""Folds and groups of files in archives: UrbanSound8K, Speech Commands, HEAR tasks, hold-outs by speaker."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_mamba.data.labels import _hear_task
from audio_mamba.data.prepare import held_out, main, prepare
from audio_mamba.data.prepare_job import PrepareError
from audio_mamba.data.synthetic import write_scene_task


def clips_in(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.zeros(1600), 16000)


def test_urbansound8k(tmp_path):
    """Its table, with the fold of each slice; the audio is in a folder per fold."""
    names = ["7061-6-0-0.wav", "7061-6-1-0.wav", "102106-3-0-0.wav"]
    clips_in(tmp_path / "audio", [f"fold{fold}/{name}" for fold, name in zip((5, 5, 10), names)])
    table = tmp_path / "UrbanSound8K.csv"
    table.write_text(
        "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
        f"{names[0]},7061,0,1,1,5,6,gun_shot\n{names[1]},7061,1,2,1,5,6,gun_shot\n"
        f"{names[2]},102106,0,4,1,10,3,dog_bark\n"
    )
    manifest = prepare(tmp_path / "audio", tmp_path / "out", table, fold_column="fold", group_column="fsID")
    assert manifest["labels"] == ["dog_bark", "gun_shot"]
    assert manifest["folds"] == ["10", "5", "5"] and manifest["groups"] == ["102106", "7061", "7061"]
    assert prepare(tmp_path / "audio", tmp_path / "out", table, fold_column="fold", group_column="fsID") == manifest
    for options in ({}, {"fold_column": "fsID", "group_column": "fsID"}):
        with pytest.raises(ValueError, match="made with other folds"):
            prepare(tmp_path / "audio", tmp_path / "out", table, **options)


def test_speech_commands(tmp_path):
    """A folder per word, lists of validation and test files, and noises that are no word."""
    audio = tmp_path / "audio"
    names = ["bed/a_nohash_0.wav", "bed/b_nohash_0.wav", "cat/a_nohash_0.wav", "cat/c_nohash_1.wav"]
    clips_in(audio, [*names, "_background_noise_/running_tap.wav"])
    (audio / "validation_list.txt").write_text("cat/a_nohash_0.wav\n")
    (audio / "testing_list.txt").write_text("bed/b_nohash_0.wav\n")
    manifest = prepare(audio, tmp_path / "out", fold_column="split")
    assert manifest["labels"] == ["bed", "cat"] and manifest["folds"] == ["train", "test", "valid", "train"]


def test_the_splits_of_a_hear_task(tmp_path):
    task = write_scene_task(tmp_path, clips={"train": 2, "valid": 1, "test": 1}, seconds=0.2)
    folds = prepare(task, tmp_path / "out", fold_column="split")["folds"]
    assert {name: folds.count(name) for name in folds} == {"train": 16, "valid": 8, "test": 8}


def test_a_hold_out_keeps_groups_together(tmp_path):
    names = [f"speaker{number // 5}_{number % 5}.wav" for number in range(40)]
    clips_in(tmp_path / "audio", names)
    rows = [f"{name},{'ab'[number % 2]},{name[:8]}\n" for number, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("file,label,speaker\n" + "".join(rows))
    options = ["--labels", str(tmp_path / "labels.csv"), "--validation", "0.2", "--workers", "1"]
    main([str(tmp_path / "audio"), str(tmp_path / "out"), *options, "--group-column", "speaker"])
    manifests = [tmp_path / "out" / part / "manifest.json" for part in ("train", "validation")]
    train, validation = (json.loads(path.read_text())["groups"] for path in manifests)
    assert not set(train) & set(validation) and len(train) + len(validation) == 40
    assert len(validation) == 10, "whole groups of 5, as near to 8 files as they come"


@pytest.mark.parametrize(
    "sizes, fraction, held",
    [
        ([90, 10], 0.05, 10),
        ([30, 30, 30, 10], 0.05, 10),
        ([50, *[1] * 50], 0.05, 5),
        ([4] * 25, 0.05, 4),  # 8 would be further from 5
    ],
)
def test_a_large_group_does_not_overshoot_the_share(sizes, fraction, held):
    """Whatever their names, and so the order of their hashes."""
    for series in range(20):
        names = [f"{series}/{group}" for group, size in enumerate(sizes) for _ in range(size)]
        numbers = held_out(names, fraction)
        assert len(numbers) == held
        assert not {names[i] for i in numbers} & {name for i, name in enumerate(names) if i not in numbers}
        assert 0 < len(held_out(names, 0.98)) < len(names)
    with pytest.raises(PrepareError, match="leaves nothing on one side"):
        held_out(["one group"] * 100, fraction)


def test_a_hold_out_far_from_the_share_is_a_warning(tmp_path, caplog):
    clips_in(tmp_path / "audio", [f"{speaker}/{number}.wav" for speaker in "ab" for number in range(5)])
    command = [str(tmp_path / "audio"), str(tmp_path / "out"), "--workers", "1", "--group-column", "folder"]
    main([*command, "--validation", "0.4"])
    assert "--validation" not in caplog.text
    main([*command, "--validation", "0.1"])
    assert caplog.text.count("--validation 0.1 holds out 5 of 10 files (0.5), since files and groups") == 1


def test_groups_in_several_folds_are_a_warning(tmp_path, caplog):
    clips_in(tmp_path / "audio", ["a.wav", "b.wav", "c.wav"])
    (tmp_path / "labels.csv").write_text("file,label,fold,take\na,x,1,t1\nb,x,2,t1\nc,y,2,t2\n")
    prepare(tmp_path / "audio", tmp_path / "out", tmp_path / "labels.csv", fold_column="fold", group_column="take")
    assert "1 of 2 groups have files in several folds, such as t1 in 1 and 2" in caplog.text


@pytest.mark.parametrize(
    "table, column, sentence",
    [
        (None, "fold", "the column 'fold' needs a table of labels"),
        ("file,label\na,x\nb,x\n", "fold", "it needs 'fold'"),
        ("file,label,fold\na,x,1\nb,x,\n", "fold", "has no fold for 1 of 2 audio files, such as b.wav"),
        ("file,label,fold\na,x,1\na,y,2\nb,x,1\n", "fold", "line 3: a has the fold '2' here and '1' above"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path, table, column, sentence):
    clips_in(tmp_path / "audio", ["a.wav", "b.wav"])
    labels = None
    if table:
        labels = tmp_path / "labels.csv"
        labels.write_text(table)
    with pytest.raises(ValueError, match=sentence):
        prepare(tmp_path / "audio", tmp_path / "out", labels, fold_column=column)


def test_folders_are_those_below_the_given_one_and_may_have_any_name(tmp_path, monkeypatch):
    clips_in(tmp_path / "audio", ["top.wav", "sub/a.wav"])
    (tmp_path / "audio" / os.fsdecode(b"caf\xe9")).mkdir()
    shutil.copy(tmp_path / "audio" / "top.wav", tmp_path / "audio" / os.fsdecode(b"caf\xe9") / "b.wav")
    manifest = prepare(tmp_path / "audio", tmp_path / "out", group_column="folder")
    assert manifest["groups"] == ["caf\\xe9", "sub", "."]
    monkeypatch.chdir(tmp_path / "audio")
    assert prepare(Path("."), tmp_path / "out", group_column="folder") == manifest


def test_a_file_has_the_fold_of_its_own_row(tmp_path):
    clips_in(tmp_path / "audio", ["a.wav", "b/a.wav"])
    for rows, reason in (
        ("a.wav,dog,1\nb/a.wav,cat,\n", "has no fold for 1 of 2 audio files, such as b/a.wav"),
        ("a.wav,dog,1\nb/a.wav,cat,2\n./b/a.wav,cat,3\n", "the rows of b/a.wav differ in fold: '2' and '3'"),
    ):
        (tmp_path / "labels.csv").write_text("file,label,fold\n" + rows)
        with pytest.raises(ValueError, match=reason):
            prepare(tmp_path / "audio", tmp_path / "out", tmp_path / "labels.csv", fold_column="fold")


@pytest.mark.parametrize("order", [["16000", "32000"], ["32000", "16000"]])
def test_of_two_rates_that_are_equally_near_the_higher_one_is_taken(tmp_path, order, monkeypatch):
    for rate in order:
        clips_in(tmp_path, [f"{rate}/train/a.wav"])
    (tmp_path / "train.json").write_text('{"a.wav": ["dog"]}')
    (tmp_path / "task_metadata.json").write_text('{"embedding_type": "scene"}')
    listing = [tmp_path / rate for rate in order]
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(listing))
    assert _hear_task(tmp_path, 24000, hidden=False)[0] == [tmp_path / "32000/train/a.wav"]
