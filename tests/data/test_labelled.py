"""Labelled clips as batches: determinism, whole clips as the runtime sees them, balanced sampling, bad clips."""

import json

import numpy as np
import pytest
import torch

from audio_mamba.data.archives import write_manifest, write_shard
from audio_mamba.data.augment import Augmentation
from audio_mamba.data.labelled import (
    LabelledDataset,
    balanced_weights,
    read_labelled,
    training_loader,
    whole_clip_loader,
)
from audio_mamba.data.loader import set_epoch
from audio_mamba.data.normalisation import clip_statistics, normalise
from audio_mamba.data.samples import ArchiveError, Sample
from audio_mamba.front_end import PUBLISHED
from audio_mamba.hear_api.probe.clips import read_clips

ALL = Augmentation(gain=6.0, filter=6.0, mixup=0.5, time_shift=5, freq_shift=3, time_mask=10, freq_mask=10)
CLASSES = ["bark", "chirp", "hum"]


def write_archive(folder, labels, frames, classes=CLASSES, folds=None, bad=()):
    """Clips of random log-mels; those in `bad` are NaN."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    samples = []
    for number, (ids, length) in enumerate(zip(labels, frames)):
        spectrogram = rng.standard_normal((length, 80)).astype(np.float32)
        spectrogram[:] = np.nan if number in bad else spectrogram
        samples.append(Sample(f"{number:08d}_00000_clip", spectrogram, np.array(ids, np.int64)))
    write_shard(folder / "shard-000000.tar", samples)
    shards = [{"name": "shard-000000.tar", "samples": len(samples)}]
    manifest = {"samples": len(samples), "settings": PUBLISHED.settings(), "labels": classes, "shards": shards}
    write_manifest(folder, manifest | ({"folds": folds} if folds else {}))
    return folder


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "a", [[i % 3] for i in range(24)], [60 + 20 * (i % 3) for i in range(24)])


def batches_of(loader, epoch=0):
    set_epoch(loader, epoch)
    return list(loader)


def by_clip(batches):
    """What each clip became, without padding."""
    return {
        int(index): (crop[0, :frames], target)
        for batch in batches
        for index, crop, frames, target in zip(batch["index"], batch["spectrogram"], batch["frames"], batch["target"])
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("balanced", [False, True])
def test_ranks_and_workers_change_nothing(archive, workers, balanced):
    clips = read_labelled([archive], PUBLISHED)

    def loader(rank=0, world_size=1, workers=0):
        dataset = LabelledDataset(clips, np.arange(24), 64, ALL, seed=3)
        return training_loader(dataset, 8 // world_size, balanced, rank, world_size, num_workers=workers)

    for epoch in (0, 1):
        alone = batches_of(loader(), epoch)
        shared = [batches_of(loader(rank, 2, workers), epoch) for rank in (0, 1)]
        for whole, *parts in zip(alone, *shared, strict=True):
            assert whole["index"].tolist() == [i for part in parts for i in part["index"].tolist()]
            crops = [crop[0, :frames] for part in parts for crop, frames in zip(part["spectrogram"], part["frames"])]
            for crop, frames, expected in zip(whole["spectrogram"], whole["frames"], crops, strict=True):
                assert torch.equal(crop[0, :frames], expected)
            assert torch.equal(whole["target"], torch.cat([part["target"] for part in parts]))
        if not balanced:
            assert sorted(int(i) for batch in alone for i in batch["index"]) == list(range(24))


def test_another_epoch_or_seed_gives_other_crops(archive):
    clips = read_labelled([archive], PUBLISHED)
    first, again, later, other = (
        by_clip(batches_of(training_loader(LabelledDataset(clips, np.arange(24), 32, ALL, seed), 8, False), epoch))
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert all(torch.equal(first[i][0], again[i][0]) for i in range(24))
    assert not any(torch.equal(first[i][0], later[i][0]) or torch.equal(first[i][0], other[i][0]) for i in range(24))


@pytest.mark.parametrize(
    "name, most",
    [
        ("gain", 6.0),
        ("filter", 6.0),
        ("mixup", 1.0),
        ("time_shift", 5),
        ("freq_shift", 3),
        ("time_mask", 9),
        ("freq_mask", 9),
    ],
)
def test_each_augmentation_reaches_the_crops(archive, name, most):
    clips = read_labelled([archive], PUBLISHED)
    plain, changed = (
        by_clip(batches_of(training_loader(LabelledDataset(clips, np.arange(24), 999, augmentation), 8, False)))
        for augmentation in (Augmentation(), Augmentation(**{name: most}))
    )
    different = [not torch.equal(plain[clip][0], changed[clip][0]) for clip in range(24)]
    assert sum(different) >= 16, "a shift or a mask may be of width 0"


def test_crops_are_parts_of_the_normalised_clip_and_short_clips_stay_short(archive):
    clips = read_labelled([archive], PUBLISHED)
    found = by_clip(batches_of(training_loader(LabelledDataset(clips, np.arange(24), 64), 8, False)))
    whole = by_clip(batches_of_whole(clips, np.arange(24)))
    for clip, (crop, target) in found.items():
        full = whole[clip][0]
        assert len(crop) == min(64, len(full)) and target.argmax() == clip % 3
        assert any(torch.equal(crop, full[start : start + len(crop)]) for start in range(len(full) - len(crop) + 1))


def batches_of_whole(clips, chosen, rank=0, world_size=1):
    return list(whole_clip_loader(LabelledDataset(clips, chosen), 5, rank, world_size))


def test_whole_clips_are_normalised_as_the_runtime_does(archive):
    clips, rng = read_labelled([archive], PUBLISHED), np.random.default_rng(0)
    shared = [batches_of_whole(clips, np.array([2, 7, 11]), rank, 2) for rank in (0, 1)]
    found = by_clip(shared[0] + shared[1])
    assert sorted(found) == [2, 7, 11]
    for number in range(12):
        stored = torch.from_numpy(rng.standard_normal((60 + 20 * (number % 3), 80)).astype(np.float32))
        if number in found:
            assert torch.equal(found[number][0], normalise(stored, clip_statistics(stored, ddof=1)))


def test_mixtures_have_the_shares_of_both_labels(archive):
    clips = read_labelled([archive], PUBLISHED)
    dataset = LabelledDataset(clips, np.arange(24), 64, Augmentation(mixup=1.0))
    targets = torch.cat([batch["target"] for batch in batches_of(training_loader(dataset, 8, False))])
    torch.testing.assert_close(targets.sum(1), torch.ones(24))
    assert ((targets > 0).sum(1) == 2).sum() > 8  # others were mixed with a clip of the same class


def test_the_rule_of_balanced_sampling():
    labels = [np.array(ids, np.int64) for ids in ([0], [0], [0], [0, 2], [2], [])]
    np.testing.assert_allclose(balanced_weights(labels), [1 / 4, 1 / 4, 1 / 4, 1 / 4 + 1 / 2, 1 / 2, 0])


def test_rare_classes_are_drawn_as_often_as_common_ones(tmp_path):
    labels = [[0]] * 90 + [[1]] * 9 + [[2]]
    clips = read_labelled([write_archive(tmp_path / "a", labels, [20] * 100)], PUBLISHED)
    loader = training_loader(LabelledDataset(clips, np.arange(100), 16, ALL), 10, True)
    drawn, crops = [], []
    for epoch in range(6):
        for batch in batches_of(loader, epoch):
            drawn += batch["index"].tolist()
            crops += [crop for index, crop in zip(batch["index"], batch["spectrogram"]) if index == 99]
    counts = np.bincount([labels[i][0] for i in drawn], minlength=3)
    assert (abs(counts / 600 - 1 / 3) < 0.08).all()
    distinct = {crop.numpy().tobytes() for crop in crops}
    assert len(distinct) == len(crops) > 100, "one clip drawn again must not be the same crop again"


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(mixup=1), ALL], ids=["none", "mixup", "all"])
def test_a_bad_training_clip_is_replaced_by_another_training_clip(tmp_path, caplog, augmentation):
    labels = [[i % 3] for i in range(200)]
    clips = read_labelled([write_archive(tmp_path / "a", labels, [30] * 200, bad=[4])], PUBLISHED)
    chosen = np.arange(0, 200, 2)
    loaders = [training_loader(LabelledDataset(clips, chosen, 20, augmentation), 10, False) for _ in range(2)]
    for epoch in range(3):
        seen = [batches_of(loader, epoch) for loader in loaders]
        indices = [sorted(int(i) for batch in run for i in batch["index"]) for run in seen]
        assert indices[0] == indices[1] and len(indices[0]) == 100
        assert set(indices[0]) == set(chosen.tolist()) - {4}
        assert all(torch.isfinite(batch["spectrogram"]).all() for batch in seen[0])
    assert "00000004_00000_clip: the spectrogram holds NaN or Inf" in caplog.text
    with pytest.raises(ArchiveError, match="00000004"):
        batches_of(training_loader(LabelledDataset(clips, chosen, 20, augmentation, strict=True), 10, False))


def test_a_bad_clip_of_mixtures_is_booked_on_its_own_shard_and_lost_once(tmp_path):
    """Whatever batch it is in."""
    good = write_archive(tmp_path / "good", [[0]] * 20, [30] * 20)
    bad = write_archive(tmp_path / "bad", [[1]] * 20, [30] * 20, bad=[4])
    dataset = LabelledDataset(read_labelled([good, bad], PUBLISHED), np.arange(40), 20, Augmentation(mixup=1))
    lost = np.zeros(40, int)
    for epoch in range(5):
        drawn = [dataset.__getitems__([(epoch, number)]) for number in range(40)]
        together, faults = dataset.__getitems__([(epoch, number) for number in range(40)])
        assert torch.equal(torch.cat([batch["spectrogram"] for batch, _ in drawn]), together["spectrogram"])
        assert {shard for shard, _, _ in faults} == {bad / "shard-000000.tar"} and len(faults) > 0
        lost += [sum(count for _, _, count in of_clip) for _, of_clip in drawn]
        partners = [number for number, (_, of_clip) in enumerate(drawn) if of_clip and number != 24]
        assert all(int(drawn[number][0]["index"]) == number for number in partners), "the first clip is kept"
    assert lost[24] >= 5 and lost.sum() == lost[24]


def test_a_bad_validation_clip_is_an_error(tmp_path):
    clips = read_labelled([write_archive(tmp_path / "a", [[0]] * 6, [30] * 6, bad=[4])], PUBLISHED)
    with pytest.raises(ArchiveError, match="00000004"):
        batches_of_whole(clips, np.arange(6))


def test_folds_and_groups_of_the_manifest(tmp_path):
    folder = write_archive(tmp_path / "a", [[0], [1]], [9, 9], folds=["5", "7"])
    clips = read_labelled([folder], PUBLISHED)
    assert clips.folds == ["5", "7"] and len(set(clips.groups)) == 2 and not clips.multi_label
    both = read_labelled([folder, write_archive(tmp_path / "b", [[0, 1], [2]], [9, 9])], PUBLISHED)
    assert both.folds == ["5", "7", "", ""] and both.directories.tolist() == [0, 0, 1, 1] and both.multi_label
    assert [ids.tolist() for ids in both.labels] == [[0], [1], [0, 1], [2]]
    assert both.counts(np.arange(4)).tolist() == [2, 2, 1] and both.counts(np.array([3])).tolist() == [0, 0, 1]


def test_archives_that_do_not_fit(tmp_path):
    first = write_archive(tmp_path / "a", [[0]], [9])
    for name, classes, message in (
        ("more", [*CLASSES, "purr"], "'purr' is only there"),
        ("fewer", CLASSES[:2], "'hum' is not there"),
        ("order", CLASSES[::-1], "the order differs"),
    ):
        other = write_archive(tmp_path / name, [[0]], [9], classes)
        with pytest.raises(ArchiveError, match=f"{other} has another class list than {first}: {message}"):
            read_labelled([first, other], PUBLISHED)
    with pytest.raises(ArchiveError, match="has no labels"):
        read_labelled([write_archive(tmp_path / "none", [[]], [9], classes=[])], PUBLISHED)
    (first / "manifest.json").unlink()
    with pytest.raises(ArchiveError, match="has no labels"):
        read_labelled([first], PUBLISHED)
    with pytest.raises(ArchiveError, match="labels are \\[7\\], but there are 3 classes"):
        read_labelled([write_archive(tmp_path / "beyond", [[7]], [9])], PUBLISHED)


def test_the_manifest_of_an_archive_with_folds_is_valid(tmp_path):
    folder = write_archive(tmp_path / "a", [[0], [1]], [9, 9], folds=["5", "7"])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"folds": [1, 2]}))
    with pytest.raises(ArchiveError, match="folds must be a list of names"):
        read_labelled([folder], PUBLISHED)


@pytest.mark.parametrize("key", ["folds", "groups"])
def test_a_manifest_with_fewer_folds_or_groups_than_files_is_named(tmp_path, key):
    """Also one that does not count its files, as of another program."""
    folder = write_archive(tmp_path / "a", [[0], [1], [0]], [9, 9, 9])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {key: ["1", "2"]}))
    message = f"^{folder}/manifest.json is not valid: {key} must have a name for each file, got 2 for at least 3 files$"
    for read in (lambda: read_labelled([folder], PUBLISHED), lambda: read_clips(folder)):
        with pytest.raises(ArchiveError, match=message):
            read()
