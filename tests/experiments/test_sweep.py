"""The sweep: its list, its checks before the first run, what it runs, and its table."""

import csv
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from torch.distributed.run import get_args_parser

from audio_mamba import train
from audio_mamba.configs.studies import sizes
from audio_mamba.models import precision
from audio_mamba.training.records import read_steps
from experiments import sweep
from experiments.sweep import Runner
from experiments.sweep_plan import Entry, plan, read_list, train_arguments
from tests.conftest import ROOT
from tests.training.runs import losses, write_archive

TINY = [
    "opt.warmup_epochs=0",
    "model.model_args.embed_dim=48",
    "model.model_args.depth=1",
    "num_epochs=2",
    "batch_size=4",
]
NUMBERS = ("train_loss", "val_loss", "samples_per_second", "peak_memory_mib")  # columns that a trained run fills


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("data") / "archive", [10, 10])


def options(archive, *more):
    data = ["--data", str(archive), "--val-data", str(archive), "--device", "cpu", "--no-wandb", "--num-workers", "0"]
    return [*data, "--print-freq", "1", *more, "--set", *TINY]


@pytest.fixture
def commands(monkeypatch):
    """Runs are trained in this process, without drawing, which takes most of the time; their commands are noted."""
    noted = []

    def run(self, command):
        noted.append(command)
        assert command[:3] == [sys.executable, "-m", "audio_mamba.train"]
        try:
            train.main(command[3:])
        except SystemExit as ended:
            print(ended, file=sys.stderr)
            return 1
        return 0

    monkeypatch.setattr("audio_mamba.training.figures._save", lambda figure, path: None)
    monkeypatch.setattr(Runner, "run", run)
    return noted


def table_of(runs):
    with open(runs / "sweep.csv") as file:
        return {row.pop("name"): row for row in csv.DictReader(file)}


def test_a_list_is_a_study_or_a_file(tmp_path):
    assert [entry.config for entry in read_list("sizes")] == [f"configs.studies.sizes:{n}" for n in sizes.VARIANTS]
    path = tmp_path / "list.txt"
    path.write_text(
        "ssam_tiny_200_16x4\n\n# all of them\nconfigs.poc.ssam_tiny_200_16x4  # the same\n"
        "configs.studies.masking:ssast_tiny_200_16x4_timestep_70 opt.learning_rate=3e-4 data.train_dirs=['a/b']\n"
    )
    assert read_list(str(path)) == [
        Entry("configs.ssam_tiny_200_16x4"),
        Entry(
            "configs.studies.masking:ssast_tiny_200_16x4_timestep_70",
            ("opt.learning_rate=3e-4", "data.train_dirs=[a/b]"),
        ),
    ]
    assert read_list(str(path))[1].name == (
        "ssast_tiny_200_16x4_timestep_70,opt.learning_rate=3e-4,data.train_dirs=-a-b-"
    )
    path.write_bytes(b"ssam_tiny_200_16x4\n\nssast_tiny_200_16x4 'data.val_dir=a\n")
    with pytest.raises(ValueError, match="list.txt, line 3: No closing quotation"):
        read_list(str(path))
    path.write_bytes(b"ssam_tiny_200_16x4\nssast_tiny_200_16x4 data.val_dir=\xe9\n")
    with pytest.raises(ValueError, match="list.txt, line 2: 'utf-8' codec can't decode"):
        read_list(str(path))
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="lists no config"):
        read_list(str(path))
    with pytest.raises(ValueError, match="neither a file .* studies are .*patch_sizes"):
        read_list("patch_size")


def test_names_that_no_disk_takes_are_shortened(tmp_path):
    names = []
    for last in ("é" * 47, "é" * 48, "é" * 49, "é" * 48 + "è"):
        entry = Entry("configs.ssam_tiny_200_16x4", ("data.train_dirs=" + "x" * 110, f"wandb.project={last}"))
        (tmp_path / entry.name).mkdir()
        names.append(entry.name)
    assert names[0] == f"ssam_tiny_200_16x4,data.train_dirs={'x' * 110},wandb.project={'é' * 47}"
    assert names[1][:150] == names[2][:150] == names[0][:150] and len({*names}) == 4


