"""The data of a command line, and which clips fine-tuning trains on, validates with and tests."""

import shutil
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from audio_mamba.cli import finetune_arguments, finetune_setup, train_arguments, train_config, train_data
from audio_mamba.cli.finetune_data import check_clips, read_clips
from audio_mamba.cli.finetune_splits import find_splits
from audio_mamba.data.folds import Split
from audio_mamba.data.labelled import LabelledClips
from audio_mamba.data.prepare import prepare
from audio_mamba.data.prepare_job import Settings
from audio_mamba.front_end import PUBLISHED
from audio_mamba.training import distributed

NAMED = ["--workdir", "W", "--data", "A"]


def clips_of(*folds_of_archives):
    """Clips of archives with these folds, two labels in turn."""
    folds = [fold for of_archive in folds_of_archives for fold in of_archive]
    count, numbers = len(folds), np.arange(len(folds))
    return LabelledClips(
        PUBLISHED,
        ["a", "b"],
        list(numbers[:, None] % 2),
        [f"{number:08d}_00000_clip" for number in range(count)],
        folds,
        [str(number) for number in range(count)],
        np.repeat(np.arange(len(folds_of_archives)), list(map(len, folds_of_archives))),
        [Path("shard-000000.tar")],
        np.zeros((count, 3), np.int64),
    )


def splits(clips, train_dirs, val_dir="", test_dir="", fold=None, folds=None):
    config = ConfigDict({"data": {"train_dirs": train_dirs, "val_dir": val_dir, "test_dir": test_dir}})
    return find_splits(clips, config, Namespace(fold=fold, folds=folds))


def test_folders_that_set_names_stay_beside_data(tmp_path):
    """Those of the config belong to the data of the config."""
    (tmp_path / "own.py").write_text(
        "from audio_mamba.configs.finetune import get_config as base\n\n\n"
        "def get_config():\n    config = base()\n"
        '    config.data = {"train_dirs": ["x"], "val_dir": "y", "test_dir": "z"}\n    return config\n'
    )
    for overrides, expected in (
        ([], ("", "")),
        (["--set", "data.val_dir=V"], ("V", "")),
        (["--set", "data.val_dir=V", "data.test_dir=T"], ("V", "T")),
        (["--set", "data.val_dir=V", "--val-data", "W"], ("W", "")),
    ):
        with pytest.MonkeyPatch.context() as patched:
            patched.syspath_prepend(tmp_path)
            args = finetune_arguments.parse_arguments("", ["--config", "own", *NAMED, *overrides])
            data = finetune_setup.load_config(args).data
        assert (data.train_dirs, data.val_dir, data.test_dir) == (["A"], *expected)
    for overrides, expected in ((["--set", "data.val_dir=V"], "V"), ([], "")):
        args = train_arguments.parse_arguments("", ["--config", "ssam_tiny_200_16x4", *NAMED, *overrides])
        config = train_config.load_config(args.config, args.overrides)
        train_data.apply_data_options(config, args)
        assert (config.data.train_dirs, config.data.val_dir) == (["A"], expected)


FOLDS, SPLITS, NONE = ["1", "2", "3"] * 4, ["train", "valid", "test"] * 4, [""] * 12


def numbers(split):
    return [part.tolist() for part in split]


@pytest.mark.parametrize("options", [{}, {"fold": "1"}, {"folds": "all"}])
@pytest.mark.parametrize("given, words", [(FOLDS, "folds"), (SPLITS, "splits")])
def test_folds_of_one_archive_alone_are_not_dropped(given, words, options):
    """If all clips were dealt again, clips that the given folds test would be trained on."""
    with pytest.raises(ValueError, match=f"^with has {words} and without has no folds"):
        splits(clips_of(given, NONE), ["with", "without"], **options)
    with pytest.raises(ValueError, match=f"^with has {words} and other has"):
        splits(clips_of(given, SPLITS if given is FOLDS else FOLDS), ["with", "other"], **options)


