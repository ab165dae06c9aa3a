import json
import multiprocessing

import pytest

from audio_mamba.external_sources import downstream, layout, origin, worker
from audio_mamba.external_sources.downstream import Job
from audio_mamba.system import folder_lock, machine


@pytest.mark.parametrize("text, seeds", [("3", [0, 1, 2]), ("0,3,7", [0, 3, 7]), ("5,", [5])])
def test_seeds(text, seeds):
    assert downstream.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "-1", "x", "1,-2", ","])
def test_bad_seeds(text):
    with pytest.raises(ValueError, match="SEEDS"):
        downstream.parse_seeds(text)


@pytest.fixture
def output_dir(tmp_path):
    """Seeds 0 and 1 of two models, as created by extract_features.sh and by the published scripts."""
    for module in ("configs.ssam", "hear_configs.ssast"):
        for seed in (0, 1):
            task = tmp_path / "todo_audioset" / f"{module}_r1_{seed:02d}" / "esc50"
            task.mkdir(parents=True)
            (task / layout.METADATA).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    "config, module",
    [
        ("ssam", "configs.ssam"),
        ("configs.poc.ssam", "configs.ssam"),
        ("audio_mamba.configs.ssam", "configs.ssam"),
        ("configs.ssam", "configs.ssam"),
        ("ssast", "hear_configs.ssast"),
    ],
)
def test_a_model_is_found_under_each_of_its_names(output_dir, config, module):
    expected = [Job(output_dir / "todo_audioset" / f"{module}_r1_0{seed}" / "esc50", seed) for seed in (0, 1)]
    assert downstream.find_jobs(output_dir, config, [0, 1]) == expected
    assert downstream.find_jobs(output_dir / "todo_audioset", config, [0, 1]) == expected


def test_unknown_model_and_seed_are_named(output_dir):
    with pytest.raises(SystemExit, match="no runs of mamba; it has runs of configs.ssam, hear_configs.ssast"):
        downstream.find_jobs(output_dir, "mamba", [0])
    with pytest.raises(SystemExit, match="configs.ssam_r1_04 does not exist"):
        downstream.find_jobs(output_dir, "ssam", [4])


def test_a_run_is_done_once_it_has_scores_and_a_complete_marker(output_dir):
    job = downstream.find_jobs(output_dir, "ssam", [0])[0]
    assert not job.is_done()
    (job.task / layout.SCORES).write_text("{}")
    (job.task / layout.DONE_PREDICTIONS).write_text("")
    assert not job.is_done()
    (job.task / layout.DONE_PREDICTIONS).write_text("{}")
    assert job.is_done()


def run_worker(job):
    process = multiprocessing.get_context("fork").Process(target=worker.run, args=(job.task, 0, "fast", 1, None))
    process.start()
    return process


def test_a_head_that_another_process_trains_is_skipped(output_dir, monkeypatch):
    job = downstream.find_jobs(output_dir, "ssam", [0])[0]
    monkeypatch.setattr(worker, "PATIENCE", 0.1)
    with folder_lock.lock_folder(job.task):
        process = run_worker(job)
        process.join()
    assert process.exitcode == worker.IN_USE
    assert not (job.task / worker.LOG).exists() and not (job.task / worker.SETTINGS).exists()
    monkeypatch.setattr(downstream, "run_jobs", lambda todo, grid, at_once: ([], todo[:1]))
    with pytest.raises(SystemExit, match=f"^skipped, because another process is working there:\n{job.task}$"):
        downstream.main(["ssam", str(output_dir), "--seeds", "1"])


def test_a_head_that_another_process_has_finished_is_kept(output_dir):
    job = downstream.find_jobs(output_dir, "ssam", [0])[0]
    with folder_lock.lock_folder(job.task):
        process = run_worker(job)
        (job.task / layout.SCORES).write_text("{}")
        (job.task / layout.DONE_PREDICTIONS).write_text("{}")
    process.join()
    assert process.exitcode == 0 and job.is_done() and not (job.task / worker.SETTINGS).exists()


def test_results_of_another_grid_are_not_mixed(output_dir):
    job = downstream.find_jobs(output_dir, "ssam", [0])[0]
    downstream.check_settings([job], "published")  # no settings stored: results of the published scripts
    (job.task / worker.SETTINGS).write_text(json.dumps({"seed": 0, "grid": "fast"}))
    downstream.check_settings([job], "fast")
    with pytest.raises(SystemExit, match="trained with another grid"):
        downstream.check_settings([job], "default")


def test_results_on_replaced_embeddings_are_refused(output_dir):
    job = downstream.find_jobs(output_dir, "ssam", [0])[0]
    noted = {"module": "configs.ssam", "model": "run", "file": "run/checkpoint-0.pth", "sha256": "0" * 64}
    (job.task / worker.SETTINGS).write_text(json.dumps({"seed": 0, "grid": "fast", "embeddings": noted}))
    downstream.check_settings([job], "fast")  # the embeddings are gone
    for later in ({}, {"file": "moved.pth"}, {"model": "."}):
        (job.task / origin.SETTINGS).write_text(json.dumps(noted | later))
        downstream.check_settings([job], "fast")
    for variable, later in (
        ("MODEL", {"sha256": "1" * 64}),
        ("CONFIG", {"module": "configs.ssast"}),
        ("LAYOUT", {"scene_layout": "bands"}),
        ("POOLING", {"scene_pooling": "mean_std"}),
        ("OVERLAP", {"overlap": 0.25}),
    ):
        (job.task / origin.SETTINGS).write_text(json.dumps(noted | later))
        with pytest.raises(SystemExit, match=f"{variable}: {job.task} was trained on embeddings made with"):
            downstream.check_settings([job], "fast")


def test_processes_are_limited_by_cores_and_memory(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    for memory, processes in ((100, 8), (35, 3), (5, 1), (None, 8)):
        monkeypatch.setattr(machine, "available_memory", lambda memory=memory: memory)
        assert machine.processes_that_fit(10) == processes


@pytest.mark.parametrize("variable, jobs, threads, at_once", [(None, None, 1, 4), ("2", None, 2, 2), ("3", 5, 3, 5)])
def test_heads_take_one_thread_unless_told_otherwise(output_dir, monkeypatch, variable, jobs, threads, at_once):
    """The number of processes follows from it, unless JOBS says so."""
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    alive, most, given = 0, 0, []

    class Process:
        exitcode = 0

        def __init__(self, target, args):
            self.sentinel, given[len(given) :] = len(given), [args[3]]

        def start(self):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def join(self):
            nonlocal alive
            alive -= 1

    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr(context, "Process", Process, raising=False)
    monkeypatch.setattr(downstream, "wait", lambda sentinels: sentinels[:1])
    heads = [Job(output_dir, seed) for seed in range(8)]
    assert downstream.run_jobs(heads, "fast", jobs) == ([], [])
    assert given == 8 * [threads] and most == at_once


def test_a_wrong_number_of_threads_is_named(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    with pytest.raises(SystemExit, match="OMP_NUM_THREADS: 'many' must be a number of threads"):
        downstream.requested_threads(1)
