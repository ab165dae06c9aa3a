"""The index command on archives written by webdataset: training reads the same samples, and fewer bytes."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from audio_mamba.data import dataset as dataset_module
from audio_mamba.data.archives import write_manifest, write_shard
from audio_mamba.data.dataset import LogMelDataset
from audio_mamba.data.index import main
from audio_mamba.data.loader import make_loader, set_epoch
from audio_mamba.data.samples import ArchiveError, Sample
from audio_mamba.data.shard_index import index_path, read_index
from tests.conftest import ROOT

NUM_FRAMES = 12


def clip(number: int) -> np.ndarray:
    """Clip `number` has its own length; some are shorter than a crop."""
    return (np.random.default_rng(number).standard_normal((5 + number % 40, 80)) * 3 - 5).astype(np.float32)


def write_published(path: Path, members: dict[str, bytes]) -> None:
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for key, data in members.items():
            tar.write({"__key__": key, "data.pyd": data, "target.pyd": pickle.dumps([1])})


def published(numbers: range) -> dict[str, bytes]:
    return {f"Y{number:011d}": pickle.dumps(clip(number)) for number in numbers}


@pytest.fixture
def archive(tmp_path) -> Path:
    """140 good samples in three shards."""
    for name, numbers in (("a", range(50)), ("b", range(50, 90)), ("c", range(90, 140))):
        write_published(tmp_path / f"{name}.tar", published(numbers))
    return tmp_path


def batches_of(archive: Path, strict: bool = True) -> list[dict]:
    loader = make_loader(
        [archive],
        num_frames=NUM_FRAMES,
        batch_size=10,
        seed=3,
        strict=strict,
        draw_mask=lambda rng: rng.integers(0, 2, 10).astype(np.float32),
    )
    set_epoch(loader, 4)
    return list(loader)


def assert_same(found: list[dict], expected: list[dict]) -> None:
    """The same samples and masks; crops too, but for the rounding of the stored mean and deviation to float32."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert torch.equal(a["index"], b["index"]) and torch.equal(a["mask"], b["mask"])
        torch.testing.assert_close(a["spectrogram"], b["spectrogram"], rtol=0, atol=2e-6)


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_published_archive_gives_the_same_batches_with_an_index_and_only_crops_are_read(archive, capsys, monkeypatch):
    before = batches_of(archive)
    main([str(archive), "--workers", "2"])
    assert f"{archive}: 3 of 3 shards indexed, 140 samples\n" in capsys.readouterr().out
    assert sorted(written(archive)) == sorted(f"{name}{end}" for name in "abc" for end in (".tar", ".index.npz"))

    headers_read, bytes_read = [], []
    monkeypatch.setattr("audio_mamba.data.shard_index._walk", lambda *arguments: headers_read.append(arguments))
    monkeypatch.setattr(
        "audio_mamba.data.dataset.ShardFiles.read", lambda *arguments: pytest.fail("a whole member is read")
    )
    read_into = dataset_module.ShardFiles.read_into
    monkeypatch.setattr(
        "audio_mamba.data.dataset.ShardFiles.read_into",
        lambda files, path, offset, buffer: bytes_read.append(len(buffer)) or read_into(files, path, offset, buffer),
    )
    assert_same(batches_of(archive), before)
    assert not headers_read and len(bytes_read) == 140 and max(bytes_read) == NUM_FRAMES * 80 * 4


def test_a_second_run_writes_only_missing_indexes(archive, capsys):
    main([str(archive)])
    first = written(archive)
    main([str(archive)])
    assert "all of its 3 shards have an index already" in capsys.readouterr().out and written(archive) == first
    index_path(archive / "a.tar").unlink()  # lost
    index_path(archive / "b.tar").write_bytes(b"no index")  # damaged
    write_published(archive / "c.tar", published(range(7)))  # belongs to another shard
    main([str(archive)])
    assert f"{archive}: 3 of 3 shards indexed, 97 samples" in capsys.readouterr().out
    assert [len(read_index(archive / f"{name}.tar")) for name in "abc"] == [50, 40, 7]
    index_path(archive / "b.tar").unlink()
    third = written(archive)
    (archive / "b.index.npz.0123abcd.partial").touch()  # left by a killed process
    main([str(archive)])
    assert not (archive / "b.index.npz.0123abcd.partial").exists()
    assert "1 of 3 shards indexed, 40 samples" in capsys.readouterr().out
    assert {name: when for name, when in written(archive).items() if not name.startswith("b")} == {
        name: when for name, when in third.items() if not name.startswith("b")
    }


