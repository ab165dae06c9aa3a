"""Exactness of the loader: which samples, which crops, after which interruption."""

import functools
import pickle
import sys

import numpy as np
import pytest
import torch
import webdataset

from audio_mamba.data.archives import write_shard
from audio_mamba.data.dataset import LogMelDataset
from audio_mamba.data.loader import EpochBatches, make_loader, set_epoch
from audio_mamba.data.samples import ArchiveError, Sample

N_SAMPLES, NUM_FRAMES = 23, 12


def stored_clip(index: int) -> np.ndarray:
    """Clip `index` of the archive: its own length (some shorter than a crop) and its own values."""
    frames = 5 + 3 * index
    return (np.random.default_rng(index).standard_normal((frames, 80)) * 3 - 5).astype(np.float32)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> list:
    """Two folders: one of ours with two shards, one as published."""
    ours, published = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("published")
    samples = [Sample(f"{i:04d}", stored_clip(i), np.array([i])) for i in range(N_SAMPLES)]
    write_shard(ours / "a.tar", samples[:6])
    write_shard(ours / "b.tar", samples[6:15])
    with webdataset.TarWriter(str(published / "c.tar"), encoder=False) as tar:
        for sample in samples[15:]:
            tar.write(
                {"__key__": sample.key, "data.pyd": pickle.dumps(sample.spectrogram), "target.pyd": pickle.dumps([3])}
            )
    return [ours, published]


def draw_mask(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2, 10).astype(np.float32)


def epoch_of(loader, epoch: int) -> list[dict]:
    set_epoch(loader, epoch)
    return list(loader)


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


make = functools.partial(make_loader, num_frames=NUM_FRAMES, draw_mask=draw_mask, seed=5, strict=True)


def test_batches_have_the_documented_form(archive):
    loader = make(archive, batch_size=4)
    batches = epoch_of(loader, 0)
    assert len(batches) == len(loader) == N_SAMPLES // 4
    for batch in batches:
        assert batch["spectrogram"].shape == (4, 1, NUM_FRAMES, 80) and batch["spectrogram"].dtype == torch.float32
        assert batch["mask"].shape == (4, 10) and batch["mask"].dtype == torch.float32
        assert batch["index"].shape == (4,) and batch["index"].dtype == torch.int64
    assert "mask" not in next(iter(make(archive, batch_size=4, draw_mask=None)))


def test_a_sample_is_a_crop_of_its_clip_normalised_whole(archive):
    starts = set()
    for epoch in range(4):
        for batch in epoch_of(make(archive, batch_size=1), epoch):
            index = int(batch["index"])
            clip = stored_clip(index).astype(np.float64)
            clip = (clip - clip.mean()) / clip.std()
            if len(clip) < NUM_FRAMES:
                expected = [np.concatenate([clip] * 3)[:NUM_FRAMES]]
            else:
                expected = [clip[start : start + NUM_FRAMES] for start in range(len(clip) - NUM_FRAMES + 1)]
            errors = [np.abs(batch["spectrogram"][0, 0].numpy() - crop).max() for crop in expected]
            assert min(errors) < 1e-5
            starts.add((index, int(np.argmin(errors))))
    assert len(starts) > 2 * N_SAMPLES  # crops move from epoch to epoch


def test_crops_reach_both_ends(archive):
    dataset = LogMelDataset(archive, num_frames=5 + 3 * 4 - 2)  # clip 4 has two frames more: three places
    clip = stored_clip(4).astype(np.float64)
    clip = (clip - clip.mean()) / clip.std()
    firsts = {int(np.abs(clip - dataset[epoch, 4]["spectrogram"][0, 0].numpy()).max(1).argmin()) for epoch in range(40)}
    assert firsts == {0, 1, 2}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_over_ranks_an_epoch_sees_each_sample_once_but_the_dropped_rest(archive, world_size):
    dropped = []
    for epoch in range(3):
        seen = [
            index
            for rank in range(world_size)
            for batch in epoch_of(make(archive, batch_size=2, rank=rank, world_size=world_size), epoch)
            for index in batch["index"].tolist()
        ]
        assert len(seen) == len(set(seen)) == N_SAMPLES // (2 * world_size) * 2 * world_size
        dropped.append(frozenset(range(N_SAMPLES)) - set(seen))
    assert len(set(dropped)) > 1


def test_two_ranks_see_in_a_step_what_one_process_with_twice_the_batch_sees(archive):
    whole = epoch_of(make(archive, batch_size=6), 2)
    halves = zip(*(epoch_of(make(archive, batch_size=3, rank=rank, world_size=2), 2) for rank in range(2)))
    joined = [{key: torch.cat([a[key], b[key]]) for key in a} for a, b in halves]
    assert_same(joined, whole)


def test_the_order_is_numpys_permutation_of_seed_and_epoch():
    batches = EpochBatches(10, batch_size=2, rank=1, world_size=2, seed=3)
    order = np.random.default_rng((3, 7)).permutation(10)
    np.testing.assert_array_equal(batches.batches(7), [order[2:4], order[6:8]])


def test_epochs_and_seeds_differ_and_repeat(archive):
    first = epoch_of(make(archive, batch_size=4), 0)
    assert_same(epoch_of(make(archive, batch_size=4), 0), first)
    for other in (epoch_of(make(archive, batch_size=4), 1), epoch_of(make(archive, batch_size=4, seed=6), 0)):
        assert any(not torch.equal(a["index"], b["index"]) for a, b in zip(first, other))
        masks = {int(i): m.tolist() for batch in first for i, m in zip(batch["index"], batch["mask"])}
        assert any(masks.get(int(i)) != m.tolist() for batch in other for i, m in zip(batch["index"], batch["mask"]))


