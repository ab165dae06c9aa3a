"""Shards that we write, shards that webdataset writes, and damaged ones."""

import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import webdataset

from audio_mamba.data.archives import read_shard, shard_indices, write_manifest, write_shard
from audio_mamba.data.manifest import read_manifest
from audio_mamba.data.samples import ArchiveError, Sample
from audio_mamba.data.shard_files import ShardFiles
from audio_mamba.data.shard_index import index_from_headers, read_index
from audio_mamba.system.atomic_files import atomic_write


def make_samples(count: int, dtype: str = "float32") -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(
            f"{i:08d}_clip",
            rng.standard_normal((20 + i, 80)).astype(dtype),
            rng.integers(0, 527, i % 3).astype(np.int64),
        )
        for i in range(count)
    ]


def assert_same(found: list[Sample], expected: list[Sample]) -> None:
    assert [sample.key for sample in found] == [sample.key for sample in expected]
    for a, b in zip(found, expected):
        assert a.spectrogram.dtype == b.spectrogram.dtype
        np.testing.assert_array_equal(a.spectrogram, b.spectrogram)
        np.testing.assert_array_equal(a.labels, b.labels)


def write_published_shard(path, samples: list[Sample], protocol: int = 4) -> None:
    """As published archives are made: webdataset's ShardWriter, pickled arrays."""
    pattern = str(path.parent / "published-%d.tar")
    with webdataset.ShardWriter(pattern, verbose=0, encoder=False) as writer:
        for sample in samples:
            writer.write(
                {
                    "__key__": sample.key,
                    "data.pyd": pickle.dumps(sample.spectrogram, protocol),
                    "target.pyd": pickle.dumps(sample.labels.tolist(), protocol),
                }
            )
    (path.parent / "published-0.tar").rename(path)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read(tmp_path, dtype):
    samples = make_samples(7, dtype)
    assert write_shard(tmp_path / "a.tar", samples) == 7
    assert_same(list(read_shard(tmp_path / "a.tar")), samples)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.index.npz", "a.tar"]


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / f"{name}.tar", iter(make_samples(5)))
    for suffix in (".tar", ".index.npz"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_webdataset_reads_our_shards(tmp_path):
    samples = make_samples(4)
    write_shard(tmp_path / "a.tar", samples)
    found = [
        Sample(item["__key__"], item["data.npy"], np.array(item["target.json"], np.int64))
        for item in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode()
    ]
    assert_same(found, samples)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_published_shards_are_read(tmp_path, protocol):
    samples = make_samples(5)
    write_published_shard(tmp_path / "a.tar", samples, protocol)
    assert_same(list(read_shard(tmp_path / "a.tar")), samples)


def test_keys_follow_webdatasets_rule(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("folder.x/clip.data.pyd", "folder.x/clip.jpg", "other.data.pyd", "README"):
            data = pickle.dumps(np.ones((3, 80), np.float32))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    by_webdataset = [item["__key__"] for item in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)]
    samples = list(read_shard(tmp_path / "a.tar"))
    assert [sample.key for sample in samples] == by_webdataset == ["folder.x/clip", "other"]
    assert all(len(sample.labels) == 0 for sample in samples)


def test_the_saved_index_agrees_with_the_headers_and_is_ignored_when_out_of_date(tmp_path):
    shard = tmp_path / "a.tar"
    write_shard(shard, make_samples(6))
    saved, walked = read_index(shard), index_from_headers(shard)
    np.testing.assert_array_equal(saved.keys, walked.keys)
    for field in ("data_offset", "data_size", "labels_offset", "labels_size"):
        np.testing.assert_array_equal(saved.places[field], walked.places[field])
    write_published_shard(shard, make_samples(3))
    assert len(read_index(shard)) == 3


def test_a_failure_in_mid_shard_leaves_no_files(tmp_path):
    def failing():
        yield from make_samples(3)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_shard(tmp_path / "a.tar", failing())
    assert list(tmp_path.iterdir()) == []
    assert write_shard(tmp_path / "a.tar", []) == 0
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_keeps_the_old_file_until_the_new_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"newer")
        raise RuntimeError
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_manifest_round_trip_and_refusal(tmp_path):
    assert read_manifest(tmp_path) is None
    manifest = {"samples": 3, "settings": {}, "shards": [{"name": "a.tar", "samples": 3}], "labels": ["Ä"]}
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    for text in ("{}", "[1]", "not json"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ArchiveError, match="manifest.json is not a manifest"):
            read_manifest(tmp_path)


