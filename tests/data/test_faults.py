"""Damaged archives: what is skipped with a warning, what raises an error; and no code in them is ever executed."""

import logging
import os
import pickle
import shutil

import numpy as np
import pytest
import webdataset

from audio_mamba.data.archives import write_manifest, write_shard
from audio_mamba.data.dataset import LogMelDataset
from audio_mamba.data.faults import Faults
from audio_mamba.data.inspect import main as inspect_command
from audio_mamba.data.loader import make_loader, make_validation_loader, set_epoch
from audio_mamba.data.samples import ArchiveError, Sample
from audio_mamba.data.shard_index import index_from_headers, index_path
from audio_mamba.data.verify import main as verify_command
from audio_mamba.data.verify import verify_shard
from audio_mamba.system.atomic_files import sha256

NUM_FRAMES = 10


def clip(number: int, frames: int = 14, mels: int = 80) -> np.ndarray:
    return (np.random.default_rng(number).standard_normal((frames, mels)) * 3 - 5).astype(np.float32)


def write_clips(path, count: int, bad: dict[int, np.ndarray] | None = None) -> None:
    bad = bad or {}
    write_shard(path, [Sample(f"clip{i:03d}", bad.get(i, clip(i)), np.array([i % 3])) for i in range(count)])


def write_published(path, members: dict[str, bytes]) -> None:
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for key, data in members.items():
            tar.write({"__key__": key, "data.pyd": data, "target.pyd": pickle.dumps([1])})


