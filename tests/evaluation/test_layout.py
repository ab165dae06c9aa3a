import os

import pytest

from audio_mamba.external_sources import layout
from audio_mamba.external_sources.embeddings import resolve_module


def make_embeddings(module_dir, task, done=True):
    folder = module_dir / task
    (folder / "train").mkdir(parents=True)
    (folder / "task_metadata.json").write_text("{}")
    (folder / "train.embeddings.npy").write_bytes(b"numbers")
    (folder / "train" / "clip.wav.embedding.npy").write_bytes(b"one")
    if done:
        (folder / ".done.embeddings").touch()
    return folder


def test_run_names_are_those_of_the_published_scripts():
    assert layout.run_name("configs.ssam_tiny_200_16x4", 7) == "configs.ssam_tiny_200_16x4_r1_07"
    assert layout.parse_run_name("hear_configs.ssam_tiny_200_16x4_r2_09") == ("hear_configs.ssam_tiny_200_16x4", 2, 9)
    assert layout.parse_run_name("configs.ssam_tiny_200_16x4") is None


def test_every_file_is_a_link_that_survives_moving_the_output(tmp_path):
    make_embeddings(tmp_path / "out" / "audioset" / "configs.x", "esc50")
    layout.link_run(tmp_path / "out", "configs.x", 3)
    os.rename(tmp_path / "out", tmp_path / "moved")
    source = tmp_path / "moved" / "audioset" / "configs.x" / "esc50"
    run = tmp_path / "moved" / "todo_audioset" / "configs.x_r1_03" / "esc50"
    assert {entry.name for entry in run.iterdir()} == {entry.name for entry in source.iterdir()}
    for entry in run.iterdir():
        assert entry.is_symlink() and entry.resolve() == (source / entry.name).resolve()
    assert (run / "train.embeddings.npy").read_bytes() == b"numbers"


def test_linking_again_adds_new_tasks_and_keeps_results(tmp_path):
    module_dir = tmp_path / "audioset" / "configs.x"
    make_embeddings(module_dir, "esc50")
    layout.link_run(tmp_path, "configs.x", 0)
    run = tmp_path / "todo_audioset" / "configs.x_r1_00"
    (run / "esc50" / layout.SCORES).write_text("{}")
    make_embeddings(module_dir, "fsd50k")
    layout.link_run(tmp_path, "configs.x", 0)
    assert (run / "esc50" / layout.SCORES).read_text() == "{}"
    assert (run / "fsd50k" / "train.embeddings.npy").is_symlink()


def test_incomplete_embeddings_are_not_linked(tmp_path):
    make_embeddings(tmp_path / "audioset" / "configs.x", "esc50", done=False)
    layout.link_run(tmp_path, "configs.x", 0)
    assert not (tmp_path / "todo_audioset").exists()


def test_only_folders_with_metadata_are_tasks(tiny_tasks):
    assert [task.name for task in layout.task_folders(tiny_tasks)] == ["event", "folds", "scene"]


@pytest.mark.parametrize(
    "name",
    [
        "ssam_tiny_200_16x4",
        "configs.ssam_tiny_200_16x4",
        "configs.poc.ssam_tiny_200_16x4",
        "audio_mamba.configs.ssam_tiny_200_16x4",
    ],
)
def test_a_config_has_one_stored_name(name):
    assert resolve_module(name) == "configs.ssam_tiny_200_16x4"


def test_any_module_is_accepted_and_its_missing_imports_are_reported(tmp_path, monkeypatch):
    assert resolve_module("benchmarks.log_mel_baseline") == "benchmarks.log_mel_baseline"
    (tmp_path / "needy_hear_module.py").write_text("import a_package_that_is_absent")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_absent"):
        resolve_module("needy_hear_module")
    (tmp_path / "config_alone.py").write_text("def get_config(): ...\n")
    with pytest.raises(SystemExit, match="config_alone has no load_model; a config gets it"):
        resolve_module("config_alone")


def test_tasks_are_chosen_by_patterns(tmp_path):
    for name in ("drum_hits-v1-full", "guitar-v1", "piano-v1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task_metadata.json").touch()
    (tmp_path / "drums_without_metadata").mkdir()

    def names(patterns):
        return [task.name for task in layout.task_folders(tmp_path, patterns)]

    assert names("*") == ["drum_hits-v1-full", "guitar-v1", "piano-v1"]
    assert names("drum* p*") == ["drum_hits-v1-full", "piano-v1"] and names("harp") == []
