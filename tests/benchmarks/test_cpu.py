"""The benchmark of the stacks on a CPU: it runs, compares checkouts in turns, and counts correctly."""

import json

import pytest

from benchmarks import cpu, cpu_against, cpu_parts, measure
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.0)


@pytest.mark.parametrize("stack", ["SSAM-tiny, alternate", "SSAM-tiny, both", "AxLSTM-tiny"])
def test_more_stacks_are_measured(monkeypatch, stack):
    row = cpu.measure(cpu.Row(stack, 1, 5, True))
    assert row.seconds > 0 and cpu.of_ceiling(row, 1e12, 1e12) > 0


def test_two_paths_do_the_work_of_one_and_of_the_layers_of_a_second():
    """Twice the exponentials. Products per token: 192 x 1152 + 576 x 192 once, 576 x 60 + 12 x 576 for each path."""
    one, two = (cpu.work(cpu.Row(stack, 1, 1, False)) for stack in ("SSAM-tiny", "SSAM-tiny, both"))
    assert two[1] == 2 * one[1] and two[0] - one[0] == 2 * 12 * (576 * 60 + 12 * 576)
    assert one[0] == 2 * 12 * (192 * 1152 + 576 * 192 + 576 * 60 + 12 * 576)


@pytest.mark.slow
def test_two_checkouts_are_compared(tmp_path, capsys, monkeypatch):
    """Here with itself, so the ratio may be anything."""
    monkeypatch.setattr(cpu_against, "CASES", ((1, False), (1, True)))
    monkeypatch.setattr(cpu, "OURS", ["SSAM-tiny", "SSAST-tiny"])
    cpu.main(["--against", str(ROOT), "--rounds", "1", "--output", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 4 and all(len(row["old"]) == len(row["new"]) == 1 and row["new"][0] > 0 for row in rows)
    assert capsys.readouterr().out.count("| SSAM-tiny | 1 | forward") == 2


def test_stacks_are_compared_with_the_first_in_turns(monkeypatch, tmp_path, capsys):
    turns = []

    def fake(stack, batch, tokens, backward):
        turns.append(stack)
        return {"SSAM-tiny": 0.5, "SSAM-tiny, both": 0.75, "AxLSTM-tiny": 1.0}[stack], 100.0

    monkeypatch.setattr(cpu_against, "measure", fake)
    stacks, output = ["SSAM-tiny", "SSAM-tiny, both", "AxLSTM-tiny"], tmp_path / "rows.json"
    cpu.main(["--rounds", "2", "--output", str(output), "--stacks", *stacks])
    assert turns == (["SSAM-tiny", "SSAM-tiny, both"] * 2 + ["SSAM-tiny", "AxLSTM-tiny"] * 2) * 3
    text = capsys.readouterr().out
    assert "| SSAM-tiny, both | 8 | forward + backward | 750.0 | 500.0 | 1.50 | 1.50 to 1.50 | 100 | 100 |" in text
    assert len(json.loads(output.read_text())) == 6


@pytest.mark.parametrize(
    "wrong", [["--against", "/nowhere"], ["--rounds", "0"], ["--stacks", "SSAM-tiny"], ["--stacks", "a", "b"]]
)
def test_wrong_comparisons_are_refused(capsys, wrong):
    with pytest.raises(SystemExit):
        cpu.parse(wrong)
    assert wrong[0] in capsys.readouterr().err


def test_old_and_new_code_run_in_turns(monkeypatch, tmp_path):
    turns = []

    def fake(stack, batch, tokens, backward, root=cpu_against.ROOT):
        turns.append("old" if root == tmp_path else "new")
        if root == tmp_path and stack == "AxLSTM-tiny":
            return None  # this code is older than AxLSTM
        return (0.6 if root == tmp_path else 0.2 + (stack == "SSAST-tiny") * 0.2), 100.0

    monkeypatch.setattr(cpu_against, "measure", fake)
    found = list(cpu_against.compare(cpu.OURS, 251, 3, tmp_path))
    assert turns == ["old", "new"] * 3 * 9
    text = cpu_against.table(found)
    assert "| SSAM-tiny | 8 | forward + backward | 600.0 | 200.0 | 3.00 | 3.00 to 3.00 | 100 | 100 |" in text
    assert "| AxLSTM-tiny | 1 | forward |  | 200.0 |  |  |  | 100 |" in text
    assert "SSAM-tiny takes 0.50 of the time of the new SSAST-tiny, 0.33 of the old (forward, batch 1)" in text


def test_a_failure_shows_what_the_process_said(tmp_path):
    with pytest.raises(RuntimeError, match="No module named 'benchmarks'"):
        cpu_against.measure("SSAM-tiny", 1, 251, False, tmp_path)


def test_parts_are_measured_and_compared_with_float64(monkeypatch):
    monkeypatch.setattr(cpu_parts, "BATCH", 1)
    names = {"products", "scan", "convolution", "add + norm"}
    parts = cpu_parts.measure()
    assert {(part.name, part.backward) for part in parts} == {(name, way) for name in names for way in (False, True)}
    assert all(part.seconds > 0 and part.least > 0 for part in parts)
    assert {part.bound for part in parts if part.name == "products"} == {"products"}
    for error in cpu_parts.errors():
        assert 0 <= error.output <= 2 * error.plain_output + 1e-7 and error.output < 1e-6
        assert 0 < error.gradient < 1e-5 and error.plain_gradient < 1e-5
    assert cpu_parts.table(parts).count("%") == 8
