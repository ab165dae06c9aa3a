"""X-ARES, the unmodified package, on our encoders: scores against ones computed by hand, and what can go wrong."""

import io
import json
import shutil
import tarfile
import unicodedata
import zipfile

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
import torch

from audio_mamba.external_sources import xares_kit, xares_run, xares_table, xares_tasks
from audio_mamba.external_sources.origin import find_origin
from audio_mamba.external_sources.task_files import TaskError
from audio_mamba.hear_api.api import load_model
from benchmarks import log_mel_baseline
from tests.evaluation.conftest import write_task

pytest.importorskip("xares", reason="pip install --no-deps -r requirements-hear.txt")
MODULE = "benchmarks.log_mel_baseline"
PITCHES = (220.0, 660.0, 1980.0)


def write_archive(path, clips, rate=16000):
    """A webdataset archive with the names and members of the release: <key>.wav and <key>.json for each clip."""
    with tarfile.open(path, "w") as file:
        for key, (samples, label) in clips.items():
            audio = io.BytesIO()
            soundfile.write(audio, samples, rate, "PCM_16", format="WAV")
            for suffix, content in (("wav", audio.getvalue()), ("json", json.dumps({"label": label}).encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


def tones(count, seed, rate=16000, labels=(0, 1, 2)):
    """Clips of half a second with a label each, by key."""
    rng = np.random.default_rng(seed)
    time = np.arange(rate // 2) / rate
    return {
        f"{seed}-{i}-A-{i % 3}": (
            0.1 * np.sin(2 * np.pi * PITCHES[i % 3] * time) + 0.05 * rng.standard_normal(len(time)),
            labels[i % 3],
        )
        for i in range(count)
    }


@pytest.fixture
def esc50(tmp_path):
    """TASKS_DIR with archives of X-ARES' own ESC-50, named as on Zenodo: five folds, two shards in one of them."""
    folder = tmp_path / "tasks" / "esc50"
    folder.mkdir(parents=True)
    for fold in range(1, 6):
        write_archive(folder / f"wds-audio-fold-{fold}-0000000.tar", tones(6, fold))
    write_archive(folder / "wds-audio-fold-5-0000001.tar", tones(3, 50))
    return folder


@pytest.fixture
def cremad(tmp_path):
    """TASKS_DIR with archives of X-ARES' own CREMA-D at 44.1 kHz: train, valid and test, labels by letter."""
    folder = tmp_path / "tasks" / "cremad"
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": 15, "valid": 3, "test": 6}.items()):
        clips = tones(count, seed, 44100, labels="HSA")
        write_archive(folder / f"wds-audio-{split}-0000000.tar", clips, 44100)
    return folder


def run(*arguments):
    xares_run.main([str(argument) for argument in arguments])


def scores(output):
    return pd.read_csv(output / xares_table.TABLE).set_index(["model", "task", "kind"]).score


def means_of(path, model):
    """Embeddings [n, D], the mean over time, and labels of an archive, read and embedded without X-ARES."""
    rows, labels = [], []
    with tarfile.open(path) as file:
        members = {member.name: file.extractfile(member).read() for member in file}
    for name in sorted(name for name in members if name.endswith(".wav")):
        audio, rate = soundfile.read(io.BytesIO(members[name]), dtype="float32")
        if rate != 16000:
            audio = soxr.resample(audio, rate, 16000, quality="HQ")
        rows.append(model.get_timestamp_embeddings(torch.from_numpy(audio)[None])[0][0].mean(0).numpy())
        labels.append(json.loads(members[name.replace(".wav", ".json")])["label"])
    return np.stack(rows), np.array(labels)


def knn_by_hand(train, train_labels, test, test_labels, classes):
    """Ten neighbours vote with softmax(similarity / 0.07); xares scales the training embeddings per feature."""
    similarity = (test / np.linalg.norm(test, axis=1, keepdims=True)) @ (train / np.linalg.norm(train, axis=0)).T
    neighbours = np.argsort(-similarity, axis=1)[:, :10]
    nearest = np.take_along_axis(similarity, neighbours, axis=1)
    weights = np.exp((nearest - nearest[:, :1]) / 0.07)  # up to a factor that is the same for all
    votes = np.zeros((len(test), classes))
    for row, (of_row, weight) in enumerate(zip(neighbours, weights)):
        np.add.at(votes[row], train_labels[of_row], weight)
    return (votes.argmax(1) == test_labels).mean()


def mlp_by_hand(checkpoint, test, test_labels):
    """Layer norm and a linear layer with the stored weights."""
    head = {key: value.numpy() for key, value in torch.load(checkpoint, weights_only=True).items()}
    centred = test - test.mean(1, keepdims=True)
    normed = centred / np.sqrt(test.var(1, keepdims=True) + 1e-5) * head["ln.weight"] + head["ln.bias"]
    return ((normed @ head["fc.weight"].T + head["fc.bias"]).argmax(1) == test_labels).mean()


def check_by_hand(folder, output, name, module_model, classes):
    """Both scores of a task with folds, from its archives and from the heads that X-ARES stored."""
    folds = {
        fold: [means_of(path, module_model) for path in sorted(folder.glob(f"wds-audio-fold-{fold}-*.tar"))]
        for fold in range(1, 6)
    }
    folds = {fold: tuple(np.concatenate(part) for part in zip(*found)) for fold, found in folds.items()}
    knn, mlp = [], []
    for fold, (test, test_labels) in folds.items():
        train, train_labels = (np.concatenate([folds[k][i] for k in folds if k != fold]) for i in (0, 1))
        knn.append(knn_by_hand(train, train_labels, test, test_labels, classes))
        heads = output / folder.name / "checkpoints" / f"{name}Encoder"
        mlp.append(mlp_by_hand(heads / f"fold_{fold}_best_model.pt", test, test_labels))
    found = scores(output)[name, folder.name]
    assert found["kNN"] == pytest.approx(np.mean(knn), abs=1e-6)
    assert found["MLP"] == pytest.approx(np.mean(mlp), abs=1e-6)
    assert np.mean(knn) > 0 and np.mean(mlp) > 0


class Baseline:
    """Log-mels with the method of a model."""

    get_timestamp_embeddings = staticmethod(
        lambda audio: log_mel_baseline.get_timestamp_embeddings(audio, log_mel_baseline.load_model())
    )


def test_scores_are_those_computed_by_hand(esc50, tmp_path, capsys):
    run(MODULE, esc50.parent, tmp_path / "out", "--name", "log_mels")
    check_by_hand(esc50, tmp_path / "out", "log_mels", Baseline, 50)
    found = scores(tmp_path / "out")["log_mels", "esc50"]
    printed = capsys.readouterr().out
    assert f"| log_mels | MLP | {100 * found['MLP']:.1f} | {100 * found['MLP']:.1f} |" in printed
    assert not list(esc50.glob("*Encoder*")) and len(list(esc50.iterdir())) == 6, "TASKS_DIR was changed"


def test_scores_on_real_recordings_are_those_computed_by_hand(shared_tasks, tmp_path):
    """Drum hits in the archives of ESC-50: fold n of the task is fold n + 1 of the release, labels are numbers."""
    task, folder = shared_tasks / "drum_hits-v1-full", tmp_path / "tasks" / "esc50"
    folder.mkdir(parents=True)
    labels = (task / "labelvocabulary.csv").read_text().splitlines()[1:]
    numbers = {line.split(",")[1]: int(line.split(",")[0]) for line in labels}
    for fold in range(5):
        of_clip = json.loads((task / f"fold0{fold}.json").read_text())
        clips = {
            f"{number:03d}": (soundfile.read(task / "16000" / f"fold0{fold}" / clip)[0], numbers[of_clip[clip][0]])
            for number, clip in enumerate(sorted(of_clip)[::6])
        }
        write_archive(folder / f"wds-audio-fold-{fold + 1}-0000000.tar", clips)
    run(MODULE, folder.parent, tmp_path / "out", "--name", "log_mels")
    check_by_hand(folder, tmp_path / "out", "log_mels", Baseline, 50)


@pytest.mark.parametrize("config", ["ssam_tiny_200_16x4", "ssast_tiny_200_16x4", "axlstm_tiny_200_16x4", MODULE])
def test_the_checker_of_xares_accepts_our_encoders(config):
    module = config if config == MODULE else f"configs.{config}"
    with xares_kit.stand_ins():
        encoder = xares_run.load_encoder(find_origin(module, "untrained", None), "some")
    assert encoder.sampling_rate == 16000 and encoder.hop_size_in_ms == 40.0
    assert encoder(torch.zeros(2, 16000)).shape == (2, 26, encoder.output_dim)


def test_an_encoder_that_xares_rejects_is_refused_with_its_reason(monkeypatch):
    monkeypatch.setattr(xares_kit.HearEncoder, "forward", lambda self, audio: audio)
    with xares_kit.stand_ins(), pytest.raises(SystemExit, match="xares rejects the encoder: .*Expected 3D tensor"):
        xares_run.load_encoder(find_origin(MODULE, None, None), "some")


@pytest.mark.slow
def test_hear_tasks_are_evaluated_by_one_command(tiny_tasks, command, tmp_path):
    """Scenes of both kinds of splits, with MLP and kNN, and events with MLP."""
    done = command("evaluate_xares.sh", MODULE, tiny_tasks, tmp_path / "out", NAME="log_mels")
    found = scores(tmp_path / "out")["log_mels"]
    assert sorted(found.index) == [
        *(("event", "MLP"), ("folds", "MLP"), ("folds", "kNN"), ("scene", "MLP"), ("scene", "kNN"))
    ]
    assert found.between(0, 1).all()
    assert "| log_mels | kNN | - | " in done.stdout
    weights = pd.read_csv(tmp_path / "out" / xares_table.TABLE).groupby("task").weight.first()
    assert weights.to_dict() == {"event": 9, "folds": 6, "scene": 9}

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/checkpoints/*/*")}
    run(MODULE, tiny_tasks, tmp_path / "out", "--name", "log_mels")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "a finished task was repeated"


def test_archives_at_another_rate_are_resampled_by_soxr(cremad, tmp_path):
    run("ssam_tiny_free_audio", cremad.parent, tmp_path / "out", "--model", "untrained", "--name", "x")
    model = load_model("ssam_tiny_free_audio", "untrained", "cpu")
    (train, train_labels), (test, test_labels) = (
        means_of(cremad / f"wds-audio-{split}-0000000.tar", model) for split in ("train", "test")
    )
    numbers = {"H": 0, "S": 1, "A": 2}
    train_labels, test_labels = (np.array([numbers[label] for label in of]) for of in (train_labels, test_labels))
    found = scores(tmp_path / "out")["x", "cremad"]
    assert found["kNN"] == pytest.approx(knn_by_hand(train, train_labels, test, test_labels, 6), abs=1e-6)
    head = tmp_path / "out" / "cremad" / "checkpoints" / "xEncoder" / "best.ckpt"
    assert found["MLP"] == pytest.approx(mlp_by_hand(head, test, test_labels), abs=1e-6)


def test_heads_are_the_same_each_time_and_interrupted_ones_are_trained_again(cremad, tmp_path):
    for output in ("one", "two"):
        run(MODULE, cremad.parent, tmp_path / output, "--name", "x")
    path = tmp_path / "one" / "cremad" / "checkpoints" / "xEncoder" / "best.ckpt"
    head = torch.load(path)
    torch.testing.assert_close(torch.load(str(path).replace("/one/", "/two/")), head, rtol=0, atol=0)
    torch.save({key: torch.zeros_like(value) for key, value in head.items()}, path)
    (path.parent / "mlp_score.txt").write_text("0.3")  # cut off
    run(MODULE, cremad.parent, tmp_path / "one", "--name", "x")
    torch.testing.assert_close(torch.load(path), head, rtol=0, atol=0)


def test_results_of_other_files_or_weights_are_refused_or_replaced(cremad, tmp_path):
    arguments = (MODULE, cremad.parent, tmp_path / "out", "--name", "x")
    run(*arguments, "--model", "first")
    with pytest.raises(SystemExit, match="cremad: MODEL: .*cremad was embedded with first, not with no MODEL.*REDO=1"):
        run(*arguments)
    before = scores(tmp_path / "out")["x", "cremad", "kNN"]
    changed = {key: (audio, "S") for key, (audio, _) in tones(6, 2, 44100).items()}
    write_archive(cremad / "wds-audio-test-0000000.tar", changed, 44100)
    with pytest.raises(SystemExit, match="cremad: TASKS_DIR: .*audio-test-0000000.tar changed since it was embedded"):
        run(*arguments, "--model", "first")
    run(*arguments, "--model", "first", "--redo")
    assert scores(tmp_path / "out")["x", "cremad", "kNN"] == pytest.approx(1 / 3) != before


def test_archives_that_were_added_or_are_gone_are_noticed(cremad, tmp_path):
    arguments = (MODULE, cremad.parent, tmp_path / "out", "--name", "x")
    added = cremad / "wds-audio-test-0000001.tar"
    write_archive(added, tones(3, 9, 44100, labels="HSA"), 44100)
    run(*arguments)
    added.rename(cremad / "wds-audio-test-0000002.tar")
    with pytest.raises(SystemExit, match=f"TASKS_DIR: {added} changed since it was embedded"):
        run(*arguments)
    (cremad / "wds-audio-test-0000002.tar").unlink()
    run(*arguments, "--redo")
    assert [path.name for path in (tmp_path / "out" / "cremad").glob("wds-audio-test-*.tar")] == [
        "wds-audio-test-0000000.tar"
    ]
    write_archive(added, tones(3, 9, 44100, labels="HSA"), 44100)
    with pytest.raises(SystemExit, match=f"TASKS_DIR: {added} was added since .*cremad was embedded; REDO=1"):
        run(*arguments)


def test_archives_are_not_replaced_by_links_to_themselves(cremad):
    with pytest.raises(SystemExit, match="OUTPUT_DIR: .*cremad has the archives themselves"):
        run(MODULE, cremad.parent, cremad.parent)
    assert all(path.is_file() and not path.is_symlink() for path in cremad.iterdir())


def test_clips_that_xares_would_skip_are_an_error(cremad, tmp_path):
    archive = cremad / "wds-audio-test-0000000.tar"
    archive.write_bytes(archive.read_bytes().replace(b"RIFF", b"JUNK", 1))
    with pytest.raises(SystemExit, match="cremad: split wds-audio-test: 1 of 6 clips cannot be read; see .*xares.log"):
        run(MODULE, cremad.parent, tmp_path / "out")
    assert not list((tmp_path / "out").glob("cremad/checkpoints/*/*_score.txt"))


def test_missing_and_damaged_archives_are_named(cremad, tmp_path):
    (cremad / "wds-audio-valid-0000000.tar").unlink()
    with pytest.raises(SystemExit, match="cremad has no archive of split wds-audio-valid"):
        run(MODULE, cremad.parent, tmp_path / "out")
    archive = cremad / "wds-audio-test-0000000.tar"
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(TaskError, match="audio-test-0000000.tar is damaged or cut off"):
        xares_tasks.count_samples(archive, xares_tasks.AUDIO)
    for arguments, sentence in (
        ((tmp_path / "none",), "TASKS_DIR: .*none is not a folder"),
        ((tmp_path,), "has no folder with the name of an X-ARES task, and no HEAR task"),
        ((cremad.parent,), "TASKS: x\\* matches none of cremad"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            run(MODULE, *arguments, tmp_path / "out", "--tasks", "x*")


def test_tasks_that_are_not_unpacked_are_named(tmp_path, capsys):
    (tmp_path / "tones.tar.gz").touch()
    with pytest.raises(SystemExit, match="and no HEAR task"):
        run(MODULE, tmp_path, tmp_path / "out")
    assert f"skipped {tmp_path / 'tones.tar.gz'}: HEAR tasks must be unpacked" in capsys.readouterr().err


@pytest.mark.cuda
def test_scores_on_a_gpu_are_those_of_the_cpu(cremad, tmp_path, monkeypatch):
    arguments = ("ssam_tiny_free_audio", cremad.parent)
    run(*arguments, tmp_path / "gpu", "--model", "untrained", "--name", "x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run(*arguments, tmp_path / "cpu", "--model", "untrained", "--name", "x")
    assert scores(tmp_path / "gpu")["x", "cremad", "kNN"] == scores(tmp_path / "cpu")["x", "cremad", "kNN"]


@pytest.fixture
def zenodo(cremad, monkeypatch):
    """What was asked of Zenodo, which has the archives of CREMA-D; an error in the list is raised instead."""
    with xares_kit.stand_ins():
        import xares.utils

    asked = []

    def download_file(url, path, *_):
        if asked and isinstance(asked[-1], Exception):
            raise asked.pop()
        asked.append(url)
        with zipfile.ZipFile(path, "w") as file:
            for archive in cremad.iterdir():
                file.write(archive, archive.name)

    monkeypatch.setattr(xares.utils, "download_file", download_file)
    return asked


def test_nothing_is_downloaded_unless_asked(cremad, tmp_path, zenodo):
    run(MODULE, cremad.parent, tmp_path / "out")
    with pytest.raises(SystemExit, match="DOWNLOAD: TASKS must say which tasks to download"):
        run(MODULE, tmp_path / "env", tmp_path / "again", "--download")
    with pytest.raises(SystemExit, match="TASKS: cremat matches no task of X-ARES"):
        run(MODULE, tmp_path / "env", tmp_path / "again", "--tasks", "cremat", "--download")
    assert not zenodo
    run(MODULE, tmp_path / "env", tmp_path / "again", "--tasks", "cre*", "--download")
    assert len(zenodo) == 1 and "14646870" in zenodo[0]
    assert (scores(tmp_path / "again") == scores(tmp_path / "out")).all()
    run(MODULE, tmp_path / "env", tmp_path / "again", "--tasks", "cremad", "--download")
    assert len(zenodo) == 1


def test_a_download_that_fails_is_made_again(tmp_path, zenodo):
    arguments = (MODULE, tmp_path / "env", tmp_path / "out", "--tasks", "cremad", "--download")
    zenodo.append(ConnectionError("no route to host"))
    with pytest.raises(SystemExit, match="DOWNLOAD: cremad: no route to host"):
        run(*arguments)
    assert not list((tmp_path / "env").iterdir())
    run(*arguments)
    assert len(zenodo) == 1 and len(scores(tmp_path / "out")) == 2


def test_events_become_frames_as_in_maestro():
    events = [{"label": "b", "start": 0.0, "end": 41.0}, {"label": "a", "start": 81.0, "end": 160.0}]
    targets = xares_tasks.frame_targets(events, {"a": 0, "b": 1}, 40.0)
    assert targets.tolist() == [[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]]
    assert xares_tasks.frame_targets([], {"a": 0}, 40.0).tolist() == [[0.0]]


def test_labels_in_decomposed_unicode_are_found(tmp_path, tiny_tasks):
    decomposed = unicodedata.normalize("NFD", "é")
    task = shutil.copytree(tiny_tasks / "scene", tmp_path / "scene")
    for path in (task / "labelvocabulary.csv", *(task / f"{split}.json" for split in ("train", "valid", "test"))):
        path.write_text(path.read_text().replace("mid", decomposed), encoding="utf-8")
    with xares_kit.stand_ins():
        encoder = xares_run.load_encoder(find_origin(MODULE, None, None), "some")
        assert xares_tasks.hear_config(task, encoder).label_processor({"label": decomposed}) == 1
    targets = xares_tasks.frame_targets([{"label": decomposed, "start": 0, "end": 1}], {"a": 0, "é": 1}, 40.0)
    assert targets.tolist() == [[0.0], [1.0]]


def test_tasks_with_several_labels_are_left_out_by_name(tmp_path, tiny_tasks):
    kinds = {"embedding_type": "scene", "prediction_type": "multilabel", "evaluation": ["mAP"]}
    write_task(tmp_path / "tasks" / "tags", {"train": 3, "valid": 3, "test": 3}, split_mode="trainvaltest", **kinds)
    shutil.copytree(tiny_tasks / "scene", tmp_path / "tasks" / "scene")
    with pytest.raises(SystemExit) as error:
        run(MODULE, tmp_path / "tasks", tmp_path / "out")
    first, *sentences = str(error.value).splitlines()
    assert first == "not evaluated:" and len(sentences) == 1 and "tags has clips with several labels" in sentences[0]
    assert len(scores(tmp_path / "out")) == 2


def test_the_table_leaves_out_averages_over_different_tasks(tmp_path):
    for model, task, score in (("a", "x", "0.5\n10"), ("a", "y", "1.0\n30"), ("b", "x", "0.25\n10")):
        folder = tmp_path / task / "checkpoints" / f"{model}Encoder"
        folder.mkdir(parents=True)
        (folder / "mlp_score.txt").write_text(score)
    (tmp_path / "y" / "checkpoints" / "bEncoder").mkdir()
    (tmp_path / "y" / "checkpoints" / "bEncoder" / "mlp_score.txt").write_text("0.")
    table = xares_table.write_table(tmp_path)
    assert "| a | MLP | 50.0 | 100.0 | 87.5 |" in table and "| b | MLP | 25.0 | - | - |" in table


def write_result(output, task, model, score, weight=10, **files):
    """Scores of a model, and a note of its files by their hashes; none, as earlier versions, without `files`."""
    folder = output / task / "checkpoints" / f"{model}Encoder"
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("mlp", "knn"):
        (folder / f"{kind}_score.txt").write_text(f"{score}\n{weight}")
    if files:
        state = {name: [1, 0, digest] for name, digest in files.items()}
        (folder / "task-files.json").write_text(json.dumps({"task": "/gone", "sample_rate": 0, "files": state}))


def test_tasks_of_different_versions_are_left_out_by_name(tmp_path, caplog):
    write_result(tmp_path, "esc50", "a", 0.5, **{"one.tar": "1", "two.tar": "2"})
    write_result(tmp_path, "esc50", "b", 0.25, **{"one.tar": "1", "two.tar": "2"})
    write_result(tmp_path, "esc50", "earlier", 0.75)
    write_result(tmp_path, "gtzan", "a", 1.0, weight=30, **{"one.tar": "another task"})
    table = xares_table.write_table(tmp_path)
    for line in ("| a | MLP | 50.0 | 100.0 | 87.5 |", "| b | kNN | 25.0 | - | - |", "| earlier | MLP | 75.0 | - | - |"):
        assert line in table
    assert not caplog.messages

    changes = (
        ({"one.tar": "1", "two.tar": "x"}, 10, "two.tar differs"),
        ({"one.tar": "1"}, 10, "two.tar differs"),
        ({"one.tar": "1", "two.tar": "2", "three.tar": "3"}, 10, "three.tar differs"),
        ({"one.tar": "1", "two.tar": "2"}, 4, "it has 10 and 4 test clips"),
    )
    folder = f"{tmp_path}/esc50/checkpoints"
    for files, weight, why in changes:
        caplog.clear()
        write_result(tmp_path, "esc50", "b", 0.25, weight, **files)
        assert xares_table.write_table(tmp_path).splitlines()[2:] == [
            f"| a | {kind} | 100.0 | 100.0 |" for kind in ("MLP", "kNN")
        ]
        assert set(scores(tmp_path).index) == {("a", "gtzan", "MLP"), ("a", "gtzan", "kNN")}
        assert caplog.messages == [
            f"esc50 is left out of the table: {folder}/aEncoder and {folder}/bEncoder are of different versions of it, "
            f"{why}; evaluate it with REDO=1 on one version"
        ]
    shutil.rmtree(tmp_path / "gtzan")
    assert xares_table.write_table(tmp_path) is None and scores(tmp_path).empty


def test_audio_of_two_rates_is_not_another_version(tmp_path):
    labels = {"task_metadata.json": "m", "test.json": "t"}
    for model, rate, digest in (("a", 48000, "1"), ("b", 16000, "2"), ("c", 16000, "2")):
        write_result(tmp_path, "scene", model, 0.5, **labels, **{f"{rate}/test/a.wav": digest})
    assert "| c | MLP | 50.0 |" in xares_table.write_table(tmp_path)
    write_result(tmp_path, "scene", "c", 0.5, **labels, **{"16000/test/a.wav": "3"})
    assert xares_table.write_table(tmp_path) is None
