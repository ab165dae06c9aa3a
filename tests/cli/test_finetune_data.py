"""The data of a command line, and which clips fine-tuning trains on, validates with and tests."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from audio_mamba.cli import finetune_arguments, finetune_setup, train_arguments, train_data, train_setup
from audio_mamba.cli.finetune_data import find_splits, read_clips
from audio_mamba.data.labelled import LabelledClips
from audio_mamba.front_end import PUBLISHED

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
        config = train_setup.load_config(args.config, args.overrides)
        train_data.name_data(config, args)
        assert (config.data.train_dirs, config.data.val_dir) == (["A"], expected)


@pytest.mark.parametrize("options", [{}, {"fold": "1"}, {"folds": "all"}])
@pytest.mark.parametrize("given", [["1", "2", "3"] * 4, ["train", "valid", "test"] * 4])
def test_folds_of_one_archive_alone_are_not_dropped(given, options):
    """If all clips were dealt again, clips that the given folds test would be trained on."""
    with pytest.raises(ValueError, match="^with has folds or splits and without has none"):
        splits(clips_of(given, [""] * 12), ["with", "without"], **options)
    found = splits(clips_of(given, [""] * 12), ["with"], val_dir="without")
    assert found[""].train.tolist() == list(range(12)) and found[""].valid.tolist() == list(range(12, 24))


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
