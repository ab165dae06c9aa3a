"""`data.fraction`: which clips a share has, whatever the shards, their order, the processes and the kind of reading."""

import hashlib

import numpy as np
import pytest
import torch

from audio_mamba.data.archives import write_shard
from audio_mamba.data.dataset import LogMelDataset
from audio_mamba.data.loader import make_loader, make_remote_loader, set_epoch
from audio_mamba.data.samples import ArchiveError, Sample
from audio_mamba.data.shard_index import index_path
from audio_mamba.data.subset import in_subset, position

KEYS = [f"speaker{number % 7}/clip_{number:05d}" for number in range(60)]
FRAMES = 12


def clip(key: str) -> np.ndarray:
    """A spectrogram of its own for each key."""
    return np.random.default_rng(KEYS.index(key)).normal(size=(FRAMES, 80)).astype(np.float32)


def write(folder, shards):
    folder.mkdir()
    for number, keys in enumerate(shards):
        write_shard(folder / f"shard-{number}.tar", [Sample(key, clip(key), np.zeros(0, np.int64)) for key in keys])
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write(tmp_path_factory.mktemp("archive") / "a", [KEYS[:25], KEYS[25:26], KEYS[26:]])


def chosen(fraction):
    """The keys of a share, by the definition."""
    places = {
        key: int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, key=b"audio-mamba subset").digest(), "big")
        for key in KEYS
    }
    return [key for key in KEYS if places[key] / 2**64 < fraction]


def keys_of(batches):
    """The keys of all clips of batches, told by their first frame."""
    values = torch.stack([torch.from_numpy(clip(key)).double() for key in KEYS])
    centred = values - values.mean((1, 2), keepdim=True)
    frames = (centred / values.std((1, 2), correction=0, keepdim=True))[:, 0]  # [60, 80]
    found = torch.cat([batch["spectrogram"][:, 0, 0].double() for batch in batches])  # [n, 80]
    distance, nearest = torch.cdist(found, frames).min(1)
    assert distance.max() < 1e-3
    return [KEYS[number] for number in nearest]


def test_a_share_is_decided_by_keys_alone_and_smaller_ones_are_part_of_it():
    shares = [set(chosen(fraction)) for fraction in (0.1, 0.25, 0.5, 1.0)]
    assert shares[0] < shares[1] < shares[2] < shares[3] == set(KEYS)
    encoded = [key.encode() for key in KEYS]
    for fraction in (0.1, 0.25, 0.5, 1.0):
        mask = in_subset(encoded, fraction)
        assert [key for key, one in zip(KEYS, mask) if one] == chosen(fraction)
        assert np.array_equal(in_subset(np.array(encoded)[::-1], fraction)[::-1], mask)  # as an index has them
    assert in_subset([], 0.5).shape == (0,)


def test_the_hash_is_fixed():
    """Other numbers would give the runs of today other clips tomorrow."""
    assert [round(position(key), 6) for key in (b"", b"--0B3G_C3qU_30000", b"clip")] == [0.72824, 0.077471, 0.042774]


def test_shares_have_about_their_size():
    found = np.sort([position(f"Y{number:011x}".encode()) for number in range(20000)])
    assert np.abs(found - (np.arange(20000) + 0.5) / 20000).max() < 1.95 / 20000**0.5  # Kolmogorov-Smirnov, p = 0.001


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_an_epoch_has_the_clips_of_the_share(archive, fraction):
    """Whatever the number of processes and workers, and however the clips are sharded."""
    expected = chosen(fraction)
    assert 0 < len(expected) <= len(KEYS)
    loader = make_loader([archive], num_frames=FRAMES, batch_size=1, fraction=fraction, strict=True)
    set_epoch(loader, 3)
    assert sorted(keys_of(loader)) == sorted(expected)
    found = []
    for rank in range(2):
        loader = make_loader(
            [archive], num_frames=FRAMES, batch_size=1, rank=rank, world_size=2, num_workers=2, fraction=fraction
        )
        set_epoch(loader, 3)
        found += keys_of(loader)
    assert len(found) == len(set(found)) == len(expected) // 2 * 2 and set(found) <= set(expected)


def test_other_shards_give_the_same_clips(archive, tmp_path):
    other = write(tmp_path / "other", [KEYS[40:][::-1], KEYS[:40]])
    for folder in (archive, other):
        loader = make_loader([folder], num_frames=FRAMES, batch_size=1, fraction=0.5)
        assert sorted(keys_of(loader)) == sorted(chosen(0.5))


def test_remote_shards_give_the_same_clips(archive):
    urls = [f"pipe:cat {archive}/shard-{number}.tar" for number in range(3)]
    expected = chosen(0.5)
    loader = make_remote_loader(urls, samples=len(KEYS), num_frames=FRAMES, batch_size=1, fraction=0.5)
    assert len(loader.dataset) == 30 == loader.dataset.contents().samples  # steps of an epoch: half of 60
    found = keys_of(loader)
    assert len(found) == 30 and set(found) <= set(expected)
    assert len(set(found)) == min(30, len(expected))  # none twice before all were seen once


def test_names_are_not_those_of_an_outdated_index(tmp_path):
    old, new = write(tmp_path / "old", [KEYS[:25]]), write(tmp_path / "new", [KEYS[30:40]])
    index_path(old / "shard-0.tar").replace(index_path(new / "shard-0.tar"))
    dataset = LogMelDataset([new], FRAMES)
    assert [dataset.name(number).split("sample ")[1] for number in range(len(dataset))] == KEYS[30:40]


def test_names_and_contents_are_those_of_the_share(archive):
    dataset = LogMelDataset([archive], FRAMES, fraction=0.5)
    expected = chosen(0.5)
    assert len(dataset) == len(expected)
    assert [dataset.name(index).split("sample ")[1] for index in range(len(dataset))] == expected
    whole = LogMelDataset([archive], FRAMES).contents()
    in_shards = [sum(key in expected for key in keys) for keys in (KEYS[:25], KEYS[25:26], KEYS[26:])]
    assert [shard.samples for shard in dataset.contents().shards] == in_shards
    assert dataset.contents().samples == len(expected)
    assert f"{len(expected)} samples in 3 shard(s) instead of 60" in dataset.contents().difference(whole)


def test_a_lost_shard_counts_as_before(archive, tmp_path, caplog):
    """The allowed losses are a share of the whole archive: a shard that cannot be read is known by its samples."""
    folder = write(tmp_path / "broken", [KEYS[:59], KEYS[59:]])
    (folder / "shard-1.tar").write_bytes(b"x" * 2048)
    with pytest.raises(ArchiveError, match="1 of 60 samples cannot be used"):
        LogMelDataset([folder], FRAMES, fraction=0.1)


def test_too_few_clips_are_refused(archive):
    with pytest.raises(ValueError, match="0 samples do not fill one batch"):
        make_loader([archive], num_frames=FRAMES, batch_size=1, fraction=1e-9)
