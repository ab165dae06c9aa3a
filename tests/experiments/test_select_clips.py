"""The selection of clips, with small packages made here."""

import numpy as np
import pandas as pd
import pytest
import soundfile

from experiments.free_audio import select_clips as selection
from experiments.free_audio.packages import Package, kind_of, read_packages

RATE = 16000


def package(name="game", kinds=("effects",), split="train"):
    return Package(name, kinds, split, 1.0, "CC0")


def candidate(name="game", kind="effects", level=-20.0, length=RATE, seed=0):
    values = np.random.default_rng(seed).standard_normal(256).astype(np.float32)
    return selection.Candidate(package(name), kind, None, 0, length, level, values / np.linalg.norm(values))


def chirp(seconds, seed):
    """A sound with a spectrogram that is unique to its seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    return sum(
        0.1 * np.sin(2 * np.pi * f * t * (1 + 0.3 * np.sin(2 * np.pi * t * s)))
        for f, s in zip(rng.uniform(100, 5000, 4), rng.uniform(0.1, 2, 4))
    )


@pytest.mark.parametrize(
    "kinds, path, seconds, expected",
    [
        (("speech",), "music/a.ogg", 100, "speech"),
        (("music", "effects"), "share/music/a.ogg", 3, "music"),
        (("music", "effects"), "share/sounds/theme.ogg", 31, "music"),
        (("music", "effects"), "share/sounds/bang.ogg", 3, "effects"),
        (("speech", "effects", "music"), "share/Voices/Robot/bang.ogg", 3, "speech"),
        (("speech", "music"), "share/line.ogg", 3, "speech"),
        (("speech", "effects"), "share/bang.ogg", 3, "effects"),
    ],
)
def test_package_folders_and_length_decide_the_kind_of_a_file(kinds, path, seconds, expected):
    assert kind_of(package(kinds=kinds), path, seconds) == expected


def test_no_package_of_the_evaluation_tasks_is_used():
    names = {package.name for package in read_packages()}
    assert len(names) > 50
    assert not [
        name
        for name in names
        if name.startswith(
            ("hydrogen", "asterisk", "lmms", "sonic-pi", "klettres", "tuxpaint-stamps", "planetblupi-music")
        )
    ]


def test_fingerprints_ignore_the_level_and_separate_sounds():
    one, other = chirp(3, seed=1).astype(np.float32), chirp(3, seed=2).astype(np.float32)
    assert selection.fingerprint(one) @ selection.fingerprint(0.3 * one) > selection.SAME
    assert selection.fingerprint(one) @ selection.fingerprint(other) < 0.9


def test_the_first_of_several_duplicates_is_kept():
    a, b = candidate(seed=1), candidate(seed=2)
    longer = a._replace(length=2 * RATE)
    found = selection.without_duplicates([a, b, a._replace(level=-3.0), longer])
    assert [clip.level for clip in found] == [-20, -20, -20] and found[0] is a and found[2] is longer


def test_each_kind_and_each_package_gets_its_share():
    many = [candidate("big", seed=i) for i in range(90)] + [candidate("small", seed=i) for i in range(5)]
    many += [candidate("songs", "music", seed=i) for i in range(40)]
    chosen = pd.Series([clip.package.name for clip in selection.balanced(many, 20, np.random.default_rng(0))])
    assert chosen.value_counts().to_dict() == {"songs": 20, "big": 15, "small": 5}


def test_the_command_drops_silence_and_duplicates_and_splits_by_package(tmp_path, monkeypatch, capsys):
    packages = [package("game", ("effects",)), package("band", ("music",)), package("held", ("speech",), "validation")]
    monkeypatch.setattr(selection, "read_packages", lambda: packages)
    for number, name in enumerate(["game", "band", "held"]):
        folder = tmp_path / "audio" / name / "share"
        folder.mkdir(parents=True)
        soundfile.write(folder / "one.wav", chirp(2, seed=number), RATE)
        soundfile.write(folder / "copy.flac", 0.5 * chirp(2, seed=number), RATE)
        soundfile.write(folder / "long.ogg", chirp(13, seed=10 + number), RATE)
        soundfile.write(folder / "silence.wav", 1e-4 * np.ones(2 * RATE), RATE)
        soundfile.write(folder / "short.wav", chirp(0.5, seed=number), RATE)
        soundfile.write(folder / "listed.wav", chirp(5, seed=20 + number), RATE)
    (tmp_path / "left_out.txt").write_text("# why\n" + "".join(f"{p.name}/share/listed.wav\n" for p in packages))
    monkeypatch.setattr(selection, "LEFT_OUT", tmp_path / "left_out.txt")
    stale = tmp_path / "clips.partial" / "train" / "effects" / "game" / "99999-other.flac"  # from an interrupted run
    stale.parent.mkdir(parents=True)
    soundfile.write(stale, chirp(2, seed=0), RATE)
    selection.main([str(tmp_path / "audio"), str(tmp_path / "clips"), "--workers", "1"])

    assert "9 clips" in capsys.readouterr().out
    clips = tmp_path / "clips"
    table = pd.read_csv(clips / "clips.csv")
    assert table.groupby(["split", "kind", "package"]).seconds.apply(sorted).to_dict() == {
        ("train", "effects", "game"): [2, 3, 10],
        ("train", "music", "band"): [2, 3, 10],
        ("validation", "speech", "held"): [2, 3, 10],
    }
    assert sorted(table.file) == sorted(path.relative_to(clips).as_posix() for path in clips.rglob("*.flac"))
    for file, seconds in zip(table.file, table.seconds):
        info = soundfile.info(clips / file)
        assert (info.samplerate, info.channels, info.duration) == (RATE, 1, pytest.approx(seconds))
    assert "| train | music | band | 3 | 0.00 | CC0 |" in (clips / "packages.md").read_text()

    with pytest.raises(SystemExit, match="exists already"):
        selection.main([str(tmp_path / "audio"), str(tmp_path / "clips")])
    with pytest.raises(SystemExit, match="none of the packages"):
        selection.main([str(tmp_path), str(tmp_path / "other")])
