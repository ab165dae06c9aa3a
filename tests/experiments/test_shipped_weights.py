"""The shipped weights: complete, trained, and the ones in the experiment's tables."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors import safe_open

from audio_mamba.data.synthetic import KINDS, make_clip
from audio_mamba.hear_api import RuntimeSSAST
from audio_mamba.hear_api.api import load_model
from audio_mamba.hear_api.pretrained import save_pretrained
from audio_mamba.hear_api.resolve import SHIPPED_WEIGHTS, load_config
from audio_mamba.stats_aggregation_v2 import read_score
from experiments.free_audio import hidden_patches
from experiments.free_audio.hidden_patches import SHIPPED, errors, least_error_of_one_prediction
from tests.conftest import ROOT
from tests.evaluation.conftest import run_command

RESULTS = ROOT / "experiments" / "free_audio" / "results" / "all_results.csv"


@pytest.mark.parametrize("folder", sorted(SHIPPED_WEIGHTS.iterdir()), ids=lambda folder: folder.name)
def test_they_are_small_and_have_a_card(folder):
    assert (folder / "model.safetensors").stat().st_size < 11e6
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    card = (folder / "README.md").read_text()
    for heading in ("## Data", "## Licence", "## Recipe", "## Scores", "## Limits"):
        assert heading in card


def made_up_sounds() -> torch.Tensor:
    return torch.from_numpy(np.stack([make_clip(kind, 2.0, np.random.default_rng(0)) for kind in KINDS]))


def test_ssam_reconstructs_unseen_sounds_and_ssast_the_visible_patches():
    clips = made_up_sounds()
    ssam, ssast = (load_model(path, device="cpu") for path in SHIPPED)
    hidden, visible = errors(ssam, clips)
    assert hidden < 0.6 and visible < 0.05
    assert not any(module.training for module in ssam.model.modules())  # the caller's model is unchanged
    hidden, visible = errors(ssast, clips)
    assert visible < 0.1 and hidden > least_error_of_one_prediction(ssast, clips) > 0.7  # its model card explains why
    for model in ("ssam", "ssast"):
        untrained = RuntimeSSAST(load_config(f"configs.{model}_tiny_free_audio"), None)
        assert min(errors(untrained, clips)) > 0.9


def test_the_long_run_reconstructs_too_and_hears_the_level():
    clips = made_up_sounds()
    runtime = load_model("ssam_tiny_free_audio_18h", device="cpu")
    hidden, visible = errors(runtime, clips)
    assert hidden < 0.3 and visible < 0.02
    assert min(errors(RuntimeSSAST(load_config("configs.ssam_tiny_free_audio_18h"), None), clips)) > 0.5

    def change_with_level(model):
        loud, quiet = (model.get_scene_embeddings(clips * gain) for gain in (1, 0.1))
        return ((loud - quiet).abs().mean() / loud.abs().mean()).item()

    assert change_with_level(runtime) > 0.2 > 0.05 > change_with_level(load_model(SHIPPED[0], device="cpu"))


def test_a_work_folder_is_loaded_with_its_own_config(tmp_path):
    ssast = load_model(SHIPPED[1], device="cpu")
    save_pretrained(ssast, tmp_path)
    model = json.loads((tmp_path / "config.json").read_text())
    settings = {"arch": model["arch"], "model_args": model["model_args"] | {"masked_positions": True}}
    (tmp_path / "config.json").write_text(
        json.dumps({"name": "configs.an_experiment", "batch_size": 8, "model": settings})
    )
    assert load_model(tmp_path, device="cpu").model.masked_positions and not ssast.model.masked_positions
    clips = made_up_sounds()[:1]
    assert errors(load_model(tmp_path, device="cpu"), clips)[0] != errors(ssast, clips)[0]


def test_the_command_prints_the_errors_of_files_that_are_long_enough(tmp_path, capsys):
    for number, clip in enumerate(made_up_sounds()[:3]):
        soundfile.write(tmp_path / f"{number}.wav", clip[: 32000 if number else 31999].numpy(), 16000)
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    hidden_patches.main([str(tmp_path)])
    out = capsys.readouterr().out
    found = re.findall(r"(\w+)_tiny_free_audio: (\d) clips, error ([\d.]+) on hidden patches, ([\d.]+)", out)
    assert re.search(r"one prediction for all hidden patches of a clip: 0\.\d{3}$", out.strip())
    assert [(model, clips) for model, clips, *_ in found] == [("ssam", "2"), ("ssast", "2")]
    assert float(found[0][2]) < float(found[1][2]) and float(found[0][3]) < 0.1
    for path in (tmp_path / "1.wav", tmp_path / "2.wav"):
        path.unlink()
    with pytest.raises(SystemExit, match="no audio file of 2 s or more"):
        hidden_patches.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="nothing is not a folder"):
        hidden_patches.main([str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="no_model"):
        hidden_patches.main([str(tmp_path), str(tmp_path / "no_model")])


def test_the_last_line_is_for_the_patch_size_of_the_first_model(tmp_path, capsys):
    clips = made_up_sounds()[:2]
    for number, clip in enumerate(clips):
        soundfile.write(tmp_path / f"{number}.wav", clip.numpy(), 16000, subtype="FLOAT")
    config = load_config("configs.ssast_tiny_free_audio")
    config.model.model_args.patch_size = (8, 16)
    other = RuntimeSSAST(config, None)
    save_pretrained(other, tmp_path / "other")
    folders = {tmp_path / "other": other, SHIPPED[1]: load_model(SHIPPED[1], device="cpu")}
    for models in (list(folders), list(folders)[::-1]):
        hidden_patches.main(list(map(str, [tmp_path, *models])))
        least = least_error_of_one_prediction(folders[models[0]], clips)
        assert capsys.readouterr().out.endswith(f" of a clip: {least:.3f}\n")


def test_models_in_folders_of_one_name_have_a_line_each(tmp_path, capsys):
    soundfile.write(tmp_path / "0.wav", made_up_sounds()[0].numpy(), 16000)
    models = [shutil.copytree(folder, tmp_path / folder.name / "model") for folder in SHIPPED]
    hidden_patches.main(list(map(str, [tmp_path, *models])))
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{models[0]}: 1 clips") and second.startswith(f"{models[1]}: 1 clips")
    assert first.split(":")[1] != second.split(":")[1]


def test_one_command_embeds_a_file_without_any_setup(tmp_path):
    soundfile.write(tmp_path / "my.wav", np.sin(np.arange(24000) / 9), 16000)
    env = {name: value for name, value in os.environ.items() if name != "PT_MAMBA_MODEL_DIR"}
    env["PYTHONPATH"] = str(ROOT)
    subprocess.run([sys.executable, "-m", "hear_api.embed", "my.wav"], cwd=tmp_path, env=env, check=True, timeout=120)
    with np.load(tmp_path / "embeddings.npz") as stored:
        from audio_mamba.configs.ssam_tiny_free_audio import load_model

        expected = load_model().embed([tmp_path / "my.wav"])
        np.testing.assert_allclose(stored["embedding"], expected, atol=1e-5)
    assert expected.shape == (1, 960) and np.abs(expected).max() > 0.1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_they_reproduce_the_table_on_a_task(shared_tasks, tmp_path):
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    for folder in (tasks, tmp_path / "here"):
        folder.mkdir()
    (tasks / "guitar_chords-v1-full").symlink_to(shared_tasks / "guitar_chords-v1-full")
    run_command(tmp_path / "here", "extract_features.sh", tasks, out, "ssam_tiny_free_audio", NAME="row")
    run_command(tmp_path / "here", "downstream_experiments.sh", "row", out, SEEDS="3")
    table = pd.read_csv(RESULTS).query("exp == 'ssam_pretrained_bands' and dataset == 'guitar_chords-v1-full'")
    expected = table.set_index("run").scores
    for seed in range(3):
        scores = out / "todo_audioset" / f"row_r1_{seed:02d}" / "guitar_chords-v1-full" / "test.predicted-scores.json"
        assert read_score(scores) == pytest.approx(expected[seed], abs=0.02)
