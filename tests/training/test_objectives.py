"""Training with the objectives: exact resume, several processes, what a run writes, refusals."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from audio_mamba import models, train
from audio_mamba.cli import train_config, train_data, train_resume
from audio_mamba.data.loader import make_validation_loader
from audio_mamba.models import objectives
from audio_mamba.models.objectives.teacher import Teacher
from audio_mamba.training import checkpoint, resume
from audio_mamba.training.records import STEP_COLUMNS, read_log, read_steps
from tests.conftest import ROOT
from tests.training.runs import arguments, finish, kill, losses, start

STEPS = 4  # of an epoch: 16 samples in batches of 4
TEACHER = {"opt__objective": "teacher", "opt__objective_args__last_blocks": 1}
BOTH = {**TEACHER, "opt__objective_args__reconstruction_weight": 1.0}
JOINT = {"opt__objective": "joint"}
NUMBERS = {
    "teacher": ["target_std", "token_std"],
    "both": ["target_std", "token_std", "teacher_loss", "reconstruction_loss"],
    "joint": ["discriminative_loss", "generative_loss", "accuracy", "token_std"],
}
CHOICES = pytest.mark.parametrize("name", ["teacher", "both", "joint"])
needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="compares CPU processes bit for bit")


def choice(name):
    return {"teacher": TEACHER, "both": BOTH, "joint": JOINT}[name]


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch):
    """Drawing would take most of the time of these runs."""
    monkeypatch.setattr("audio_mamba.training.figures._save", lambda figure, path: None)


def run(workdir, data, *options, **overrides):
    train.main(
        arguments(workdir, data, "--device", "cpu", *options, **({"num_epochs": 2, "batch_size": 4} | overrides))
    )
    return losses(workdir)


def last_state(workdir):
    return checkpoint.load_checkpoint(resume.checkpoints(workdir)[0][1])


def assert_same_state(ended, expected):
    assert ended.keys() == expected.keys()
    states = [
        train_resume.tensors_of({key: state[key] for key in ("model", "objective")}) for state in (ended, expected)
    ]
    assert states[0].keys() == states[1].keys()
    for key, value in states[1].items():
        assert torch.equal(states[0][key], value), key
    for index, moments in expected["optimizer"]["state"].items():
        assert torch.equal(ended["optimizer"]["state"][index]["exp_avg"], moments["exp_avg"])


@CHOICES
@pytest.mark.parametrize("stop", [2, 4, 7])
def test_stopped_after_any_step_and_resumed_it_ends_with_the_same_bits(
    tmp_path, synthetic_archive, monkeypatch, name, stop
):
    options = ["--val-data", str(synthetic_archive), "--print_freq", "3"]
    run(tmp_path / "whole", synthetic_archive, *options, **choice(name))
    plain, calls = train.loss_of, []

    def loss_of(run, model, batch):
        calls.append(model.training)
        if sum(calls) == stop and model.training:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(run, model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(train, "loss_of", loss_of)
        run(tmp_path / "cut", synthetic_archive, *options, **choice(name))
    epoch = (stop - 1) // STEPS
    assert resume.checkpoints(tmp_path / "cut")[0][0] == (epoch, stop - epoch * STEPS)
    run(tmp_path / "cut", synthetic_archive, *options, **choice(name))
    assert_same_state(last_state(tmp_path / "cut"), last_state(tmp_path / "whole"))
    for name_of_log in ("train_loss", "val_loss", *(f"train_{number}" for number in NUMBERS[name])):
        assert [line[name_of_log] for line in read_log(tmp_path / "cut" / "log.txt")] == [
            line[name_of_log] for line in read_log(tmp_path / "whole" / "log.txt")
        ]
    for column in ("step", "train_loss", "grad_norm", *NUMBERS[name]):
        assert [row[column] for row in read_steps(tmp_path / "cut" / "steps.csv")] == [
            row[column] for row in read_steps(tmp_path / "whole" / "steps.csv")
        ]


def with_teacher(workdir, data, batch_size):
    return arguments(workdir, data, num_epochs=4, batch_size=batch_size, **BOTH)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, larger_archive):
    """The folder of a run with a teacher in two processes with 4 samples each."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    process = start(2, with_teacher(workdir, larger_archive, 4))
    output = finish(process)
    assert process.returncode == 0, output
    return workdir


