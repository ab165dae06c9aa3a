"""Paired accuracies of the fine-tuning experiment, from files as finetune.py and the probe write them."""

import csv
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from experiments.finetuning import paired
from tests.conftest import ROOT

CLIPS = 40
LABELS = ("a", "b")
NAMES = [f"clip.of.a.very.long.name.that.is.cut.in.archives_{number:02d}" for number in range(CLIPS)]
LABEL_OF = {name: LABELS[number % 2] for number, name in enumerate(NAMES)}


def write_csv(path, head, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def write_run(folder, wrong, folds=()):
    """A finished run that labels all clips but `wrong` as they are labelled, in parts of `folds`, or in one."""
    for number, fold in enumerate(folds or [""]):
        rows = []
        for name in NAMES[number :: max(1, len(folds))]:
            likely = (LABELS.index(LABEL_OF[name]) + (name in wrong)) % 2
            key = f"{NAMES.index(name):08d}_00000_{name.replace('.', '_')[:40]}"
            rows.append([key, LABEL_OF[name], *(0.9 if i == likely else 0.1 for i in range(2))])
        where = folder / f"fold-{fold}" if fold else folder
        write_csv(where / "predictions.csv", ["clip", "labels", *LABELS], rows)
    results = {"folds": [{"fold": fold} for fold in folds]} if folds else {"test": {}}
    (folder / "results.json").write_text(json.dumps(results))


def write_probe(folder, wrong):
    rows = [
        [
            f"16000/x/{name}.wav",
            "x",
            LABEL_OF[name],
            "b",
            {"a": "b", "b": "a"}[LABEL_OF[name]] if name in wrong else LABEL_OF[name],
        ]
        for name in NAMES
    ]
    rows.append(["16000/train/other.wav", "train", "a", "", ""])  # not tested
    write_csv(folder / "predictions.csv", ["clip", "split", "label", "m, k-NN", "m, logistic regression"], rows)


@pytest.fixture
def out(tmp_path):
    task = tmp_path / "task-v1-full"
    write_run(task / "pretrained-0", NAMES[:4], folds=("f0", "f1"))
    write_run(task / "pretrained-1", NAMES[:8])
    write_run(task / "frozen-0", NAMES[:10])
    write_run(task / "random-0", NAMES[:20])
    write_probe(task / "probe", NAMES[:10])
    names = {"pretrained-0": 120, "pretrained-1": 240, "frozen-0": 30, "random-0": 60, "probe": 30}
    lines = [f"task-v1-full,{name},{seconds}" for name, seconds in names.items()]
    (tmp_path / "seconds.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_clips_are_matched_and_seeds_averaged(out):
    shares = paired.shares(out / "task-v1-full")
    assert {name: float(values.sum()) for name, values in shares.items()} == {
        "fine-tuned": 34,  # 36 and 32 of the two seeds
        "frozen": 30,
        "from scratch": 20,
        "probe": 30,
    }
    np.testing.assert_array_equal(shares["fine-tuned"][:10], [0] * 4 + [0.5] * 4 + [1] * 2)


def test_the_table_has_scores_times_and_paired_differences(out):
    head, _, row = paired.table(out).splitlines()
    assert head == "| task | fine-tuned | frozen | from scratch | probe | to frozen | to from scratch | to the probe |"
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "task"
    for cell, score, minutes in zip(cells[1:5], (85, 75, 50, 75), (3, 0, 1, 0)):
        assert cell.startswith(f"{score}.0 (") and cell.endswith(f"), {minutes} min")
    # Of the difference to the probe, 2 clips are 1, 4 clips 1/2 and the others 0: standard error 0.043.
    assert cells[5] == cells[7]
    difference, interval = cells[5].split(" ", 1)
    low, high = (float(number) for number in interval.strip("()").split(" to "))
    assert difference == "+10.0"
    deviation = np.std([1] * 2 + [0.5] * 4 + [0] * 34) / np.sqrt(CLIPS)
    assert low == pytest.approx(10 - 196 * deviation, abs=2)
    assert high == pytest.approx(10 + 196 * deviation, abs=2)


def test_other_test_clips_are_refused(out):
    write_run(out / "task-v1-full" / "random-0", [], folds=("f0", "f1"))
    (out / "task-v1-full" / "random-0" / "results.json").write_text(json.dumps({"folds": [{"fold": "f0"}]}))
    with pytest.raises(SystemExit, match="from scratch has no runs, or they tested other clips than the probe"):
        paired.main([str(out)])


def test_an_unfinished_run_is_named(out):
    (out / "task-v1-full" / "pretrained-1" / "results.json").unlink()
    with pytest.raises(SystemExit, match="pretrained-1 is not finished"):
        paired.main([str(out)])


STAND_IN = """#!/bin/bash
# Finishes what it is asked to run, but if $STOP exists, a training takes a while and ends as one that is stopped.
for word; do
    if [ "$previous" = --workdir ] || [ "$previous" = --out ]; then folder=$word; fi
    previous=$word
done
echo "$1 $folder" >> "$CALLS"
if [ "$1" = finetune.py ] && [ -e "$STOP" ]; then
    for _ in {1..300000}; do :; done
    exit 0
fi
if [ -n "$folder" ]; then mkdir -p "$folder" && touch "$folder/results.json"; fi
"""


def test_a_training_that_was_stopped_ends_the_script_and_counts_once(tmp_path):
    script = tmp_path / "project" / "experiments" / "finetuning" / "run.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "experiments" / "finetuning" / "run.sh", script)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(STAND_IN)
    (tmp_path / "bin" / "python").chmod(0o755)
    (tmp_path / "tasks").mkdir()
    calls, stop, out = tmp_path / "calls", tmp_path / "stop", tmp_path / "out"

    def run():
        calls.write_text("")
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = {"PATH": path, "CALLS": str(calls), "STOP": str(stop)}
        done = subprocess.run([script, tmp_path / "tasks", out], env=env, text=True, capture_output=True, timeout=60)
        return done, [line for line in calls.read_text().splitlines() if line.startswith("finetune.py")]

    stop.touch()
    done, trainings = run()
    assert done.returncode == 1 and len(trainings) == 1
    assert done.stderr == (
        f"run.sh: guitar_chords-v1-full/frozen-0 did not finish, see {out}/guitar_chords-v1-full/frozen-0.log; "
        "the same command continues\n"
    )
    stop.unlink()
    done, trainings = run()
    assert done.returncode == 0 and len(trainings) == 3 * 2 + 3 + 1 + 3
    with open(out / "seconds.csv", newline="") as file:
        seconds = {(task, name): float(took) for task, name, took in csv.reader(file)}
    assert len(seconds) == len((out / "seconds.csv").read_text().splitlines()) == 3 + len(trainings)
    # The part before the stop is in it, which is most of what all of them took.
    assert seconds["guitar_chords-v1-full", "frozen-0"] > 3 * seconds["spoken_letters-v1-full", "frozen-0"]
