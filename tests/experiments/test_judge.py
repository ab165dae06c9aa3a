"""The judge's tasks from made-up packages, and its accuracies against a regression by hand."""

import csv
import json
import math
import struct

import numpy as np
import pytest
import soundfile
import torch
from sklearn.linear_model import LogisticRegression

from audio_mamba import load_model
from audio_mamba.data.labels import find_labelled
from audio_mamba.hear_api.probe.clips import read_clips
from experiments.judge import build, played, tasks
from experiments.judge.__main__ import main
from experiments.judge.clips import Clip, split_by
from experiments.judge.embed import Features, embeddings
from experiments.judge.instruments import SAMPLE_RATE, midi_file, read_patch
from experiments.judge.packages import read_sources
from experiments.judge.poolings import POOLINGS
from experiments.judge.scores import Judged, compare, score, summary

MODEL = "ssam_tiny_free_audio"


def write_noise(path, seconds=0.5, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16000)), 16000)


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """The package of spoken words, with three of them by each voice, one language in a folder of its own."""
    packages = tmp_path_factory.mktemp("packages")
    folder = packages / "kajongg/usr/share/kajongg/voices"
    for seed, voice in enumerate(("female1", "female2", "male1", "male2", "de/female1")):
        for word in ("b1", "kong", "pung"):
            write_noise(folder / voice / f"{word}.ogg", 0.5 + seed, seed)
    return packages


def task_named(name):
    return next(task for task in tasks.TASKS if task.name == name)


def test_a_task_is_read_by_the_probe_as_it_was_written(voices, tmp_path):
    counts = build.write_task(task_named("mahjong_words"), voices, tmp_path, {"kajongg": 15})
    assert counts == {"kajongg": 15}
    task = tmp_path / "mahjong_words-v1-full"
    files, labels, vocabulary = find_labelled(task)
    assert vocabulary == ["b1", "kong", "pung"] and len(files) == 15
    assert {(path.name, label) for path, label in zip(files, labels)} >= {("de_female1_kong.wav", ("kong",))}
    clips = read_clips(task)
    # The voice female1 speaks two languages and is in one fold.
    assert {name for name, split in zip(clips.names, clips.splits) if split == "fold00"} == {
        f"16000/fold00/{voice}_{word}.wav" for voice in ("female1", "de_female1") for word in ("b1", "kong", "pung")
    }
    assert [len(part.test) for part in clips.rounds()] == [6, 3, 3, 3]
    for path in files:
        audio, rate = soundfile.read(path)
        assert rate == 16000 and len(audio) == 24000  # cut, or padded with silence
    assert not np.any(soundfile.read(task / "16000/fold00/female1_b1.wav")[0][8100:])
    metadata = json.loads((task / "task_metadata.json").read_text())
    assert metadata["split_mode"] == "new_split_kfold" and metadata["counts"]["fold00"] == 6


def test_other_clips_than_listed_are_refused_and_leave_no_task(voices, tmp_path):
    with pytest.raises(ValueError, match="kajongg 15 instead of 335"):
        build.write_task(task_named("mahjong_words"), voices, tmp_path, {"kajongg": 335})
    assert not list(tmp_path.iterdir())


def test_the_table_of_packages_has_every_task_and_no_source_of_the_evaluation_tasks():
    sources = read_sources()
    assert {source.task for source in sources} == {task.name for task in (*tasks.TASKS, *tasks.EARLIER)}
    assert len(tasks.TASKS) == 10
    assert all(source.version and source.licence and source.clips > 0 for source in sources)
    names = {source.package for source in sources}
    assert not names & {"klettres-data", "hydrogen-drumkits", "hydrogen-data", "lmms-common", "sonic-pi-samples"}
    with open(build.__file__.replace("judge/build.py", "free_audio/packages.csv")) as file:
        trained = {row["package"] for row in csv.DictReader(file) if row["split"] == "train"}
    assert not names & trained


def test_split_by_is_the_same_anywhere():
    assert [split_by(key) for key in ("ball", "bow", "coat", "egypt_boy")] == ["test", "train", "train", "train"]
    shares = [split_by(str(number)) for number in range(2000)]
    assert 0.55 < shares.count("train") / 2000 < 0.65 and 0.16 < shares.count("test") / 2000 < 0.24


