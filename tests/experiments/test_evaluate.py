"""The tasks and seeds that evaluate.sh runs, with stand-ins for its commands."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

STAND_IN = """#!/bin/sh
settings="NAME=$NAME LAYOUT=$LAYOUT POOLING=$POOLING OVERLAP=$OVERLAP TASKS=${TASKS:-all} SEEDS=$SEEDS"
echo "$(basename "$0") $settings $*" >> "$CALLS"
"""
SCENES, EVENTS = ["drums", "letters"], ["notes"]


@pytest.fixture
def evaluate(tmp_path):
    """A function that runs the script on the named tasks and returns its commands by program."""
    script = tmp_path / "experiments" / "free_audio" / "evaluate.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "experiments" / "free_audio" / "evaluate.sh", script)
    (tmp_path / "bin").mkdir()
    for program in ("extract_features.sh", "downstream_experiments.sh", "bin/python"):
        (tmp_path / program).write_text(STAND_IN)
        (tmp_path / program).chmod(0o755)

    def run(scenes, events):
        for kind, names in (("scene", scenes), ("event", events)):
            for name in names:
                (tmp_path / "tasks" / name).mkdir(parents=True)
                (tmp_path / "tasks" / name / "task_metadata.json").write_text(f'{{"embedding_type": "{kind}"}}')
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = {"PATH": path, "CALLS": str(tmp_path / "calls")}
        subprocess.run([script, tmp_path / "tasks"], env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)
        calls = (tmp_path / "calls").read_text().splitlines()
        return {
            program: [call.removeprefix(f"{program} ") for call in calls if call.startswith(program)]
            for program in ("extract_features.sh", "downstream_experiments.sh")
        }

    return run


def test_scenes_get_ten_seeds_and_events_three_in_time_order(evaluate):
    calls = evaluate(SCENES, EVENTS)
    extracted, trained = calls.values()
    # log-mels; two models, trained and random, in two layouts and with deviation; overlap; openSMILE
    assert len(extracted) == 1 + 8 + 4 + 1 + 1
    assert sum("TASKS=drums letters notes " in call for call in extracted) == 4
    assert sum("TASKS=drums letters  " in call for call in extracted) == 8
    assert sum("LAYOUT=bands POOLING=mean_std OVERLAP= " in call for call in extracted) == 4
    assert sum("POOLING= OVERLAP=0.5 TASKS=notes " in call for call in extracted) == 1
    assert sum("NAME=eGeMAPSv02 " in call and "TASKS=drums letters SEEDS" in call for call in extracted) == 1
    assert sum("TASKS=drums letters SEEDS=10 " in call for call in trained) == 14
    assert sum("TASKS=notes SEEDS=3 " in call for call in trained) == len(trained) - 14 == 6


def test_without_scenes_only_events_are_evaluated(evaluate):
    extracted, trained = evaluate([], EVENTS).values()
    assert extracted[0].endswith("benchmarks.log_mel_baseline") and len(extracted) == 6
    assert all("LAYOUT=bands POOLING= OVERLAP= TASKS= notes " in call for call in extracted[1:5])
    assert "OVERLAP=0.5 TASKS=notes " in extracted[5]
    assert len(trained) == 6 and all("TASKS=notes SEEDS=3 " in call for call in trained)


def test_without_events_only_scenes_are_evaluated(evaluate):
    extracted, trained = evaluate(SCENES, []).values()
    assert len(extracted) == len(trained) == 14
    assert all("TASKS=drums letters SEEDS=10 " in call for call in trained)
