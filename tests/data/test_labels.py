"""Tables of labels as data sets in the wild have them."""

import csv
import json
import logging
from pathlib import Path

import pytest

from audio_mamba.data.labels import LabelError, column_of, find_labelled, folds_and_groups, hear_metadata
from audio_mamba.data.synthetic import write_scene_task
from tests.evaluation.conftest import write_task


def make_files(directory, *names) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"")


def labels_by_name(found) -> dict:
    files, labels, _ = found
    return {path.name: names for path, names in zip(files, labels)}


def test_audiosets_own_tables(tmp_path):
    make_files(tmp_path / "audio", "--PJHxphWEs.wav", "YY-6blJHKbCo.flac", "Ya2VsY3OcPQ_30.000.wav", "unlisted_id.wav")
    (tmp_path / "eval.csv").write_text(
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=3, num_segs=3\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
        'Y-6blJHKbCo, 30.000, 40.000, "/m/09x0r"\nYa2VsY3OcPQ, 30.000, 40.000, "/m/05zppz"\n'
    )
    (tmp_path / "classes.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/t/dd00088,"Gush"\n'
    )
    found = find_labelled(tmp_path / "audio", tmp_path / "eval.csv", tmp_path / "classes.csv")
    assert labels_by_name(found) == {
        "--PJHxphWEs.wav": ("/m/09x0r", "/t/dd00088"),
        "YY-6blJHKbCo.flac": ("/m/09x0r",),
        "Ya2VsY3OcPQ_30.000.wav": ("/m/05zppz",),
        "unlisted_id.wav": (),
    }
    assert found[2] == ["/m/09x0r", "/m/05zppz", "/t/dd00088"]


def test_esc50_and_fsd50k_tables(tmp_path):
    make_files(tmp_path / "audio", "1-100032-A-0.wav", "64760.wav")
    (tmp_path / "esc50.csv").write_text("filename,fold,target,category,esc10\n1-100032-A-0.wav,1,0,dog,True\n")
    (tmp_path / "dev.csv").write_text('fname,labels,mids,split\n64760,"Bark,Dog","/m/1,/m/2",train\n')
    assert labels_by_name(find_labelled(tmp_path / "audio", tmp_path / "esc50.csv"))["1-100032-A-0.wav"] == ("dog",)
    assert labels_by_name(find_labelled(tmp_path / "audio", tmp_path / "dev.csv"))["64760.wav"] == ("Bark", "Dog")


def test_a_hear_task_brings_its_own_labels(tmp_path):
    task = write_scene_task(tmp_path, clips={"train": 2, "valid": 1, "test": 1}, seconds=0.5)
    make_files(task / "48000" / "train", "train_0000.wav")  # another rate of the same clips is not taken twice
    files, labels, vocabulary = find_labelled(task)
    with open(task / "labelvocabulary.csv") as file:
        assert vocabulary == [row["label"] for row in csv.DictReader(file)]
    assert len(files) == 4 * len(vocabulary) and all(len(names) == 1 for names in labels)
    assert [names[0] for path, names in zip(files, labels) if path.parent.name == "test"] == vocabulary


def test_missing_files_of_a_hear_task_are_named(tmp_path):
    task = write_scene_task(tmp_path, clips={"train": 2, "valid": 1, "test": 1}, seconds=0.5)
    lost = sorted(task.glob("*/test/*.wav"))[0]
    lost.unlink()
    with pytest.raises(LabelError, match=rf"test lacks 1 of the \d+ files of its split, such as {lost.name}"):
        find_labelled(task)


def test_a_clip_of_an_event_task_has_the_labels_of_its_events_once(tmp_path):
    task = tmp_path / "notes"
    write_task(task, {"train": 3, "test": 1}, embedding_type="event")
    events = [
        {"start": start, "end": start + 300, "label": label}
        for start, label in ((0, "mid"), (400, "low"), (500, "mid"))
    ]
    (task / "test.json").write_text(json.dumps({"test0.wav": events}))
    found = find_labelled(task)
    assert labels_by_name(found) == {
        "train0.wav": ("low",),
        "train1.wav": ("mid",),
        "train2.wav": ("high",),
        "test0.wav": ("low", "mid"),
    }
    assert found[2] == ["low", "mid", "high"]