@pytest.mark.parametrize(
    "lines, more, message",
    [
        ("ssam_tiny_200_16x5", (), "no config module 'ssam_tiny_200_16x5'; did you mean"),
        ("ssam_tiny_200_16x4 opt.learning_rat=1", (), "opt.learning_rat"),
        ("ssam_tiny_200_16x4 model.model_args.patch_size=(16,16)", (), "does not divide"),
        (
            "ssam_tiny_200_16x4\nconfigs.studies.sizes:ssam_tiny_200_16x4\nssast_tiny_200_16x4",
            ("--config", "x"),
            "itself",
        ),
        ("ssam_tiny_200_16x4 opt.schedule=cosine", (), "16x4,opt.schedule=cosine: unknown opt.schedule 'cosine'"),
        ("ssam_tiny_200_16x4 opt.optimizer=sgd", (), "unknown opt.optimizer 'sgd'"),
        ("ssam_tiny_200_16x4 precision=float8", (), "unknown precision 'float8'"),
        ("ssam_tiny_200_16x4 model.model_args.img_size=(400,80)", (), "num_frames is 200, but the model reads 400"),
        ("ssam_tiny_200_16x4 front_end.n_mels=64", (), "n_mels is 64, but the model reads 80"),
        ("ssam_tiny_200_16x4 opt.schedule=warmupstabledecay num_epochs=9", (), "do not fit into num_epochs 9"),
        ("ssam_tiny_200_16x4 model.model_args.mask_ratio=0.999", (), "hides all 250 patches"),
        ("ssam_tiny_200_16x4", ("--workdir", "x"), "chooses --config and --workdir itself"),
        ("ssam_tiny_200_16x4", ("--set", "data.fraction=0"), "data.fraction must be a number above 0"),
        ("a_sweep_config:ssam_tiny_200_16x4\nssam_tiny_200_16x4", (), "differ, but both would be"),
    ],
)
def test_mistakes_are_reported_before_the_first_run(lines, more, message, tmp_path, monkeypatch):
    (tmp_path / "a_sweep_config.py").write_text(
        "from audio_mamba.configs.base import ssast_config\ndef get_config(name):\n    return ssast_config('tiny')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "list.txt").write_text(lines)
    monkeypatch.setattr(Runner, "run", None)
    with pytest.raises(SystemExit, match=message):
        sweep.main([str(tmp_path / "list.txt"), "--runs", str(tmp_path / "runs"), "--fake-data", *more])
    assert not (tmp_path / "runs").exists()


def test_an_unknown_option_is_reported_before_the_first_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Runner, "run", None)
    with pytest.raises(SystemExit):
        sweep.main(["sizes", "--runs", str(tmp_path / "runs"), "--precison", "float16"])
    assert "unrecognized arguments: --precison float16" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sweep.main(["sizes", "--runs", ""])
    assert "argument --runs: it is empty" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit, match="without torchrun; --processes N"):
        sweep.main(["sizes", "--runs", str(tmp_path / "runs")])


def test_equal_configs_of_two_modules_are_one_run(tmp_path, golden):
    entries = [Entry("configs.ssam_tiny_200_16x4"), Entry("configs.studies.sizes:ssam_tiny_200_16x4")]
    (run,) = plan(entries, tmp_path, [])
    assert run.parameters == json.loads((golden / "ssam_tiny_200_16x4.json").read_text())["parameters"]