def test_the_manifest_decides_which_shards_there_are_and_contradictions_are_errors(tmp_path):
    with pytest.raises(ArchiveError, match="no shards"):
        shard_indices(tmp_path)
    write_shard(tmp_path / "shard-000000.tar", make_samples(3))
    write_shard(tmp_path / "extra.tar", make_samples(2))
    assert [len(index) for _, index in shard_indices(tmp_path)] == [2, 3]
    manifest = {"samples": 3, "settings": {}, "shards": [{"name": "shard-000000.tar", "samples": 3}]}
    write_manifest(tmp_path, manifest)
    assert [path.name for path, _ in shard_indices(tmp_path)] == ["shard-000000.tar"]
    manifest["shards"][0]["samples"] = manifest["samples"] = 4
    write_manifest(tmp_path, manifest)
    with pytest.raises(ArchiveError, match="shard-000000.tar holds 3 samples, but manifest.json says 4"):
        shard_indices(tmp_path)
    (tmp_path / "shard-000000.tar").unlink()
    with pytest.raises(ArchiveError, match="shard-000000.tar: no such file"):
        shard_indices(tmp_path)


@pytest.mark.parametrize("damage", ["cut at a header", "cut in a member", "flipped header", "text", "empty"])
def test_damaged_shards_are_named_not_silently_shortened(tmp_path, damage):
    shard = tmp_path / "bad.tar"
    write_shard(shard, make_samples(6))
    index, data = index_from_headers(shard), bytearray(shard.read_bytes())
    fourth_header = index.places["data_offset"][3] - 512
    if damage == "cut at a header":
        data = data[:fourth_header]
    elif damage == "cut in a member":
        data = data[: fourth_header + 700]
    elif damage == "flipped header":
        data[fourth_header + 10] ^= 1
    else:
        data = b"some text " * 200 if damage == "text" else b""
    shard.write_bytes(data)
    with pytest.raises(ArchiveError, match="bad.tar"):
        index_from_headers(shard)


def test_bad_members_are_named_by_shard_and_key(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    bad = {
        "code": pickle.dumps(Evil()),
        "flat": pickle.dumps(np.ones(80, np.float32)),
        "text": b"hello",
        "ints": pickle.dumps(np.ones((3, 80), int)),
        "none": pickle.dumps(np.ones((0, 80), np.float32)),
    }
    for name, data in bad.items():
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar"), encoder=False) as tar:
            tar.write({"__key__": "clip7", "data.pyd": data, "target.pyd": pickle.dumps([1])})
        with pytest.raises(ArchiveError, match=f"{name}.tar, sample clip7: "):
            list(read_shard(tmp_path / f"{name}.tar"))
    assert not (tmp_path / "owned").exists()


def test_missing_and_doubled_members_are_named(tmp_path):
    data = pickle.dumps(np.ones((3, 80), np.float32))
    with webdataset.TarWriter(str(tmp_path / "double.tar"), encoder=False) as tar:
        tar.write({"__key__": "clip", "data.pyd": data})
        tar.write({"__key__": "clip", "data.pyd": data})
    with pytest.raises(ArchiveError, match="double.tar: two members clip.data.pyd"):
        read_index(tmp_path / "double.tar")
    with webdataset.TarWriter(str(tmp_path / "lone.tar"), encoder=False) as tar:
        tar.write({"__key__": "clip", "target.pyd": pickle.dumps([1])})
    with pytest.raises(ArchiveError, match="lone.tar: sample clip has no clip.data.pyd"):
        read_index(tmp_path / "lone.tar")


def test_few_files_stay_open_and_a_pickled_reader_opens_its_own(tmp_path):
    paths = [tmp_path / f"{i}" for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 10)
    files = ShardFiles(max_open=2)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(3):
        assert [files.read(path, 3, 2) for path in paths] == [bytes([i, i]) for i in range(5)]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert pickle.loads(pickle.dumps(files)).read(paths[0], 0, 100) == bytes(10)
    shutil.rmtree(tmp_path)
    with pytest.raises(OSError):
        ShardFiles().read(paths[0], 0, 1)
