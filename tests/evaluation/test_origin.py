"""The note beside embeddings distinguishes those of other weights, layouts or models."""

import importlib
import json
import os
import shutil
import sys

import pytest

from audio_mamba.external_sources import layout
from audio_mamba.external_sources.origin import SETTINGS, check_origin, find_origin, note_origin
from audio_mamba.hear_api.resolve import SHIPPED_WEIGHTS

CONFIG, BASELINE = "configs.ssam_tiny_free_audio", "benchmarks.log_mel_baseline"


@pytest.fixture
def embeddings(tmp_path, monkeypatch):
    """A function that returns the folder of a scene and an event task that were embedded from an origin."""
    monkeypatch.delenv("PT_MAMBA_MODEL_DIR", raising=False)

    def write(origin, kinds=("scene", "event")):
        for kind in kinds:
            task = tmp_path / "results" / kind
            task.mkdir(parents=True)
            (task / layout.METADATA).write_text(json.dumps({"embedding_type": kind}))
            (task / layout.DONE_EMBEDDINGS).touch()
            note_origin(task, origin)
        return tmp_path / "results"

    return write


def work_folder(tmp_path, **checkpoints):
    """A fake work folder; its files are never loaded."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in checkpoints.items():
        (folder / f"checkpoint-{name.removeprefix('epoch_')}.pth").write_text(content)
    return str(folder.parent)


def test_embeddings_of_random_weights_are_not_used_for_trained_ones(embeddings, tmp_path):
    run = work_folder(tmp_path, epoch_0="first")
    folder = embeddings(find_origin(CONFIG, "untrained", None))
    check_origin(folder, find_origin(CONFIG, "untrained", None))
    with pytest.raises(SystemExit) as refused:
        check_origin(folder, find_origin(CONFIG, run, None))
    sentence = str(refused.value)
    assert sentence.startswith(f"MODEL: {folder / 'event'} was embedded with untrained, not with {run}/checkpoints")
    assert "\n" not in sentence and f"OUTPUT_DIR or NAME=..., or remove {folder} and its runs" in sentence


def test_a_config_that_was_edited_is_another_model(embeddings, tmp_path, monkeypatch):
    """Random weights, and checkpoints that say nothing of their config, would not show it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # edits within a second look alike
    text = """
from audio_mamba.configs.base import ssam_config
from audio_mamba.front_end import FrontEnd
from audio_mamba.hear_api.api import hear_functions


def get_config():
    config = ssam_config("tiny")
    config.model.model_args.depth = DEPTH
    config.front_end = FrontEnd(mean=MEAN, std=5.0).settings()
    return config


load_model, get_scene_embeddings, get_timestamp_embeddings = hear_functions(__name__)
"""

    def origin(depth, mean):
        (tmp_path / "edited_config.py").write_text(text.replace("DEPTH", str(depth)).replace("MEAN", str(mean)))
        sys.modules.pop("edited_config", None)
        importlib.invalidate_caches()
        return find_origin("edited_config", "untrained", None)

    folder = embeddings(origin(12, -4.0))
    check_origin(folder, origin(12, -4.0))
    with pytest.raises(SystemExit, match="CONFIG: .*/event was embedded with model_args.depth 12, not with .*depth 3 "):
        check_origin(folder, origin(3, -4.0))
    with pytest.raises(SystemExit, match="CONFIG: .* embedded with front_end.mean -4.0, not with front_end.mean -8"):
        check_origin(folder, origin(12, -8.0))
    for task in ("scene", "event"):  # a note of an earlier version
        note = json.loads((folder / task / SETTINGS).read_text())
        del note["encoder"]
        (folder / task / SETTINGS).write_text(json.dumps(note))
    check_origin(folder, origin(3, -4.0))


def test_newer_and_rewritten_checkpoints_are_other_models(embeddings, tmp_path):
    run = work_folder(tmp_path, epoch_0="first")
    folder = embeddings(find_origin(CONFIG, run, None))
    work_folder(tmp_path, epoch_2="second")
    with pytest.raises(SystemExit, match=r"checkpoint-0.pth \(SHA-256 \w{12}\), not with .*checkpoint-2.pth \(SHA"):
        check_origin(folder, find_origin(CONFIG, run, None))
    check_origin(folder, find_origin(CONFIG, f"{run}/checkpoints/checkpoint-0.pth", None))
    work_folder(tmp_path, epoch_0="rewritten")
    with pytest.raises(SystemExit, match="MODEL"):
        check_origin(folder, find_origin(CONFIG, f"{run}/checkpoints/checkpoint-0.pth", None))


def test_the_same_weights_are_accepted_in_another_place(embeddings, tmp_path):
    folder = embeddings(find_origin(CONFIG, None, None))
    clone = shutil.copytree(SHIPPED_WEIGHTS / "ssam_tiny_free_audio", tmp_path / "clone", copy_function=shutil.copyfile)
    os.utime(clone / "model.safetensors", (0, 0))
    check_origin(folder, find_origin(CONFIG, str(clone), "bands"))


