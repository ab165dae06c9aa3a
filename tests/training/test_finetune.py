"""finetune.py as its users run it, on clips of synthetic sounds and with a very small encoder."""

import csv
import json
import logging
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from audio_mamba import finetune, load_classifier, load_model
from audio_mamba.cli import finetune_data, finetune_setup
from audio_mamba.cli.finetune_data import check_clips
from audio_mamba.cli.finetune_splits import find_splits
from audio_mamba.config_names import experiments
from audio_mamba.data.folds import Split
from audio_mamba.data.labelled import LabelledDataset, read_labelled
from audio_mamba.data.prepare import prepare
from audio_mamba.data.prepare_job import Settings
from audio_mamba.data.synthetic import KINDS, make_clip, write_scene_task
from audio_mamba.front_end import PUBLISHED
from audio_mamba.hear_api.pretrained import save_pretrained
from audio_mamba.hear_api.runtime import RuntimeSSAST
from audio_mamba.models.classifier import Classifier
from audio_mamba.training import resume
from audio_mamba.training.interruption import Interruption
from audio_mamba.training.records import read_log, read_steps
from audio_mamba.training.report import write_report
from audio_mamba.training.resume import load_newest
from tests.conftest import ROOT
from tests.hear_api.small_config import get_config
from tests.training.runs import STANDALONE, finish, kill

ENCODER = "tests.hear_api.small_config"
QUICK = [
    *("num_epochs=2", "opt.warmup_epochs=0.5", "batch_size=8", "opt.learning_rate=0.03", "head.start=zeros"),
    "keep=best",
]


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """A HEAR task with the splits train (48 clips), valid and test (24 each) of eight kinds of sound."""
    return write_scene_task(tmp_path_factory.mktemp("tasks"), clips={"train": 6, "valid": 3, "test": 3}, seconds=0.5)


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """60 clips of four kinds, in float32, with the folds 1 to 3."""
    folder = tmp_path_factory.mktemp("folds")
    with open(folder / "labels.csv", "w") as table:
        table.write("file,label,fold\n")
        for number in range(60):
            kind = list(KINDS)[number % 4]
            audio = make_clip(kind, 0.4, np.random.default_rng(number))
            (folder / "audio").mkdir(exist_ok=True)
            soundfile.write(folder / "audio" / f"{number:02d}.wav", audio, 16000, subtype="FLOAT")
            table.write(f"{number:02d}.wav,{kind},{number // 4 % 3 + 1}\n")
    settings = Settings(dtype="float32")
    prepare(folder / "audio", folder / "archive", folder / "labels.csv", settings=settings, fold_column="fold")
    return folder / "archive"


def arguments(workdir, data, *options, changes=()):
    return [
        *("--workdir", str(workdir), "--data", str(data), "--model", ENCODER, "--init", "random", "--no-wandb"),
        *("--num-workers", "0", "--print-freq", "1", "--device", "cpu", *options, "--set", *QUICK, *changes),
    ]


def tune(workdir, data, *options, changes=()):
    finetune.main(arguments(workdir, data, *options, changes=changes))


@pytest.mark.slow
@pytest.mark.parametrize("config", [name for name in experiments() if name.startswith("configs.finetune")])
def test_every_config_trains(tmp_path, archive, config):
    """With the small encoder; the values of the config stay but for the length of the run."""
    tune(tmp_path, archive, "--config", config, "--fold", "1", changes=["num_epochs=1"])
    (line,) = read_log(tmp_path / "log.txt")
    assert np.isfinite(line["train_loss"]) and json.loads((tmp_path / "config.json").read_text())["name"] == config


def refused(capsys, *call, **options):
    """The sentence with which a command line fails."""
    with pytest.raises(SystemExit) as ended:
        tune(*call, **options)
    assert isinstance(ended.value.code, str) and "\n" not in ended.value.code
    return ended.value.code


def outcome(workdir):
    """What a run ends with, to the bit; without times."""
    log = [{key: value for key, value in line.items() if key != "seconds"} for line in read_log(workdir / "log.txt")]
    files = ("results.json", "predictions.csv", "classifier/model.safetensors", "classifier/config.json")
    return log, [(workdir / name).read_bytes() for name in files]