@needs_cpu
class TestSeveralProcesses:
    """With a teacher, which no wrapper keeps equal in all processes."""

    @pytest.mark.slow
    def test_killed_and_restarted_it_ends_with_the_same_bits(self, undisturbed, tmp_path, larger_archive):
        process = start(2, with_teacher(tmp_path, larger_archive, 4))
        while not resume.checkpoints(tmp_path) and process.poll() is None:
            time.sleep(0.005)
        kill(process)
        finish(process)
        assert 1 <= len(losses(tmp_path)) < 4, "the kill came too late to mean anything"
        process = start(2, with_teacher(tmp_path, larger_archive, 4))
        output = finish(process)
        assert process.returncode == 0 and "resuming from" in output, output
        assert losses(tmp_path) == losses(undisturbed)
        assert_same_state(last_state(tmp_path), last_state(undisturbed))

    @pytest.mark.slow
    def test_one_process_with_twice_the_batch_does_the_same(self, undisturbed, tmp_path, larger_archive):
        process = start(1, with_teacher(tmp_path, larger_archive, 8))
        output = finish(process)
        assert process.returncode == 0, output
        for column in ("train_loss", "teacher_loss", "reconstruction_loss"):
            ours, theirs = (
                [row[column] for row in read_steps(workdir / "steps.csv")] for workdir in (tmp_path, undisturbed)
            )
            assert len(ours) == 12 and ours == pytest.approx(theirs, abs=1e-5)

    @pytest.mark.slow
    def test_all_processes_hold_the_same_teacher(self, tmp_path, larger_archive):
        script = tmp_path / "script.py"
        script.write_text(
            "import sys\n"
            "import torch\n"
            "from audio_mamba import train\n"
            "from audio_mamba.training import distributed\n"
            "plain = train.checkpoint_state\n"
            "def checkpoint_state(run, monitor):\n"
            "    one, other = distributed.gather(run.objective.teacher.state_dict())\n"
            "    assert all(torch.equal(one[key], other[key]) for key in one)\n"
            "    assert not torch.equal(one['cls_token'], run.model.cls_token)\n"
            "    print('equal teachers')\n"
            "    return plain(run, monitor)\n"
            "train.checkpoint_state = checkpoint_state\n"
            "train.main(sys.argv[1:])\n"
        )
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node=2", str(script)]
        done = subprocess.run(
            [
                sys.executable,
                *launcher,
                *arguments(tmp_path / "run", larger_archive, num_epochs=1, batch_size=4, **BOTH),
            ],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("equal teachers") == 2


def test_the_published_objective_adds_nothing_to_checkpoints_and_tables(tmp_path, synthetic_archive):
    run(tmp_path, synthetic_archive, num_epochs=1)
    assert last_state(tmp_path).keys() == {
        *("model", "optimizer", "scaler", "processes", "samples_per_step", "global_step", "skipped_steps"),
        *("data", "linear_library", "args", "epoch"),
    }
    (line,) = read_log(tmp_path / "log.txt")
    assert line.keys() == {"epoch", "train_loss", "train_lr", "seconds"}
    assert tuple(read_steps(tmp_path / "steps.csv")[0]) == STEP_COLUMNS


@CHOICES
def test_the_encoder_has_its_published_keys_and_the_objective_its_own_entry(tmp_path, synthetic_archive, name):
    run(tmp_path, synthetic_archive, "--tensorboard", num_epochs=1, **choice(name))
    state = last_state(tmp_path)
    encoder = models.ssast_tiny(
        depth=1, embed_dim=48, img_size=(200, 80), patch_size=(4, 16), frequency_first=False, mask_ratio=0.5
    )
    encoder.load_state_dict(state["model"])
    assert state["objective"].keys() == ({"module"} if name == "joint" else {"module", "teacher"})
    assert state["objective"]["module"].keys() == {
        f"head.{layer}.{key}" for layer in (0, 2) for key in ("weight", "bias")
    }
    if name != "joint":
        encoder.load_state_dict(state["objective"]["teacher"])
    rows = read_steps(tmp_path / "steps.csv")
    assert tuple(rows[0]) == (*STEP_COLUMNS, *sorted(NUMBERS[name]))
    assert all(math.isfinite(row[number]) for row in rows for number in NUMBERS[name])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {*NUMBERS[name]} <= {*events.Tags()["scalars"]}


@pytest.mark.parametrize("name, drawn", [("teacher", False), ("both", True), ("joint", True)])
def test_only_objectives_that_predict_patches_have_pictures(tmp_path, synthetic_archive, monkeypatch, name, drawn):
    titles = []
    monkeypatch.setattr(
        "audio_mamba.training.figures.save_reconstructions", lambda path, clips, title: titles.append(title)
    )
    monkeypatch.setattr(train.Monitor, "image", lambda *_: None)
    run(tmp_path, synthetic_archive, num_epochs=1, **choice(name))
    assert bool(titles) == drawn


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_after_step_is_called_once_per_step_of_the_optimizer(tmp_path, synthetic_archive, monkeypatch, accumulation):
    shares = []
    monkeypatch.setattr(Teacher, "after_step", lambda self, progress: shares.append(progress))
    run(tmp_path, synthetic_archive, opt__grad_accum_steps=accumulation, **TEACHER)
    windows = [step / STEPS for step in range(accumulation, STEPS + 1, accumulation)]
    assert shares == pytest.approx([(epoch + share) / 2 for epoch in range(2) for share in windows])


def test_accumulated_steps_equal_one_of_a_larger_batch(tmp_path, synthetic_archive):
    whole = run(tmp_path / "whole", synthetic_archive, batch_size=4, **BOTH)
    parts = run(tmp_path / "parts", synthetic_archive, batch_size=2, opt__grad_accum_steps=2, **BOTH)
    assert parts == pytest.approx(whole, abs=1e-5)
    ours, theirs = (last_state(tmp_path / name)["objective"]["teacher"] for name in ("parts", "whole"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6)


@CHOICES
def test_the_validation_loss_is_that_of_the_objective(tmp_path, synthetic_archive, name):
    run(tmp_path, synthetic_archive, "--val-data", str(synthetic_archive), num_epochs=1, **choice(name))
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in choice(name).items()]
    config = train_config.load_config(
        "configs.ssast_tiny_200_16x4", ["model.model_args.depth=1", "model.model_args.embed_dim=48", *overrides]
    )
    state = last_state(tmp_path)
    model = models.build(config.model.arch, config.model.model_args.to_dict())
    objective = objectives.build(config.opt, model)
    model.load_state_dict(state["model"])
    objective.load_state_dict(state["objective"])
    (batch,) = make_validation_loader(synthetic_archive, num_frames=200, batch_size=16, draw_mask=model.draw_mask)
    with torch.no_grad():
        expected = objective.loss(objective.module, batch)[0].item()
    (line,) = read_log(tmp_path / "log.txt")
    assert line["val_loss"] == pytest.approx(expected, rel=1e-5)


@CHOICES
def test_bfloat16_trains_close_to_float32(tmp_path, synthetic_archive, name):
    exact = run(tmp_path / "exact", synthetic_archive, num_epochs=1, **choice(name))
    rough = run(tmp_path / "rough", synthetic_archive, "--precision", "bfloat16", num_epochs=1, **choice(name))
    assert rough == pytest.approx(exact, rel=0.02) and rough != exact
    state = train_resume.tensors_of(last_state(tmp_path / "rough")["objective"])
    assert all(value.dtype == torch.float32 for value in state.values())


def test_a_new_run_from_other_weights_gives_them_to_its_teacher(tmp_path, synthetic_archive):
    run(tmp_path / "a", synthetic_archive, num_epochs=1, opt__learning_rate=1.0)
    weights = last_state(tmp_path / "a")["model"]
    still = {"opt__learning_rate": 0.0, "num_epochs": 1}
    run(tmp_path / "b", synthetic_archive, "--init", str(tmp_path / "a"), **TEACHER, **still)
    found = last_state(tmp_path / "b")["objective"]["teacher"]
    assert all(torch.equal(found[key], value) for key, value in weights.items())


def test_resuming_with_another_objective_is_refused(tmp_path, synthetic_archive):
    run(tmp_path / "a", synthetic_archive, num_epochs=1)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "a", synthetic_archive, **JOINT)
    assert str(ended.value.code) == (
        f"train.py: {tmp_path / 'a'} belongs to another config: opt.objective is reconstruction there and joint here; "
        "choose another --workdir"
    )
    named = tmp_path / "a" / "checkpoints" / "checkpoint-0.pth"
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "b", synthetic_archive, "--resume", str(named), **TEACHER)
    assert str(ended.value.code) == (
        f"train.py: {named} was trained with opt.objective 'reconstruction', not 'teacher': it cannot be resumed; "
        "start a new run with --init"
    )


