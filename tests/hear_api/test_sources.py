"""What an INPUT of the embed command stands for."""

import pytest

from audio_mamba.data.audio import AudioError
from audio_mamba.hear_api.inputs import list_audio


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.wav", "a.flac", "sub/c.MP3", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def names(files, folder):
    return [path.relative_to(folder).as_posix() for path in files]


def test_files_folders_and_globs_each_once_in_order(folder):
    files = list_audio([str(folder / "b.wav"), str(folder), str(folder / "**" / "*.MP3"), str(folder / "notes.txt")])
    assert names(files, folder) == ["b.wav", "a.flac", "sub/c.MP3", "notes.txt"]


@pytest.mark.parametrize(
    "text", ["path,label\nb.wav,1\nsub/c.MP3,2\n", "label,File\n1,b.wav\n2, sub/c.MP3\n\n", "b.wav\nsub/c.MP3\n"]
)
def test_csv_lists(folder, text):
    (folder / "list.csv").write_text(text)
    assert names(list_audio([str(folder / "list.csv")]), folder) == ["b.wav", "sub/c.MP3"]


def test_inputs_that_name_nothing(folder):
    (folder / "empty.csv").touch()
    for name, message in (("x.wav", "no such file"), ("*.ogg", "matches no file"), ("empty.csv", "list is empty")):
        with pytest.raises(AudioError, match=message):
            list_audio([str(folder / name)])
