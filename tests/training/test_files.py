import pytest

from training.files import atomic_write


def test_the_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"all of it")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_contents_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="disk"):
        with atomic_write(path) as file:
            file.write(b"half of the n")
            raise RuntimeError("disk")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    (tmp_path / "file.tmp").write_bytes(b"a long rest of a killed attempt")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
