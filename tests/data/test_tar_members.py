"""Tar files with holes, and joined ones: every whole sample is found, and every damage is reported."""

import io
import itertools
import pickle
import tarfile

import numpy as np
import pytest
import webdataset

from audio_mamba.data.archives import read_shard, write_shard
from audio_mamba.data.dataset import LogMelDataset
from audio_mamba.data.index import main as index_command
from audio_mamba.data.loader import make_remote_loader
from audio_mamba.data.remote import read_members
from audio_mamba.data.samples import ArchiveError, Sample
from audio_mamba.data.shard_index import index_from_headers, index_path, read_index
from audio_mamba.data.tar_members import BLOCK, ForwardFile, tar_members
from audio_mamba.data.verify import main as verify_command
from audio_mamba.data.verify import verify_shard

FRAMES = 30


def clip(number: int) -> np.ndarray:
    return (np.random.default_rng(number).standard_normal((FRAMES, 80)) * 3 - 6).astype(np.float32)


def write_clips(path, numbers) -> None:
    """A shard without an index."""
    write_shard(path, [Sample(f"clip{i:03d}", clip(i), np.array([i])) for i in numbers])
    index_path(path).unlink()


def write_published(path, numbers) -> None:
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for i in numbers:
            tar.write({"__key__": f"clip{i:03d}", "data.pyd": pickle.dumps(clip(i)), "target.pyd": pickle.dumps([i])})


def numbers_in(path) -> list[int]:
    """The clips that are read, each compared with what was written."""
    index = index_from_headers(path, report=lambda problem: None)
    numbers = [int(key[4:]) for key in index.keys]
    with open(path, "rb") as file:
        for number, place in zip(numbers, index.places):
            file.seek(place["data_offset"])
            assert clip(number).tobytes() in file.read(place["data_size"])
    return numbers


def read_remotely(path) -> tuple[list[int], list[str]]:
    """The clips that the remote reader finds, and what it reports."""
    problems: list[str] = []
    numbers = [int(key[4:]) for _, key, _ in read_members(f"pipe:cat {path}", problems.append)]
    return numbers, problems


def problems_of(path) -> list[str]:
    problems: list[str] = []
    index_from_headers(path, problems.append)
    return problems


@pytest.mark.parametrize("write", [write_clips, write_published])
@pytest.mark.parametrize("parts", [2, 3])
def test_joined_tars_are_read_as_one(tmp_path, capsys, write, parts):
    with open(tmp_path / "joined.tar", "wb") as joined:
        for part in range(parts):
            write(tmp_path / "part", range(7 * part, 7 * part + 7))
            joined.write((tmp_path / "part").read_bytes())
            (tmp_path / "part").unlink()
    assert numbers_in(tmp_path / "joined.tar") == list(range(7 * parts)) and not problems_of(tmp_path / "joined.tar")
    assert [sample.labels.tolist() for sample in read_shard(tmp_path / "joined.tar")] == [[i] for i in range(7 * parts)]
    assert read_remotely(tmp_path / "joined.tar") == (list(range(7 * parts)), [])
    verify_command([str(tmp_path)])
    assert f"1 shards, {7 * parts} samples, all good" in capsys.readouterr().out
    index_command([str(tmp_path)])
    assert f"1 of 1 shards indexed, {7 * parts} samples" in capsys.readouterr().out
    assert len(LogMelDataset([tmp_path], 20, strict=True)) == 7 * parts


def test_the_joined_case_has_all_20_samples(shared_cases):
    assert verify_shard(shared_cases / "archives" / "joined.tar") == (20, [])


def test_a_tar_joined_to_itself_has_its_keys_twice(tmp_path):
    write_clips(tmp_path / "a.tar", range(3))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes() * 2)
    assert [problem for problem in problems_of(tmp_path / "a.tar") if "two members clip000.data.npy" in problem]


def member_bounds(path) -> list[tuple[int, int]]:
    """For each sample, where its first header begins and where its last member ends."""
    places = index_from_headers(path).places
    starts = [int(offset) - 512 for offset in places["data_offset"]]
    ends = [int(end) + -int(end) % 512 for end in places["labels_offset"] + places["labels_size"]]
    return list(zip(starts, ends))


@pytest.mark.parametrize("write", [write_clips, write_published])
@pytest.mark.parametrize(
    "begin, end, lost",  # from byte `begin` of sample 3 to byte `end` of sample 6
    [
        (0, 0, {3, 4, 5}),  # a hole that is exactly three samples
        (0, 5000, {3, 4, 5, 6}),  # it ends in the middle of the data
        (-1500, 700, {2, 3, 4, 5, 6}),  # it begins in the sample before
        (600, 512, {3, 4, 5, 6}),
    ],
)
def test_samples_behind_a_hole_of_zeros_are_read_and_the_hole_is_reported(tmp_path, write, begin, end, lost):
    write(tmp_path / "a.tar", range(12))
    bounds = member_bounds(tmp_path / "a.tar")
    data = bytearray((tmp_path / "a.tar").read_bytes())
    first, last = bounds[3][0] + begin, bounds[6][0] + end
    data[first:last] = bytes(last - first)
    (tmp_path / "a.tar").write_bytes(data)
    problems = problems_of(tmp_path / "a.tar")
    assert any("a.tar: damaged between byte" in problem for problem in problems)
    whole = set(range(12)) - lost
    found = {int(key[4:]) for key in index_from_headers(tmp_path / "a.tar", lambda problem: None).keys}
    assert whole <= found <= whole | {2, 3}  # of these two, all but the values may be left
    count, told = verify_shard(tmp_path / "a.tar")
    assert count == len(found) and any("damaged between byte" in problem for problem in told)
    numbers, told = read_remotely(tmp_path / "a.tar")
    assert set(numbers) == found and [f"{tmp_path / 'a.tar'}: {problem}" for problem in told] == [
        problem for problem in problems if "damaged" in problem
    ]
    with pytest.raises(SystemExit, match="index: problems found"):
        index_command([str(tmp_path)])
    assert not index_path(tmp_path / "a.tar").exists()  # it would hide the damage
    loader = make_remote_loader([str(tmp_path / "a.tar")], samples=12, num_frames=20, batch_size=4)
    with pytest.raises(ArchiveError, match="of 12 samples cannot be used"):
        list(loader)
    with pytest.raises(ArchiveError, match="a.tar: damaged between byte"):
        LogMelDataset([tmp_path], 20, strict=True)