@pytest.mark.parametrize("options", [{}, {"folds": "all"}, {"val_dir": "valid"}])
def test_a_split_of_an_unknown_name_is_refused(options):
    clips = clips_of(["train", "valid", "test", "unused"] * 3, [""] * 4)
    with pytest.raises(ValueError, match="^data: 'unused' is not the name of a split, but test, train, valid are;"):
        splits(clips, ["data"], **options)


def test_validation_data_replace_the_split_valid_alone(caplog):
    """The split test of the archive is tested, and neither it nor valid is trained on."""
    train, valid, test = list(range(0, 12, 3)), [12, 13, 14, 15], list(range(2, 12, 3))
    clips = clips_of(SPLITS, [""] * 4, [""] * 4)
    with caplog.at_level("INFO"):
        found = splits(clips, ["data"], val_dir="valid")
        assert numbers(found[""]) == [train, valid, test]
    assert "left out the 4 clips of the split valid, which --val-data replaces" in caplog.text
    with caplog.at_level("INFO"):
        found = splits(clips, ["data"], val_dir="valid", test_dir="test")
        assert numbers(found[""]) == [train, valid, [16, 17, 18, 19]]
    assert "left out the 4 clips of the split test, which --test-data replaces" in caplog.text
    assert numbers(splits(clips, ["data"], test_dir="test")[""]) == [train, [1, 4, 7, 10], [12, 13, 14, 15]]
    for other in (FOLDS, NONE):
        with pytest.raises(ValueError, match="^data has splits and more has"):
            splits(clips_of(SPLITS, other, [""] * 4), ["data", "more"], val_dir="valid")


@pytest.mark.parametrize("given", [FOLDS, NONE])
def test_validation_data_beside_folds_let_all_clips_train(given, caplog):
    with caplog.at_level("INFO"):
        found = splits(clips_of(given, [""] * 4), ["data"], val_dir="valid")
    assert numbers(found[""]) == [list(range(12)), [12, 13, 14, 15], []]
    assert ("whatever their fold" in caplog.text) == (given is FOLDS)
    with pytest.raises(ValueError, match="--fold and --folds cannot be combined with --val-data"):
        splits(clips_of(given, [""] * 4), ["data"], val_dir="valid", fold="1")


def test_dealt_folds_of_one_archive_stay_as_they_are():
    """A run keeps its validation clips, so that it resumes."""
    found = splits(clips_of([""] * 15), ["data"], folds="all")
    dealt = [[0, 11, 12], [1, 6, 14], [2, 7, 10], [5, 8, 13], [3, 4, 9]]
    assert [split.test.tolist() for split in found.values()] == dealt


