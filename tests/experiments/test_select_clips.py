"""The selection of clips, with small packages made here."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

import experiments
from experiments.free_audio import select_clips as selection
from experiments.free_audio.packages import TABLE, Package, kind_of, read_packages
from experiments.judge.packages import read_sources

RATE = 16000
HEADER = "package,kinds,split,hours,licence\n"
LONG_RUN = Path(experiments.__file__).parent / "long_run" / "packages.csv"


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
        (("music", "effects"), "share/ambience/sea.ogg", 31, "effects"),
        (("music", "effects"), "share/music/ambient2.ogg", 31, "music"),
        (("speech", "music"), "share/line.ogg", 3, "speech"),
        (("speech", "effects"), "share/Announcer/win.ogg", 3, "speech"),
        (("speech", "effects"), "share/bang.ogg", 3, "effects"),
    ],
)
def test_package_folders_and_length_decide_the_kind_of_a_file(kinds, path, seconds, expected):
    assert kind_of(package(kinds=kinds), path, seconds) == expected


@pytest.mark.parametrize("tables", [[TABLE], [TABLE, LONG_RUN]])
def test_no_package_of_the_evaluation_tasks_is_used(tables):
    names = {package.name for package in read_packages(tables)}
    assert len(names) > 50
    assert not [
        name
        for name in names
        if name.startswith(
            (
                *("hydrogen", "asterisk-core", "asterisk-prompt", "lmms", "sonic-pi", "klettres", "tuxpaint-stamps"),
                *("planetblupi-music", "simutrans", "freedink", "fluid-soundfont", "timgm6mb", "openarena", "exadrums"),
            )
        )
    ]


def test_no_package_of_the_judge_is_trained_on(tmp_path):
    judged = {source.package for source in read_sources()}
    assert not judged & {package.name for package in read_packages([TABLE, LONG_RUN]) if package.split == "train"}
    table = tmp_path / "more.csv"
    table.write_text(HEADER + "kajongg,speech,validation,0.1,GPL-2+\n")
    assert read_packages([table])[0].name == "kajongg"
    table.write_text(HEADER + "new-game,effects,train,0.1,CC0\nxmoto-data,music,train,0.1,GPL-2+\n")
    with pytest.raises(ValueError, match="line 3: xmoto-data must not be in the training split"):
        read_packages([table])


def test_a_package_is_in_one_table_only(tmp_path):
    table = tmp_path / "more.csv"
    table.write_text(HEADER + "naev-data,effects,train,0.1,CC0\n")
    with pytest.raises(ValueError, match="more.csv, line 2: naev-data is listed twice"):
        read_packages([TABLE, table])


def test_fingerprints_ignore_the_level_and_separate_sounds():
    one, other = chirp(3, seed=1).astype(np.float32), chirp(3, seed=2).astype(np.float32)
    assert selection.fingerprint(one) @ selection.fingerprint(0.3 * one) > selection.SAME
    assert selection.fingerprint(one) @ selection.fingerprint(other) < 0.9


def test_the_first_of_several_duplicates_is_kept():
    a, b = candidate(seed=1), candidate(seed=2)
    longer = a._replace(length=2 * RATE)
    found = selection.without_duplicates([a, b, a._replace(level=-3.0), longer])
    assert [clip.level for clip in found] == [-20, -20, -20] and found[0] is a and found[2] is longer


def test_duplicates_are_those_of_a_plain_loop_over_all_pairs(monkeypatch):
    monkeypatch.setattr(selection, "COMPARED_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, 256))
    many = []
    for i in range(60):  # neighbours of few centres, on both sides of the limit
        values = (centres[rng.integers(12)] + rng.uniform(0, 0.3) * rng.standard_normal(256)).astype(np.float32)
        values /= np.linalg.norm(values)
        many.append(candidate(length=int(rng.choice([1000, 1049, 1060, 2000])))._replace(start=i, fingerprint=values))
    kept = []
    for one in many:
        if not any(
            abs(one.length - other.length) <= 0.05 * one.length
            and float(np.float64(one.fingerprint) @ np.float64(other.fingerprint)) > selection.SAME
            for other in kept
        ):
            kept.append(one)
    assert 15 < len(kept) < 50
    assert [clip.start for clip in selection.without_duplicates(many)] == [clip.start for clip in kept]


def test_each_kind_and_each_package_gets_its_share():
    many = [candidate("big", seed=i) for i in range(90)] + [candidate("small", seed=i) for i in range(5)]
    many += [candidate("songs", "music", seed=i) for i in range(40)]
    chosen = pd.Series([clip.package.name for clip in selection.balanced(many, 20, np.random.default_rng(0))])
    assert chosen.value_counts().to_dict() == {"songs": 20, "big": 15, "small": 5}


def test_all_clips_are_at_most_twice_the_hours_of_the_scarcest_kind():
    def clips(name, kind, seconds, count):
        return [candidate(name, kind, length=seconds * RATE, seed=i)._replace(start=i) for i in range(count)]

    effects, speech = clips("game", "effects", 3, 40), clips("voices", "speech", 5, 47)  # 120 s, 235 s
    songs = clips("songs", "music", 10, 60) + clips("jingles", "music", 7, 4)
    chosen = selection.balanced(effects + speech + songs, None, np.random.default_rng(0))
    table = pd.DataFrame([(clip.kind, clip.package.name, clip.length / RATE) for clip in chosen])
    table.columns = ["kind", "package", "seconds"]
    assert table.groupby("kind").seconds.sum().to_dict() == {"effects": 120, "speech": 235, "music": 238}
    assert table.package.value_counts().to_dict() == {"voices": 47, "game": 40, "songs": 21, "jingles": 4}
    assert len(selection.balanced(songs, None, np.random.default_rng(0))) == len(songs)  # the only kind


def test_the_command_drops_silence_and_duplicates_and_splits_by_package(tmp_path, capsys):
    packages = [package("game", ("effects",)), package("band", ("music",)), package("held", ("speech",), "validation")]
    tables = [tmp_path / "a.csv", tmp_path / "b.csv"]
    tables[0].write_text(HEADER + "game,effects,train,1.0,CC0\nheld,speech,validation,1.0,CC0\n")
    tables[1].write_text(HEADER + "band,music,train,1.0,CC0\nnot-fetched,speech,train,1.0,CC0\n")
    options = [text for table in tables for text in ("--packages", str(table))]
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
    stale = tmp_path / "clips.partial" / "train" / "effects" / "game" / "99999-other.flac"  # from an interrupted run
    stale.parent.mkdir(parents=True)
    soundfile.write(stale, chirp(2, seed=0), RATE)
    selection.main([str(tmp_path / "audio"), str(tmp_path / "clips"), "--workers", "1", *options])

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
        selection.main([str(tmp_path / "audio"), str(tmp_path / "clips"), *options])
    with pytest.raises(SystemExit, match="none of the packages"):
        selection.main([str(tmp_path), str(tmp_path / "other")])
    with pytest.raises(SystemExit, match="listed twice"):
        selection.main([str(tmp_path / "audio"), str(tmp_path / "other"), *options, *options])


def test_the_number_of_clips_is_that_of_the_training_split(tmp_path, capsys):
    table = tmp_path / "packages.csv"
    table.write_text(HEADER + "game,effects,train,1.0,CC0\nheld,effects,validation,1.0,CC0\n")
    for number, name in enumerate(["game", "held"]):
        (tmp_path / "audio" / name).mkdir(parents=True)
        soundfile.write(tmp_path / "audio" / name / "long.wav", chirp(33, seed=number), RATE)
    for count, clips in (("2", 6), ("all", 8)):
        arguments = ["--workers", "1", "--packages", str(table), "--clips-per-kind", count]
        selection.main([str(tmp_path / "audio"), str(tmp_path / count), *arguments])
        assert f"{clips} clips" in capsys.readouterr().out
        assert pd.read_csv(tmp_path / count / "clips.csv").split.value_counts()["validation"] == 4
    with pytest.raises(SystemExit):
        selection.main([str(tmp_path / "audio"), str(tmp_path / "none"), "--clips-per-kind", "0"])
    assert "must be a positive number or 'all', got '0'" in capsys.readouterr().err