def test_bad_samples_and_shards_are_named_and_training_reports_them_as_before(archive, capsys):
    bad = {
        "cut": pickle.dumps(clip(1))[:200],
        "nan": pickle.dumps(np.full((14, 80), np.nan, np.float32)),
        "huge": pickle.dumps(np.full((14, 80), 1e300) * [[1, -1] * 40]),
    }
    write_published(archive / "d.tar", published(range(140, 500)) | bad)
    done = subprocess.run([sys.executable, "-m", "data.index", archive], cwd=ROOT, capture_output=True, text=True)
    told = done.stderr
    assert done.returncode == 1 and "index: problems found: 3" in told and "Warning" not in told
    assert f"{archive / 'd.tar'}, sample cut: neither an .npy array nor a pickled one" in told
    for key in ("nan", "huge"):
        assert f"{archive / 'd.tar'}, sample {key}: the spectrogram holds NaN or Inf" in told
    indexed = batches_of(archive, strict=False)
    dataset = LogMelDataset([archive], NUM_FRAMES, strict=True)
    for number, problem in (
        (500, "cut: neither an .npy array nor"),
        (501, "nan: the spectrogram holds NaN or Inf"),
        (502, "huge: the spectrogram holds NaN or Inf"),
    ):
        with pytest.raises(ArchiveError, match=f"d.tar, sample {problem}"):
            dataset[0, number]
    for path in archive.glob("*.index.npz"):
        path.unlink()
    assert_same(indexed, batches_of(archive, strict=False))

    (archive / "d.tar").write_bytes((archive / "d.tar").read_bytes()[:100_000])
    with pytest.raises(SystemExit, match="index: problems found: 1"):
        main([str(archive)])
    assert f"{archive / 'd.tar'}: cannot be read as a tar file (unexpected end" in capsys.readouterr().err
    assert not index_path(archive / "d.tar").exists() and index_path(archive / "c.tar").exists()
    with pytest.raises(ArchiveError, match="d.tar: cannot be read as a tar file"):
        LogMelDataset([archive], NUM_FRAMES, strict=True)


def test_values_that_are_not_stored_row_by_row_are_counted_and_read_whole(tmp_path, capsys):
    write_published(
        tmp_path / "a.tar",
        {
            "columns": pickle.dumps(np.asfortranarray(clip(30))),
            "quoted": pickle.dumps(clip(31), protocol=0),
            "rows": pickle.dumps(clip(32)),
        },
    )
    before = [LogMelDataset([tmp_path], NUM_FRAMES)[0, i]["spectrogram"] for i in range(3)]
    main([str(tmp_path)])
    assert "1 of 1 shards indexed, 3 samples; 2 of these must still be read whole" in capsys.readouterr().out
    for i, expected in enumerate(before):
        found = LogMelDataset([tmp_path], NUM_FRAMES)[0, i]["spectrogram"]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_a_lost_index_of_data_prepare_is_written_again_byte_for_byte(tmp_path):
    write_shard(tmp_path / "shard-000000.tar", [Sample(f"{i}", clip(i), np.array([i])) for i in range(5)])
    write_manifest(tmp_path, {"samples": 5, "settings": {}, "shards": [{"name": "shard-000000.tar", "samples": 5}]})
    original = index_path(tmp_path / "shard-000000.tar").read_bytes()
    index_path(tmp_path / "shard-000000.tar").unlink()
    main([str(tmp_path)])
    assert index_path(tmp_path / "shard-000000.tar").read_bytes() == original


def test_what_cannot_be_indexed_is_refused_in_a_sentence(archive, monkeypatch):
    with pytest.raises(SystemExit, match="index: --workers must be at least 1, got 0"):
        main([str(archive), "--workers", "0"])
    with pytest.raises(SystemExit, match="index: no shards"):
        (archive / "empty").mkdir()
        main([str(archive / "empty")])
    with pytest.raises(SystemExit, match="index: no shards"):
        main([str(archive / "absent")])
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)
        with pytest.raises(SystemExit, match=f"^index: {archive} is read-only, and indexes are written next to"):
            main([str(archive)])
        links = archive / "links"  # what that sentence advises
        links.mkdir()
        for shard in archive.glob("*.tar"):
            (links / shard.name).symlink_to(shard)
    main([str(links)])
    assert_same(batches_of(links), batches_of(archive))
    assert not list(archive.glob("*.npz"))
    index_path(archive / "a.tar").mkdir()  # so that its file cannot be written
    with pytest.raises(SystemExit, match="index: .*a.index.npz.*; once the cause is removed, the same command"):
        main([str(archive)])
    assert not list(archive.glob("*.partial"))
    (archive / "unfinished").write_text("{}")
    with pytest.raises(SystemExit, match="is not complete: the same audio-mamba prepare command continues it"):
        main([str(archive)])


def test_ctrl_c_stops_it_at_once_and_the_same_command_continues(tmp_path):
    members = {f"Y{number:011d}": pickle.dumps(np.ones((4000, 80), np.float32)) for number in range(120)}
    write_published(tmp_path / "b.tar", members)
    write_published(tmp_path / "a.tar", published(range(3)))
    command = subprocess.Popen(
        [sys.executable, "-m", "data.index", str(tmp_path), "--workers", "1"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not index_path(tmp_path / "a.tar").exists():
        assert time.monotonic() < deadline and command.poll() is None
        time.sleep(0.005)
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does
    _, errors = command.communicate(timeout=30)
    assert command.returncode == 130 and "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.index.npz", "a.tar", "b.tar"]
    main([str(tmp_path)])
    assert len(read_index(tmp_path / "b.tar")) == 120 and index_path(tmp_path / "b.tar").exists()


def test_a_large_archive_without_index_names_the_command_once(archive, monkeypatch, caplog):
    monkeypatch.setattr("audio_mamba.data.dataset.MANY_WITHOUT_INDEX", 100)
    caplog.set_level(logging.INFO)
    LogMelDataset([archive], NUM_FRAMES)
    assert len(caplog.records) == 1
    assert "140 samples have no index" in caplog.text and f"audio-mamba index {archive}," in caplog.text
    caplog.clear()
    main([str(archive)])
    index_path(archive / "c.tar").unlink()
    LogMelDataset([archive], NUM_FRAMES)
    assert not caplog.records