def predictions(workdir):
    with open(workdir / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def tuned(tmp_path_factory, task):
    """The work folder of a run on the task, long enough to learn."""
    workdir = tmp_path_factory.mktemp("tuned")
    tune(workdir, task, changes=["num_epochs=8"])
    return workdir


def test_it_learns_and_writes_what_it_says(tuned, task):
    results = json.loads((tuned / "results.json").read_text())
    log = read_log(tuned / "log.txt")
    assert len(log) == 8 and log[-1]["train_loss"] < log[0]["train_loss"]
    assert results["test"]["accuracy"] > 0.35, "chance is 0.125"
    best = max(log, key=lambda line: line["val_accuracy"])
    assert results["epoch"] == best["epoch"] + 1
    assert results["validation"]["accuracy"] == best["val_accuracy"]
    rows = predictions(tuned)
    assert len(rows) == 24
    right = [max(KINDS, key=lambda kind: float(row[kind])) == row["labels"] for row in rows]
    assert results["test"]["accuracy"] == pytest.approx(np.mean(right))
    labels = json.loads((task / "test.json").read_text())
    assert {row["labels"] for row in rows} == {label for (label,) in labels.values()}
    assert not (tuned / "resume").exists() and len(list((tuned / "checkpoints").glob("*.pth"))) == 2
    assert (tuned / "curves.png").exists() and read_steps(tuned / "steps.csv")


def test_the_last_weights_are_kept_where_asked(tmp_path, archive):
    """At a learning rate that ruins the fitted head, so that the best epoch would be 0."""
    for keep in ("last", "best"):
        changes = ["head.start=probe", "opt.learning_rate=3", "opt.warmup_epochs=0", f"keep={keep}"]
        tune(tmp_path / keep, archive, "--fold", "1", changes=changes)
    found = {keep: json.loads((tmp_path / keep / "results.json").read_text()) for keep in ("last", "best")}
    assert found["best"]["epoch"] == 0 and found["last"]["epoch"] == 2
    log = read_log(tmp_path / "last" / "log.txt")
    assert found["last"]["validation"]["accuracy"] == log[-1]["val_accuracy"] < found["best"]["validation"]["accuracy"]
    state = torch.load(tmp_path / "last" / "checkpoints" / "checkpoint-1.pth", weights_only=True)["model"]
    weights = load_file(tmp_path / "last" / "classifier" / "model.safetensors")
    assert weights and all(torch.equal(weights[name], state[name]) for name in weights)


def test_the_classifier_says_of_files_what_the_run_said_of_its_clips(tuned, task):
    classifier = load_classifier(tuned, "cpu")
    assert classifier.classes == list(KINDS), "the order of the task's vocabulary"
    expected = {
        row["clip"].split("_", 2)[2]: [float(row[kind]) for kind in classifier.classes] for row in predictions(tuned)
    }
    files = sorted((task / "16000" / "test").glob("*.wav"))
    found = classifier.probabilities(files)
    np.testing.assert_allclose(found, [expected[file.stem] for file in files], atol=0.01)  # the archive is float16
    (first,) = classifier.predict(str(files[0]), top=3)
    assert list(first) == [classifier.classes[k] for k in np.argsort(-found[0])[:3]]


def test_float32_archives_give_the_same_numbers(tmp_path, archive):
    tune(tmp_path, archive, "--fold", "2", changes=["head.pooling=mean_std"])
    classifier = load_classifier(tmp_path, "cpu")
    rows = predictions(tmp_path)
    files = [archive.parent / "audio" / f"{row['clip'].rsplit('_', 1)[1]}.wav" for row in rows]
    expected = [[float(row[kind]) for kind in classifier.classes] for row in rows]
    np.testing.assert_allclose(classifier.probabilities(files), expected, atol=1e-5)
    assert len(rows) == 20


def test_stopped_runs_end_with_the_same_bits(tmp_path, archive, monkeypatch):
    """Stopped in an epoch, at its last step, and during validation."""
    options = ("--fold", "1")
    changes = [
        "data.balanced=True",
        "augment.gain=3",
        "augment.filter=3",
        "augment.freq_shift=2",
        "num_epochs=4",
    ]  # of two steps each
    tune(tmp_path / "whole", archive, *options, changes=changes)
    asked = Interruption.poll
    for stop_after in (0, 1, 1):
        steps = iter([False] * stop_after + [True])

        def ask(self, steps=steps):
            asked(self)
            self.stop_now = next(steps)
            return self.stop_now

        monkeypatch.setattr(Interruption, "poll", ask)
        tune(tmp_path / "parts", archive, *options, changes=changes)
        assert not (tmp_path / "parts" / "results.json").exists()
    monkeypatch.setattr(Interruption, "poll", asked)
    with monkeypatch.context() as patched:
        patched.setattr(Interruption, "requested", property(lambda self: True))  # asked during validation alone
        tune(tmp_path / "parts", archive, *options, changes=changes)
    assert not (tmp_path / "parts" / "results.json").exists()
    tune(tmp_path / "parts", archive, *options, changes=changes)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    before = outcome(tmp_path / "whole")
    tune(tmp_path / "whole", archive, *options, changes=changes)  # nothing to do
    assert outcome(tmp_path / "whole") == before


@pytest.mark.parametrize("pooling, nothing", [("mean", "opt.learning_rate=0"), ("mean_std", "num_epochs=0")])
def test_the_head_starts_as_logistic_regression(tmp_path, archive, caplog, pooling, nothing):
    """Against scikit-learn on features computed clip by clip, where nothing is trained after it."""
    with caplog.at_level(logging.INFO):
        tune(tmp_path, archive, "--fold", "1", changes=[nothing, "head.start=probe", f"head.pooling={pooling}"])
    chosen, accuracy = re.search(r"logistic regression, C (\S+), validation accuracy (\S+)", caplog.text).groups()
    clips = read_labelled([archive], PUBLISHED)
    folds, labels = np.array(clips.folds), np.array([label for (label,) in clips.labels])
    encoder = load_classifier(tmp_path, "cpu").model.encoder
    classifier, spectrograms = Classifier(encoder, 4, pooling).eval(), LabelledDataset(clips, np.arange(len(clips)))
    with torch.no_grad():
        rows = [
            classifier.embed(spectrograms.__getitems__([(0, clip)])[0]["spectrogram"]) for clip in range(len(clips))
        ]
    x = torch.cat(rows).double().numpy()
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    parts = {name: np.flatnonzero(folds == fold) for name, fold in (("test", "1"), ("valid", "2"), ("train", "3"))}
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=float(chosen), max_iter=10000))
    regression.fit(x[parts["train"]], labels[parts["train"]])
    assert float(accuracy) == pytest.approx(regression.score(x[parts["valid"]], labels[parts["valid"]]), abs=1e-4)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["epoch"] == 0, "nothing was trained after it"
    logits = regression.decision_function(x[parts["test"]]) / results["temperature"]
    expected = softmax(logits, axis=1)
    found = [[float(row[kind]) for kind in clips.classes] for row in predictions(tmp_path)]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert (tmp_path / "classifier" / "model.safetensors").exists()