def test_a_bare_label_of_a_hear_task_is_not_split_into_letters(tmp_path):
    make_files(tmp_path, "16000/train/a.wav")
    (tmp_path / "task_metadata.json").write_text("{}")
    (tmp_path / "labelvocabulary.csv").write_text("idx,label\n0,o\n1,d\n2,g\n")
    (tmp_path / "train.json").write_text('{"a.wav": "dog"}')
    with pytest.raises(LabelError, match="train.json .*the labels of a.wav must be a list, got 'dog'"):
        find_labelled(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_description_of_a_hear_task_is_named(tmp_path, text):
    (tmp_path / "task_metadata.json").write_text(text, "latin-1")
    with pytest.raises(LabelError, match="task_metadata.json cannot be read as the description of a HEAR task"):
        hear_metadata(tmp_path)


def test_the_real_tasks(shared_tasks):
    task = shared_tasks / "drum_hits-v1-full"
    files, labels, vocabulary = find_labelled(task)
    assert len(files) > 50 and all(len(names) == 1 for names in labels) and len(vocabulary) > 3


def test_files_without_a_label_and_rows_without_a_file_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    make_files(tmp_path / "audio", "a.wav", "b.wav", "c.wav")
    (tmp_path / "labels.csv").write_text("file,label\na.wav,x\nb.wav,\nd.wav,y\n")
    assert labels_by_name(find_labelled(tmp_path / "audio", tmp_path / "labels.csv")) == {
        "a.wav": ("x",),
        "b.wav": (),
        "c.wav": (),
    }
    assert "2 of 3 audio files have no label in" in caplog.text
    assert "1 of 3 names in" in caplog.text and "such as d.wav" in caplog.text


@pytest.mark.parametrize(
    "written", ["./über/a.wav", "u\u0308ber/a.wav", "AUDIO/über/a.wav", "über/a", r"über\a.wav", r".\über\a"]
)
def test_one_name_written_in_several_ways(tmp_path, written):
    make_files(tmp_path / "audio", "über/a.wav", "über/b.wav")
    (tmp_path / "labels.csv").write_text(f"file,label\n{written.replace('AUDIO', str(tmp_path / 'audio'))},x\n")
    assert labels_by_name(find_labelled(tmp_path / "audio", tmp_path / "labels.csv")) == {"a.wav": ("x",), "b.wav": ()}


@pytest.mark.parametrize("given", ["audio", "./audio", "ABSOLUTE"])
@pytest.mark.parametrize(
    "written", ["audio/dogs/a.wav", "./audio/dogs/a.wav", "ABSOLUTE/dogs/a.wav", r"audio\dogs\a.wav"]
)
def test_the_table_of_predict_labels_the_same_files(tmp_path, monkeypatch, given, written):
    """Its paths have the folder in front."""
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path / "audio", "dogs/a.wav", "cats/a.wav")
    absolute = str(tmp_path / "audio")
    row = f"{written.replace('ABSOLUTE', absolute)},0,2,dog,0.9"
    (tmp_path / "labels.csv").write_text(f"path,start,end,label,probability\n{row}\n")
    folder = Path(given.replace("ABSOLUTE", absolute))
    files, labels, _ = find_labelled(folder, "labels.csv")
    assert dict(zip(files, labels)) == {folder / "cats/a.wav": (), folder / "dogs/a.wav": ("dog",)}
    assert column_of([folder / "dogs/a.wav"], folder, Path("labels.csv"), "end") == ["2"]


def test_a_folder_in_a_folder_of_its_name_keeps_its_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path / "audio", "a.wav", "audio/a.wav")
    (tmp_path / "labels.csv").write_text("file,label\na.wav,top\naudio/a.wav,inner\n")
    _, labels, _ = find_labelled(Path("audio"), "labels.csv")
    assert labels == [("top",), ("inner",)]


