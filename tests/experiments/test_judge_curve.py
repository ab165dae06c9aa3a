"""Several checkpoints of a run in one command: kept scores, names, and the curve by crops seen."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import soundfile
import torch

from audio_mamba.hear_api.probe.features import find_model
from audio_mamba.hear_api.resolve import resolve
from audio_mamba.hear_api.runtime import build_model, build_runtime
from audio_mamba.training.checkpoint import save_checkpoint
from experiments.judge import __main__ as command
from experiments.judge import build, curve
from experiments.judge.clips import SPLITS, Clip
from experiments.judge.embed import reading_layers
from experiments.judge.tasks import Task

EXPERIMENT = "ssam_tiny_200_16x4"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task of noise: two labels, clips of a quarter second."""
    rng = np.random.default_rng(0)

    def clips(_):
        for split in SPLITS:
            for number in range(6):
                audio = rng.standard_normal(4000).astype(np.float32) * (0.1, 0.01)[number % 2]
                yield Clip("package", split, "ab"[number % 2], f"{split}{number}", audio)

    folder = tmp_path_factory.mktemp("tasks")
    build.write_task(Task("noise", 0.25, SPLITS, "", clips), folder, folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work folder with checkpoints after 10 and 30 steps of 4 crops, and one that does not count steps."""
    folder = tmp_path_factory.mktemp("run")
    config = resolve(EXPERIMENT, "untrained").config
    config.model.model_args.update({"depth": 2, "embed_dim": 48})
    (folder / "config.json").write_text(json.dumps({"name": f"configs.{EXPERIMENT}", **config.to_dict()}))
    model = build_model(config)
    (folder / "checkpoints").mkdir()
    for epoch, steps in ((0, 10), (2, 30), (4, None)):
        state = {key: value + 0.01 * epoch for key, value in model.state_dict().items()}
        counts = {} if steps is None else {"global_step": steps, "samples_per_step": 4}
        save_checkpoint(folder / f"checkpoints/checkpoint-{epoch}.pth", model=state, epoch=epoch, **counts)
    return folder


def copied(run, epoch, path):
    """A checkpoint of the run as another file, in a work folder of its own."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((run / f"checkpoints/checkpoint-{epoch}.pth").read_bytes())
    (path.parent / "config.json").write_bytes((run / "config.json").read_bytes())
    return path


def judge(task, out, *models):
    arguments = [part for model in models for part in ("--model", str(model))]
    command.main([str(task), "--out", str(out), "--device", "cpu", *arguments])


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_the_curve_has_the_checkpoints_by_the_crops_that_they_have_seen(task, run, tmp_path, capsys):
    late, early, unknown = (run / f"checkpoints/checkpoint-{epoch}.pth" for epoch in (2, 0, 4))
    judge(task, tmp_path, late, early, f"{EXPERIMENT}:untrained", unknown, "logmel")
    rows = table(tmp_path / "curve.csv")
    assert [int(row["crops"]) for row in rows] == [0, 40, 120]
    accuracy = {row["model"]: row["valid"] for row in table(tmp_path / "tasks.csv")}
    assert len(accuracy) == 5
    assert all(row["valid"] == row["noise"] == accuracy[row["model"]] for row in rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[lines.index("") :] if line.startswith("| ")][-3:] == [
        "| 0",
        "| 40",
        "| 120",
    ]


def test_without_counted_checkpoints_there_is_no_curve(task, tmp_path):
    judge(task, tmp_path, "logmel", f"{EXPERIMENT}:untrained")
    assert not (tmp_path / "curve.csv").exists()
    assert (
        curve.crops_seen(find_model("logmel")) is None and curve.crops_seen(find_model("ssam_tiny_free_audio")) is None
    )


def test_one_more_checkpoint_costs_that_checkpoint_alone(task, run, tmp_path, monkeypatch):
    early, late = (run / f"checkpoints/checkpoint-{epoch}.pth" for epoch in (0, 2))
    judge(task, tmp_path, "logmel", early)
    first = (tmp_path / "tasks.csv").read_text()
    embedded = []
    real = command.embeddings
    monkeypatch.setattr(command, "embeddings", lambda *args: embedded.append(args[3]) or real(*args))
    judge(task, tmp_path, "logmel", early, late)
    assert len(embedded) == 1 and "checkpoint-2" in embedded[0]
    assert (tmp_path / "tasks.csv").read_text().startswith(first)
    judge(task, tmp_path, "logmel", early)
    assert len(embedded) == 1 and (tmp_path / "tasks.csv").read_text() == first
    for kept in (tmp_path / "kept").glob("*.npz"):
        kept.write_bytes(kept.read_bytes()[:100])
    judge(task, tmp_path, "logmel", early)
    assert len(embedded) == 3 and (tmp_path / "tasks.csv").read_text() == first  # damaged ones are made again


def test_scores_of_other_weights_or_clips_are_not_taken_for_these(task, run, tmp_path, monkeypatch):
    checkpoint = copied(run, 0, tmp_path / "other/checkpoint-0.pth")
    judge(task, tmp_path / "out", checkpoint)
    embedded = []
    real = command.embeddings
    monkeypatch.setattr(command, "embeddings", lambda *args: embedded.append(args[3]) or real(*args))
    copied(run, 2, checkpoint)
    judge(task, tmp_path / "out", checkpoint)
    assert len(embedded) == 1
    clip = next((task / "noise-v1-full").rglob("*.wav"))
    audio, rate = soundfile.read(clip)
    soundfile.write(clip, np.append(audio, 0.0), rate)
    judge(task, tmp_path / "out", checkpoint)
    assert len(embedded) == 2


def test_checkpoints_of_one_name_in_two_runs_are_two_rows(task, run, tmp_path):
    names = [run / "checkpoints/checkpoint-0.pth", copied(run, 2, tmp_path / "other/checkpoint-0.pth")]
    names.append(run / "checkpoints/checkpoint-2.pth")
    judge(task, tmp_path / "out", *names)
    rows = [row["model"] for row in table(tmp_path / "out/tasks.csv")]
    assert rows[:2] == [str(name) for name in names[:2]]
    assert rows[2] not in rows[:2] and "checkpoint-2" in rows[2]


def test_blocks_after_the_last_that_is_asked_for_are_not_computed(task):
    runtime = build_runtime(resolve(EXPERIMENT, "untrained"), device="cpu")
    computed = []
    for number, block in enumerate(runtime.model.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: computed.append(number))
    paths = sorted((task / "noise-v1-full").rglob("*.wav"))[:2]
    command.embeddings(runtime, paths, [command.Features.named("2:mean"), command.Features.named("3:mean_std")])
    assert sorted(set(computed)) == [1, 2, 3]
    computed.clear()
    with torch.no_grad():
        runtime.embed(paths)
    assert sorted(set(computed)) == list(range(1, 13))  # all blocks are there again


def test_layers_of_batches_that_are_encoded_side_by_side_stay_apart():
    runtime = build_runtime(resolve(EXPERIMENT, "untrained"), device="cpu")
    batches = torch.randn(2, 1, 10, 192, generator=torch.Generator().manual_seed(0)).unbind()
    with torch.no_grad():
        alone = torch.stack([runtime.model.forward_blocks(batch) for batch in batches])
    both_are_here = Barrier(2, timeout=30)

    def wait(*_):
        both_are_here.wait()

    def encode(batch):
        with torch.no_grad():
            return runtime.model.forward_blocks(batch)

    with reading_layers(runtime, ["3", "12", "output"]), ThreadPoolExecutor(2) as pool:
        waiting = runtime.model.blocks[-1].register_forward_hook(wait)
        third, twelfth, output = torch.stack(list(pool.map(encode, batches))).split(192, dim=-1)
        waiting.remove()
    assert not torch.allclose(third[0], third[1], atol=0.1)
    torch.testing.assert_close(output, alone)
    torch.testing.assert_close(twelfth, alone)  # the last block of twelve, through the same norm