def test_a_run_without_epochs_is_made_again_and_can_go_on(tmp_path, archive, monkeypatch):
    """It has no checkpoint that says what its results are of."""
    monkeypatch.setattr(finetune_setup, "find_splits", only_fold_2)

    def run(name, *changes):
        tune(tmp_path / name, archive, "--folds", "all", "--freeze", changes=["head.start=probe", *changes])
        return json.loads((tmp_path / name / "results.json").read_text())["folds"]

    first = run("run", "num_epochs=0")
    assert [(fold["fold"], fold["epoch"]) for fold in first] == [("2", 0)]
    assert run("run", "num_epochs=0", "head.pooling=mean") != first
    config = json.loads((tmp_path / "run/fold-2/config.json").read_text())
    assert config["head"]["pooling"] == load_classifier(tmp_path / "run/fold-2", "cpu").pooling == "mean"
    assert run("run", "num_epochs=1") == run("other", "num_epochs=1")
    assert outcome(tmp_path / "run/fold-2") == outcome(tmp_path / "other/fold-2")


def test_without_scikit_learn_the_other_start_is_named(tmp_path, archive, monkeypatch, capsys):
    monkeypatch.setattr(finetune_setup, "find_spec", lambda name: None)
    message = refused(capsys, tmp_path, archive, "--fold", "1", changes=["head.start=probe"])
    assert message.endswith('needs scikit-learn: pip install ".[train]", or --set head.start=zeros')


def test_a_run_stopped_while_the_head_is_fitted_leaves_nothing(tmp_path, archive, monkeypatch):
    def run(name):
        tune(tmp_path / name, archive, "--fold", "1", changes=["head.start=probe"])

    run("whole")
    with monkeypatch.context() as patched:
        patched.setattr(Interruption, "requested", property(lambda self: True))
        run("parts")
    assert not list((tmp_path / "parts").rglob("*.pth")) and not (tmp_path / "parts" / "results.json").exists()
    run("parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("options, batch_size", [((), 16), (("--data-changed", "restart-epoch"), 8)])
def test_a_run_resumed_in_its_first_epoch_keeps_the_trained_head(
    tmp_path, archive, monkeypatch, caplog, options, batch_size
):
    """Where it resumes at the epoch's start: one step of 8 is no step of 16, or the data have changed."""
    data = shutil.copytree(archive, tmp_path / "archive")
    with monkeypatch.context() as patched:
        patched.setattr(Interruption, "poll", lambda self: setattr(self, "stop_now", True) or True)
        tune(tmp_path / "run", data, "--fold", "1", changes=["head.start=probe"])
    path = tmp_path / "run" / "resume" / "checkpoint-0-1.pth"
    trained = torch.load(path, weights_only=True)["model"]["head.1.weight"]
    if options:
        shutil.rmtree(data)
        prepare(archive.parent / "audio", data, archive.parent / "labels.csv", fold_column="fold")  # now float16
    changes = ["head.start=probe", f"batch_size={batch_size}"]
    heads = []
    train_epoch = finetune.train_epoch
    monkeypatch.setattr(
        finetune,
        "train_epoch",
        lambda run, *rest: heads.append(run.model.head[1].weight.detach().clone()) or train_epoch(run, *rest),
    )
    with caplog.at_level(logging.INFO):
        tune(tmp_path / "run", data, "--fold", "1", *options, changes=changes)
    assert f"resuming from {path}: 0 epoch(s) are complete" in caplog.text
    assert "logistic regression" not in caplog.text.split("resuming from")[1]
    assert torch.equal(heads[0], trained)


def start(processes, arguments):
    launcher = ["-m", "torch.distributed.run", *STANDALONE, f"--nproc-per-node={processes}"] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, "finetune.py", *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_killed_ten_times_at_random_it_ends_with_the_same_bits(tmp_path, archive):
    command = ["--fold", "1", "--checkpoint-minutes", "0.0003"]
    changes = ["num_epochs=12", "head.start=probe"]
    tune(tmp_path / "whole", archive, *command, changes=changes)
    rng = random.Random(0)
    for _ in range(10):
        process = start(1, arguments(tmp_path / "parts", archive, *command, changes=changes))
        for line in process.stdout:
            if "step" in line and rng.random() < 0.2:
                break
        time.sleep(rng.random())
        kill(process)
        process.wait()
    process = start(1, arguments(tmp_path / "parts", archive, *command, changes=changes))
    assert process.wait(200) == 0, process.stdout.read()
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, archive):
    """Over 50 steps, with all augmentations and balanced sampling."""
    changes = [
        "num_epochs=25",
        "data.balanced=True",
        "augment.gain=3",
        "augment.filter=3",
        "augment.freq_shift=2",
        "head.start=probe",
        "batch_size=4",
    ]
    process = start(2, arguments(tmp_path / "two", archive, "--fold", "1", changes=changes))
    changes[-1] = "batch_size=8"
    tune(tmp_path / "one", archive, "--fold", "1", changes=changes)
    output = finish(process)
    assert process.returncode == 0, output
    one, two = (read_steps(tmp_path / name / "steps.csv") for name in ("one", "two"))
    losses = [[row["train_loss"] for row in rows] for rows in (one, two)]
    assert len(losses[0]) == len(losses[1]) == 50
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-5)
    for found, expected in zip(*(read_log(tmp_path / name / "log.txt") for name in ("two", "one"))):
        assert found["val_loss"] == pytest.approx(expected["val_loss"], abs=1e-4)
    states = [process["random"]["torch"] for process in load_newest(tmp_path / "two")[1]["processes"]]
    assert not torch.equal(*states)


