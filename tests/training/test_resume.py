import random
import shutil

import numpy as np
import pytest
import torch

from audio_mamba.training import resume
from audio_mamba.training.checkpoint import CheckpointError, save_checkpoint
from audio_mamba.training.resume import Progress


def save(workdir, place, after_epoch=False, **state):
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    if after_epoch:
        path = workdir / "checkpoints" / f"checkpoint-{place.epoch}.pth"
        save_checkpoint(path, model={}, epoch=place.epoch, **state)
        return path
    resume.save_step_checkpoint(workdir, place, model={}, **state)
    return resume.step_checkpoint_path(workdir, place)


def test_the_newest_comes_first_from_either_folder(tmp_path):
    save(tmp_path, Progress(0, 0), after_epoch=True)
    save(tmp_path, Progress(9, 0), after_epoch=True)
    save(tmp_path, Progress(2, 70))
    save(tmp_path, Progress(10, 3))
    assert [place for place, _ in resume.checkpoints(tmp_path)] == [(10, 3), (10, 0), (2, 70), (1, 0)]
    path, state = resume.load_newest(tmp_path)
    assert path.name == "checkpoint-10-3.pth" and resume.progress_of(state) == Progress(10, 3)


def test_the_last_two_step_checkpoints_are_kept(tmp_path):
    for step in (2, 9, 10):
        save(tmp_path, Progress(1, step))
    save(tmp_path, Progress(2, 1))
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == [
        "checkpoint-1-10.pth",
        "checkpoint-2-1.pth",
    ]


def test_the_last_step_checkpoint_is_the_newest_whatever_its_number(tmp_path):
    """With larger batches the same epoch has fewer steps, and an epoch may start again."""
    save(tmp_path, Progress(1, 0), after_epoch=True)
    for step in (100, 200, 60, 70):
        path = save(tmp_path, Progress(3, step))
        assert resume.load_newest(tmp_path)[0] == path
    assert sorted(path.name for path in tmp_path.rglob("*.pth")) == [
        "checkpoint-1.pth",
        "checkpoint-3-60.pth",
        "checkpoint-3-70.pth",
    ]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 500])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(tmp_path, damage, caplog):
    save(tmp_path, Progress(4, 0), after_epoch=True)
    newest = save(tmp_path, Progress(5, 7))
    newest.write_bytes(damage(newest.read_bytes()))
    path, _ = resume.load_newest(tmp_path)
    assert path.name == "checkpoint-4.pth"
    assert str(newest) in caplog.text


def test_a_run_does_not_start_over_if_all_checkpoints_are_damaged(tmp_path):
    assert resume.load_newest(tmp_path) is None
    save(tmp_path, Progress(0, 5)).write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot read any checkpoint in .*: move them away"):
        resume.load_newest(tmp_path)


def test_a_published_checkpoint_resumes_at_the_next_epoch():
    assert resume.progress_of({"epoch": 99, "model": {}}) == Progress(100, 0)


def test_random_states_survive_a_checkpoint(tmp_path):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    np.random.normal()
    processes = [{"random": resume.random_states(), "monitor": {}}]
    save(tmp_path, Progress(0, 1), processes=processes, samples_per_step=8, skipped_steps=2)
    expected = random.random(), np.random.normal(), torch.randn(2).tolist()
    _, state = resume.load_newest(tmp_path)
    start = resume.restore_process(state, samples_per_step=8, accumulation=1, steps_per_epoch=5)
    assert start == (Progress(0, 1), 1, {}, 2)
    assert start.at_the_epoch() == (Progress(0, 0), 1, None, 2)
    assert (random.random(), np.random.normal(), torch.randn(2).tolist()) == expected


@pytest.mark.parametrize(
    "samples_per_step, accumulation, step", [(8, 1, 6), (4, 1, 12), (16, 1, 3), (32, 1, 1), (4, 8, 8), (64, 1, 0)]
)
def test_another_number_of_processes_resumes_at_the_same_sample(samples_per_step, accumulation, step, caplog):
    """Two processes have completed six steps of 8 samples."""
    state = {
        "epoch": 3,
        "step": 6,
        "samples_per_step": 8,
        "processes": [{"random": None, "monitor": {"loss": 1.0}}, {"random": None, "monitor": {"loss": 2.0}}],
    }
    start = resume.restore_process(state, samples_per_step, accumulation, steps_per_epoch=10)
    assert start.progress == Progress(3, step) and start.monitor == {"loss": 1.5}
    assert ("trained again" in caplog.text) == (step * samples_per_step != 48)


def test_partial_files_are_removed_and_step_checkpoints_when_finished(tmp_path):
    kept = save(tmp_path, Progress(1, 2))
    kept.with_name("checkpoint-1-4.pth.01234567.partial").touch()
    (tmp_path / "checkpoints" / "checkpoint-1.pth.01234567.partial").touch()
    resume.remove_stale(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]
    resume.remove_stale(tmp_path, finished=True)
    assert kept.exists(), "it is beyond the last epoch with a checkpoint"
    (tmp_path / "checkpoints" / "checkpoint-1.pth").touch()
    resume.remove_stale(tmp_path, finished=True)
    assert not (tmp_path / "resume").exists()


def test_a_full_disk_is_refused_before_the_run(tmp_path, monkeypatch):
    def leave(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - free, free))

    leave(24_000_000)
    resume.check_space(tmp_path, parameters=10**6)
    leave(23_500_000)
    with pytest.raises(OSError, match="two checkpoints need 23 MiB, but only 22 MiB are free"):
        resume.check_space(tmp_path, parameters=10**6)
    leave(25_500_000)
    with pytest.raises(OSError, match="two checkpoints need 24 MiB, but only 24 MiB are free"):
        resume.check_space(tmp_path, parameters=10**6, more_values=2 * 10**5)