def damage(path, offset: int, new: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(new)


def epoch_of(loader, epoch: int = 0) -> list[dict]:
    set_epoch(loader, epoch)
    return list(loader)


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


BAD_CLIPS = {
    "mel count": clip(0, mels=64),
    "NaN": np.full((14, 80), np.nan, np.float32),
    "Inf at the end": np.r_[clip(1), np.full((1, 80), np.inf, np.float32)],
    "empty": np.zeros((0, 80), np.float32),
    "one dimension": clip(0)[0],
    "integers": np.ones((14, 80), int),
}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("how", BAD_CLIPS)
def test_a_bad_sample_is_skipped_with_a_warning_and_a_good_one_replaces_it(tmp_path, caplog, how, num_workers):
    data = {f"clip{i:03d}": pickle.dumps(clip(i)) for i in range(250)}
    write_published(tmp_path / "a.tar", data | {"clip077": pickle.dumps(BAD_CLIPS[how])})
    loader = make_loader([tmp_path], num_frames=NUM_FRAMES, batch_size=10, num_workers=num_workers)
    batches = epoch_of(loader)
    assert all(batch["spectrogram"].isfinite().all() and len(batch["index"]) == 10 for batch in batches)
    seen = np.concatenate([batch["index"] for batch in batches])
    assert 77 not in seen and len(set(seen.tolist())) == 249
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "bad sample or shard 1" in warnings[0] and "a.tar, sample clip077: " in warnings[0]
    if num_workers == 0:
        alone = epoch_of(make_loader([tmp_path], num_frames=NUM_FRAMES, batch_size=5, rank=1, world_size=2))
        np.testing.assert_array_equal(alone[0]["index"], seen[5:10])  # the same stand-in whoever reads
        with pytest.raises(ArchiveError, match="a.tar, sample clip077: "):
            epoch_of(make_loader([tmp_path], num_frames=NUM_FRAMES, batch_size=10, strict=True))


def test_more_than_one_percent_bad_stops_with_a_summary(tmp_path):
    write_clips(tmp_path / "good.tar", 120)
    write_clips(tmp_path / "ill.tar", 80, bad=dict.fromkeys((3, 30, 60), BAD_CLIPS["NaN"]))
    loader = make_loader([tmp_path], num_frames=NUM_FRAMES, batch_size=10)
    with pytest.raises(
        ArchiveError,
        match="3 of 200 samples cannot be used, more than 1%: 3 in .*ill.tar; the first: .*ill.tar, sample clip0",
    ):
        epoch_of(loader)


def test_the_limit_of_a_rank_is_one_percent_of_what_it_reads(tmp_path):
    write_clips(tmp_path / "a.tar", 200, bad=dict.fromkeys((40, 80), BAD_CLIPS["NaN"]))
    options = {"num_frames": NUM_FRAMES, "batch_size": 10}
    assert len(list(make_validation_loader(tmp_path, **options))) == 20
    assert len(list(make_validation_loader(tmp_path, rank=1, world_size=2, **options))) == 10
    with pytest.raises(ArchiveError, match="2 of 100 samples cannot be used, more than 1%"):
        list(make_validation_loader(tmp_path, rank=0, world_size=2, **options))


def test_a_problem_that_costs_no_sample_is_logged_and_not_summed_up(caplog):
    """Such as a bad clip that was to be mixed with a good one."""
    faults = Faults(total=100)
    faults.report("a.tar", "a.tar, sample 1: bad partner", 0)
    assert "a.tar, sample 1: bad partner" in caplog.text
    faults.report("b.tar", "b.tar, sample 2: bad")
    with pytest.raises(ArchiveError, match=r"more than 1%: 2 in b.tar; the first: b.tar, sample 2"):
        faults.report("b.tar", "b.tar, sample 3: bad")


def test_faults_are_counted_per_pass_but_logged_once(caplog):
    faults = Faults(total=100)
    for _ in range(3):
        faults.begin_pass()
        faults.report("a.tar", "a.tar, sample x: bad")
    assert len(caplog.records) == 1
    with pytest.raises(ArchiveError, match="2 of 100"):
        faults.report("a.tar", "a.tar, sample y: bad")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_vanishes_during_training(tmp_path, num_workers):
    write_clips(tmp_path / "a.tar", 300)
    write_clips(tmp_path / "b.tar", 2)
    loader = make_loader([tmp_path], num_frames=NUM_FRAMES, batch_size=2, num_workers=num_workers)
    (tmp_path / "b.tar").unlink()
    seen = np.concatenate([batch["index"] for batch in epoch_of(loader)])
    assert len(seen) == 302 and seen.max() < 300
    write_clips(tmp_path / "c.tar", 10)
    loader = make_loader([tmp_path], num_frames=NUM_FRAMES, batch_size=2, num_workers=num_workers)
    (tmp_path / "c.tar").unlink()
    with pytest.raises(ArchiveError, match=r"cannot be used, more than 1%: \d+ in .*c.tar"):
        epoch_of(loader)


def test_changed_bytes_among_the_values_of_a_crop_are_detected(tmp_path):
    write_clips(tmp_path / "a.tar", 60)  # more than the 128 KiB that the index has a digest of
    place = index_from_headers(tmp_path / "a.tar").places[30]
    middle = int(place["data_offset"] + place["data_size"]) - 14 * 80 * 4 // 2  # any crop of 10 of 14 frames has it
    damage(tmp_path / "a.tar", middle, np.float32(1e20).tobytes())
    dataset = LogMelDataset([tmp_path], NUM_FRAMES, strict=True)
    with pytest.raises(ArchiveError, match="a.tar, sample clip030: the values do not fit"):
        dataset[0, 30]


def test_the_whole_samples_of_a_truncated_shard_are_used(tmp_path, caplog):
    write_clips(tmp_path / "a.tar", 500)
    write_clips(tmp_path / "b.tar", 4)
    write_manifest(
        tmp_path,
        {
            "samples": 504,
            "settings": {},
            "shards": [{"name": "a.tar", "samples": 500}, {"name": "b.tar", "samples": 4}],
        },
    )
    os.truncate(tmp_path / "b.tar", int(index_from_headers(tmp_path / "b.tar").places["data_offset"][2]) + 1000)
    dataset = LogMelDataset([tmp_path], NUM_FRAMES)
    assert len(dataset) == 502
    assert len(caplog.records) == 1 and "b.tar: cannot be read as a tar file (unexpected end" in caplog.text
    with pytest.raises(ArchiveError, match="b.tar: cannot be read as a tar file"):
        LogMelDataset([tmp_path], NUM_FRAMES, strict=True)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ArchiveError, match="of 504 samples cannot be used, more than 1%: 500 in .*a.tar"):
        LogMelDataset([tmp_path], NUM_FRAMES)


