"""Demo audio that differs by kind, and a HEAR task whose files agree with each other."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch

from audio_mamba.data.features import log_mel
from audio_mamba.data.synthetic import KINDS, main, make_clip, write_audio, write_scene_task


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_clips_are_sound_within_range_and_follow_the_seed(kind, seconds):
    clip = make_clip(kind, seconds, np.random.default_rng(3))
    assert clip.dtype == np.float32 and clip.shape == (int(16000 * seconds),)
    assert np.abs(clip).max() <= 1 and clip.std() > 1e-3
    np.testing.assert_array_equal(clip, make_clip(kind, seconds, np.random.default_rng(3)))
    assert not np.array_equal(clip, make_clip(kind, seconds, np.random.default_rng(4)))


def test_up_and_down_chirps_move_their_spectrum_up_and_down():
    def rise(kind: str, seed: int) -> float:
        """Correlation of the loudest band's height with time, over the loud frames of the first sweep."""
        spectrogram = log_mel(torch.from_numpy(make_clip(kind, 0.4, np.random.default_rng(seed)))).numpy()
        loud = spectrogram.max(1) > spectrogram.max() - 6
        return np.corrcoef(np.arange(len(spectrogram))[loud], spectrogram.argmax(1)[loud])[0, 1]

    assert np.median([rise("chirp_up", seed) for seed in range(9)]) > 0.7
    assert np.median([rise("chirp_down", seed) for seed in range(9)]) < -0.7


def test_audio_folders_hold_the_minutes_asked_for_of_every_kind(tmp_path):
    assert write_audio(tmp_path, minutes=3) == 16
    files = sorted(tmp_path.rglob("*.wav"))
    assert sorted({path.parent.name for path in files}) == sorted(KINDS)
    assert all(soundfile.info(path).duration == 10 and soundfile.info(path).samplerate == 16000 for path in files)
    assert len({path.read_bytes() for path in files}) == len(files) == 16


def check_task(task, splits: dict[str, int]) -> tuple[dict, dict]:
    """What heareval relies on: metadata, vocabulary, a table per split, and the wav file of every entry."""
    metadata = json.loads((task / "task_metadata.json").read_text())
    assert task.name == f"{metadata['task_name']}-{metadata['version']}-{metadata['mode']}"
    assert metadata["splits"] == list(splits)
    with open(task / "labelvocabulary.csv") as file:
        vocabulary = list(csv.DictReader(file))
    assert [row["idx"] for row in vocabulary] == [str(i) for i in range(metadata["nlabels"])]
    tables = {}
    for split, count in splits.items():
        tables[split] = json.loads((task / f"{split}.json").read_text())
        assert len(tables[split]) == count
        assert sorted(tables[split]) == sorted(path.name for path in (task / "16000" / split).iterdir())
        for name, truth in tables[split].items():
            assert soundfile.info(task / "16000" / split / name).duration == metadata["sample_duration"]
            assert set(truth) <= {row["label"] for row in vocabulary}
    return metadata, tables


def test_scene_tasks_are_balanced(tmp_path):
    scene, tables = check_task(
        write_scene_task(tmp_path, clips={"train": 3, "valid": 1, "test": 2}), {"train": 24, "valid": 8, "test": 16}
    )
    assert scene["split_mode"] == "trainvaltest"
    assert sorted(sum(tables["train"].values(), [])) == sorted(3 * list(KINDS))


def test_the_command_writes_audio_and_a_task(tmp_path, capsys):
    main([str(tmp_path), "--minutes", "0.5"])
    assert len(list((tmp_path / "audio").rglob("*.wav"))) == 8
    check_task(tmp_path / "tasks" / "demo_sounds-v1-small", {"train": 96, "valid": 48, "test": 64})
    assert "8 clips" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--minutes is -1"):
        main([str(tmp_path), "--minutes", "-1"])