def test_a_hole_of_every_place_and_size_is_reported(tmp_path):
    """Holes of whole disk blocks: some sample is lost or constant, and verify says so."""
    write_clips(tmp_path / "good.tar", range(8))
    good = (tmp_path / "good.tar").read_bytes()
    end = member_bounds(tmp_path / "good.tar")[-1][1]
    for first, blocks in itertools.product(range(0, end, 4096), (1, 2, 5)):
        data = bytearray(good)
        last = first + 4096 * blocks
        if last > end:  # what is left may look like a shorter file
            continue
        data[first:last] = bytes(last - first)
        (tmp_path / "hole.tar").write_bytes(data)
        assert verify_shard(tmp_path / "hole.tar")[1], f"the hole from byte {first} to {last} is not reported"


@pytest.mark.parametrize("removed", [512, 3000, 12345])
def test_samples_behind_removed_or_overwritten_bytes_are_read(tmp_path, removed):
    write_clips(tmp_path / "good.tar", range(12))
    good, (start, _) = (tmp_path / "good.tar").read_bytes(), member_bounds(tmp_path / "good.tar")[5]
    rng = np.random.default_rng(0)
    for name, data in (
        ("removed", good[: start + 100] + good[start + 100 + removed :]),
        ("overwritten", good[: start + 100] + rng.bytes(removed) + good[start + 100 + removed :]),
    ):
        (tmp_path / f"{name}.tar").write_bytes(data)
        found = numbers_in(tmp_path / f"{name}.tar")
        assert {*range(5), *range(8, 12)} <= set(found) and 5 not in found
        assert any("damaged between byte" in problem for problem in problems_of(tmp_path / f"{name}.tar"))


def test_bytes_after_the_end_and_a_missing_end_are_reported(tmp_path):
    write_clips(tmp_path / "a.tar", range(3))
    good, end = (tmp_path / "a.tar").read_bytes(), member_bounds(tmp_path / "a.tar")[-1][1]
    for data in (
        good + b"x",
        good[: end + 512],
        good[:end],
        good[: end + 1024] + b"text" * 1000,
        good + bytes(5 * BLOCK),  # zeros instead of samples
    ):
        (tmp_path / "a.tar").write_bytes(data)
        assert problems_of(tmp_path / "a.tar") == [f"{tmp_path / 'a.tar'}: cut off or damaged at byte {end}"]
        assert numbers_in(tmp_path / "a.tar") == [0, 1, 2]
    (tmp_path / "a.tar").write_bytes(good[: end + 1024])
    assert not problems_of(tmp_path / "a.tar")


def test_a_hole_larger_than_what_is_read_at_once(tmp_path):
    write_clips(tmp_path / "a.tar", range(4))
    good, (start, _) = (tmp_path / "a.tar").read_bytes(), member_bounds(tmp_path / "a.tar")[2]
    for size in (BLOCK - 300, 3 * BLOCK + 17):  # the next header is cut by a block, or is further on
        (tmp_path / "a.tar").write_bytes(good[:start] + bytes(size) + good[start:])
        assert numbers_in(tmp_path / "a.tar") == [0, 1, 2, 3]
        assert problems_of(tmp_path / "a.tar") == [
            f"{tmp_path / 'a.tar'}: damaged between byte {start} and byte {start + size}"
        ]
        with open(tmp_path / "a.tar", "rb") as stream:
            names = [member.name for member in tar_members(ForwardFile(stream), lambda problem: None)]
        assert names == [f"clip{i:03d}.{end}" for i in range(4) for end in ("data.npy", "target.json")]


def test_long_names_and_other_members_survive_the_walk(tmp_path):
    long_key = "k" * 150
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("README.md", f"{long_key}.data.pyd", "folder", "ü.data.pyd"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name == "folder" else tarfile.REGTYPE
            data = b"" if name == "folder" else pickle.dumps(clip(1))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [key.decode() for key in read_index(tmp_path / "a.tar").keys] == [long_key, "ü"]


def test_random_bytes_never_hang_or_crash_the_walk(tmp_path):
    write_clips(tmp_path / "a.tar", range(2))
    good = (tmp_path / "a.tar").read_bytes()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        data = bytearray(good)
        for place in rng.integers(0, 512 * 3, 6):
            data[place] = rng.integers(256)
        checksum = tarfile.calc_chksums(bytes(data[:512]))[0]  # valid again: size and type may say anything
        data[148:156] = b"%06o\0 " % checksum
        for file in (io.BytesIO(data), ForwardFile(io.BytesIO(data))):
            problems: list[str] = []
            assert len(list(itertools.islice(tar_members(file, problems.append), 50))) < 50