def test_clips_of_one_file_stay_together_in_dealt_folds_of_several_archives():
    """Left and right channels of the same recordings, of which one archive has groups."""
    clips = clips_of([""] * 20, [""] * 20, [""] * 20)
    for clip in range(20):
        number = f"{clip:08d}"
        clips.keys[clip + 20] = f"{number}_00000_clip"
        clips.keys[clip + 40] = f"{number}_ch1_00000_clip"
        clips.groups[clip + 40] = f"speaker{clip // 2}"
    for split in splits(clips, ["left", "right", "each"], folds="all").values():
        for part in split:
            assert set(Counter(clip % 20 // 2 for clip in part).values()) == {6}, "both recordings, three archives"


def test_groups_that_archives_share_are_a_warning(caplog):
    """Each archive has every speaker in one fold, and so no warning of its own."""
    clips = clips_of(FOLDS, ["3", "1", "2"] * 4)
    clips.groups[:] = ["s1", "s2", "s3"] * 8
    splits(clips, ["one", "other"], folds="all")
    (line,) = caplog.messages
    assert line.startswith("3 group(s) have clips on several sides, such as s")
    caplog.clear()
    splits(clips, ["one"], val_dir="other")
    (line,) = caplog.messages
    assert line == "3 group(s) have clips on several sides, such as s1 in training and validation"


def test_groups_of_one_side_are_no_warning(caplog):
    clips = clips_of(FOLDS, FOLDS)
    clips.groups[:] = ["s1", "s2", "s3"] * 8
    splits(clips, ["one", "other"], folds="all")
    clips = clips_of(NONE, NONE)
    clips.groups[:] = [f"s{number // 2}" for number in range(24)]
    splits(clips, ["one", "other"], folds="all")
    assert not caplog.messages


@pytest.mark.parametrize("main, lines", [(True, 3), (False, 0)])
def test_only_the_main_process_warns_of_clips(monkeypatch, caplog, main, lines):
    monkeypatch.setattr(distributed, "is_main", lambda: main)
    clips = clips_of(NONE)
    clips.classes[:] = ["few", "one", "unseen"]
    clips.labels[:] = [np.array([0])] * 10 + [np.array([0, 1]), np.array([0, 2])]
    every = np.arange(12)
    check_clips(clips, Split(every[:8], every[8:10], every[10:]), "multi", "here")
    assert len(caplog.records) == lines


@pytest.mark.parametrize("again", ["data/", "./data", "{here}/data", "link"])
def test_one_folder_under_two_spellings_is_refused(tmp_path, monkeypatch, again):
    """Else a run would be judged on the clips that it trains on."""
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    again = again.format(here=tmp_path)
    for named in (
        {"train_dirs": ["data"], "val_dir": again, "test_dir": ""},
        {"train_dirs": ["data"], "val_dir": "", "test_dir": again},
        {"train_dirs": ["data", again], "val_dir": "", "test_dir": ""},
    ):
        with pytest.raises(ValueError, match=f"must be different folders.*: data and {again} are both read from"):
            read_clips(ConfigDict({"data": named}), PUBLISHED, tmp_path / "cache")


def test_a_copied_archive_does_not_judge(tmp_path):
    for label in "ab":
        (tmp_path / "audio" / label).mkdir(parents=True)
        soundfile.write(tmp_path / "audio" / label / "0.wav", np.zeros(1600), 16000)
    prepare(tmp_path / "audio", tmp_path / "data")
    prepare(tmp_path / "audio", tmp_path / "other", settings=Settings(dtype="float32"))
    for name in ("copy", "again"):
        shutil.copytree(tmp_path / "data", tmp_path / name)
    data, copy, other, again = (str(tmp_path / name) for name in ("data", "copy", "other", "again"))
    for val_dir, test_dir in ((copy, ""), (other, copy), ("", copy)):
        named = {"train_dirs": [data], "val_dir": val_dir, "test_dir": test_dir}
        with pytest.raises(ValueError, match=f"{copy} shares 1 shard.s. with {data}: --val-data and --test"):
            read_clips(ConfigDict({"data": named}), PUBLISHED, tmp_path)
    named = {"train_dirs": [other], "val_dir": copy, "test_dir": again}
    with pytest.raises(ValueError, match=f"{again} shares 1 shard.s. with {copy}"):
        read_clips(ConfigDict({"data": named}), PUBLISHED, tmp_path)
    named = {"train_dirs": [data, copy], "val_dir": other, "test_dir": ""}
    assert len(read_clips(ConfigDict({"data": named}), PUBLISHED, tmp_path)) == 6


def test_two_tasks_of_one_name_do_not_share_an_archive(tmp_path):
    """Of the same names, sizes and labels, the second one would count as prepared."""
    for folder in ("clean", "noisy"):
        (tmp_path / folder / "task").mkdir(parents=True)
        (tmp_path / folder / "task" / "task_metadata.json").write_text("{}")
    data = {"train_dirs": [str(tmp_path / "clean/task")], "val_dir": "", "test_dir": str(tmp_path / "noisy/task")}
    with pytest.raises(ValueError, match="HEAR tasks need different names: .*clean/task and .*noisy/task are both"):
        read_clips(ConfigDict({"data": data}), PUBLISHED, tmp_path / "cache")


def test_the_advice_for_folds_with_test_data_can_be_followed():
    with pytest.raises(ValueError, match="in the folds 1, 2, 3: .* --val-data, .* --test-data"):
        splits(clips_of(["1", "2", "3"] * 4, [""] * 4), ["train"], test_dir="test")
    found = splits(clips_of(["1", "2", "3"] * 4, [""] * 4, [""] * 4), ["train"], val_dir="valid", test_dir="test")
    assert [part.tolist() for part in found[""]] == [list(range(12)), [12, 13, 14, 15], [16, 17, 18, 19]]