def test_files_of_one_name_in_several_folders_keep_their_rows_apart(tmp_path):
    make_files(tmp_path / "audio", "a.wav", "dogs/a.wav", "dogs/b.wav", "birds/b.wav", "both.wav", "more/c.wav")
    rows = ["a.wav,cat", "dogs/a.wav,dog", "dogs/b,dog", "birds/b,bird", "both.wav,x", "both,y", "more/c,x", "c.wav,y"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    files, labels, _ = find_labelled(tmp_path / "audio", tmp_path / "labels.csv")
    assert {path.relative_to(tmp_path / "audio").as_posix(): names for path, names in zip(files, labels)} == {
        "a.wav": ("cat",),
        "dogs/a.wav": ("dog",),
        "dogs/b.wav": ("dog",),
        "birds/b.wav": ("bird",),
        "both.wav": ("x", "y"),
        "more/c.wav": ("x", "y"),
    }


def test_a_bare_name_of_files_in_several_folders_is_a_warning(tmp_path, caplog):
    make_files(
        tmp_path / "audio", "x/0.wav", "y/0.wav", "x/1.wav", "y/1.wav", "x/2.wav", "x/2.flac", "3.wav", "z/3.wav"
    )
    text = "file,label\n0.wav,L0\nx/1.wav,L1\ny/1,L2\n2,L2\n3.wav,L3\nz/3.wav,L4\n"
    (tmp_path / "labels.csv").write_text(text)
    _, labels, _ = find_labelled(tmp_path / "audio", tmp_path / "labels.csv")
    assert labels.count(("L0",)) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert (
        f"1 of 6 names in {tmp_path / 'labels.csv'} fit files in several folders, such as 0.wav, which labels"
        in warning
    )
    assert "x/0.wav and y/0.wav" in warning
    caplog.clear()
    (tmp_path / "labels.csv").write_text("file,label\nx/0.wav,L0\n")
    find_labelled(tmp_path / "audio", tmp_path / "labels.csv")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("column", ["start", "Onset"])
def test_labels_of_several_times_in_a_file_are_a_warning(tmp_path, caplog, column):
    make_files(tmp_path / "audio", "a.wav", "b.wav")
    rows = [f"file,{column},label", "a.wav,0.0,dog", "a.wav,0.5,cat", "b.wav,0.5,cat", "b.wav,0.5,loud"]
    for of_a, warnings in ((2, 1), (1, 0)):
        caplog.clear()
        (tmp_path / "labels.csv").write_text("\n".join(rows[: 1 + of_a] + rows[3:]) + "\n")
        found = find_labelled(tmp_path / "audio", tmp_path / "labels.csv")
        assert labels_by_name(found) == {"a.wav": ("cat", "dog") if of_a == 2 else ("dog",), "b.wav": ("cat", "loud")}
        messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(messages) == warnings
        wanted = f"has labels of several times (column {column}) of a file, such as a.wav"
        assert all(wanted in message for message in messages)


def test_labels_of_several_channels_of_a_file_are_a_warning(tmp_path, caplog):
    make_files(tmp_path / "audio", "a.wav", "b.wav")
    rows = [
        "path,channel,start,end,label,probability",
        "a.wav,0,0,1,dog,0.9",
        "a.wav,1,0,1,cat,0.9",
        "b.wav,0,0,1,cat,1",
    ]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    found = find_labelled(tmp_path / "audio", tmp_path / "labels.csv")
    assert labels_by_name(found) == {"a.wav": ("cat", "dog"), "b.wav": ("cat",)}
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "has labels of several channels (column channel) of a file, such as a.wav" in message


def test_a_label_with_a_comma_survives_a_table_of_predict(tmp_path):
    """Names of folders may have commas, so its rows have one label each; other tables separate several by commas."""
    make_files(tmp_path / "audio", "a.wav", "b.wav")
    rows = ["path,start,end,label,probability", 'a.wav,0,1,"Turdus merula, song",0.9', "b.wav,0,1,dog;bark,0.9"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    found = find_labelled(tmp_path / "audio", tmp_path / "labels.csv")
    assert labels_by_name(found) == {"a.wav": ("Turdus merula, song",), "b.wav": ("dog;bark",)}
    (tmp_path / "labels.csv").write_text('path,label\na.wav,"Turdus merula, song"\nb.wav,dog;bark\n')
    found = find_labelled(tmp_path / "audio", tmp_path / "labels.csv")
    assert labels_by_name(found) == {"a.wav": ("Turdus merula", "song"), "b.wav": ("bark", "dog")}


def test_folders_of_one_name_are_different_groups_and_the_same_fold(tmp_path):
    names = ["crow/1/a.wav", "robin/1/b.wav", "robin/2/c.wav", "d.wav"]
    make_files(tmp_path, *names)
    found = folds_and_groups([tmp_path / name for name in names], tmp_path, None, "folder", "folder")
    assert found == {"folds": ["1", "1", "2", "."], "groups": ["crow/1", "robin/1", "robin/2", "."]}


def test_columns_are_found_in_any_case(tmp_path):
    make_files(tmp_path, "a.wav")
    (tmp_path / "labels.csv").write_text("File,Label,Fold\na.wav,dog,3\n")
    assert column_of([tmp_path / "a.wav"], tmp_path, tmp_path / "labels.csv", "fold") == ["3"]


def test_labels_folds_and_groups_are_composed(tmp_path):
    """macOS writes names of folders with é in two characters; tables mostly have one."""
    one, two = "caf\u00e9", "cafe\u0301"
    make_files(tmp_path / "audio", f"{one}/a.wav", f"{two}/b.wav")
    files, labels, vocabulary = find_labelled(tmp_path / "audio")
    assert vocabulary == [one] and set(labels) == {(one,)}
    assert column_of(files, tmp_path / "audio", None, "folder") == [one] * 2
    (tmp_path / "labels.csv").write_text(f"file,label,who\na.wav,{one},{two}\nb.wav,{two},{one}\n")
    (tmp_path / "classes.csv").write_text(f"idx,label\n0,{two}\n")
    files, labels, vocabulary = find_labelled(tmp_path / "audio", tmp_path / "labels.csv", tmp_path / "classes.csv")
    assert vocabulary == [one] and set(labels) == {(one,)}
    assert column_of(files, tmp_path / "audio", tmp_path / "labels.csv", "who") == [one] * 2


def test_composed_names_in_the_lists_of_speech_commands_and_labels_of_hear_tasks(tmp_path):
    one, two = "caf\u00e9", "cafe\u0301"
    make_files(tmp_path / "words", f"{two}/a.wav", f"{two}/b.wav")
    (tmp_path / "words" / "validation_list.txt").write_text(f"{one}/a.wav\n")
    (tmp_path / "words" / "testing_list.txt").write_text("")
    files, _, _ = find_labelled(tmp_path / "words")
    assert column_of(files, tmp_path / "words", None, "split") == ["valid", "train"]
    make_files(tmp_path / "task", "16000/train/a.wav")
    (tmp_path / "task" / "task_metadata.json").write_text("{}")
    (tmp_path / "task" / "labelvocabulary.csv").write_text(f"idx,label\n0,{one}\n")
    (tmp_path / "task" / "train.json").write_text(json.dumps({"a.wav": [two]}))
    assert find_labelled(tmp_path / "task")[1:] == ([(one,)], [one])


@pytest.mark.parametrize(
    "text, reason",
    [
        ("index,mid\n0,dogs\n", "not 'cats', which is in use"),
        ("index,mid\n1,dogs\n", "must have the ids 0 to 0"),
        ("index,mid\n0,cats\n1,cats\n", "different labels"),
        ("number,name\n0,cats\n", "has the columns"),
    ],
)
def test_bad_classes_are_named(tmp_path, text, reason):
    make_files(tmp_path / "audio", "cats/a.wav", "dogs/b.wav")
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(LabelError, match=f"classes.csv.*{reason}"):
        find_labelled(tmp_path / "audio", classes=tmp_path / "classes.csv")
