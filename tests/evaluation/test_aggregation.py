import json
import logging

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from audio_mamba import stats_aggregation_v2 as aggregation
from tests.evaluation.conftest import write_scores

ESC = {"ssam": [0.81, 0.79, 0.83], "ssast": [0.70, 0.71, 0.66]}  # folds, three seeds
VOX = {"ssam": [0.30, 0.35, 0.31], "ssast": [0.40, 0.41, 0.36]}  # train/valid/test


@pytest.fixture
def base_dir(tmp_path):
    """Two models, two tasks, three seeds, one of the models named as in the published scripts."""
    for model, prefix in (("ssam", "configs.ssam"), ("ssast", "hear_configs.ssast")):
        for seed in range(3):
            run = tmp_path / "todo_audioset" / f"{prefix}_r1_{seed:02d}"
            write_scores(
                run / "esc50",
                {
                    "fold00": {"test_score": 9.0},
                    "aggregated_scores": {"test_score_mean": ESC[model][seed], "test_score_std": 0.1},
                },
            )
            write_scores(run / "vox", {"test": {"test_score": VOX[model][seed], "test_loss": 3.0}})
    return tmp_path / "todo_audioset"


def interval(scores):
    """95% interval as scipy gives it, independent of the formula in the program."""
    low, high = scipy.stats.t.interval(0.95, len(scores) - 1, loc=np.mean(scores), scale=scipy.stats.sem(scores))
    return (high - low) / 2