def test_resuming_with_other_arguments_of_the_objective_is_refused(tmp_path, synthetic_archive):
    run(tmp_path, synthetic_archive, num_epochs=1, **TEACHER)
    with pytest.raises(SystemExit, match=r"opt.objective_args.decay is 0.999 there and 0.5 here; choose another"):
        run(tmp_path, synthetic_archive, opt__objective_args__decay=0.5, **TEACHER)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda state: state.pop("objective"), "lacks the state of its objective: it cannot be resumed"),
        (lambda state: state["objective"].pop("teacher"), "the state of its objective does not fit: 'teacher'"),
        (
            lambda state: state["objective"]["module"].pop("head.0.bias"),
            'the state of its objective does not fit: .*Missing key.* "head.0.bias"',
        ),
        (
            lambda state: state["objective"]["teacher"]["mask_token"].fill_(math.nan),
            "holds values that are NaN or Inf, first in objective.teacher.mask_token",
        ),
    ],
)
def test_a_damaged_state_of_the_objective_is_refused_in_one_sentence(tmp_path, synthetic_archive, damage, message):
    run(tmp_path, synthetic_archive, num_epochs=1, **TEACHER)
    path = resume.checkpoints(tmp_path)[0][1]
    state = checkpoint.load_checkpoint(path)
    damage(state)
    torch.save(state, path)
    with pytest.raises(SystemExit, match=message) as ended:
        run(tmp_path, synthetic_archive, **TEACHER)
    assert "\n" not in ended.value.code and f"train.py: {path}" in ended.value.code