def test_a_short_clip_is_repeated_the_same_way_in_place_and_whole(tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "published").mkdir()
    for dtype in (np.float32, np.float16, np.float64):
        values = clip(5, frames=4).astype(dtype)
        write_shard(tmp_path / "ours" / "a.tar", [Sample("x", values, np.zeros(0, int))])
        write_published(tmp_path / "published" / "a.tar", {"x": pickle.dumps(values)})
        in_place, whole = (
            LogMelDataset([tmp_path / name], NUM_FRAMES)[3, 0]["spectrogram"].numpy() for name in ("ours", "published")
        )
        np.testing.assert_allclose(in_place, whole, rtol=0, atol=2e-6)
        np.testing.assert_array_equal(in_place[0, 4:8], in_place[0, :4])


def test_digital_silence_is_zero_in_place_too(tmp_path):
    write_shard(
        tmp_path / "a.tar",
        [Sample("x", np.full((30, 80), -15.942385, dtype), np.zeros(0, int)) for dtype in (np.float32,)],
    )
    assert not LogMelDataset([tmp_path], NUM_FRAMES)[0, 0]["spectrogram"].any()


def test_only_the_crop_is_read(tmp_path):
    write_clips(tmp_path / "a.tar", 1, bad={0: clip(0, frames=1000)})
    dataset = LogMelDataset([tmp_path], NUM_FRAMES)
    read, read_into = [], dataset._files.read_into

    def spy(path, offset, buffer):
        read.append(len(buffer))
        return read_into(path, offset, buffer)

    dataset._files.read_into = spy
    dataset[0, 0]
    assert read == [NUM_FRAMES * 80 * 4]


# ---------------------------------------------------------------- 500 damaged archives