def test_the_tables_hold_the_scores_of_the_json_files(base_dir, tmp_path, capsys):
    aggregation.main(["--base_dir", str(base_dir), "--output_dir", str(tmp_path / "tables")])
    results = pd.read_csv(tmp_path / "tables" / "all_results.csv")
    assert list(results.columns) == ["exp", "ssl_run", "run", "dataset", "scores"]
    assert len(results) == 12
    row = results[(results.exp == "configs.ssam") & (results.run == 1) & (results.dataset == "esc50")]
    assert row.scores.item() == 0.79 and row.ssl_run.item() == 1

    wide = pd.read_csv(tmp_path / "tables" / "summary.csv", index_col="model")
    for model, name in (("ssam", "configs.ssam_r1"), ("ssast", "hear_configs.ssast_r1")):
        for task, scores in (("esc50", ESC[model]), ("vox", VOX[model])):
            assert wide.loc[name, task] == pytest.approx(np.mean(scores))
            assert wide.loc[name, f"{task} interval"] == pytest.approx(interval(scores))
    # Each model is best at one task and worst at the other: 100 and 0.
    assert wide["s(m)"].tolist() == [50.0, 50.0]

    markdown = (tmp_path / "tables" / "results.md").read_text()
    assert f"| {100 * np.mean(ESC['ssam']):.1f} ± {100 * interval(ESC['ssam']):.1f} |" in markdown
    assert markdown in capsys.readouterr().out
    assert (tmp_path / "tables" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_overall_score_is_the_papers_formula():
    means = pd.DataFrame({"esc50": [0.8, 0.5, 0.6], "vox": [0.2, 0.4, 0.3]}, index=["a", "b", "c"])
    overall = aggregation.overall_scores(means)
    assert overall["a"] == pytest.approx(100 * (1 + 0) / 2)
    assert overall["b"] == pytest.approx(100 * (0 + 1) / 2)
    assert overall["c"] == pytest.approx(100 * (1 / 3 + 0.5) / 2)


def test_overall_score_leaves_out_missing_and_equal_tasks_for_all_models(caplog):
    means = pd.DataFrame({"esc50": [0.8, 0.5], "vox": [0.2, np.nan], "same": [0.7, 0.7]}, index=["a", "b"])
    with caplog.at_level(logging.WARNING):
        overall = aggregation.overall_scores(means)
    assert overall.tolist() == [100.0, 0.0]
    assert "vox is excluded from s(m): no scores for b" in caplog.text
    assert "same is excluded from s(m): all models score the same" in caplog.text


def test_one_seed_has_no_interval(tmp_path):
    write_scores(tmp_path / "configs.x_r1_00" / "vox", {"test": {"test_score": 0.5}})
    results = aggregation.read_results(tmp_path)
    summary = aggregation.summarise(results)
    assert np.isnan(summary.interval.item()) and summary["mean"].item() == 0.5
    assert "| 50.0 ± - | - |" in aggregation.write_tables(results, tmp_path / "tables")


def test_names_with_dollars_are_no_formulas(tmp_path):
    write_scores(tmp_path / "configs.$x_^$_r1_00" / "$v_^$", {"test": {"test_score": 0.5}})
    aggregation.write_tables(aggregation.read_results(tmp_path), tmp_path / "tables")
    assert (tmp_path / "tables" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_missing_seeds_and_tasks_are_warned_about(base_dir, tmp_path, caplog):
    (base_dir / "configs.ssam_r1_02" / "vox" / "test.predicted-scores.json").unlink()
    (base_dir / "another folder").mkdir()
    with caplog.at_level(logging.WARNING):
        summary = aggregation.summarise(aggregation.read_results(base_dir))
    assert f"skipping {base_dir / 'another folder'}: its name is not" in caplog.text
    assert "skipping 1 runs without scores, the first is configs.ssam_r1_02/vox" in caplog.text
    assert "configs.ssam_r1 on vox: no scores for seeds 2" in caplog.text
    assert summary.loc[("configs.ssam_r1", "vox"), "seeds"] == 2
    assert summary.loc[("configs.ssam_r1", "vox"), "interval"] == pytest.approx(interval(VOX["ssam"][:2]))


def test_one_model_has_no_overall_score_and_the_table_says_why(tmp_path, caplog):
    for seed in (0, 1):
        write_scores(tmp_path / f"configs.x_r1_{seed:02d}" / "vox", {"test": {"test_score": 0.5}})
    markdown = aggregation.write_tables(aggregation.read_results(tmp_path), tmp_path / "tables")
    assert "| 50.0 ± 0.0 | - |" in markdown and markdown.endswith("s(m) compares models; there is only one here.\n")
    assert "s(m) compares models; there is only configs.x_r1" in caplog.text and "excluded" not in caplog.text


def test_scores_whose_embeddings_are_gone_stay_in_the_table(base_dir, tmp_path):
    before = aggregation.read_results(base_dir)
    for metadata in base_dir.glob("configs.ssam_*/vox/task_metadata.json"):
        metadata.unlink()
        metadata.symlink_to(tmp_path / "audioset" / "removed" / "task_metadata.json")
    pd.testing.assert_frame_equal(aggregation.read_results(base_dir), before)


def test_seeds_of_different_grids_have_no_mean(base_dir):
    def note(run, grid):
        (base_dir / run / "downstream-settings.json").write_text(json.dumps({"seed": 0, "grid": grid}))

    note("configs.ssam_r1_00/vox", {"lr": [1e-4]})
    note("hear_configs.ssast_r1_01/vox", {"lr": [1e-3]})  # another model
    note("configs.ssam_r1_01/esc50", {"lr": [1e-3]})  # another task
    assert len(aggregation.read_results(base_dir)) == 12
    note("configs.ssam_r1_02/vox", {"lr": [1e-3]})
    with pytest.raises(ValueError, match="GRID: .*ssam_r1_00/vox and .*ssam_r1_02/vox were trained with different"):
        aggregation.read_results(base_dir)


def test_models_with_different_grids_are_named(base_dir, caplog):
    for run, grid in (("configs.ssam_r1_00", {"lr": [1e-4]}), ("hear_configs.ssast_r1_01", {"lr": [1e-3]})):
        for task in ("vox", "esc50"):
            settings = {"seed": 0, "grid": grid if task == "vox" else {}}
            (base_dir / run / task / "downstream-settings.json").write_text(json.dumps(settings))
    aggregation.read_results(base_dir)
    assert [record.getMessage() for record in caplog.records] == [
        "vox: the heads of configs.ssam_r1, hear_configs.ssast_r1 were chosen from different grids"
    ]


def test_scores_of_different_versions_of_a_task_are_refused(base_dir, tmp_path):
    labels = {"task_metadata.json": "a", "labelvocabulary.csv": "b", "test.json": "c"}

    def note(run, **files):
        state = {name: [1, 0, digest] for name, digest in (labels | files).items()}
        note = {"task": str(tmp_path / "gone"), "sample_rate": 16000, "files": state}
        (base_dir / run / "task-files.json").write_text(json.dumps(note))

    note("configs.ssam_r1_00/vox", **{"16000/test/a.wav": "d"})
    note("hear_configs.ssast_r1_00/vox", **{"48000/test/a.wav": "e"})  # of another rate
    note("configs.ssam_r1_00/esc50", **{"test.json": "another task"})
    assert len(aggregation.read_results(base_dir)) == 12
    changes = ({"test.json": "x"}, {"16000/test/a.wav": "x"}, {"valid.json": "x"})
    for files in changes:
        note("hear_configs.ssast_r1_00/vox", **files)
        refused = f"ssam_r1_00/vox and .*ssast_r1_00/vox are of different versions .*, {list(files)[0]} differs"
        with pytest.raises(ValueError, match=refused):
            aggregation.read_results(base_dir)


def test_a_seed_counts_once(base_dir):
    write_scores(base_dir / "configs.ssam_r1_2" / "vox", {"test": {"test_score": 0.1}})
    with pytest.raises(ValueError, match="ssam_r1_02/vox and .*ssam_r1_2/vox have the same seed; remove one of them"):
        aggregation.read_results(base_dir)


def test_each_pretraining_run_is_a_separate_model(tmp_path):
    for ssl_run in (1, 2):
        write_scores(tmp_path / f"configs.x_r{ssl_run}_00" / "vox", {"test": {"test_score": ssl_run / 10}})
    summary = aggregation.summarise(aggregation.read_results(tmp_path))
    assert summary["mean"].to_dict() == {("configs.x_r1", "vox"): 0.1, ("configs.x_r2", "vox"): 0.2}


def test_hidden_runs_and_tasks_are_left_out_and_counted(base_dir, caplog):
    write_scores(base_dir / ".configs.old_r1_00" / "vox", {"test": {"test_score": 0.1}})
    write_scores(base_dir / "configs.ssam_r1_00" / ".vox_old", {"test": {"test_score": 0.1}})
    assert set(aggregation.read_results(base_dir).dataset) == {"esc50", "vox"}
    assert [record.getMessage() for record in caplog.records] == [
        f"left out hidden or system files and folders: 2, the first is {base_dir}/.configs.old_r1_00; "
        "--hidden takes tasks"
    ]
    results = aggregation.read_results(base_dir, hidden=True)
    assert {".configs.old", "configs.ssam"} <= set(results.exp) and ".vox_old" in set(results.dataset)


def test_an_unreadable_score_file_is_named(base_dir):
    path = base_dir / "configs.ssam_r1_00" / "vox" / "test.predicted-scores.json"
    path.write_text(json.dumps({"test": {}}))
    with pytest.raises(SystemExit, match=str(path)):
        aggregation.main(["--base_dir", str(base_dir), "--output_dir", str(base_dir)])


def test_a_score_that_is_not_a_number_is_named(base_dir):
    path = base_dir / "configs.ssam_r1_00" / "vox" / "test.predicted-scores.json"
    path.write_text('{"test": {"test_score": NaN}}')
    with pytest.raises(SystemExit, match=f"{path}.*the score is nan"):
        aggregation.main(["--base_dir", str(base_dir), "--output_dir", str(base_dir)])


def test_damaged_settings_and_an_output_that_is_a_file_are_named(base_dir, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file"):
        aggregation.main(["--base_dir", str(base_dir), "--output_dir", str(tmp_path / "file")])
    path = base_dir / "configs.ssam_r1_00" / "vox" / "downstream-settings.json"
    path.touch()
    with pytest.raises(SystemExit, match=f"{path} is not JSON"):
        aggregation.main(["--base_dir", str(base_dir), "--output_dir", str(tmp_path / "tables")])


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="has no test.predicted-scores.json"):
        aggregation.main(["--base_dir", str(tmp_path), "--output_dir", str(tmp_path / "tables")])
