"""Deviations over clips of runs, as a table and a figure."""

import pytest

from experiments import collapse


def write_run(folder, columns):
    folder.mkdir(parents=True)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values()))]
    (folder / "steps.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_the_lowest_and_the_last_values_are_relative_to_the_first(tmp_path, capsys):
    count = 300
    losses = [4.0] + [1.0] * (count - 1)
    spread = [2.0, 0.5] + [3.0] * (count - 2)
    runs = [
        write_run(tmp_path / "a", {"step": range(count), "train_loss": losses, "token_std": spread}),
        write_run(tmp_path / "b", {"step": range(count), "train_loss": losses, "target_std": [5.0] * count}),
    ]
    collapse.main([*runs, "--out", str(tmp_path / "figure.png")])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| a | train_loss | 4 | 0.25 | 0.25 |",
        "| a | token_std | 2 | 0.25 | 1.50 |",
        "| b | train_loss | 4 | 0.25 | 0.25 |",
        "| b | target_std | 5 | 1.00 | 1.00 |",
    ]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_steps_that_were_skipped_are_left_out(tmp_path, capsys):
    losses, spread = ["", 4.0, "", 2.0, 1.0], ["", 2.0, "", 1.0, 3.0]  # steps.csv has empty cells or nan for them
    losses[2] = spread[2] = "nan"
    run = write_run(tmp_path / "a", {"step": range(5), "train_loss": losses, "token_std": spread})
    collapse.main([run, "--out", str(tmp_path / "figure.png")])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| a | train_loss | 4 | 0.25 | 0.58 |",  # the last ones are the mean of 4, 2 and 1
        "| a | token_std | 2 | 0.50 | 1.00 |",
    ]


def test_runs_of_one_name_have_a_row_each(tmp_path, capsys):
    runs = [
        write_run(tmp_path / seed / "run", {"step": range(2), "train_loss": [loss, loss]})
        for seed, loss in (("seed_0", 1.0), ("seed_1", 2.0))
    ]
    collapse.main([*runs, "--out", str(tmp_path / "figure.png")])
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"| {runs[0]} | train_loss | 1 | 1.00 | 1.00 |",
        f"| {runs[1]} | train_loss | 2 | 1.00 | 1.00 |",
    ]


def test_the_name_of_a_run_is_no_formula(tmp_path):
    run = write_run(tmp_path / "$a_^$", {"step": range(2), "train_loss": [1.0, 1.0], "token_std": [1.0, 1.0]})
    collapse.main([run, "--out", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_steps_is_named(tmp_path):
    with pytest.raises(SystemExit, match=f"collapse: {tmp_path} has no steps.csv"):
        collapse.main([str(tmp_path)])