@pytest.mark.parametrize("num_workers, context", [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_workers_change_nothing(archive, num_workers, context):
    alone = make(archive, batch_size=4)
    helped = make(archive, batch_size=4, num_workers=num_workers)
    helped.multiprocessing_context = context
    for epoch in (0, 1):
        assert_same(epoch_of(helped, epoch), epoch_of(alone, epoch))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_resumes_in_mid_epoch_with_the_very_batches_that_were_left(archive, num_workers, steps):
    expected = [epoch_of(make(archive, batch_size=4), epoch) for epoch in (3, 4)]
    loader = make(archive, batch_size=4, num_workers=num_workers)
    set_epoch(loader, 3)
    batches = iter(loader)
    for _ in range(steps):
        next(batches)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    resumed = make(archive, batch_size=4, num_workers=num_workers)
    resumed.load_state_dict(state)
    assert_same(list(resumed), expected[0][steps:])
    assert_same(epoch_of(resumed, 4), expected[1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_can_begin_at_any_step(archive, num_workers):
    expected = [epoch_of(make(archive, batch_size=4), epoch) for epoch in (3, 4)]
    loader = make(archive, batch_size=4, num_workers=num_workers)
    for step in (3, 1, len(expected[0])):
        set_epoch(loader, 3, step)
        assert_same(list(loader), expected[0][step:])
        assert len(loader) == len(expected[0])
    assert_same(epoch_of(loader, 4), expected[1])


def test_a_state_saved_after_an_epoch_goes_on_with_the_next(archive):
    loader = make(archive, batch_size=4)
    epoch_of(loader, 0)
    resumed = make(archive, batch_size=4)
    resumed.load_state_dict(loader.state_dict())
    assert_same(epoch_of(resumed, 1), epoch_of(loader, 1))


def test_float16_is_read_with_its_rounding_only(tmp_path):
    write_shard(tmp_path / "half.tar", [Sample("a", stored_clip(9).astype(np.float16), np.zeros(0, int))])
    write_shard(tmp_path / "full.tar", [Sample("a", stored_clip(9), np.zeros(0, int))])
    half, full = (LogMelDataset([tmp_path], NUM_FRAMES)[0, i]["spectrogram"] for i in (1, 0))
    assert half.dtype == torch.float32 and half.shape == full.shape
    dataset = LogMelDataset([tmp_path], num_frames=len(stored_clip(9)))
    torch.testing.assert_close(dataset[0, 1]["spectrogram"], dataset[0, 0]["spectrogram"], rtol=0, atol=3e-3)


def test_memory_per_sample_is_a_short_record(archive):
    dataset = LogMelDataset(archive, NUM_FRAMES)
    assert len(pickle.dumps(dataset)) < 21 * len(dataset) + 2500


@pytest.mark.parametrize(
    "num_workers, clip, reason",
    [
        (0, np.ones((30, 64), np.float32), "has 64 mel bands, but 80 are expected"),
        (1, np.ones((30, 64), np.float32), "has 64 mel bands, but 80 are expected"),
        (0, np.full((30, 80), np.nan, np.float32), "NaN or Inf"),
        (0, np.r_[np.ones((29, 80)), np.full((1, 80), np.inf)].astype(np.float32), "NaN or Inf"),
    ],
)
def test_a_bad_sample_is_named_by_shard_and_key(tmp_path, num_workers, clip, reason):
    labels = np.zeros(0, int)
    write_shard(tmp_path / "good.tar", [Sample("fine", stored_clip(9), labels)])
    write_shard(tmp_path / "ill.tar", [Sample("fine", stored_clip(9), labels), Sample("ill7", clip, labels)])
    with pytest.raises(ArchiveError, match="ill.tar, sample ill7: ") as caught:
        epoch_of(make([tmp_path], batch_size=3, num_workers=num_workers), 0)
    assert reason in str(caught.value)


def test_a_shard_that_vanishes_is_named(tmp_path):
    write_shard(tmp_path / "a.tar", [Sample("k", stored_clip(9), np.zeros(0, int))])
    loader = make([tmp_path], batch_size=1)
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ArchiveError, match="a.tar"):
        epoch_of(loader, 0)


def test_too_few_samples_and_no_folders_are_refused_with_the_numbers(archive):
    with pytest.raises(ValueError, match="23 samples do not fill one batch: batch size 8 on 3 .* at least 24"):
        make(archive, batch_size=8, world_size=3)
    with pytest.raises(ValueError, match="rank 2 does not exist among 2"):
        make(archive, batch_size=8, rank=2, world_size=2)
    with pytest.raises(ArchiveError, match="no archive folder"):
        make([], batch_size=1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have their own defaults")
def test_workers_are_forked_and_do_not_get_the_data_set_pickled(archive):
    """Whatever the platform's default is; Python 3.14 has another one."""

    class Unpicklable:
        def __call__(self, rng):
            return np.zeros(3, np.float32)

        def __reduce__(self):
            raise AssertionError("pickled")

    loader = make(archive, batch_size=4, draw_mask=Unpicklable(), num_workers=1)
    assert loader.multiprocessing_context.get_start_method() == "fork"
    assert next(iter(loader))["mask"].shape == (4, 3)