def test_a_teacher_with_nan_is_not_saved(tmp_path, synthetic_archive, monkeypatch):
    monkeypatch.setattr(Teacher, "after_step", lambda self, progress: self.teacher.mask_token.fill_(math.nan))
    with pytest.raises(
        SystemExit, match="became NaN or Inf, first in objective.teacher.mask_token; they are not saved"
    ):
        run(tmp_path, synthetic_archive, num_epochs=1, **TEACHER)
    assert resume.checkpoints(tmp_path) == []


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"opt__objective": "techer"}, "--set: unknown opt.objective 'techer'; did you mean 'teacher'?"),
        ({"opt__objective": "contrast"}, "'contrast'; accepted are reconstruction, teacher, joint, MODULE:CLASS"),
        ({"opt__objective": "3"}, "--set opt.objective=3: expected a value like 'reconstruction'"),
        ({"opt__objective": "absent.module:Own"}, "opt.objective 'absent.module:Own': there is no module 'absent.mod"),
        (
            {**TEACHER, "opt__objective_args__decai": 0.5},
            "--set, with opt.objective 'teacher': nothing reads the key 'opt.objective_args.decai'; did you mean "
            "'opt.objective_args.decay'?",
        ),
        (
            {"opt__objective_args__decay": 0.5},
            "with opt.objective 'reconstruction': nothing reads the key 'opt.objective_args.decay'; accepted are "
            "decoder_layers",
        ),
        ({"opt__objective": "teacher"}, "opt.objective_args.last_blocks must be a whole number from 1 to 1, the b"),
        ({**TEACHER, "opt__objective_args__last_blocks": "few"}, "the blocks of the encoder, got 'few'"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, synthetic_archive, overrides, message):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, synthetic_archive, **overrides)
    assert ended.value.code.startswith("train.py: ") and "\n" not in ended.value.code
    assert message in ended.value.code


