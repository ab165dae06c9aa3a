"""Atomic writes leave complete files or none."""

import resource

import pytest

from audio_mamba.system.atomic_files import atomic_text, atomic_write, remove_partials


def test_the_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"all of it")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_only_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="disk"), atomic_write(path) as file:
        file.write(b"half of the n")
        raise RuntimeError("disk")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_keeps_its_line_ends(tmp_path):
    path = tmp_path / "file"
    with atomic_text(path) as file:
        file.write("Gänse\r\n雨\n")
        assert not path.exists()
    assert path.read_bytes() == "Gänse\r\n雨\n".encode()
    with pytest.raises(RuntimeError, match="disk"), atomic_text(path) as file:
        file.write("half of the n")
        raise RuntimeError("disk")
    assert path.read_bytes() == "Gänse\r\n雨\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    """A limit on the size of files stands for the disk: neither error has a name by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="large") as raised, atomic_write(tmp_path / "file") as file:
            file.write(bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file [1]"])
def test_partial_files_of_killed_writers_can_be_removed(tmp_path, name):
    (tmp_path / f"{name}.0123abcd.partial").write_bytes(b"the rest of a killed attempt")
    (tmp_path / "file2.0123abcd.partial").write_bytes(b"of another file")
    remove_partials(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file2.0123abcd.partial"]


def test_partial_files_of_longer_names_and_folders_are_left(tmp_path):
    (tmp_path / "file.npz.partial").mkdir()
    (tmp_path / "file.npz.0123abcd.partial").write_bytes(b"of another file")
    remove_partials(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.npz.0123abcd.partial", "file.npz.partial"]
