"""The augmented copy of an archive, against powers computed in float64."""

import numpy as np
import pytest

from audio_mamba.data import verify
from audio_mamba.data.archives import archive_front_end, read_shard, write_manifest, write_shard
from audio_mamba.data.samples import Sample
from experiments.long_run import augment

FRAMES = 20, 15, 30, 5, 16


@pytest.fixture
def source(tmp_path):
    """Three clips in one shard and two in another."""
    folder = tmp_path / "source"
    folder.mkdir()
    rng = np.random.default_rng(0)
    clips = [
        Sample(f"clip{n}", rng.normal(0, 1, (frames, 80)).astype(np.float32), np.array([n]))
        for n, frames in enumerate(FRAMES)
    ]
    shards = [
        {"name": name, "samples": write_shard(folder / name, some)}
        for name, some in (("a.tar", clips[:3]), ("b.tar", clips[3:]))
    ]
    write_manifest(folder, {"samples": 5, "settings": {"log_offset": 1e-5}, "shards": shards})
    return folder


def copy_of(source, *options):
    out = source.parent / f"copy{len(list(source.parent.iterdir()))}"
    augment.main([str(source), str(out), *options])
    assert archive_front_end(out).log_offset == 1e-5
    verify.main([str(out)])
    samples = [sample for name in ("a.tar", "b.tar") for sample in read_shard(out / name)]
    assert [(sample.key, *sample.labels, len(sample.spectrogram)) for sample in samples] == [
        (f"clip{n}", n, frames) for n, frames in enumerate(FRAMES)
    ]
    return [sample.spectrogram for sample in samples]


def originals(source):
    return [
        sample.spectrogram.astype(np.float64) for name in ("a.tar", "b.tar") for sample in read_shard(source / name)
    ]


def test_a_gain_is_one_factor_of_the_power_of_a_clip(source):
    copies, gains = copy_of(source, "--mixing", "0", "--gain", "6"), []
    for copy, original in zip(copies, originals(source), strict=True):
        factor = (np.exp(copy.astype(np.float64)) - 1e-5) / (np.exp(original) - 1e-5)
        gains.append(10 * np.log10(factor.mean()))
        np.testing.assert_allclose(factor, factor.mean(), rtol=1e-5)
    assert max(map(abs, gains)) <= 6 and min(gains) < 0 < max(gains)
    assert np.std(gains) > 1


def test_each_clip_is_mixed_with_another_one(source):
    powers = [np.exp(clip) for clip in originals(source)]
    partners = []
    for ours, copy in zip(powers, copy_of(source, "--mixing", "1", "--gain", "0"), strict=True):
        power = np.exp(copy.astype(np.float64))
        fits = []
        for partner, theirs in enumerate(powers):
            for begin in range(len(theirs)):
                other = theirs[(begin + np.arange(len(ours))) % len(theirs)]
                if (difference := ours - other).any():
                    share = ((power - other) * difference).sum() / (difference**2).sum()
                    fits.append((np.abs(share * ours + (1 - share) * other - power).max(), partner, share))
        error, partner, share = min(fits)
        assert error < 1e-4 and 0.05 < share < 0.95
        assert powers[partner] is not ours
        partners.append(partner)
    assert sorted(partners) == list(range(5))  # each is the other one of a single clip


def test_a_copy_repeats_and_depends_on_the_seed(source):
    first, again, other = (copy_of(source, "--seed", seed) for seed in ("1", "1", "2"))
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other))


def test_a_folder_that_exists_is_refused(source, capsys):
    with pytest.raises(SystemExit):
        augment.main([str(source), str(source)])
    assert "exists; the copy needs a new folder" in capsys.readouterr().err