OWN = """
import math
import numpy as np
from audio_mamba.models.objectives.reconstruction import Reconstruction


class Infinite(Reconstruction):
    def loss(self, model, batch):
        loss, numbers = super().loss(model, batch)
        return loss + (math.inf if 3 in batch["index"] and model.training else 0), {**numbers, "temperature": 0.25}


class Numpy(Reconstruction):
    def state_dict(self):
        return {"scale": np.float64(0.5)}
"""


def test_a_step_with_an_infinite_loss_is_skipped_though_its_gradient_is_finite(
    tmp_path, synthetic_archive, monkeypatch, caplog
):
    (tmp_path / "infinite_objective.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    run(
        tmp_path / "run",
        synthetic_archive,
        "--print_freq",
        "1",
        num_epochs=1,
        opt__objective="infinite_objective:Infinite",
    )
    rows = read_steps(tmp_path / "run" / "steps.csv")
    (bad,) = [row for row in rows if row["non_finite"]]
    assert bad["update_ratio"] == 0 and rows[-1]["skipped"] == 1
    assert [row["temperature"] for row in rows if row is not bad] == [0.25] * (STEPS - 1)
    (warning,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert (
        f"step {rows.index(bad) + 1} skipped: the loss is inf; its samples in this process: {synthetic_archive}"
        in warning
    )


def test_a_state_that_could_not_be_read_again_is_refused_by_the_first_checkpoint(
    tmp_path, synthetic_archive, monkeypatch
):
    (tmp_path / "numpy_objective.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TypeError, match="checkpoint-0.pth: objective.scale is np.float64"):
        run(tmp_path / "run", synthetic_archive, opt__objective="numpy_objective:Numpy")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_config_with_numbers_of_numpy_resumes_and_embeds(tmp_path, synthetic_archive, monkeypatch):
    from audio_mamba import load_model

    (tmp_path / "numpy_config.py").write_text(
        "import numpy as np\n"
        "from audio_mamba.configs.base import ssast_config\n"
        "def get_config():\n"
        "    config = ssast_config('tiny')\n"
        "    config.opt.learning_rate = np.sqrt(0.5) * 1e-3\n"
        "    config.model.model_args.num_heads = np.int64(2)\n"
        "    return config\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for epochs in (1, 2):
        train.main(
            arguments(tmp_path / "run", synthetic_archive, config="numpy_config", num_epochs=epochs, batch_size=4)
        )
        assert len(losses(tmp_path / "run")) == epochs
    assert load_model(tmp_path / "run", device="cpu").get_scene_embeddings(torch.zeros(1, 32000)).shape == (1, 240)


def test_runs_with_an_objective_embed_as_others(tmp_path, synthetic_archive, monkeypatch):
    """Even one whose module is not there."""
    from audio_mamba import load_model

    monkeypatch.setattr(train_data, "FAKE_SAMPLES", 16)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_objective.py").write_text(
        "from audio_mamba.models.objectives.reconstruction import Reconstruction\n"
        "class Own(Reconstruction):\n"
        "    pass\n"
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "code")
        run(tmp_path / "run", None, num_epochs=1, opt__objective="own_objective:Own")
        patch.delitem(sys.modules, "own_objective")
    runtime = load_model(tmp_path / "run", device="cpu")
    assert runtime.get_scene_embeddings(0.1 * torch.randn(1, 32000)).shape == (1, 5 * 48)