def test_fuzz_of_500_damaged_archives(tmp_path):
    """Any damage gives batches or one error that names a shard; nothing hangs, and no code of a pickle is executed."""
    templates = tmp_path / "templates"
    for kind in ("npy", "pickle", "published"):
        (templates / kind).mkdir(parents=True)
    write_clips(templates / "npy" / "a.tar", 4)
    write_shard(templates / "pickle" / "a.tar", [Sample(f"k{i}", clip(i), np.array([1])) for i in range(4)], True)
    write_published(
        templates / "published" / "a.tar",
        {f"k{i}": pickle.dumps(clip(i), protocol) for i, protocol in enumerate((0, 2, 4, 5))},
    )
    owned, outcomes = tmp_path / "owned", {"good": 0, "refused": 0}
    for trial in range(500):
        rng = np.random.default_rng(trial)
        folder = tmp_path / "trial"
        shutil.copytree(templates / ("npy", "pickle", "published")[trial % 3], folder)
        shard = folder / "a.tar"
        target = index_path(shard) if trial % 3 < 2 and rng.random() < 0.2 else shard
        data = bytearray(target.read_bytes())
        match rng.integers(6):
            case 0:
                del data[rng.integers(len(data)) :]
            case 1:
                for place in rng.integers(len(data), size=rng.integers(1, 200)):
                    data[place] ^= 1 << rng.integers(8)
            case 2:  # the first bytes of headers and members hurt most
                start = 512 * rng.integers(len(data) // 512) if len(data) >= 512 else 0
                for place in start + rng.integers(256, size=4):
                    data[min(place, len(data) - 1)] = rng.integers(256)
            case 3:
                start = rng.integers(len(data))
                del data[start : start + rng.integers(1, 3000)]
            case 4:
                start = rng.integers(len(data))
                data[start:start] = rng.bytes(rng.integers(1, 3000))
            case 5:
                evil = pickle.dumps(Evil(owned))
                start = int(rng.choice(index_from_headers(shard).places["data_offset"])) if target == shard else 0
                data[start : start + len(evil)] = evil
        target.write_bytes(data)
        try:
            dataset = LogMelDataset([folder], NUM_FRAMES, draw_mask=lambda rng: np.zeros(3, np.float32))
            batch, faults = dataset.__getitems__([(0, i) for i in range(len(dataset))])
            assert batch["spectrogram"].isfinite().all() and batch["spectrogram"].abs().max() < 1e6
            assert all("a.tar" in problem for _, problem, _ in faults)
            outcomes["good"] += 1
        except ArchiveError as error:
            assert "a.tar" in str(error) or "a.index.npz" in str(error), f"trial {trial} names no shard: {error}"
            outcomes["refused"] += 1
        verify_shard(shard)
        shutil.rmtree(folder)
    assert not owned.exists()
    assert min(outcomes.values()) > 50, outcomes


# ---------------------------------------------------------------- verify and inspect


def test_verify_names_what_is_wrong(tmp_path, capsys):
    for name in "abc":
        write_clips(tmp_path / f"{name}.tar", 3)
    write_manifest(
        tmp_path,
        {
            "samples": 9,
            "settings": {},
            "shards": [
                {
                    "name": f"{name}.tar",
                    "samples": 3,
                    "sha256": {f"{name}{end}": sha256(tmp_path / f"{name}{end}") for end in (".tar", ".index.npz")},
                }
                for name in "abc"
            ],
        },
    )
    verify_command([str(tmp_path)])
    assert "3 shards, 9 samples, all good" in capsys.readouterr().out
    place = index_from_headers(tmp_path / "b.tar").places[1]
    damage(tmp_path / "b.tar", int(place["data_offset"] + 1000), np.float32(50).tobytes())
    os.truncate(tmp_path / "c.tar", 700)
    with pytest.raises(SystemExit, match="verify: 2 of 3 shards are damaged"):
        verify_command([str(tmp_path)])
    told = capsys.readouterr().out
    assert "b.tar: its checksum is not that of manifest.json" in told
    assert "b.tar, sample clip001: the values are not those that b.index.npz describes" in told
    assert "c.tar: cannot be read as a tar file" in told and "a.tar" not in told
    (tmp_path / "a.tar").unlink()
    with pytest.raises(SystemExit, match="verify: 3 of 3 shards are damaged"):
        verify_command([str(tmp_path)])
    assert [line for line in capsys.readouterr().out.splitlines() if "a.tar" in line] == [
        f"{tmp_path / 'a.tar'}: no such file"
    ]
    with pytest.raises(ArchiveError, match=f"^{tmp_path / 'a.tar'}: no such file$"):
        index_from_headers(tmp_path / "a.tar")
    with pytest.raises(SystemExit, match="verify: no shards"):
        (tmp_path / "none").mkdir()
        verify_command([str(tmp_path / "none")])


def test_inspect_draws_names_with_dollars(tmp_path):
    write_clips(tmp_path / "a.tar", 3)
    write_manifest(
        tmp_path,
        {"samples": 3, "settings": {}, "labels": ["$a_^$"] * 3, "shards": [{"name": "a.tar", "samples": 3}]},
    )
    inspect_command([str(tmp_path), "--picture", str(tmp_path / "sheet.png")])
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_reports_and_draws(tmp_path, capsys):
    write_clips(tmp_path / "a.tar", 30, bad={4: clip(4, frames=1000)})
    write_manifest(
        tmp_path,
        {"samples": 30, "settings": {}, "labels": ["cat", "dog", "emu"], "shards": [{"name": "a.tar", "samples": 30}]},
    )
    inspect_command([str(tmp_path), "--picture", str(tmp_path / "sheet.png")])
    told = capsys.readouterr().out
    frames = 29 * 14 + 1000
    assert f"30 clips in 1 shards, {frames / 360000:.2f} hours" in told and f"(mean {frames / 3000:.2f})" in told
    assert [line.split()[:2] for line in told.splitlines() if line.strip().startswith(("cat", "dog", "emu"))] == [
        ["cat", "10"],
        ["dog", "10"],
        ["emu", "10"],
    ]
    values = np.concatenate([clip(i, 1000 if i == 4 else 14) for i in range(30)])
    assert f"all {values.mean():8.2f} {values.std():8.2f} {values.min():8.2f} {values.max():8.2f}" in told
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="inspect: no shards"):
        (tmp_path / "none").mkdir()
        inspect_command([str(tmp_path / "none")])
