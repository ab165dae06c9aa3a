"""The benchmark of embeddings runs, and the procedures that it compares give the same numbers."""

import json

import torch

from audio_mamba.hear_api import RuntimeSSAST
from benchmarks import embed
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
