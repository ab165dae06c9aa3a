"""The probe against a script that uses saved embeddings and the documented splits alone, and its rules on bad input."""

import csv
import hashlib
import json
import logging
import os
import shutil

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.axes import Axes
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from audio_mamba.data.folds import Split
from audio_mamba.data.prepare import main as prepare
from audio_mamba.data.synthetic import write_scene_task
from audio_mamba.hear_api.api import load_model
from audio_mamba.hear_api.pretrained import save_pretrained
from audio_mamba.hear_api.probe import report
from audio_mamba.hear_api.probe.__main__ import main
from audio_mamba.hear_api.probe.classify import Result, bootstrap, central_interval, classify, metric
from audio_mamba.hear_api.probe.clips import Clips, deal, read_clips
from audio_mamba.hear_api.resolve import resolve
from audio_mamba.hear_api.runtime import RuntimeSSAST
from tests.hear_api import wide_config

MODELS = ["--model", "ssast_tiny_200_16x4:untrained", "--model", "logmel"]
KINDS = {"low": 200, "middle": 700, "high": 2500}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tones of three pitches in noise, a folder for each."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for kind, hertz in KINDS.items():
        (folder / kind).mkdir()
        for number in range(10):
            t = np.arange(8000) / 16000
            tone = np.sin(2 * np.pi * hertz * rng.uniform(0.7, 1.4) * t + rng.uniform(0, 6))
            soundfile.write(folder / kind / f"{number}.wav", 0.1 * tone + 0.1 * rng.standard_normal(8000), 16000)
    return folder


def table(out):
    with open(out / "results.csv") as file:
        return {(row["model"], row["classifier"]): row for row in csv.DictReader(file)}


def by_hand(embedding, labels, splits):
    """Accuracy of logistic regression as the documentation says: C chosen on the next fold, refit on both."""
    folds, right = sorted(set(splits)), 0
    for test, valid in zip(folds, folds[1:] + folds[:1], strict=True):
        train = (splits != test) & (splits != valid)

        def fit_and_score(fitted, scored, regularisation):
            mean, std = embedding[fitted].mean(axis=0), embedding[fitted].std(axis=0)
            std[std < 1e-12] = 1
            model = LogisticRegression(C=regularisation, tol=1e-6, max_iter=10000)
            model.fit((embedding[fitted] - mean) / std, labels[fitted])
            return (model.predict((embedding[scored] - mean) / std) == labels[scored]).sum()

        choices = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
        best = max(choices, key=lambda c: (fit_and_score(train, splits == valid, c), -c))
        right += fit_and_score(splits != test, splits == test, best)
    return right / len(labels)


def test_its_table_agrees_with_a_script_on_its_saved_embeddings(folder, tmp_path, capsys):
    main([str(folder), *MODELS, "--out", str(tmp_path)])
    rows = table(tmp_path)
    assert len(rows) == 4 and "| logmel | logistic regression |" in capsys.readouterr().out
    for model in ("ssast_tiny_200_16x4_untrained", "logmel"):
        (path,) = (tmp_path / "embeddings").glob(f"{model}-*.npz")
        with np.load(path) as saved:
            names, embedding = saved["name"], saved["embedding"].astype(np.float64)
        labels = np.array([name.split("/")[0] for name in names])
        splits = np.array([""] * len(names), dtype="U5")
        order = sorted(range(len(names)), key=lambda i: (labels[i], hashlib.sha256(names[i].encode()).digest()))
        for place, clip in enumerate(order):
            splits[clip] = f"fold{place % 5}"
        row = rows[model.replace("_untrained", ":untrained"), "logistic regression"]
        assert float(row["score"]) == pytest.approx(by_hand(embedding, labels, splits), abs=1e-6)
        assert float(row["low"]) <= float(row["score"]) <= float(row["high"])
    for name in ("results.md", "per_class.csv", "predictions.csv", "confusion-logmel.png"):
        assert (tmp_path / name).stat().st_size > 0
    with open(tmp_path / "predictions.csv") as file:
        predictions = list(csv.DictReader(file))
    right = sum(row["label"] == row["logmel, k-NN"] for row in predictions)
    assert right / 30 == pytest.approx(float(rows["logmel", "k-NN"]["score"]), abs=1e-9)
    with open(tmp_path / "per_class.csv") as file:
        recalls = [row for row in csv.DictReader(file) if (row["model"], row["classifier"]) == ("logmel", "k-NN")]
    assert sum(int(row["clips"]) * float(row["recall"]) for row in recalls) == pytest.approx(right)


