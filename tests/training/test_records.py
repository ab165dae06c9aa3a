import json
import math

import pytest

from audio_mamba.training.records import STEP_COLUMNS, StepTable, read_log, read_steps, write_log


def test_a_missing_file_reads_as_empty(tmp_path):
    assert read_log(tmp_path / "log.txt") == [] and read_steps(tmp_path / "steps.csv") == []


def test_nan_and_inf_losses_are_null_in_strict_json(tmp_path):
    write_log(tmp_path / "log.txt", [{"epoch": 0, "train_loss": math.nan}, {"epoch": 1, "train_loss": 0.1}])
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["train_loss"] for line in lines] == [None, 0.1]
    assert read_log(tmp_path / "log.txt")[0] == {"epoch": 0, "train_loss": None}


def test_an_incomplete_last_line_of_a_log_is_dropped(tmp_path):
    (tmp_path / "log.txt").write_text('{"epoch": 0, "train_loss": 1.0}\n{"epoch": 1, "tra')
    assert [line["epoch"] for line in read_log(tmp_path / "log.txt")] == [0]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "",
        "[1]",
        "[" * 100_000,
        "\0\0\0",
        '{"train_loss": 1.0}',
        '{"epoch": true}',
        '{"epoch": 1, "train_loss": "low"}',
    ],
    ids=lambda line: repr(line[:20]),
)
def test_a_line_that_is_not_an_epoch_is_reported_and_left_out(tmp_path, line, caplog):
    (tmp_path / "log.txt").write_text('{"epoch": 0}\n' + line + '\n{"epoch": 1}\n')
    assert read_log(tmp_path / "log.txt") == [{"epoch": 0}, {"epoch": 1}]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{tmp_path}/log.txt, line 2: ") and "1 such line(s) are left out" in message


def test_a_row_is_flushed_at_once_and_reads_back_exactly(tmp_path):
    table = StepTable(tmp_path / "steps.csv", last_step=0)
    table.add({"step": 2, "epoch": 0, "train_loss": 1 / 3, "unknown": 5.0})
    header, row = (tmp_path / "steps.csv").read_text().splitlines()
    assert header == ",".join(STEP_COLUMNS) and row.startswith("2,0,0.333") and row.endswith(",,,,")
    (values,) = read_steps(tmp_path / "steps.csv")
    assert values["train_loss"] == 1 / 3 and math.isnan(values["grad_norm"])
    assert tuple(values) == STEP_COLUMNS


def test_resuming_drops_later_rows_and_keeps_the_bytes_of_the_others(tmp_path):
    table = StepTable(tmp_path / "steps.csv", last_step=0)
    for step in (2, 4, 6):
        table.add({"step": step, "epoch": 0, "train_loss": 0.1 * step})
    whole = (tmp_path / "steps.csv").read_text()
    table = StepTable(tmp_path / "steps.csv", last_step=4)
    assert (tmp_path / "steps.csv").read_text() == whole[: whole.index("6,0,")]
    table.add({"step": 6, "epoch": 0, "train_loss": 0.1 * 6})
    assert (tmp_path / "steps.csv").read_text() == whole


def test_rows_of_earlier_epochs_are_kept_whatever_their_step(tmp_path):
    """Checkpoints of earlier versions do not say how many steps the run had; a product may be too small."""
    table = StepTable(tmp_path / "steps.csv", last_step=0)
    for step, epoch in ((4, 0), (8, 1), (10, 2), (12, 2)):
        table.add({"step": step, "epoch": epoch, "train_loss": 0.5})
    StepTable(tmp_path / "steps.csv", last_step=5, first_epoch=2)
    assert [row["step"] for row in read_steps(tmp_path / "steps.csv")] == [4, 8]


@pytest.mark.parametrize(
    "tail",
    ["4,0,0.1", "4,0,0.15,,,,,,,,,", "\0\0\0\n", "4,0\n", ",".join(["x"] * 12) + "\n", ",0,0.1" + "," * 9 + "\n"],
)
def test_an_incomplete_row_is_dropped(tmp_path, tail):
    path = tmp_path / "steps.csv"
    StepTable(path, last_step=0).add({"step": 2, "epoch": 0, "train_loss": 0.5})
    whole = path.read_text()
    path.write_text(whole + tail)
    assert [row["step"] for row in read_steps(path)] == [2]
    StepTable(path, last_step=10)
    assert path.read_text() == whole


def test_a_table_with_fewer_columns_continues_with_all_columns(tmp_path):
    (tmp_path / "steps.csv").write_text("step,train_loss\n2,0.5\n")
    StepTable(tmp_path / "steps.csv", last_step=2).add({"step": 4, "train_loss": 0.25})
    assert [(row["step"], row["train_loss"]) for row in read_steps(tmp_path / "steps.csv")] == [(2, 0.5), (4, 0.25)]


def test_more_columns_follow_the_others_and_are_empty_in_earlier_rows(tmp_path):
    path = tmp_path / "steps.csv"
    table = StepTable(path, last_step=0)
    table.add({"step": 2, "epoch": 0, "train_loss": 0.5})
    before = path.read_text().splitlines()
    table.add({"step": 4, "epoch": 0, "train_loss": 0.25, "accuracy": 0.75}, more_columns=["accuracy"])
    table.add({"step": 6, "epoch": 0, "train_loss": 0.125})
    assert path.read_text().splitlines()[:2] == [before[0] + ",accuracy", before[1] + ","]
    first, second, third = read_steps(path)
    assert tuple(first) == (*STEP_COLUMNS, "accuracy")
    assert math.isnan(first["accuracy"]) and second["accuracy"] == 0.75 and math.isnan(third["accuracy"])
    StepTable(path, last_step=4).add({"step": 6, "accuracy": 0.5, "spread": 2.0}, more_columns=["accuracy", "spread"])
    assert [(row["step"], row["spread"]) for row in read_steps(path)][2:] == [(6, 2.0)]
    assert [row["accuracy"] for row in read_steps(path)][1:] == [0.75, 0.5]
