"""Deviations over clips of runs, as a table and a figure."""

import pytest

from experiments import collapse


def write_run(folder, columns):
    folder.mkdir()
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


def test_a_folder_without_steps_is_named(tmp_path):
    with pytest.raises(SystemExit, match=f"collapse: {tmp_path} has no steps.csv"):
        collapse.main([str(tmp_path)])