@pytest.mark.parametrize("width, classes", [(10, 3), (60, 3), (10, 2)])
def test_scores_on_validation_and_test_clips_are_those_of_sklearn(width, classes):
    """60 numbers for 24 training clips: the regression in the span of the clips is the one in all dimensions."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % classes
    features = rng.standard_normal((40, width)) + 0.5 * np.repeat(np.eye(2)[labels % 2], width // 2, axis=1)
    part = Split(np.arange(24), np.arange(24, 32), np.arange(32, 40))
    (result,) = classify(features, np.eye(classes, dtype=bool)[labels], [part], False, ("logistic regression",))
    for train, scored, scores in (
        (part.train, part.valid, result.valid_scores),
        (np.arange(32), part.test, result.scores),
    ):
        mean, std = features[train].mean(axis=0), features[train].std(axis=0)
        model = LogisticRegression(C=result.chosen[0], tol=1e-9, max_iter=10000)
        model.fit((features[train] - mean) / std, labels[train])
        expected = model.predict_proba((features[scored] - mean) / std)
        np.testing.assert_allclose(scores[scored], expected, atol=2e-5)
        assert np.isnan(np.delete(scores, scored, axis=0)).all()


def test_several_labels_have_a_regression_each():
    """But those that no clip, or every clip, has."""
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((40, 10)), rng.random((40, 3)) < 0.4
    features[:, :3] += targets
    targets = np.column_stack([targets, np.zeros(40, bool), np.ones(40, bool)])
    part = Split(np.arange(24), np.arange(24, 32), np.arange(32, 40))
    (result,) = classify(features, targets, [part], True, ("logistic regression",))
    for train, scored, scores in (
        (part.train, part.valid, result.valid_scores),
        (np.arange(32), part.test, result.scores),
    ):
        x = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
        for number in range(3):
            model = LogisticRegression(C=result.chosen[0], tol=1e-9, max_iter=10000)
            expected = model.fit(x[train], targets[train, number]).predict_proba(x[scored])[:, 1]
            np.testing.assert_allclose(scores[scored, number], expected, atol=2e-5)
        assert (scores[scored, 3:] == [0, 1]).all()


def test_the_nearest_clips_by_cosine_vote_the_nearer_counting_more():
    rng, labels = np.random.default_rng(0), np.arange(40) % 3
    features, targets = rng.standard_normal((40, 6)) + np.eye(3, 6)[labels], np.eye(3, dtype=bool)[labels]
    part = Split(np.arange(24), np.arange(24, 32), np.arange(32, 40))

    def by_hand(train, scored, k):
        x = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        distances = 1 - x[scored] @ x[train].T
        nearest = np.argsort(distances, axis=1)[:, :k]
        weights = 1 / np.take_along_axis(distances, nearest, axis=1)[:, :, None]  # [scored, k, 1]
        return (weights * targets[train][nearest]).sum(axis=1) / weights.sum(axis=1)

    (result,) = classify(features, targets, [part], False, ("k-NN",))
    right = {k: (by_hand(part.train, part.valid, k).argmax(1) == labels[part.valid]).sum() for k in (1, 3, 5, 10, 20)}
    assert result.chosen == [max(right, key=lambda k: (right[k], -k))]
    found = result.valid_scores[part.valid], result.scores[part.test]
    np.testing.assert_allclose(found[0], by_hand(part.train, part.valid, result.chosen[0]))
    np.testing.assert_allclose(found[1], by_hand(np.arange(32), part.test, result.chosen[0]))


def test_tables_and_pictures_against_counting_by_hand(tmp_path, monkeypatch):
    """Ten tested clips and two that never were; the second model is right on one more than the first."""
    labels = ["a"] * 6 + ["b"] * 4 + ["a", "b"]
    clips = Clips(tmp_path, list("0123456789xy"), None, [(label,) for label in labels], ["a", "b"], ["s"] * 12)

    def result(classifier, guesses):
        scores = np.full((12, 2), np.nan)
        scores[:10] = np.where(np.array(list(guesses))[:, None] == np.array(["a", "b"]), 0.9, 0.1)
        return Result(classifier, scores, scores, [1.0])

    drawn, imshow = [], Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, image, **rest: drawn.append(image) or imshow(self, image, **rest))
    results = [
        ("first", result("one", "aaaabbbaba")),
        ("first", result("two", "bbbbbbbbbb")),
        ("second", result("one", "aaaaabbaba")),
        ("second", result("two", "bbbbbbbbbb")),
    ]
    rows = report.compare(results, clips)
    assert [(row.model, row.classifier, row.score) for row in rows] == [
        ("first", "one", 0.6),
        ("first", "two", 0.4),
        ("second", "one", 0.7),
        ("second", "two", 0.4),
    ]
    assert [row.difference for row in rows] == pytest.approx([0, 0, 0.1, 0])
    assert rows[2].difference_low == 0 < rows[2].difference_high <= 0.4, "paired: never worse on any clip"
    assert all(row.difference_low == row.difference_high == 0 for row in (rows[0], rows[1], rows[3]))
    report.write(tmp_path, rows, results, clips)
    with open(tmp_path / "per_class.csv") as file:
        per_class = [
            (row["label"], int(row["clips"]), float(row["recall"]), float(row["precision"]))
            for row in csv.DictReader(file)
        ]
    assert per_class[:4] == [("a", 6, 4 / 6, 4 / 6), ("b", 4, 2 / 4, 2 / 4), ("a", 6, 0, 0), ("b", 4, 1, 4 / 10)]
    with open(tmp_path / "predictions.csv") as file:
        guessed = ["".join(row["first, one"] for row in csv.DictReader(file))]
    assert guessed == ["aaaabbbaba"]
    np.testing.assert_allclose(drawn, 100 * np.array([[[4, 2], [2, 2]], [[5, 1], [2, 2]]]) / [[6], [4]])
    assert central_interval(np.arange(1001) / 1000) == pytest.approx((0.025, 0.975))


def test_clips_of_one_recording_of_an_archive_are_in_one_fold(tmp_path):
    for number in range(12):
        (tmp_path / "audio" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        audio = np.random.default_rng(number).standard_normal(48000) / 10
        soundfile.write(tmp_path / "audio" / "ab"[number % 2] / f"{number}.wav", audio, 16000)
    prepare([str(tmp_path / "audio"), str(tmp_path / "archive"), "--clip-seconds", "1"])
    clips = read_clips(tmp_path / "archive")
    files = [name.split("/")[1].split("_")[0] for name in clips.names]
    assert len(clips.names) == 36 and len(set(zip(files, clips.splits))) == 12
    assert len(set(zip(files, clips.groups))) == len(set(clips.groups)) == 12


def test_an_archive_of_another_front_end_is_refused(tmp_path, folder):
    prepare([str(folder), str(tmp_path / "archive"), "--front-end", "mel_max_hz=7000"])
    with pytest.raises(SystemExit, match="archive.* has another front end: mel_max_hz is 7000"):
        main([str(tmp_path / "archive"), *MODELS[:2], "--out", str(tmp_path / "out")])


def test_embeddings_are_kept_until_model_or_clips_change(folder, tmp_path, monkeypatch):
    arguments = [str(folder), "--model", "ssast_tiny_200_16x4:untrained", "--out", str(tmp_path)]
    main(arguments)
    (path,) = (tmp_path / "embeddings").iterdir()
    with np.load(path) as saved:
        files = [str(folder / name) for name in saved["name"]]
        runtime = load_model("ssast_tiny_200_16x4", "untrained", "cpu")
        np.testing.assert_allclose(saved["embedding"][:3], runtime.embed(files[:3]), atol=1e-5)
    monkeypatch.setattr("audio_mamba.hear_api.probe.features.build_runtime", lambda *_, **__: pytest.fail("again"))
    main(arguments)
    monkeypatch.undo()
    main([*arguments, "--layout", "bands"])
    assert len(list((tmp_path / "embeddings").iterdir())) == 2


def test_embeddings_of_another_folder_are_not_taken_for_these(folder, tmp_path):
    """Names, sizes and times may all be the same, as of files that a program made twice."""
    for name in ("clean", "other"):
        shutil.copytree(folder, tmp_path / name)
        for path in (tmp_path / name).rglob("*.wav"):
            if name == "other":
                soundfile.write(path, np.zeros(8000), 16000)
            os.utime(path, (1e9, 1e9))
    digests = [read_clips(tmp_path / name).fingerprint() for name in ("clean", "other", "clean")]
    assert digests[0] == digests[2] != digests[1]


def test_an_archive_gives_nearly_the_same_as_its_audio(folder, tmp_path):
    prepare([str(folder), str(tmp_path / "archive"), "--dtype", "float32"])
    main([str(tmp_path / "archive"), *MODELS, "--out", str(tmp_path / "a")])
    main([str(folder), *MODELS, "--out", str(tmp_path / "b")])
    for model in ("ssast_tiny_200_16x4_untrained", "logmel"):
        embeddings = []
        for out in ("a", "b"):
            with np.load(next((tmp_path / out / "embeddings").glob(f"{model}-*.npz"))) as saved:
                embeddings.append(saved["embedding"][np.argsort(saved["embedding"][:, 0])])
        np.testing.assert_allclose(*embeddings, atol=1e-4)


def write_task(tmp_path):
    """A HEAR task of two tones."""
    rng, splits = np.random.default_rng(1), {"train": 9, "valid": 6, "test": 6}
    task = tmp_path / "task"
    task.mkdir()
    (task / "task_metadata.json").write_text(json.dumps({"embedding_type": "scene"}))
    (task / "labelvocabulary.csv").write_text("idx,label\n0,low\n1,high\n")
    for split, count in splits.items():
        (task / "16000" / split).mkdir(parents=True)
        labels = {}
        for number in range(count):
            kind = ("low", "high")[number % 2]
            audio = np.sin(2 * np.pi * KINDS[kind] * np.arange(8000) / 16000) + 0.1 * rng.standard_normal(8000)
            soundfile.write(task / "16000" / split / f"{number}.wav", 0.1 * audio, 16000)
            labels[f"{number}.wav"] = [kind]
        (task / f"{split}.json").write_text(json.dumps(labels))
    return task


def test_a_hear_task_keeps_its_splits(tmp_path):
    task = write_task(tmp_path)
    main([str(task), "--model", "logmel", "--out", str(tmp_path / "out")])
    assert float(table(tmp_path / "out")["logmel", "logistic regression"]["score"]) == 1
    with open(tmp_path / "out" / "predictions.csv") as file:
        tested = [row["split"] for row in csv.DictReader(file) if row["logmel, k-NN"]]
    assert tested == ["test"] * 6
    (task / "task_metadata.json").write_text(json.dumps({"embedding_type": "event"}))
    with pytest.raises(SystemExit, match="is a task of event embeddings"):
        main([str(task), "--out", str(tmp_path / "out")])


def test_several_labels_are_judged_by_mean_average_precision(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)

    def files_that_it_names():
        """Which are those that are there."""
        ((named, _),) = [r.getMessage().split(": ")[1].rsplit(", and") for r in caplog.records if "written" in r.msg]
        assert {*named.split(", "), "embeddings"} == set(os.listdir(tmp_path / "out"))
        caplog.clear()

    main([str(folder), "--model", "logmel", "--out", str(tmp_path / "out")])
    files_that_it_names()
    of_one_label = {"predictions.csv", "confusion-logmel.png"}
    assert of_one_label < set(os.listdir(tmp_path / "out"))
    rows = [f'{kind}/{n}.wav,"{kind},{"even" if n % 2 else "odd"}"' for kind in KINDS for n in range(10)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    main([str(folder), "--model", "logmel", "--labels", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "out")])
    row = table(tmp_path / "out")["logmel", "logistic regression"]
    with open(tmp_path / "out" / "per_class.csv") as file:
        precisions = [
            float(line["average_precision"])
            for line in csv.DictReader(file)
            if line["classifier"] == "logistic regression"
        ]
    assert len(precisions) == 5 and float(row["score"]) == pytest.approx(np.mean(precisions))
    assert "mAP" in (tmp_path / "out" / "results.md").read_text()
    files_that_it_names()
    assert not of_one_label & set(os.listdir(tmp_path / "out"))  # they would be those of the earlier probe


def test_predictions_of_somebody_else_are_not_removed(folder, tmp_path):
    """`predictions.csv` is also what audio-mamba predict writes by default."""
    (tmp_path / "predictions.csv").write_text("mine")
    with pytest.raises(SystemExit, match="predictions.csv exists already and no probe wrote it"):
        main([str(folder), "--model", "logmel", "--out", str(tmp_path)])
    assert (tmp_path / "predictions.csv").read_text() == "mine"


@pytest.mark.parametrize("name", ["results.md", "results.csv", "confusion-mine.png"])
def test_files_that_no_probe_wrote_are_not_replaced(folder, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit, match=f"{name} exists already and no probe wrote it; choose another --out"):
        main([str(folder), "--model", "logmel", "--out", str(tmp_path)])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_models_whose_names_differ_in_signs_alone_have_pictures_of_their_own(tmp_path):
    clips = Clips(tmp_path, list("abcd"), None, [("x",), ("y",)] * 2, ["x", "y"], ["s"] * 4)
    result = Result("k-NN", np.eye(2)[[0, 1, 0, 1]], np.eye(2)[[0, 1, 0, 1]], [1.0])
    results = [(name, result) for name in ("a/b", "a:b")]
    written = report.write(tmp_path, report.compare(results, clips), results, clips)
    assert len(set(written)) == len(written) and set(written) == {path.name for path in tmp_path.iterdir()}


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_embedded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("audio_mamba.hear_api.probe.features._rows", lambda *_: pytest.fail("embeds"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=f"probe: .*{tmp_path}/file"):
        main([str(folder), "--model", "logmel", "--out", str(tmp_path / "file")])


def test_mean_average_precision_equals_scikit_learns():
    rng = np.random.default_rng(0)
    scores, targets = rng.standard_normal((50, 4)), rng.random((50, 4)) < 0.3
    targets[:, 3] = False  # a class without a positive clip counts for nothing
    expected = average_precision_score(targets[:, :3], scores[:, :3], average="macro")
    assert metric(scores, targets, True) == pytest.approx(expected)


def test_intervals_hold_the_true_accuracy_about_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    targets = np.eye(2, dtype=bool)[np.zeros(100, int)]
    for number in range(100):
        right = rng.random(100) < 0.7
        values = bootstrap([np.where(right[:, None], [1.0, 0.0], [0.0, 1.0])], targets, False, seed=number)[:, 0]
        hits += np.percentile(values, 2.5) <= 0.7 <= np.percentile(values, 97.5)
    assert 88 <= hits <= 100


@pytest.mark.parametrize("multi_label", [False, True])
def test_clips_of_one_group_say_no_more_than_one_of_them(multi_label):
    """Three copies of each clip, in any order, have the resamples of the clips alone."""
    rng = np.random.default_rng(0)
    scores, targets = rng.random((40, 2)), np.eye(2, dtype=bool)[rng.integers(2, size=40)]
    alone = bootstrap([scores], targets, multi_label)
    order = rng.permutation(np.repeat(np.arange(40), 3))
    together = bootstrap([scores[order]], targets[order], multi_label, groups=order)
    np.testing.assert_allclose(together, alone)
    separate = bootstrap([scores[order]], targets[order], multi_label)
    assert separate.std() < 0.7 * together.std()


def test_larger_groups_count_more_in_a_resample():
    right = np.array([True] * 9 + [False])
    scores = np.stack([right, ~right], axis=1).astype(float)
    targets = np.eye(2, dtype=bool)[np.zeros(10, int)]
    values = bootstrap([scores], targets, False, groups=np.array([0] * 9 + [1]))
    np.testing.assert_array_equal(np.unique(values), [0.0, 0.9, 1.0])


def test_groups_and_clips_without_a_label_are_named_in_the_table(folder, tmp_path, caplog):
    names = [(kind, number) for kind in KINDS for number in range(10)]
    rows = [f'{kind}/{n}.wav,"{kind},{"even" if n % 2 else "odd"}",{kind}{n // 2}' for kind, n in names if n]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,speaker", *rows]) + "\n")
    table = "--labels", str(tmp_path / "labels.csv"), "--group-column", "speaker"
    (tmp_path / "labels.csv").write_text(
        (tmp_path / "labels.csv").read_text() + "".join(f"{kind}/0.wav,,{kind}0\n" for kind in KINDS)
    )
    main([str(folder), "--model", "logmel", *table, "--out", str(tmp_path / "out")])
    said = (tmp_path / "out" / "results.md").read_text()
    assert "3 clips have no label; they count as clips without any of the labels." in said
    assert "Intervals: bootstrap over 15 groups of tested clips; differences are paired.\n" in said
    assert "wider" not in said
    assert "3 of 30 clips have no label, the first " in caplog.text


def test_intervals_over_few_groups_are_said_to_be_narrow(folder, tmp_path):
    rows = [f"{kind}/{number}.wav,{kind},{number % 4}" for kind in KINDS for number in range(10)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,speaker", *rows]) + "\n")
    table = "--labels", str(tmp_path / "labels.csv"), "--group-column", "speaker"
    main([str(folder), "--model", "logmel", *table, "--out", str(tmp_path / "out")])
    said = (tmp_path / "out" / "results.md").read_text()
    assert "bootstrap over 4 groups of tested clips; differences are paired.\nWith fewer than 10 the true inter" in said


def test_a_task_is_read_at_the_highest_rate_of_the_models(tmp_path, monkeypatch):
    task = write_scene_task(tmp_path, clips={"train": 2, "valid": 1, "test": 1}, seconds=0.5)
    for path in sorted((task / "16000").rglob("*.wav")):
        (task / "32000" / path.parent.name).mkdir(parents=True, exist_ok=True)
        soundfile.write(task / "32000" / path.parent.name / path.name, np.repeat(soundfile.read(path)[0], 3), 48000)
    wide = RuntimeSSAST(wide_config.get_config(), None)
    save_pretrained(wide, tmp_path / "wide")
    read = []
    monkeypatch.setattr("audio_mamba.hear_api.probe.features._rows", lambda _, clips: read.append(clips.paths) or [])
    for models, rate in ((["logmel"], 16000), (["logmel", str(tmp_path / "wide")], 32000)):
        with pytest.raises((ValueError, SystemExit)):  # there are no embeddings
            main([str(task), *(part for name in models for part in ("--model", name)), "--out", str(tmp_path / "out")])
        assert {path.parts[-3] for path in read.pop()} == {str(rate)}


def test_what_a_classifier_never_saw_gets_no_chance_and_no_crash():
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((30, 8)), np.eye(3, dtype=bool)[np.arange(30) % 3]
    targets[20:] = np.eye(3, dtype=bool)[np.full(10, 2)]
    targets[:20, 2], targets[:20, 0] = False, targets[:20, 0] | targets[:20, 2]
    rounds = [Split(np.arange(10), np.arange(10, 20), np.arange(20, 30))]
    for result in classify(features, targets, rounds, False):
        assert metric(result.scores[20:], targets[20:], False) == 0 and np.isnan(result.scores[:20]).all()


def test_folds_have_their_share_of_each_label():
    names = [f"{i}" for i in range(100)]
    labels = [("rare",) if i < 10 else ("often",) for i in range(100)]
    folds = deal(names, labels)
    assert [sum(f == fold and of == ("rare",) for f, of in zip(folds, labels)) for fold in sorted(set(folds))] == [
        2
    ] * 5
    order = np.random.default_rng(0).permutation(100)
    again = deal([names[i] for i in order], [labels[i] for i in order])
    assert dict(zip(names, folds)) == dict(zip([names[i] for i in order], again))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["FOLDER", "--model", "ssam_tiny"], "no config module 'ssam_tiny'; did you mean"),
        (["FOLDER/low"], "have no label"),
        (["nowhere"], "nowhere is not a folder"),
        (["FOLDER", "--labels", "absent.csv"], "absent.csv"),
    ],
)
def test_mistakes_get_one_sentence(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="probe: ") as ended:
        main([argument.replace("FOLDER", str(folder)) for argument in arguments])
    assert message in str(ended.value.code) and "\n" not in str(ended.value.code)


@pytest.mark.parametrize("option", ["--labels", "--fold-column", "--group-column"])
def test_options_that_an_archive_leaves_no_choice_of_are_refused(folder, tmp_path, option):
    prepare([str(folder), str(tmp_path / "archive")])
    with pytest.raises(SystemExit, match=f"archive is an archive, .* leave out {option}$"):
        main([str(tmp_path / "archive"), option, "anything", "--model", "logmel", "--out", str(tmp_path / "out")])


def test_a_column_that_a_hear_task_lacks_is_refused_and_its_split_is_there(tmp_path):
    task = write_task(tmp_path)
    for option in ("--fold-column", "--group-column"):
        with pytest.raises(SystemExit, match="the column 'speaker' needs a table"):
            main([str(task), option, "speaker", "--model", "logmel", "--out", str(tmp_path / "out")])
    assert read_clips(task, fold_column="split") == read_clips(task)


def test_groups_in_several_given_folds_are_named(folder, tmp_path, caplog):
    rows = [f"{kind}/{n}.wav,{kind},{n % 3},speaker{n % 2}" for kind in KINDS for n in range(10)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,fold,speaker", *rows]))
    read_clips(folder, tmp_path / "labels.csv", fold_column="fold", group_column="speaker")
    assert "2 of 2 groups have files in several folds" in caplog.text


def test_models_of_one_name_have_rows_and_predictions_of_their_own(folder, tmp_path):
    config = resolve("ssast_tiny_200_16x4", "untrained").config
    config.model.model_args.update({"depth": 1, "embed_dim": 48})
    runtime = RuntimeSSAST(config, None)
    weights = [str(save_pretrained(runtime, tmp_path / "a" / "mine"))]
    with torch.no_grad():
        runtime.model.blocks[0].mlp.layer1.weight.mul_(4)
    weights.append(str(save_pretrained(runtime, tmp_path / "b" / "mine")))
    main([str(folder), "--model", weights[0], "--model", weights[1], "--out", str(tmp_path / "out")])
    expected = [(name, classifier) for name in weights for classifier in ("logistic regression", "k-NN")]
    assert list(table(tmp_path / "out")) == expected
    with open(tmp_path / "out" / "predictions.csv") as file:
        assert csv.DictReader(file).fieldnames[3:] == [", ".join(column) for column in expected]
    assert len(list((tmp_path / "out").glob("confusion-*.png"))) == 2


def test_names_with_dollars_are_no_formulas(folder, tmp_path):
    for name, kind in (("$a_b^$", "low"), ("$5 and $6^", "high")):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).symlink_to(folder / kind)
    config = resolve("ssast_tiny_200_16x4", "untrained").config
    config.model.model_args.update({"depth": 1, "embed_dim": 48})
    weights = save_pretrained(RuntimeSSAST(config, None), tmp_path / "$_^$")
    main([str(tmp_path / "in"), "--model", str(weights), "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").glob("confusion-*.png"))) == 1


def test_a_damaged_clip_is_named(folder, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.wav").write_bytes(b"no audio")
    for kind in ("low", "high"):
        (tmp_path / kind).symlink_to(folder / kind)
    with pytest.raises(SystemExit, match="bad.wav"):
        main([str(tmp_path), "--model", "logmel", "--out", str(tmp_path / "out")])


def test_a_channel_and_hidden_files_are_taken_on_request(folder, tmp_path):
    """The left channels hold the tones, the right ones cancel them out; a hidden folder holds a fourth kind."""
    stereo = tmp_path / "stereo"
    for path in folder.rglob("*.wav"):
        samples, rate = soundfile.read(path)
        for kind in {path.parent.name, ".more"}:
            (stereo / kind).mkdir(parents=True, exist_ok=True)
            soundfile.write(stereo / kind / path.name, np.stack([samples, -samples], 1), rate)
    arguments = ["--model", "logmel", "--out"]
    main([str(folder), *arguments, str(tmp_path / "mono")])
    main([str(stereo), *arguments, str(tmp_path / "mix")])
    main([str(stereo), *arguments, str(tmp_path / "left"), "--channel", "left"])
    main([str(stereo), *arguments, str(tmp_path / "hidden"), "--channel", "left", "--hidden"])

    def embedding(name):
        (path,) = (tmp_path / name / "embeddings").iterdir()
        with np.load(path) as saved:
            return saved["embedding"], list(saved["name"])

    (mono, names), (left, left_names) = embedding("mono"), embedding("left")
    assert names == left_names
    np.testing.assert_allclose(left, mono, atol=1e-3)
    assert np.abs(embedding("mix")[0] - mono).max() > 1
    assert [name for name in embedding("hidden")[1] if name not in names] == [f".more/{n}.wav" for n in range(10)]
    assert embedding("left")[0].shape == embedding("mix")[0].shape  # and kept apart
    with pytest.raises(SystemExit, match="is an archive, .* chosen by audio-mamba prepare; leave out --channel"):
        prepare([str(folder), str(tmp_path / "archive"), "--workers", "1"])
        main([str(tmp_path / "archive"), *arguments, str(tmp_path / "none"), "--channel", "left"])
