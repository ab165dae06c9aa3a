"""Pickles of every numpy generation are read, and none is ever executed."""

import contextlib
import os
import pickle
import re
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from audio_mamba.data.archives import write_shard
from audio_mamba.data.array_bytes import NPZ_ERRORS, decode, encode
from audio_mamba.data.samples import ArchiveError, Sample
from audio_mamba.data.shard_index import index_path, saved_index
from audio_mamba.hear_api.probe.features import _read as kept_embeddings
from audio_mamba.hear_api.writers import read_settings

ARRAYS = [np.arange(12, dtype=dtype).reshape(3, 4) for dtype in ("<f2", "<f4", ">f4", "<f8", "<i8", "u1")]
ARRAYS += [
    np.asfortranarray(ARRAYS[1]),
    ARRAYS[1].T[::2],
    np.zeros((0, 80), np.float32),
    np.array(3),
    np.array([True, False]),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.str}{array.shape}")
def test_arrays_survive_npy_and_every_pickle_protocol(array):
    for data in [encode(array)] + [pickle.dumps(array, protocol) for protocol in range(6)]:
        decoded = decode(data)
        assert decoded.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(decoded, array)


def test_pickles_of_numpy_1_are_read():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for protocol in (0, 2):  # these protocols name modules in plain text
        data = pickle.dumps(array, protocol)
        assert b"numpy._core" in data
        np.testing.assert_array_equal(decode(data.replace(b"numpy._core", b"numpy.core")), array)


@pytest.mark.parametrize(
    "value, expected",
    [
        (7, 7),
        (2.5, 2.5),
        ([1, 2, 3], [1, 2, 3]),
        ((4, 5), [4, 5]),
        ([], []),
        (np.int64(9), 9),
        ([np.int32(3), np.int64(4)], [3, 4]),
    ],
)
@pytest.mark.parametrize("protocol", range(6))
def test_numbers_and_lists_are_read(value, expected, protocol):
    np.testing.assert_array_equal(decode(pickle.dumps(value, protocol)), expected)


class Evil:
    """Unpickled freely, this makes a folder."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_code_in_a_pickle_is_refused_unexecuted(tmp_path):
    for evil in (
        Evil(os.mkdir, str(tmp_path / "owned")),
        [1, Evil(os.mkdir, str(tmp_path / "owned"))],
        Evil(eval, f"__import__('os').mkdir('{tmp_path / 'owned'}')"),
        Evil(np.load, "somewhere"),
    ):
        for protocol in range(6):
            with pytest.raises(ValueError, match="not part of an array"):
                decode(pickle.dumps(evil, protocol))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([{"a": 1}, None], dtype=object),
        np.array(["text"]),
        np.zeros(2, [("x", "f4"), ("y", "i4")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        {"a": 1},
        "text",
        b"bytes",
        None,
        [[1, 2], [3, 4]],
        ["x"],
        10**30,
    ],
)
def test_what_is_not_numbers_is_refused(value):
    for protocol in range(6):
        with pytest.raises(ValueError):
            decode(pickle.dumps(value, protocol))


def test_an_object_array_in_npy_is_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="OBJECT"):
        decode((tmp_path / "objects.npy").read_bytes())


def test_a_pickle_cannot_change_the_reader():
    """BUILD on a stand-in class would replace its methods for all later arrays."""
    forged = b"\x80\x02cnumpy\ndtype\n(N}X\x0b\x00\x00\x00__setstate__K\x01stb."
    with pytest.raises(ValueError):
        decode(forged)
    forged = b"\x80\x02c_codecs\nencode\n(N}X\x07\x00\x00\x00__new__K\x01stb."
    with pytest.raises(ValueError, match="state for something"):
        decode(forged)
    np.testing.assert_array_equal(decode(pickle.dumps(ARRAYS[0], 2)), ARRAYS[0])


def test_damaged_bytes_give_an_array_or_a_value_error():
    rng = np.random.default_rng(0)
    array = rng.standard_normal((5, 8)).astype(np.float32)
    originals = [encode(array)] + [pickle.dumps(array, protocol) for protocol in (0, 2, 4, 5)]
    for _ in range(100):
        for original in originals:
            data = bytearray(original[: rng.integers(1, len(original) + 1)])
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(256)
            with contextlib.suppress(ValueError):
                assert decode(bytes(data)).dtype.kind in "biuf"


def test_a_huge_claimed_length_costs_no_memory():
    claims = [
        b"\x80\x05\x96" + (1 << 45).to_bytes(8, "little") + b"abc",  # a bytearray of 32 TB
        b"\x80\x04Nr\xff\xff\xff\x7f.",  # memo place 2**31
        encode(np.zeros((2, 80))).replace(b"(2, 80), ", b"(9" + b"9" * 6 + b",80)"),
    ]
    tracemalloc.start()
    try:
        for data in claims:
            with pytest.raises(ValueError):
                decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


IN_DIRECTORY = {"an encryption": (8, 1), "an unknown compression": (10, 99)}  # place in each entry, its value


@pytest.mark.parametrize("kind", IN_DIRECTORY)
def test_a_damaged_npz_is_one_for_all_that_read_it(tmp_path, kind):
    """In the directory of the zip file: as an index of a shard, a result, and kept embeddings of the probe."""
    write_shard(tmp_path / "a.tar", [Sample("a", np.ones((200, 80), np.float32), np.zeros(0, np.int64))])
    index = index_path(tmp_path / "a.tar")
    np.savez(tmp_path / "result.npz", settings=np.array("{}"), embedding=np.ones((2, 3)))
    offset, value = IN_DIRECTORY[kind]
    for path in (index, tmp_path / "result.npz"):
        content = bytearray(path.read_bytes())
        for entry in re.finditer(rb"PK\x01\x02", bytes(content)):
            content[entry.start() + offset] = value
        path.write_bytes(content)
    with pytest.raises(ArchiveError, match="a.index.npz is damaged"):
        saved_index(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="result.npz exists already and cannot be read as a result"):
        read_settings(tmp_path / "result.npz")
    assert kept_embeddings(tmp_path / "result.npz", SimpleNamespace(names=["a", "b"])) is None


def test_whatever_is_changed_in_an_npz_raises_what_its_readers_expect(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.npz"
    np.savez_compressed(path, name=np.array(["a", "b"]), embedding=rng.normal(size=(2, 3)))
    whole, refused = path.read_bytes(), 0
    for _ in range(500):
        content = bytearray(whole)
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            content[place] = rng.integers(256)
        path.write_bytes(content[: rng.integers(1, len(content) + 1)] if rng.random() < 0.2 else content)
        try:
            with np.load(path, allow_pickle=False) as saved:
                _ = saved["name"], saved["embedding"]
        except NPZ_ERRORS:
            refused += 1
    assert refused > 100
