"""The benchmark of the stacks on a CPU: it runs, compares checkouts in turns, and counts correctly."""

import json

import pytest

from benchmarks import cpu, cpu_against, cpu_parts, measure
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.0)


@pytest.mark.slow
def test_two_checkouts_are_compared(tmp_path, capsys, monkeypatch):
    """Here with itself, so the ratio may be anything."""
    monkeypatch.setattr(cpu_against, "CASES", ((1, False), (1, True)))
    monkeypatch.setattr(cpu, "OURS", ["SSAM-tiny", "SSAST-tiny"])
    cpu.main(["--against", str(ROOT), "--rounds", "1", "--output", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 4 and all(len(row["old"]) == len(row["new"]) == 1 and row["new"][0] > 0 for row in rows)
    assert capsys.readouterr().out.count("| SSAM-tiny | 1 | forward") == 2


@pytest.mark.parametrize("wrong", [["--against", "/nowhere"], ["--rounds", "0"]])
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