def test_a_midi_file_has_its_events_at_their_times():
    content = midi_file([(0.5, 2, b"\x90\x3c\x40"), (1.5, 1, b"\x80\x3c\x00")], 2.0)
    assert content[:14] == b"MThd" + struct.pack(">IHHH", 6, 0, 1, 1000)
    # 500 ticks as two bytes of seven bits, 1000 later, 500 to the end
    assert content[22:] == (
        b"\x00\xff\x51\x03\x0f\x42\x40" + b"\x83\x74\x90\x3c\x40" + b"\x87\x68\x80\x3c\x00" + b"\x83\x74\xff\x2f\x00"
    )


@pytest.mark.parametrize("kind", ["<i2", "<u2", "i1", "u1"])
def test_samples_of_a_patch_are_read_in_each_format(tmp_path, kind):
    tone = np.sin(2 * math.pi * 440 * np.arange(16000) / 16000) * 0.5
    bits, unsigned = 8 * np.dtype(kind).itemsize, np.dtype(kind).kind == "u"
    half = 1 << (bits - 1)
    data = (np.round(tone * (half - 1)) + half * unsigned).astype(kind).tobytes()
    head = bytearray(239)
    head[:12], head[198] = b"GF1PATCH110\x00", 2
    sample = bytearray(96)
    struct.pack_into("<I", sample, 8, len(data))
    struct.pack_into("<H", sample, 20, 16000)
    struct.pack_into("<I", sample, 30, 440_000)
    sample[55] = (bits == 16) | unsigned << 1
    (tmp_path / "tone.pat").write_bytes(bytes(head) + 2 * (bytes(sample) + data))
    samples = list(read_patch(tmp_path / "tone.pat"))
    assert [root for root, _ in samples] == [440.0, 440.0]
    for _, audio in samples:
        np.testing.assert_allclose(audio, tone, atol=2 / half)
    (tmp_path / "tone.pat").write_bytes(bytes(head) + bytes(sample) + data[:-10])
    with pytest.raises(ValueError, match="is damaged"):
        list(read_patch(tmp_path / "tone.pat"))


def test_poolings_by_hand():
    steps = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 7.0], [2.0, 3.0]])
    mean, std = [2.0, 3.0], [math.sqrt(2), math.sqrt(6)]
    change = [2.0, math.sqrt((0 + 36 + 16) / 3)]
    expected = {
        "mean": mean,
        "mean_std": mean + std,
        "mean_max": [*mean, 4.0, 7.0],
        "mean_change": mean + change,
        "mean_std_change": mean + std + change,
        "mean_std_skew": mean + std + [0.0, ((-8 - 8 + 64 + 0) / 4) ** (1 / 3)],
        "halves_std": [1.0, 1.0, 3.0, 5.0, *std],
        "quartiles_5": [0.0, 1.0, 1.5, 1.0, 2.0, 2.0, 2.5, 4.0, 4.0, 7.0],
    }
    for name, values in expected.items():
        torch.testing.assert_close(POOLINGS[name](steps), torch.tensor(values), msg=name)
    for name, pooling in POOLINGS.items():
        assert torch.isfinite(pooling(steps[:1])).all(), name  # a clip of one step


def test_layers_of_one_pass_are_those_of_a_shorter_encoder(voices):
    runtime = load_model(MODEL, device="cpu", pooling="mean_std")
    paths = sorted(voices.rglob("*.ogg"))[-4:]
    names = ["mean_std", "12:mean_std", "6+output:mean", "6:mean"]
    found = embeddings(runtime, paths, [Features.named(name) for name in names])
    whole = runtime.embed(paths)
    np.testing.assert_allclose(found["output", "mean_std"], whole, atol=1e-6)
    np.testing.assert_allclose(found["12", "mean_std"], whole, atol=1e-6)
    runtime.model.blocks = runtime.model.blocks[:6]
    np.testing.assert_allclose(found["6", "mean"], runtime.embed(paths)[:, :960], atol=1e-6)
    np.testing.assert_allclose(found["6+output", "mean"], np.hstack([found["6", "mean"], whole[:, :960]]), atol=1e-6)
    with pytest.raises(ValueError, match="no layer '7'; choose 1 to 6"):
        embeddings(runtime, paths, [Features.named("7:mean")])