def test_all_folds_and_their_mean(tmp_path, archive, caplog):
    tune(tmp_path, archive, "--folds", "all", "--freeze", changes=["num_epochs=1"])
    summary = json.loads((tmp_path / "results.json").read_text())
    assert [fold["fold"] for fold in summary["folds"]] == ["1", "2", "3"]
    accuracies = [fold["test"]["accuracy"] for fold in summary["folds"]]
    assert summary["test_mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert summary["test_standard_deviation"]["accuracy"] == pytest.approx(statistics.stdev(accuracies))
    tested = [row["clip"] for fold in "123" for row in predictions(tmp_path / f"fold-{fold}")]
    assert len(tested) == len(set(tested)) == 60
    (tmp_path / "fold-2" / "results.json").unlink()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        tune(tmp_path, archive, "--folds", "all", "--freeze", changes=["num_epochs=1"])
    assert json.loads((tmp_path / "results.json").read_text()) == summary
    assert len(re.findall(r"configs.finetune, fold \d", caplog.text)) == 1, "finished folds are not trained again"


def test_numbers_that_json_lacks_are_null(tmp_path):
    finetune.write_json(tmp_path / "r.json", {"d_prime": float("inf"), "mAP": [float("nan"), 1.5]})
    assert json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail) == {
        "d_prime": None,
        "mAP": [None, 1.5],
    }


def test_the_report_shows_the_validation_metrics(tuned, tmp_path):
    write_report([tuned], tmp_path / "report.html")
    assert "Validation metrics by epoch" in (tmp_path / "report.html").read_text()


def test_the_test_fold_has_no_influence_on_what_is_chosen(tmp_path, archive, monkeypatch):
    """With the labels of the test clips wrong, training and choice stay the same."""
    tune(tmp_path / "right", archive, "--fold", "1")
    real = finetune.set_up

    def set_up(args, resources):
        experiment = real(args, resources)
        for clip in experiment.splits["1"].test:
            experiment.clips.labels[clip] = (experiment.clips.labels[clip] + 1) % 4
        return experiment

    monkeypatch.setattr(finetune, "set_up", set_up)
    tune(tmp_path / "wrong", archive, "--fold", "1")
    right, wrong = (outcome(tmp_path / name) for name in ("right", "wrong"))
    assert right[0] == wrong[0] and right[1][2:] == wrong[1][2:]
    assert right[1][0] != wrong[1][0]


def test_an_encoder_starts_with_kernels_of_this_machine(monkeypatch):
    """Whichever its pretraining asked for; the user's switch counts."""
    source = finetune_setup.find_encoder(ENCODER, random=True)
    for wanted, switch in (("auto", None), ("reference", "reference")):
        if switch:
            monkeypatch.setenv("AUDIO_MAMBA_BACKEND", switch)
        source.config.model.backend = "triton"
        encoder = finetune_setup.build_encoder(source, None)
        assert encoder.blocks[0].mixer.backend == wanted and source.config.model.backend == "auto"


def test_frozen_encoders_keep_their_weights(tmp_path, archive):
    tune(tmp_path, archive, "--fold", "1", "--freeze")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["encoder"] == {"name": ENCODER, "random": True, "frozen": True}
    torch.manual_seed(0)
    from audio_mamba import models
    from tests.hear_api import small_config

    fresh = models.build("mamba_ssast_tiny", small_config.get_config().model.model_args.to_dict()).state_dict()
    found = load_file(tmp_path / "classifier" / "model.safetensors")
    assert all(torch.equal(found[f"encoder.{key}"], value) for key, value in fresh.items())
    assert found["head.1.weight"].abs().sum() > 0


def test_shipped_weights_at_a_longer_input(tmp_path, archive):
    """The encoder of the project, with its positions continued to 4 s."""
    finetune.main(
        [
            *("--workdir", str(tmp_path), "--data", str(archive), "--fold", "1", "--no-wandb", "--num-workers", "0"),
            *("--freeze", "--device", "cpu"),
            *("--set", "data.num_frames=400", "num_epochs=1", "batch_size=20", "opt.warmup_epochs=0"),
        ]
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"]["model_args"]["img_size"] == [400, 80]
    assert load_classifier(tmp_path, "cpu").runtime.steps_per_segment == 100


def test_the_tuned_encoder_embeds_and_is_tuned_further(tmp_path, tuned, archive):
    classifier = load_classifier(tuned, "cpu")
    audio = torch.from_numpy(make_clip("siren", 1.0, np.random.default_rng(0)))[None]
    expected = classifier.runtime.get_scene_embeddings(audio)
    newest = max((tuned / "checkpoints").glob("*.pth"))
    for weights in (tuned, tuned / "classifier"):
        assert torch.equal(load_model(weights, device="cpu").get_scene_embeddings(audio), expected)
    assert load_model(newest, device="cpu").get_scene_embeddings(audio).shape == expected.shape
    call = arguments(tmp_path, archive, "--fold", "1", "--freeze", "--model", str(tuned), "--init", "pretrained")
    finetune.main(call)
    found, before = (load_file(path / "classifier" / "model.safetensors") for path in (tmp_path, tuned))
    assert all(torch.equal(found[key], value) for key, value in before.items() if key.startswith("encoder."))


# ---------------------------------------------------------------- several labels


@pytest.fixture(scope="session")
def audioset(tmp_path_factory):
    """Fake clips under the table formats of AudioSet: YouTube ids, machine ids of labels, 527 classes."""
    folder = tmp_path_factory.mktemp("audioset")
    mids = [f"/m/{number:05d}" for number in range(527)]
    with open(folder / "classes.csv", "w") as file:
        file.write("index,mid,display_name\n")
        file.writelines(f'{number},{mid},"Sound, number {number}"\n' for number, mid in enumerate(mids))
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("eval", 16)):
        (folder / part).mkdir()
        with open(folder / f"{part}.csv", "w") as file:
            file.write("# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=1\n")
            file.write("# YTID, start_seconds, end_seconds, positive_labels\n")
            for number in range(count):
                ytid = f"{part}_{number:06d}"[:11].ljust(11, "x")
                first = number % 4
                audio = make_clip(list(KINDS)[first], 0.4, rng)
                soundfile.write(folder / part / f"Y{ytid}.wav", audio, 16000)
                labels = [mids[first], mids[4 + number % 3]][: 1 + number % 2]
                file.write(f'{ytid}, 30.000, 40.000, "{",".join(labels)}"\n')
        archive = folder / f"{part}_archive"
        prepare(folder / part, archive, folder / f"{part}.csv", classes_csv=folder / "classes.csv")
    return folder


