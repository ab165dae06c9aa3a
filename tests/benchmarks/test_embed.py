"""The benchmark of embeddings runs, and the procedures that it compares give the same numbers."""

import json

import pytest
import torch

from audio_mamba.hear_api import RuntimeSSAST
from audio_mamba.models.precision import usable_precision
from benchmarks import embed, embed_against
from tests.hear_api.small_config import get_config


def test_it_writes_a_rate_for_every_procedure(tmp_path, capsys):
    embed.main(
        [
            "--configs",
            "tests.hear_api.small_config",
            "--clips",
            "2.0 s",
            "mixed",
            "--count",
            "3",
            "--repeats",
            "1",
            "--files",
            "4",
            "--device",
            "cpu",
            "--out",
            str(tmp_path / "rates.json"),
        ]
    )
    written = json.loads((tmp_path / "rates.json").read_text())
    results, command = written["results"], written["command"]["tests.hear_api.small_config"]
    assert command["files"] == 4 and command["ratio"] == command["command_seconds"] / command["model_seconds"] > 1
    assert [result["clips"] for result in results] == ["2.0 s", "mixed"]
    names = [
        "published, batch 1",
        "published, batch 16",
        "fast, whole segments",
        "fast, cut, published",
        "fast, cut, bands",
    ]
    for result in results:
        assert list(result["clips_per_second"]) == names and min(result["clips_per_second"].values()) > 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 * len(names) + 1


def test_the_procedures_give_the_same_embeddings():
    runtime, clips = RuntimeSSAST(get_config(), None), embed.make_clips([0.5, 2.0, 5.5], 3)
    for layout in ("published", "bands"):
        with torch.no_grad():
            expected = embed.published(runtime, clips, 16, layout)
        torch.testing.assert_close(embed.fast(runtime, clips, layout), expected, rtol=0, atol=5e-5)


@pytest.mark.usefixtures("slow_precisions_give_way")
@pytest.mark.slow
def test_against_a_checkout_prints_both_sides(tmp_path, capsys):
    has_bfloat16 = usable_precision(torch.device("cpu"), "bfloat16") == "bfloat16"
    embed.main(
        ["--configs", "tests.hear_api.small_config", "--clips", "2.0 s", "--count", "4", "--repeats", "1"]
        + ["--against", str(embed.ROOT), "--rounds", "1", "--out", str(tmp_path / "rates.json")]
    )
    rows = json.loads((tmp_path / "rates.json").read_text())
    assert [row["precision"] for row in rows] == ["float32", "bfloat16"][: 1 + has_bfloat16]
    assert all(min(row["old"] + row["new"]) > 0 for row in rows)
    assert 1 - rows[0]["cosine"] == pytest.approx(0, abs=1e-12)
    assert ("times as fast as float32" in capsys.readouterr().out) == has_bfloat16
    if has_bfloat16:
        exact, low = (RuntimeSSAST(get_config(), None, name) for name in ("float32", "bfloat16"))
        clips = embed.make_clips([2.0], 4)
        pair = [runtime.embed(clips, output="torch").double() for runtime in (exact, low)]
        error = float(1 - torch.cosine_similarity(*pair).min())
        assert error > 1e-9 and 1 - rows[1]["cosine"] == pytest.approx(error, rel=0.05)


def test_the_lowest_cosine_counts():
    assert embed_against.lowest_cosine([[1, 0], [1, 1]], [[2, 0], [3, 0]]) == pytest.approx(0.5**0.5)


def test_the_median_of_the_ratios_counts():
    one = embed_against.Comparison("ssam", "2.0 s", "float32", [10.0, 20.0, 10.0], [15.0, 60.0, 16.0], 1.0)
    text = embed_against.table([one])
    assert "| 1.60 | 1.50 to 3.00 |" in text and "| 10.0 | 16.0 |" in text


def test_a_failing_side_is_reported_with_its_output(tmp_path):
    with pytest.raises(RuntimeError, match="No module named 'benchmarks'"):
        embed_against.measure("ssam_tiny_200_16x4", "2.0 s", "float32", 1, 1, tmp_path)


@pytest.mark.parametrize("wrong", [["--against", "/nowhere"], ["--rounds", "0"]])
def test_a_wrong_option_of_the_comparison_is_named(wrong, capsys):
    with pytest.raises(SystemExit):
        embed.main(wrong)
    assert wrong[0] in capsys.readouterr().err
