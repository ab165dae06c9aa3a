import os

import pytest

from audio_mamba.external_sources import embeddings, layout
from audio_mamba.external_sources.downstream import find_jobs
from audio_mamba.external_sources.embeddings import resolve_module
from audio_mamba.hear_api.resolve import get_config


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


def test_a_split_that_is_gone_after_embedding_again_leaves_no_link(tmp_path):
    embedded = make_embeddings(tmp_path / "audioset" / "configs.x", "esc50")
    (embedded / "fold02.embeddings.npy").write_bytes(b"more")
    (job,) = find_jobs_of_one_seed(tmp_path)
    assert job.embedding_bytes() == len(b"numbers" + b"more")
    (embedded / "fold02.embeddings.npy").unlink()
    (job,) = find_jobs_of_one_seed(tmp_path)
    assert job.embedding_bytes() == len(b"numbers") and not (job.task / "fold02.embeddings.npy").is_symlink()


def find_jobs_of_one_seed(output_dir):
    layout.link_run(output_dir, "configs.x", 0)
    return find_jobs(output_dir, "configs.x", [0])


def test_incomplete_embeddings_are_not_linked(tmp_path):
    make_embeddings(tmp_path / "audioset" / "configs.x", "esc50", done=False)
    layout.link_run(tmp_path, "configs.x", 0)
    assert not (tmp_path / "todo_audioset").exists()


def test_only_folders_with_metadata_are_tasks(tiny_tasks):
    assert [task.name for task in layout.task_folders(tiny_tasks)] == ["event", "folds", "scene"]


HIDDEN_TASKS = [".Trash-1000", "._scene", "@eaDir", "__MACOSX"]


def test_hidden_tasks_are_left_out_and_counted(tmp_path):
    for name in (*HIDDEN_TASKS, "scene"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task_metadata.json").touch()
    assert [task.name for task in layout.task_folders(tmp_path)] == ["scene"]
    assert [task.name for task in layout.task_folders(tmp_path, hidden=True)] == sorted([*HIDDEN_TASKS, "scene"])
    first = tmp_path / ".Trash-1000"
    note = f"left out hidden or system files and folders: 4, the first is {first}; --hidden takes tasks"
    assert layout.hidden_note([tmp_path]) == note
    assert layout.hidden_note([tmp_path / "scene"]) is None


def test_hidden_embeddings_and_files_are_linked_only_on_request(tmp_path, capsys):
    for task in ("scene", ".old"):
        folder = make_embeddings(tmp_path / "audioset" / "configs.x", task)
        (folder / ".DS_Store").touch()
    runs = tmp_path / "todo_audioset"
    layout.link_run(tmp_path, "configs.x", 0)
    assert [job.task.name for job in find_jobs(tmp_path, "configs.x", [0])] == ["scene"] and not capsys.readouterr().err
    assert [job.task.name for job in find_jobs(tmp_path, "configs.x", [0, 1], hidden=True)] == [".old", "scene"] * 2
    assert [job.task.name for job in find_jobs(tmp_path, "configs.x", [0, 1])] == ["scene"] * 2
    first = runs / "configs.x_r1_00" / ".old"
    assert f"left out hidden or system files and folders: 2, the first is {first}" in capsys.readouterr().err
    assert ".DS_Store" not in os.listdir(first) and ".done.embeddings" in os.listdir(first)
    (runs / "configs.x_r1_00").rename(runs / ".configs.y_r1_00")
    with pytest.raises(SystemExit, match=r"has no runs of \.configs\.y"):
        find_jobs(tmp_path, ".configs.y", [0])


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


@pytest.mark.parametrize("name", ["", "configs.ssam_tiny_200_16x4.py", "configs.ssam_tiny_200_16x4.pth"])
def test_what_is_no_module_is_named(name):
    with pytest.raises(SystemExit, match=f"CONFIG: no module {name} can be imported"):
        resolve_module(name)
    hint = "did you mean|name the module, not its file:"
    with pytest.raises(ValueError, match=f"no config module '{name}'; ({hint}) 'configs"):
        get_config(name)


def test_any_module_is_accepted_and_its_missing_imports_are_reported(tmp_path, monkeypatch):
    assert resolve_module("benchmarks.log_mel_baseline") == "benchmarks.log_mel_baseline"
    (tmp_path / "needy_hear_module.py").write_text("import a_package_that_is_absent")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_absent"):
        resolve_module("needy_hear_module")
    (tmp_path / "config_alone.py").write_text("def get_config(): ...\n")
    with pytest.raises(SystemExit, match="config_alone has no load_model; a config gets it"):
        resolve_module("config_alone")


def test_for_a_task_the_folder_above_it_is_named(tiny_tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_tasks / "scene")
    with pytest.raises(SystemExit, match=f"give the folder above it, {tiny_tasks}, with TASKS=scene$"):
        embeddings.main([".", str(tmp_path), "ssam_tiny_200_16x4"])


def test_tasks_are_chosen_by_patterns(tmp_path):
    for name in ("drum_hits-v1-full", "guitar-v1", "piano-v1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task_metadata.json").touch()
    (tmp_path / "drums_without_metadata").mkdir()

    def names(patterns):
        return [task.name for task in layout.task_folders(tmp_path, patterns)]

    assert names("*") == ["drum_hits-v1-full", "guitar-v1", "piano-v1"]
    assert names("drum* p*") == ["drum_hits-v1-full", "piano-v1"] and names("harp") == []