def test_audioset_runs_end_to_end(tmp_path, audioset):
    options = ("--val-data", str(audioset / "eval_archive"))
    tune(tmp_path, audioset / "train_archive", *options, changes=["data.balanced=True"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["metric"] == "mAP" and results["validation"].keys() == {"mAP", "AUC", "d_prime"}
    classifier = load_classifier(tmp_path, "cpu")
    assert len(classifier.classes) == 527 and classifier.loss == "multi"
    rows = classifier.probabilities(sorted((audioset / "eval").glob("*.wav"))[:2])
    assert rows.shape == (2, 527) and (rows > 0).all() and (rows < 1).all() and rows.sum() != pytest.approx(2)


# ---------------------------------------------------------------- bad input


def labelled(folder, labels, seconds=0.3):
    """An archive of clips with the given labels."""
    with open(folder / "labels.csv", "w") as table:
        table.write("file,label\n")
        for number, label in enumerate(labels):
            (folder / "audio").mkdir(exist_ok=True)
            audio = make_clip("tone", seconds, np.random.default_rng(number))
            soundfile.write(folder / "audio" / f"{number:02d}.wav", audio, 16000)
            table.write(f'{number:02d}.wav,"{label}"\n')
    prepare(folder / "audio", folder / "archive", folder / "labels.csv")
    return folder / "archive"


@pytest.mark.parametrize(
    "labels, options, sentence",
    [
        (["a"] * 6 + ["b"] * 6 + ["c"], (), "one clip each for c; training and validation need one each"),
        (["a"] * 6, (), r"the training clips have 1 label\(s\); at least 2 are needed"),
        (["a,b"] * 6 + ["b"] * 6, ("--loss", "single"), "has 2 labels, but --loss single needs one; use --loss multi"),
        (["a"] * 6 + ["b"] * 5 + [""], (), "has 0 labels, but --loss single needs one; label it, or leave it out"),
    ],
    ids=["a class with one clip", "one class", "several labels", "a clip without a label"],
)
def test_labels_that_cannot_be_used(tmp_path, capsys, labels, options, sentence):
    assert re.search(sentence, refused(capsys, tmp_path / "run", labelled(tmp_path, labels), *options))


def test_validation_clips_that_cannot_be_used(tmp_path, capsys):
    for name, labels in (("train", ["a"] * 4 + ["b"] * 4), ("seen", ["a", "b"] * 2), ("other", ["a", "c"] * 2)):
        (tmp_path / name).mkdir()
        labelled(tmp_path / name, labels)
    train, other = tmp_path / "train" / "archive", tmp_path / "other" / "archive"
    message = refused(capsys, tmp_path / "run", train, "--val-data", str(other))
    assert message.endswith(f"{other} has another class list than {train}: 'c' is only there")

    classes = tmp_path / "classes.csv"
    classes.write_text("idx,label\n0,a\n1,b\n2,c\n")
    for name in ("train", "other"):
        folder = tmp_path / name
        prepare(folder / "audio", folder / "same", folder / "labels.csv", classes_csv=classes)
    message = refused(capsys, tmp_path / "run", tmp_path / "train/same", "--val-data", str(tmp_path / "other/same"))
    assert "validation clips have labels that no training clip has: c; give training some" in message


def test_empty_training_or_validation(tmp_path, capsys, archive):
    clips = read_labelled([archive], PUBLISHED)
    some, none = np.arange(30), np.arange(0)
    for split, part in ((Split(some, none, none), "validation"), (Split(none, some, none), "training")):
        with pytest.raises(ValueError, match=f"^here: there are no {part} clips$"):
            check_clips(clips, split, "single", "here")
    with open(tmp_path / "labels.csv", "w") as file:
        file.write("file,label,split\n" + "".join(f"{n:02d}.wav,{'ab'[n % 2]},test\n" for n in range(60)))
    prepare(archive.parent / "audio", tmp_path / "test", tmp_path / "labels.csv", fold_column="split")
    assert "there are no training clips" in refused(capsys, tmp_path / "run", tmp_path / "test")
    assert "must be different folders" in refused(capsys, tmp_path, archive, "--val-data", str(archive))


def test_a_checkpoint_of_another_class_list(tmp_path, capsys, archive):
    tune(tmp_path / "run", archive, "--fold", "1", changes=["num_epochs=1"])
    (tmp_path / "other").mkdir()
    other = labelled(tmp_path / "other", ["a"] * 10 + ["b"] * 10)
    message = refused(
        capsys, tmp_path / "new", other, "--resume", str(next((tmp_path / "run/checkpoints").glob("*.pth")))
    )
    assert "has 4 classes (chirp_down, chirp_up, siren ...), but the data have 2 (a, b ...)" in message


def test_a_checkpoint_of_another_fold_or_config(tmp_path, capsys, archive):
    """Its encoder has been trained on clips that would then test."""
    tune(tmp_path / "run", archive, "--fold", "1", "--freeze", changes=["num_epochs=1"])
    named = tmp_path / "run" / "checkpoints" / "checkpoint-0.pth"
    resume, changes = ("--freeze", "--resume", str(named)), ("opt.label_smoothing=0.3",)
    message = refused(capsys, tmp_path / "new", archive, "--fold", "2", *resume, changes=changes)
    assert message == (
        f"finetune.py: {named} belongs to another config: fold is 1 there and 2 here; opt.label_smoothing is 0.1 there "
        "and 0.3 here; choose another --workdir, or start from its encoder with --model"
    )
    tune(tmp_path / "new", archive, "--fold", "1", *resume)
    assert [line["epoch"] for line in read_log(tmp_path / "new" / "log.txt")] == [1]


def test_a_run_keeps_its_validation_and_test_clips(tmp_path, capsys, archive):
    """Folds are in the manifest, so no shard shows that they have changed."""
    shutil.copytree(archive, tmp_path / "archive")
    options = ("--fold", "1", "--freeze")
    tune(tmp_path / "run", tmp_path / "archive", *options, changes=["num_epochs=1"])
    path = tmp_path / "archive" / "manifest.json"
    manifest, kept = json.loads(path.read_text()), path.read_text()
    manifest["folds"] = [{"1": "3", "3": "1"}.get(fold, fold) for fold in manifest["folds"]]
    path.write_text(json.dumps(manifest))
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-0.pth"
    assert refused(capsys, tmp_path / "run", tmp_path / "archive", *options) == (
        f"finetune.py: the test clips are not those of {newest}, which may have been trained on some of them: restore "
        "the data with their folds and groups, or choose another --workdir"
    )
    path.write_text(kept)
    state = torch.load(newest, weights_only=True)
    earlier = {key: value for key, value in state.items() if key not in ("judged", "judged_content")}
    torch.save(earlier, newest)
    tune(tmp_path / "run", tmp_path / "archive", *options)
    assert len(read_log(tmp_path / "run" / "log.txt")) == 2


def test_other_folders_must_leave_the_validation_clips_as_they_are(tmp_path, capsys):
    """The clips of two archives may have the same names."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a, b = labelled(tmp_path / "a", ["a", "b"] * 6), labelled(tmp_path / "b", ["a", "b"] * 6, seconds=0.4)
    run, options = tmp_path / "run", ("--freeze", "--val-data")
    tune(run, a, *options, str(b), changes=["num_epochs=1"])
    newest = run / "checkpoints" / "checkpoint-0.pth"
    assert refused(capsys, run, b, *options, str(a)) == (
        f"finetune.py: the validation clips have the same names as those of {newest}, but other content: choose "
        "another --workdir, or, if they are the same recordings, add --data-changed restart-epoch"
    )
    (tmp_path / "c").mkdir()
    more = labelled(tmp_path / "c", ["a", "b"] * 4, seconds=0.5)
    b = b.rename(tmp_path / "moved")
    tune(run, a, "--data", str(more), *options, str(b))
    tune(run, b, "--data-changed", "restart-epoch", *options, str(a), changes=["num_epochs=3"])
    assert [line["epoch"] for line in read_log(run / "log.txt")] == [0, 1, 2]


def test_the_folder_of_test_clips_may_be_renamed(tmp_path, capsys):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    a, b, c = (labelled(tmp_path / name, ["a", "b"] * 6, seconds=0.3 + 0.1 * i) for i, name in enumerate("abc"))
    run, options = tmp_path / "run", ("--freeze", "--val-data", str(b), "--test-data")
    tune(run, a, *options, str(c), changes=["num_epochs=1"])
    moved = c.rename(tmp_path / "moved")
    tune(run, a, *options, str(moved))
    assert [line["epoch"] for line in read_log(run / "log.txt")] == [0, 1]
    (tmp_path / "d").mkdir()
    other = labelled(tmp_path / "d", ["a", "b"] * 6, seconds=0.7)
    assert "the test clips have the same names as those of" in refused(capsys, run, a, *options, str(other))


def test_a_checkpoint_of_another_loss(tmp_path, capsys):
    for name, labels in (("several", ["a,b", "a", "b"] * 5), ("one", ["a", "b"] * 8)):
        (tmp_path / name).mkdir()
        labelled(tmp_path / name, labels)
    tune(tmp_path / "run", tmp_path / "several" / "archive", "--freeze", changes=["num_epochs=1"])
    message = refused(capsys, tmp_path / "run", tmp_path / "one" / "archive", "--freeze")
    assert "was trained with the loss 'multi', but these clips need 'single': choose another --workdir" in message


@pytest.mark.parametrize(
    "options, changes, sentence",
    [
        ((), (), "the clips are in the folds 1, 2, 3: choose one with --fold, or --folds all"),
        (("--fold", "9"), (), "no fold '9'; there are 1, 2, 3"),
        (("--folds", "all", "--resume", "x.pth"), (), "--folds and --resume cannot be combined"),
        (("--fold", "1", "--loss", "multi"), ("metric=accuracy",), "metric accuracy needs one label per clip"),
        (("--fold", "1"), ("metric=acuracy",), "metric must be one of None, accuracy, balanced_accuracy"),
        (("--fold", "1"), ("opt.layer_decay=2",), "opt.layer_decay must be at most 1"),
        (("--fold", "1"), ("num_epochs=0",), "num_epochs 0 trains nothing; it needs head.start=probe"),
        (("--fold", "1"), ("num_epochs=-1",), "num_epochs must be a whole number of at least 0, got -1"),
        (("--fold", "1"), ("augment.mixup=2",), "augment.mixup must be a number from 0 to 1, got 2"),
        (("--fold", "1"), ("augment.gain=None",), "augment.gain must be a number from 0 to 100, got None"),
        (("--fold", "1"), ("encoder.name=None",), "encoder.name must be a string, got None"),
        (("--fold", "1"), ("data.test_dir=5",), "data.test_dir must be a string, got 5"),
        (("--fold", "1"), ("opt={'learning_rate':0.1}",), ": set its entries, as opt.NAME=VALUE"),
        (("--fold", "1"), ("encoder.frozen=no",), "encoder.frozen must be True or False, got 'no'"),
        (("--fold", "1"), ("head.poling=mean",), "head.poling"),
        (("--fold", "1"), ("data.num_frames=202",), "data.num_frames is 202: patch_size (4, 16) does not divide"),
    ],
)
def test_options_that_cannot_be(tmp_path, capsys, archive, options, changes, sentence):
    assert sentence in refused(capsys, tmp_path, archive, *options, changes=changes)


def test_data_that_are_not_there(tmp_path, capsys):
    assert f"{tmp_path / 'none'} is not a folder" in refused(capsys, tmp_path / "run", tmp_path / "none")


@pytest.mark.parametrize("text, sentence", [("{", "cannot be read"), ('{"sample_duration": [1]}', "must be a number")])
def test_a_damaged_description_of_a_task_is_named(tmp_path, capsys, text, sentence):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "task_metadata.json").write_text(text)
    assert re.search(f"task_metadata.json.*{sentence}", refused(capsys, tmp_path / "run", tmp_path / "task"))


def test_few_clips_are_a_warning(tmp_path, caplog):
    archive = labelled(tmp_path, ["a"] * 12 + ["b"] * 12)
    with caplog.at_level(logging.WARNING):
        tune(tmp_path / "run", archive, changes=["num_epochs=1"])
    assert "fewer than 10 training clips each for a" in caplog.text


@pytest.mark.parametrize("metric", ["AUC", "d_prime"])
def test_a_metric_that_the_validation_clips_do_not_have_is_refused(tmp_path, capsys, metric):
    """As NaN it would keep the classifier as it started, whatever is learned."""
    for name, labels in (("train", ["a", "b"] * 4), ("valid", ["a"] * 4)):
        (tmp_path / name).mkdir()
        labelled(tmp_path / name, labels)
    classes = tmp_path / "classes.csv"
    classes.write_text("idx,label\n0,a\n1,b\n")
    prepare(tmp_path / "valid/audio", tmp_path / "same", tmp_path / "valid/labels.csv", classes_csv=classes)
    train = tmp_path / "train" / "archive"
    options = ("--val-data", str(tmp_path / "same"))
    message = refused(capsys, tmp_path / "run", train, *options, changes=[f"metric={metric}"])
    assert f"{train}: metric {metric} needs a class that some validation clips have and others lack" in message


def test_a_fold_named_like_a_path_has_one_folder(tmp_path, archive):
    data = shutil.copytree(archive, tmp_path / "archive")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["folds"] = [f"site/{fold}" for fold in manifest["folds"]]
    (data / "manifest.json").write_text(json.dumps(manifest))
    tune(tmp_path / "run", data, "--folds", "all", "--freeze", changes=["num_epochs=1"])
    assert {path.name for path in (tmp_path / "run").glob("fold-*")} == {f"fold-site%2F{n}" for n in "123"}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [fold["fold"] for fold in results["folds"]] == ["site/1", "site/2", "site/3"]


def test_results_of_fewer_epochs_are_not_those_of_a_run_that_goes_on(tmp_path, archive, monkeypatch):
    """Stopped after its last epoch and before its test, a fold would else count as finished with the earlier ones."""
    run = tmp_path / "run/fold-2"
    options = "--folds", "all"
    with monkeypatch.context() as patched:
        patched.setattr(finetune, "summarise", lambda experiment: None)
        patched.setattr(finetune_setup, "find_splits", only_fold_2)
        tune(tmp_path / "run", archive, *options, changes=["num_epochs=1", "keep=last"])
        assert json.loads((run / "results.json").read_text())["epoch"] == 1
        with monkeypatch.context() as stopped:
            stopped.setattr(finetune, "finish", lambda run, interruption: None)
            tune(tmp_path / "run", archive, *options, changes=["num_epochs=2", "keep=last"])
        tune(tmp_path / "run", archive, *options, changes=["num_epochs=2", "keep=last"])
    assert json.loads((run / "results.json").read_text())["epoch"] == 2


def test_folds_of_different_runs_are_not_averaged(tmp_path, archive, capsys, monkeypatch):
    """Some are finished and others are not, as after a kill; here the only one is finished."""
    monkeypatch.setattr(finetune_setup, "find_splits", only_fold_2)
    encoder, data, source = tmp_path / "encoder", tmp_path / "archive", archive.parent
    options = "--folds", "all", "--model", str(encoder), "--init", "pretrained", "--freeze"
    run = tmp_path / "run"

    def save_encoder(mask_token):
        runtime = RuntimeSSAST(get_config(), None)
        runtime.model.mask_token.data.fill_(mask_token)
        save_pretrained(runtime, encoder)

    def prepare_data(swapped):
        shutil.rmtree(data, ignore_errors=True)
        table = (source / "labels.csv").read_text()
        if swapped:
            table = table.replace("00.wav,tone", "00.wav,siren")
        (tmp_path / "labels.csv").write_text(table)
        prepare(source / "audio", data, tmp_path / "labels.csv", settings=Settings("float32"), fold_column="fold")

    save_encoder(0)
    prepare_data(swapped=False)
    tune(run, data, *options)
    results = (run / "fold-2/results.json").read_bytes()
    tune(run, data, *options, changes=["log_every_steps=3"])
    assert (run / "fold-2/results.json").read_bytes() == results
    begin = f"{run / 'fold-2'} was trained with another "
    changes = {"num_epochs=1": "num_epochs (2, now 1)", "batch_size=4": "clips per step (8, now 4)"}
    for change, difference in changes.items():
        assert f"{begin}{difference}: remove it" in refused(capsys, run, data, *options, changes=[change])
    save_encoder(1)
    assert f"{begin}encoder (SHA-256 " in refused(capsys, run, data, *options)
    save_encoder(0)
    prepare_data(swapped=True)
    assert f"{begin}training data (" in refused(capsys, run, data, *options)
    prepare_data(swapped=False)
    tune(run, data, *options)


def test_an_unfinished_fold_goes_on_with_its_own_values_alone(tmp_path, archive, capsys, monkeypatch):
    monkeypatch.setattr(finetune_setup, "find_splits", only_fold_2)
    with monkeypatch.context() as patched:
        patched.setattr(Interruption, "poll", lambda self: setattr(self, "stop_now", True) or True)
        tune(tmp_path, archive, "--folds", "all")
    message = refused(capsys, tmp_path, archive, "--folds", "all", changes=["batch_size=4"])
    assert f"{tmp_path / 'fold-2'} was trained with another clips per step (8, now 4): remove it" in message
    tune(tmp_path, archive, "--folds", "all")


def test_results_say_what_the_weights_were_trained_with(tmp_path, archive):
    """And not what a later start was given, which trained nothing."""
    tune(tmp_path, archive, "--fold", "1")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["trained_with"]["num_epochs"] == 2 and results["trained_with"]["clips per step"] == 8
    tune(tmp_path, archive, "--fold", "1", changes=["num_epochs=1", "batch_size=4"])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    tune(tmp_path, archive, "--fold", "1", changes=["num_epochs=3", "batch_size=4"])
    assert json.loads((tmp_path / "results.json").read_text())["trained_with"]["clips per step"] == 4


@pytest.mark.parametrize("options", [(), ("--freeze",)])
def test_the_space_of_a_checkpoint_is_known_beforehand(tmp_path, archive, monkeypatch, options):
    asked = []
    monkeypatch.setattr(resume, "check_space", lambda folder, count, more_values: asked.append(3 * count + more_values))
    tune(tmp_path, archive, "--fold", "1", *options, changes=["num_epochs=1"])
    state = torch.load(tmp_path / "checkpoints" / "checkpoint-0.pth", weights_only=True)
    moments = [moment for entry in state["optimizer"]["state"].values() for moment in entry.values()]
    held = [*state["model"].values(), *state["kept"]["model"].values(), *moments]
    assert asked[0] == pytest.approx(sum(tensor.numel() for tensor in held), rel=0.02)


def test_an_empty_name_of_a_fold_is_refused(tmp_path, archive, capsys):
    with pytest.raises(SystemExit) as ended:
        tune(tmp_path, archive, "--fold", "")
    assert ended.value.code == 2 and "argument --fold: " in capsys.readouterr().err


def test_a_killed_process_that_prepares_the_task_is_reported(tmp_path, task, capsys, monkeypatch):
    def killed(*arguments, **options):
        raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr(finetune_data, "prepare", killed)
    message = refused(capsys, tmp_path, task)
    assert f"a process that prepared {task} was killed, probably for lack of memory; finish its archive" in message


def test_damaged_results_of_a_fold_are_named_and_can_be_made_again(tmp_path, archive, capsys, monkeypatch):
    monkeypatch.setattr(finetune_setup, "find_splits", only_fold_2)
    tune(tmp_path, archive, "--folds", "all")
    path = tmp_path / "fold-2/results.json"
    results = path.read_bytes()
    for damaged in (results[: len(results) // 2], b"[]"):
        path.write_bytes(damaged)
        message = refused(capsys, tmp_path, archive, "--folds", "all")
        assert str(path) in message and "remove it to evaluate the fold again" in message
    path.unlink()
    tune(tmp_path, archive, "--folds", "all")
    assert path.read_bytes() == results


def test_step_checkpoints_do_not_count_among_those_of_whole_epochs(tmp_path, archive, monkeypatch):
    """The last two stay, in case that one is damaged."""
    monkeypatch.setattr(resume, "remove_stale", lambda *args, **kwargs: None)
    tune(tmp_path, archive, "--fold", "1", "--checkpoint-minutes", "1e-6", changes=["num_epochs=3"])
    assert len(list((tmp_path / "resume").glob("*.pth"))) >= 2
    assert {path.name for path in (tmp_path / "checkpoints").glob("*.pth")} == {"checkpoint-1.pth", "checkpoint-2.pth"}


def only_fold_2(*arguments):
    return {fold: split for fold, split in find_splits(*arguments).items() if fold == "2"}