def test_accuracies_are_those_of_a_regression_by_hand(voices, tmp_path):
    build.write_task(task_named("mahjong_words"), voices, tmp_path)
    clips = read_clips(tmp_path / "mahjong_words-v1-full")
    labels = np.array([clips.vocabulary.index(label) for (label,) in clips.labels])
    rng = np.random.default_rng(1)
    wide = rng.standard_normal((15, 40)) + 0.7 * np.repeat(np.eye(3)[labels], [14, 13, 13], axis=1)
    splits = np.array(clips.splits)
    scored = {("m", "output", "mean"): score(clips, wide), ("m", "6", "mean"): score(clips, wide[:, :2])}
    judged = compare("task", clips, scored)

    right_valid = right_test = 0
    for test, valid in zip(range(4), (1, 2, 3, 0)):
        in_test, in_valid = splits == f"fold0{test}", splits == f"fold0{valid}"

        def right(fitted, scored, c):
            mean, std = wide[fitted].mean(axis=0), wide[fitted].std(axis=0)
            model = LogisticRegression(C=c, max_iter=5000, tol=1e-6).fit((wide[fitted] - mean) / std, labels[fitted])
            return (model.predict((wide[scored] - mean) / std) == labels[scored]).sum()

        train = ~in_test & ~in_valid
        best = max((1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), key=lambda c: (right(train, in_valid, c), -c))
        right_valid += right(train, in_valid, best)
        right_test += right(~in_test, in_test, best)
    assert judged.accuracy["valid"][0] == pytest.approx(right_valid / 15)
    assert judged.accuracy["test"][0] == pytest.approx(right_test / 15)
    assert judged.widths == [40, 2]


def test_the_summary_is_the_mean_over_tasks_with_paired_differences():
    resampled = np.tile([[0.5, 0.75]], (10, 1))
    one = Judged("a-v1-full", [("m", "output", "mean"), ("m", "6", "mean")], [5, 6], {}, {})
    for part in ("valid", "test"):
        one.accuracy[part], one.resampled[part] = np.array([0.5, 0.75]), resampled
    other = Judged("b-v1-full", one.choices, one.widths, dict.fromkeys(("valid", "test"), np.array([0.2, 0.25])), {})
    other.resampled.update(dict.fromkeys(("valid", "test"), np.tile([[0.2, 0.25]], (10, 1))))
    lines = summary([one, other]).splitlines()
    assert lines[2].startswith("| m | output | mean | 5 | 35.0 (35.0 to 35.0) | 35.0 (35.0 to 35.0) |")
    assert lines[3].endswith("| 50.0 (50.0 to 50.0) | +15.0 (+15.0 to +15.0) | +15.0 (+15.0 to +15.0) |")
    assert lines[-1] == "Mean of 2 tasks: a, b."


def test_the_command_writes_a_row_for_each_model_and_feature(voices, tmp_path, capsys):
    build.write_task(task_named("mahjong_words"), voices, tmp_path / "tasks")
    arguments = [str(tmp_path / "tasks"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    main([*arguments, "--model", "logmel", "--model", MODEL, "--features", "mean_std", "--features", "6:mean"])
    with open(tmp_path / "out/tasks.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["layer"], row["pooling"], row["width"]) for row in rows] == [
        ("logmel", "output", "mean_std", "160"),
        (MODEL, "output", "mean_std", "1920"),
        (MODEL, "6", "mean", "960"),
    ]
    for row in rows:
        assert float(row["valid_low"]) <= float(row["valid"]) <= float(row["valid_high"])
    assert (tmp_path / "out/summary.md").read_text() in capsys.readouterr().out
    with pytest.raises(SystemExit, match="unknown pooling 'median'"):
        main([*arguments, "--model", "logmel", "--features", "median"])
    there = [part for row in rows for part in ("--task", row["task"].rsplit("-v", 1)[0])]
    with pytest.raises(SystemExit, match="no such tasks in .*: other$"):
        main([*arguments, "--model", "logmel", *there, "--task", "other"])
    with pytest.raises(SystemExit, match="no tasks in"):
        main([str(tmp_path / "out"), "--model", "logmel"])


def test_drum_clips_that_differ_in_level_alone_are_kept_once(monkeypatch):
    rng = np.random.default_rng(0)
    hit = rng.standard_normal(SAMPLE_RATE).astype(np.float32)
    other = rng.standard_normal(SAMPLE_RATE).astype(np.float32)
    audios = [hit, 0.3 * hit, other, 0 * hit]
    made = [Clip("p", "fold00", "snare", str(number), audio) for number, audio in enumerate(audios)]
    monkeypatch.setattr(played, "_drum_pieces", lambda packages: iter(made))
    assert [clip.name for clip in played.drum_pieces(None)] == ["0", "2"]