def test_deleted_weights_are_compared_by_name(embeddings, tmp_path):
    run = work_folder(tmp_path, epoch_0="first")
    folder = embeddings(find_origin(CONFIG, run, None))
    shutil.rmtree(run)
    check_origin(folder, find_origin(CONFIG, run, None))
    with pytest.raises(SystemExit, match="not with another"):
        check_origin(folder, find_origin(CONFIG, "another", None))


def test_another_layout_is_refused_only_for_scenes(embeddings):
    folder = embeddings(find_origin(CONFIG, "untrained", None))
    check_origin(folder, find_origin(CONFIG, "untrained", "bands"))  # the config's own
    with pytest.raises(SystemExit, match=f"LAYOUT: {folder / 'scene'} was .* layout bands, not with layout published"):
        check_origin(folder, find_origin(CONFIG, "untrained", "published"))
    shutil.rmtree(folder / "scene")
    check_origin(folder, find_origin(CONFIG, "untrained", "published"))


@pytest.mark.parametrize(
    "variable, choice, tasks",
    [("POOLING", {"scene_pooling": "mean_std"}, ["scene"]), ("OVERLAP", {"overlap": 0.5}, ["event", "scene"])],
)
def test_another_pooling_or_overlap_is_refused_where_it_matters(embeddings, variable, choice, tasks):
    folder = embeddings(find_origin(CONFIG, "untrained", None))
    other = find_origin(CONFIG, "untrained", None, **choice)
    for task in tasks:
        with pytest.raises(SystemExit, match=f"{variable}: {folder / task} was embedded with"):
            check_origin(folder, other)
        shutil.rmtree(folder / task)
    check_origin(folder, other)


def test_notes_of_earlier_versions_mean_the_published_pooling_without_overlap(embeddings):
    folder = embeddings(find_origin(CONFIG, "untrained", None))
    for path in folder.glob(f"*/{SETTINGS}"):
        note = json.loads(path.read_text())
        path.write_text(json.dumps({key: note[key] for key in note if key not in ("scene_pooling", "overlap")}))
    check_origin(folder, find_origin(CONFIG, "untrained", None))
    with pytest.raises(SystemExit, match="POOLING: .* with pooling mean, not with pooling mean_std"):
        check_origin(folder, find_origin(CONFIG, "untrained", None, "mean_std"))
    with pytest.raises(SystemExit, match="OVERLAP: .* with an overlap of 0, not with an overlap of 0.25"):
        check_origin(folder, find_origin(CONFIG, "untrained", None, overlap=0.25))


def test_another_config_under_the_same_name_is_refused(embeddings):
    folder = embeddings(find_origin(CONFIG, "untrained", None))
    with pytest.raises(SystemExit, match=f"CONFIG: .* with {CONFIG}, not with configs.ssast_tiny_free_audio"):
        check_origin(folder, find_origin("configs.ssast_tiny_free_audio", "untrained", None))


def test_embeddings_without_a_note_and_unfinished_ones_are_accepted(embeddings):
    folder = embeddings(find_origin(CONFIG, "untrained", None))
    (folder / "scene" / SETTINGS).unlink()
    (folder / "event" / layout.DONE_EMBEDDINGS).unlink()
    check_origin(folder, find_origin(CONFIG, None, "published"))
    check_origin(folder / "nothing", find_origin(CONFIG, None, None))


def test_other_modules_are_identified_by_their_argument(embeddings, tmp_path):
    (tmp_path / "weights.pt").write_text("some")
    folder = embeddings(find_origin(BASELINE, str(tmp_path / "weights.pt"), None))
    (tmp_path / "weights.pt").rename(tmp_path / "moved.pt")
    check_origin(folder, find_origin(BASELINE, str(tmp_path / "moved.pt"), None))
    for other in (None, "a name of " + 300 * "x"):
        with pytest.raises(SystemExit, match=f"not with {other or 'no MODEL'}"):
            check_origin(folder, find_origin(BASELINE, other, None))


@pytest.mark.parametrize("scene_layout", [None, "bands"])
def test_an_invalid_config_is_named(tmp_path, monkeypatch, scene_layout):
    (tmp_path / "invalid_config.py").write_text(
        "from audio_mamba.configs.base import ssam_config\nfrom audio_mamba.hear_api.api import hear_functions\n"
        "def get_config():\n    config = ssam_config('tiny')\n    config.num_epochs = 0\n    return config\n"
        "load_model, *_ = hear_functions(__name__)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit, match="CONFIG: invalid_config: num_epochs must be"):
        find_origin("invalid_config", "untrained", scene_layout)