def test_runs_are_trained_skipped_and_compared(tmp_path, archive, commands, capfd):
    """Three configs, one of which fails."""
    (tmp_path / "list.txt").write_text(
        "ssam_tiny_200_16x4\n"
        "configs.studies.patch_sizes:ssast_tiny_200_8x4 data.fraction=0.01\n"  # no whole batch
        "configs.studies.data_shares:ssast_tiny_200_16x4_50_percent\n"
    )
    runs = tmp_path / "runs"
    command = [str(tmp_path / "list.txt"), "--runs", str(runs), *options(archive)]
    with pytest.raises(
        SystemExit, match="1 run\\(s\\) did not finish: ssast_tiny_200_8x4,data.fraction=0.01; the same"
    ):
        sweep.main(command)
    shown = capfd.readouterr()
    assert "[3/3] ssast_tiny_200_16x4_50_percent: training in " in shown.out
    assert "samples do not fill one batch" in shown.err + shown.out
    table = table_of(runs)
    assert list(table) == [
        "ssam_tiny_200_16x4",
        "ssast_tiny_200_8x4,data.fraction=0.01",
        "ssast_tiny_200_16x4_50_percent",
    ]
    assert [row["state"] for row in table.values()] == ["finished", "failed with status 1", "finished"]
    for name, row in table.items():
        if row["state"] == "finished":
            assert float(row["train_loss"]) == losses(runs / name)[-1] and float(row["val_loss"]) > 0
            steps = read_steps(runs / name / "steps.csv")
            assert int(float(row["peak_memory_mib"])) == max(step["peak_memory_mib"] for step in steps) > 50
            assert float(row["samples_per_second"]) > 0 and int(row["parameters"]) > 10_000
        assert f"| {name} | {row['state']} | {int(row['parameters']) / 1e6:.2f} M |" in (runs / "sweep.md").read_text()

    commands.clear()  # again: finished runs are skipped, and the other one is tried
    with pytest.raises(SystemExit):
        sweep.main(command)
    assert [part for one in commands for part in one if "configs." in part] == [
        "configs.studies.patch_sizes:ssast_tiny_200_8x4"
    ]
    commands.clear()
    sweep.main([*command, "--share", "1/3"])  # the first run alone
    assert not commands and list(table_of(runs)) == list(table)
    sweep.main([*command, "num_epochs=3", "--share", "3/3"])  # longer: resumed
    assert len(losses(runs / "ssast_tiny_200_16x4_50_percent")) == 3
    unfinished = table_of(runs)["ssam_tiny_200_16x4"]
    assert unfinished["state"] == "2 of 3 epochs" and float(unfinished["train_loss"]) > 0
    # One is finished and the other is not, but both had another rate, or another batch size.
    for change in ("batch_size=3", "opt.learning_rate=1.0"):
        commands.clear()
        with pytest.raises(
            SystemExit, match="sweep: ssam_tiny_200_16x4: trained with other values than the .* --runs$"
        ):
            sweep.main([*command, "num_epochs=3", change, "--share", "1/3"])
        assert not commands, "nothing is trained"
    with pytest.raises(SystemExit, match="ssam_tiny_200_16x4: trained with other values than"):
        sweep.main([*command, "opt.learning_rate=1.0", "--share", "1/3"])
    for name in ("ssam_tiny_200_16x4", "ssast_tiny_200_16x4_50_percent"):  # the second one is of another share
        refused = table_of(runs)[name]
        assert "belongs to another config: " in refused["state"] and "opt.learning_rate" in refused["state"]
        assert not any(refused[key] for key in NUMBERS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, archive):
    """A folder with a list of one config, and its finished sweep."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "list.txt").write_text("ssast_tiny_200_16x4\n")
    entry = Entry("configs.ssast_tiny_200_16x4")
    train.main(train_arguments(entry, folder / "runs", options(archive)))
    return folder


@pytest.mark.parametrize(
    "more, message",
    [
        (["--seed", "3"], "was trained with --seed 0, not 3"),
        (["--precision", "bfloat16"], "was trained with --precision float32, not bfloat16"),
        (["--min-lr", "0.01"], "was trained with --min-lr 0.0, not 0.01"),
        (["--bias-decay"], "was trained with --bias-decay False, not True"),
        (["--processes", "2"], "samples in a step, not with "),
        (
            ["--data", "OTHER"],
            "was trained with other training data: 28 samples in 3 shard(s) instead of 20 samples in 2",
        ),
        (["--val-data", "OTHER"], "was trained with other validation data: 8 samples in 1 shard(s) instead of 20"),
    ],
    ids=["seed", "precision", "min-lr", "bias-decay", "processes", "data", "val-data"],
)
def test_a_finished_run_of_other_options_is_refused(finished, archive, commands, tmp_path, more, message, capfd):
    other = write_archive(tmp_path / "other", [8], seed=1)
    more = [str(other) if word == "OTHER" else word for word in more]
    command = [str(finished / "list.txt"), "--runs", str(finished / "runs")]
    sweep.main([*command, *options(archive)])
    before = table_of(finished / "runs")
    assert all(before["ssast_tiny_200_16x4"][key] for key in NUMBERS)
    with pytest.raises(
        SystemExit, match="^sweep: ssast_tiny_200_16x4: trained with other values than the command says"
    ):
        sweep.main([*command, *options(archive, *more)])
    assert message in capfd.readouterr().err
    assert table_of(finished / "runs") == before  # of no use with refused runs alone
    assert not commands, "nothing is trained"


def test_a_run_that_took_float32_for_a_slow_precision_is_finished(archive, commands, tmp_path, monkeypatch, capfd):
    """Also for a sweep on a machine that is fast in it."""
    (tmp_path / "list.txt").write_text("ssast_tiny_200_16x4\n")
    entry, bfloat16 = Entry("configs.ssast_tiny_200_16x4"), options(archive, "--precision", "bfloat16")
    for slow in (True, False):
        monkeypatch.setattr(precision, "_is_too_slow", lambda name, slow=slow: slow)
        if slow:
            train.main(train_arguments(entry, tmp_path / "runs", bfloat16))
            config = json.loads((tmp_path / "runs" / entry.name / "config.json").read_text())
            assert config["precision"] == "float32"
        sweep.main([str(tmp_path / "list.txt"), "--runs", str(tmp_path / "runs"), *bfloat16])
        assert table_of(tmp_path / "runs")["ssast_tiny_200_16x4"]["state"] == "finished"
        assert not commands, "nothing is trained"
    with pytest.raises(SystemExit):
        sweep.main([str(tmp_path / "list.txt"), "--runs", str(tmp_path / "runs"), *options(archive)])
    assert "with --precision bfloat16, not float32" in capfd.readouterr().err


SLEEPER = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""
SENDER = """
import os, pathlib, sys, time
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.05)
os.kill(int(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_the_run_in_progress_and_no_further_one_starts(number, tmp_path):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    running = str(tmp_path / "running")
    with Runner() as runner:
        sender = subprocess.Popen([sys.executable, "-c", SENDER, running, str(os.getpid()), str(int(number))])
        assert runner.run([sys.executable, "-c", SLEEPER, running]) == 3
        assert sender.wait() == 0 and runner.stopped_by == number
        sweep.sweep([None], tmp_path, [], runner)  # returns before it looks at the run
        assert runner.run([sys.executable, "-c", "import time; time.sleep(600)"]) == -signal.SIGTERM
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == handlers


def test_torchrun_waits_for_a_run_that_saves(tmp_path):
    """It kills after 30 s otherwise."""
    commands = []

    class Started(Runner):
        def run(self, command):
            commands.append(command)
            return 0

    with Started() as runner:
        sweep.sweep(plan(read_list("sizes")[:1], tmp_path, [], 2), tmp_path, ["--no-wandb"], runner)
    [(python, _, module, *arguments)] = commands
    torchrun = get_args_parser().parse_args(arguments)
    assert (python, module) == (sys.executable, "torch.distributed.run")
    assert (torchrun.nproc_per_node, torchrun.shutdown_timeout) == ("2", 600)
    assert (torchrun.training_script, torchrun.module) == ("audio_mamba.train", True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_loses_nothing(tmp_path, archive):
    """A sweep that is interrupted in its first run and started again gives the losses of one that is not."""
    (tmp_path / "list.txt").write_text("ssam_tiny_200_16x4\nssast_tiny_200_16x4\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(runs):
        command = [sys.executable, "-m", "experiments.sweep", str(tmp_path / "list.txt"), "--runs", str(runs)]
        return subprocess.Popen(
            [*command, *options(archive), "num_epochs=8"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, as a terminal gives it
        )

    whole = start(tmp_path / "whole")
    output, _ = whole.communicate()
    assert whole.returncode == 0, output
    cut = start(tmp_path / "cut")
    for line in cut.stdout:
        if re.search(r"epoch 2/8  step 3/5", line):
            os.killpg(cut.pid, signal.SIGINT)
            break
    output, _ = cut.communicate()
    assert cut.returncode == 128 + signal.SIGINT and "SIGINT: run the same command to continue" in output, output
    states = [row["state"] for row in table_of(tmp_path / "cut").values()]
    assert re.fullmatch(r"\d of 8 epochs", states[0]) and states[1] == "not started"
    again = start(tmp_path / "cut")
    output, _ = again.communicate()
    assert again.returncode == 0 and "resuming from" in output, output
    for name in ("ssam_tiny_200_16x4", "ssast_tiny_200_16x4"):
        assert losses(tmp_path / "cut" / name) == losses(tmp_path / "whole" / name)
