"""Malformed tables of labels: each gives one sentence with file and line, and no label is dropped."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_mamba.data.audio import load_audio
from audio_mamba.data.labels import LabelError, find_labelled
from tests.conftest import ROOT

CASES = Path(__file__).parent / "cases" / "labels"


@pytest.fixture
def audio(tmp_path) -> Path:
    for name in "abcd":
        (tmp_path / "audio").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "audio" / f"{name}.wav", np.sin(np.arange(16000) / 9), 16000)
    return tmp_path / "audio"


MALFORMED_FILES = {
    "blank_space_line": "line 4 holds nothing but blanks",
    "extra_cells": "line 2: 2 cells are needed, found 3; put several labels of one file in quotes",
    "short_rows_labelfirst": "line 4: 2 cells are needed, found 1$",
    "two_label_cols": "line 1: 2 columns are named 'label'",
    "unclosed_quote": "line 2: a quote is not closed",
}


@pytest.mark.parametrize("name", MALFORMED_FILES)
def test_malformed_files_give_a_sentence_with_the_line(audio, name):
    with pytest.raises(LabelError, match=f"{name}.csv, {MALFORMED_FILES[name]}"):
        find_labelled(audio, CASES / f"{name}.csv")


def test_the_shared_tables_are_these_and_their_audio_is_read(shared_cases):
    assert {path.stem for path in (shared_cases / "labels").glob("*.csv")} == MALFORMED_FILES.keys()
    folder = shared_cases / "labels" / "audio"
    for name, problem in MALFORMED_FILES.items():
        with pytest.raises(LabelError, match=problem):
            find_labelled(folder, shared_cases / "labels" / f"{name}.csv")
    assert {path.name: load_audio(path).shape for path in folder.iterdir()} == {
        f"{name}.wav": (16000,) for name in "abcd"
    }


MALFORMED = {
    "an unquoted list": ("file,label\na.wav,cat\nx.wav,dog,cat,bird\n", "line 3: 2 cells are needed, found 4"),
    "an unquoted list under empty column names": (
        "file,label,,\na.wav,cat,,\nb.wav,dog,cat,\n",
        "line 3: 'cat' is in a column without a name",
    ),
    "an extra cell in the last row": ("file,label\na.wav,cat\nb.wav,dog,", "line 3: 2 cells are needed, found 3"),
    "an unquoted AudioSet list": (
        "# created\n# YTID, start_seconds, end_seconds, positive_labels\na, 0, 10, /m/1,/m/2\n",
        "line 3: 4 cells are needed, found 5",
    ),
    "a row without labels": ("file,label,fold\na.wav,cat,1\nb.wav,dog\n", "line 3: 3 cells are needed, found 2"),
    "a row of one word": ("file,label\r\na.wav,cat\r\n\r\nb.wav\r\n", "line 4: 2 cells are needed, found 1"),
    "a line of tabs": ("file,label\na.wav,cat\n\t\t\nb.wav,dog\n", "line 3 holds nothing but blanks"),
    "blanks at the end": ("file,label\na.wav,cat\n  ", "line 3 holds nothing but blanks"),
    "empty cells": ("file,label\na.wav,cat\n,\n", "line 3: the cell under 'file' is empty"),
    "a label without a file": ("label,file\ncat,a.wav\ndog, \n", "line 3: the cell under 'file' is empty"),
    "columns of the same name": ("file,label,fold,label \na.wav,cat,1,dog\n", "line 1: 2 columns are named 'label'"),
    "a quote that the next row closes": (
        'file,label\na.wav,"dog\nb.wav,cat"\nc.wav,dog\n',
        "line 2: a quote is not closed",
    ),
    "an open quote in another column": (
        'file,label,note\na.wav,dog,"loud\nb.wav,cat,low\nc.wav,dog,"\n',
        "line 2: a quote is not closed",
    ),
    "text after a quoted cell": ('file,label\na.wav,"dog"cat\n', "line 2: ',' expected after '\"'"),
}


@pytest.mark.parametrize("how", MALFORMED)
def test_malformed_tables_give_a_sentence_with_the_line(audio, tmp_path, how):
    text, problem = MALFORMED[how]
    (tmp_path / "labels.csv").write_text(text, newline="")
    with pytest.raises(LabelError, match=f"labels.csv, {problem}") as raised:
        find_labelled(audio, tmp_path / "labels.csv")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("file,label,category\na.wav,dog,bark\n", "more than one column of labels, label and category; rename"),
        ("file,label,Label\na.wav,dog,bark\n", "more than one column of labels, label and Label; rename"),
        ("file,labels,positive_labels\na.wav,dog,bark\n", "more than one column of labels, labels and positive_labels"),
        ("", r"labels.csv has the columns \[\]; it needs one of"),
        ("\n\n", r"labels.csv has the columns \[\]"),
        ("a.wav,dog,cat,bird\n", "has the columns"),
        ("file;label\na.wav;dog\n", "labels.csv has semicolons between its columns; separate them with commas"),
        ("file\tlabel\na.wav\tdog\n", "labels.csv has tabs between its columns; separate them with commas"),
    ],
)
def test_a_bad_header_is_refused(audio, tmp_path, text, problem):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(LabelError, match=problem):
        find_labelled(audio, tmp_path / "labels.csv")


@pytest.mark.parametrize(
    "text",
    [
        'file,label\na.wav,"dog, bark"\nb.wav,cat;purr\n',
        ',file,label\n0,a.wav,"dog,bark"\n1,b.wav,"purr, cat"\n',  # as pandas writes it
        'file , label\r\n\r\na.wav , "dog,bark" \r\nb.wav,"cat,purr"\r\n\r\n',
        '\ufefffile,label\na.wav,dog\na.wav,bark\nb.wav,"cat;purr"',
        'File,Label\na.wav,"dog, bark"\nb.wav,cat;purr\n',
        'label,note,file\n"dog;bark","he said ""woof"", twice",a.wav\n"cat,purr",12" vinyl,b.wav\n',
    ],
)
def test_unusual_but_valid_tables_are_read(audio, tmp_path, text):
    (tmp_path / "labels.csv").write_text(text, newline="", encoding="utf-8")
    _, labels, vocabulary = find_labelled(audio, tmp_path / "labels.csv")
    assert labels == [("bark", "dog"), ("cat", "purr"), (), ()]
    assert vocabulary == ["bark", "cat", "dog", "purr"]


def test_a_malformed_table_of_classes_is_named_by_line(audio, tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\na.wav,dog\n")
    (tmp_path / "classes.csv").write_text("Index,MID\n0,cat\n1,dog\n")
    assert find_labelled(audio, tmp_path / "labels.csv", tmp_path / "classes.csv")[2] == ["cat", "dog"]
    for text, problem in (("index,mid\n0,dog,x\n", "line 2: 2 cells"), ('index,mid\n0,"dog\n', "line 2: a quote")):
        (tmp_path / "classes.csv").write_text(text)
        with pytest.raises(LabelError, match=f"classes.csv, {problem}"):
            find_labelled(audio, tmp_path / "labels.csv", tmp_path / "classes.csv")


def test_labels_of_a_hear_split_that_are_not_lists_are_refused(tmp_path):
    (tmp_path / "16000" / "train").mkdir(parents=True)
    soundfile.write(tmp_path / "16000" / "train" / "a.wav", np.ones(1600), 16000)
    (tmp_path / "task_metadata.json").write_text("{}")
    (tmp_path / "train.json").write_text('{"a.wav": "dog"}')
    with pytest.raises(LabelError, match="train.json cannot be read .*the labels of a.wav must be a list, got 'dog'"):
        find_labelled(tmp_path)


def test_prepare_ends_with_the_sentence_and_makes_nothing(audio, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "audio_mamba.data.prepare",
            audio,
            tmp_path / "out",
            "--labels",
            CASES / "extra_cells.csv",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("prepare: ") and done.stderr.count("\n") == 1
    assert "extra_cells.csv, line 2: 2 cells are needed, found 3" in done.stderr
    assert not (tmp_path / "out").exists()
