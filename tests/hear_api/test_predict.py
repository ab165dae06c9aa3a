"""predict: windows, formats, resume and failures, with a classifier of known answers."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio_mamba import load_classifier
from audio_mamba.hear_api import clips as clips_module
from audio_mamba.hear_api import embed, export, predict
from audio_mamba.hear_api.classifier import AudioClassifier, find_classifier, save_classifier
from audio_mamba.hear_api.label_files import TRACK_SUFFIX, Label, audacity_track, merged, raven_table
from audio_mamba.hear_api.runtime import RuntimeSSAST
from audio_mamba.hear_api.windows import Windows
from audio_mamba.models.classifier import Classifier
from audio_mamba.schema import DEFAULTS
from audio_mamba.training.checkpoint import CheckpointError

RATE = 16000
CLASSES = ["low, hum", "high", "hiss"]


def sound(kind, seconds):
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(len(time)).standard_normal(len(time))
    clean = {"low, hum": np.sin(2 * np.pi * 200 * time), "high": np.sin(2 * np.pi * 3000 * time), "hiss": noise}[kind]
    return (0.2 * clean + 0.001 * noise).astype(np.float32)


def build(folder, pooling="mean", loss="single", temperature=1.0):
    """A classifier whose head was fitted by least squares to short clips of the three sounds."""
    from tests.hear_api.small_config import get_config

    config = get_config()
    config.head = {"pooling": pooling}
    config.front_end = DEFAULTS["front_end"]
    from audio_mamba.hear_api.runtime import build_model

    torch.manual_seed(0)
    model = Classifier(build_model(config), 3, pooling).eval()
    settings = {"classes": CLASSES, "loss": loss, "temperature": temperature, "notes": {}}
    save_classifier(folder, model.state_dict(), config, **settings)
    unfitted = load_classifier(folder, "cpu")
    clips = [sound(kind, seconds) for seconds in (0.5, 1.0, 2.0, 1.7) for kind in CLASSES]
    with torch.no_grad():
        pooled = torch.cat(
            [
                model.embed(unfitted.runtime.spectrogram(torch.from_numpy(clip))[:, None])  # [1, W]
                for clip in clips
            ]
        )
        x = torch.cat([model.head[0](pooled), torch.ones(len(clips), 1)], dim=1)
        target = 8 * torch.eye(3).repeat(4, 1) - 4
        solution = torch.linalg.lstsq(x, target, driver="gelsd").solution
        model.head[1].weight.copy_(solution[:-1].T)
        model.head[1].bias.copy_(solution[-1])
    save_classifier(folder, model.state_dict(), config, **settings)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return build(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def recording(tmp_path):
    """12 s of two seconds each."""
    kinds = ["high", "high", "hiss", "low, hum", "hiss", "high"]
    soundfile.write(tmp_path / "r.wav", np.concatenate([sound(kind, 2) for kind in kinds]), RATE, subtype="FLOAT")
    return tmp_path / "r.wav", kinds


def run(*arguments):
    predict.main(["--device", "cpu", "--workers", "1", *map(str, arguments)])


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "frames, window, hop, expected",
    [
        (61, 20, 20, [(0, 20), (20, 40), (40, 60)]),  # 0.6 s: the last frame is centred on the end
        (70, 20, 20, [(0, 20), (20, 40), (40, 60), (60, 70)]),
        (62, 20, 20, [(0, 20), (20, 40), (40, 60)]),  # the rest is shorter than a tenth of a window
        (63, 20, 20, [(0, 20), (20, 40), (40, 60), (60, 63)]),
        (55, 20, 10, [(0, 20), (10, 30), (20, 40), (30, 50), (40, 55)]),
        (7, 20, 10, [(0, 7)]),
        (1, 20, 10, [(0, 1)]),
        (31, 10, 30, [(0, 10)]),
        (45, 10, 30, [(0, 10), (30, 40)]),
    ],
)
@pytest.mark.parametrize("part", [1, 7, 100])
def test_windows_reach_the_end_and_are_cut_from_parts(frames, window, hop, expected, part):
    clip = torch.arange(frames)[:, None].float()
    windows = Windows(window, hop, rate=100.0)
    found = [cut[:, 0].tolist() for cut in windows.cut(clip.split(part), frames)]
    assert found == [list(range(*window)) for window in expected]
    assert len(found) == windows.count(frames)


def test_each_window_is_classified_as_a_clip_of_its_own(tmp_path, weights, recording):
    path, kinds = recording
    run(path, "--weights", weights, "--window", 2, "--out", tmp_path / "p.csv")
    rows = rows_of(tmp_path / "p.csv")
    assert [row["label"] for row in rows] == kinds
    assert [(float(row["start"]), float(row["end"])) for row in rows] == [(2 * i, 2 * i + 2) for i in range(6)]
    alone = load_classifier(weights, "cpu").predict([sound(kind, 2) for kind in kinds])
    for row, likely in zip(rows, alone):
        assert float(row["probability"]) == pytest.approx(likely[row["label"]], abs=0.05)  # neighbours at the edges


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
def test_long_files_are_read_in_parts(tmp_path, recording, pooling, monkeypatch):
    classifier = load_classifier(build(tmp_path / "classifier", pooling), "cpu")
    whole = classifier.probabilities([recording[0]])
    clip = clips_module.decode_file(recording[0], classifier.front_end, "mix")
    windows = classifier.of_windows(clip, Windows(150, 70, rate=100.0))
    monkeypatch.setattr(clips_module, "LONG_SECONDS", 5)
    monkeypatch.setattr(clips_module, "CHUNK_FRAMES", 400)
    long = clips_module.decode_file(recording[0], classifier.front_end, "mix")
    assert isinstance(long, clips_module.LongFile)
    np.testing.assert_allclose(classifier.probabilities([recording[0]]), whole, atol=1e-5)
    np.testing.assert_allclose(classifier.of_windows(long, Windows(150, 70, rate=100.0)), windows, atol=1e-4)


def test_windows_in_python_are_those_of_the_command(tmp_path, weights, recording):
    hum = sound("low, hum", 3.5)
    soundfile.write(tmp_path / "two.wav", np.stack([hum, sound("hiss", 3.5)], axis=1), RATE, subtype="FLOAT")
    files = [recording[0], tmp_path / "two.wav"]
    options = "--window", 2, "--hop", 1.5, "--top", 3, "--channel", "right"
    run(*files, "--weights", weights, *options, "--out", tmp_path / "p.csv")
    table = [(row["path"], float(row["start"]), float(row["end"]), row["label"]) for row in rows_of(tmp_path / "p.csv")]
    classifier = load_classifier(weights, "cpu")
    found = classifier.window_probabilities(files, window=2, hop=1.5, channel="right")
    expected = []
    for path, (rows, times) in zip(files, found, strict=True):
        assert rows.shape == (len(times), 3) and rows.dtype == np.float32
        for row, (start, end) in zip(rows, times):
            expected += [(str(path), start, end, CLASSES[k]) for k in np.argsort(-row)]
    assert table == expected
    assert times.tolist() == [[0, 2], [1.5, 3.5]]
    assert [max(zip(row, CLASSES))[1] for row in rows] == ["hiss", "hiss"]
    [(left, _)] = classifier.window_probabilities(hum, window=2, hop=1.5)
    np.testing.assert_allclose(left, classifier.window_probabilities(files[1], 2, 1.5, channel="left")[0][0], atol=1e-6)
    assert classifier.predict(files[1], top=1, channel=1)[0].keys() == {"hiss"}
    with pytest.raises(ValueError, match="^hop must be at least 0.01 seconds, got 0$"):
        classifier.window_probabilities(files, 2, 0)
    assert classifier.window_probabilities([], 2) == []


def test_jsonl_has_a_line_per_window_and_settings_beside_it(tmp_path, weights, recording):
    out = tmp_path / "p.jsonl"
    run(recording[0], "--weights", weights, "--window", 2, "--hop", 1, "--top", 3, "--threshold", 0.9, "--out", out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["start"] for line in lines] == list(range(11))
    assert all(line["path"] == str(recording[0]) and min(line["labels"].values(), default=1) >= 0.9 for line in lines)
    settings = json.loads((tmp_path / "p.jsonl.settings.json").read_text())
    assert settings["classes"] == CLASSES and settings["temperature"] == 1.0 and settings["hop"] == 1.0


def parse_audacity(text):
    """By the format of the manual: start, end and label, separated by tabs."""
    tracks = []
    for line in text.splitlines():
        start, end, label = line.split("\t")
        tracks.append((float(start), float(end), label))
        assert 0 <= float(start) <= float(end)
    return tracks


def test_audacity_and_raven(tmp_path, weights, recording):
    for name in ("audacity", "raven"):
        run(recording[0], "--weights", weights, "--window", 2, "--out", tmp_path / name, "--format", name)
    (track,) = (tmp_path / "audacity").glob("*.txt")
    spans = parse_audacity(track.read_text())
    assert spans == [(0, 4, "high"), (4, 6, "hiss"), (6, 8, "low, hum"), (8, 10, "hiss"), (10, 12, "high")]
    (table,) = (tmp_path / "raven").glob("*.selections.txt")
    header, *rows = (line.split("\t") for line in table.read_text().splitlines())
    assert header[:5] == ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"]
    assert all(len(row) == len(header) for row in rows)
    assert [(float(row[3]), float(row[4]), row[header.index("Label")]) for row in rows] == spans


def test_a_finished_folder_of_another_format_is_not_the_result(tmp_path, weights, recording, capsys):
    command = [recording[0], "--weights", weights, "--window", 2, "--out", tmp_path / "o", "--format"]
    run(*command, "audacity")
    before = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    with pytest.raises(SystemExit, match=r"o exists already .* \(it was written with --format audacity\); remove it"):
        run(*command, "raven", "--resume")
    assert {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()} == before
    capsys.readouterr()
    run(*command, "audacity", "--resume")
    assert "is complete already" in capsys.readouterr().err
    for settings in ("[]", "{}"):  # of somebody else
        (tmp_path / "o" / "settings.json").write_text(settings)
        with pytest.raises(SystemExit, match=r"\(settings.json has no format\)"):
            run(*command, "audacity", "--resume")


def test_an_interrupted_run_may_go_on_in_another_format(tmp_path, weights, four, monkeypatch):
    """The journal keeps probabilities, which fit them all."""
    command = [*four, "--weights", weights, "--out"]
    interrupted(monkeypatch, *command, tmp_path / "o", "--format", "audacity")
    run(*command, tmp_path / "o", "--format", "raven", "--resume")
    run(*command, tmp_path / "whole", "--format", "raven")
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("o", "whole")]
    assert contents[0] == contents[1] and len(contents[0]) == 4 + 2
    assert json.loads(contents[0]["settings.json"])["format"] == "raven"


@pytest.mark.parametrize("name", ["audacity", "raven"])
def test_the_index_of_a_folder_names_the_recording_of_each_track(tmp_path, weights, recording, name):
    """Also of two of one name, and where a file before them fails."""
    for folder, kind in (("x", "high"), ("y", "hiss")):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "same.wav", sound(kind, 2), RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    files = [tmp_path / "broken.wav", tmp_path / "x/same.wav", recording[0], tmp_path / "y/same.wav"]
    with pytest.raises(SystemExit, match="3"):
        run(*files, "--weights", weights, "--window", 2, "--out", tmp_path / "o", "--format", name)
    rows, suffix = rows_of(tmp_path / "o" / "index.csv"), TRACK_SUFFIX[name]
    assert [list(row.values()) for row in rows] == [
        [f"000000_same{suffix}", str(files[1]), "2.0", "1"],
        [f"000001_r{suffix}", str(files[2]), "12.0", "5"],
        [f"000002_same{suffix}", str(files[3]), "2.0", "1"],
    ]
    assert list(rows[0]) == ["track", "path", "duration", "labels"]
    for row, kind in ((rows[0], "high"), (rows[2], "hiss")):
        assert kind in (tmp_path / "o" / row["track"]).read_text()
    assert {path.name for path in (tmp_path / "o").iterdir()} == {row["track"] for row in rows} | {
        "index.csv",
        "settings.json",
    }


@pytest.mark.parametrize("make", ["labels", "embeddings"])
def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, weights, recording, monkeypatch, make):
    """Else files in it could be empty after a power cut."""
    seen = []
    monkeypatch.setattr(os, "sync", lambda: seen.append(sorted(path.name for path in tmp_path.rglob("*.csv"))))
    out = tmp_path / "o"
    monkeypatch.setattr(Path, "rename", lambda self, to: seen.append(to) or os.rename(self, to))
    if make == "labels":
        run(recording[0], "--weights", weights, "--out", out, "--format", "audacity")
    else:
        embed.main(
            ["--device", "cpu", "--workers", "1", str(recording[0]), "--weights", str(weights), "--out", str(out)]
        )
    assert seen == [["index.csv"], out]


def test_the_last_window_ends_with_the_recording(tmp_path, weights):
    soundfile.write(tmp_path / "a.wav", sound("high", 3), RATE)
    for name in ("p.csv", "p.jsonl"):
        run(tmp_path / "a.wav", "--weights", weights, "--window", 2, "--out", tmp_path / name)
    assert [(row["start"], row["end"]) for row in rows_of(tmp_path / "p.csv")] == [("0.0", "2.0"), ("2.0", "3.0")]
    windows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [(window["start"], window["end"]) for window in windows] == [(0.0, 2.0), (2.0, 3.0)]


def test_a_threshold_of_0_gives_all_labels_and_1_what_is_certain(tmp_path, weights, recording):
    for threshold, count in ((0, 3), (1, 0)):
        out = tmp_path / f"{threshold}.csv"
        run(recording[0], "--weights", weights, "--threshold", threshold, "--out", out)
        assert len(rows_of(out)) == count


def test_labels_of_several_lines_stay_on_one():
    spans = [Label(0, 1, "a\tb\nc", 0.5)]
    assert parse_audacity(audacity_track(spans)) == [(0, 1, "a b c")]
    assert len(raven_table(spans, 8000.0).splitlines()) == 2


def test_overlapping_windows_of_a_label_become_one_span():
    labels = [Label(0, 2, "a", 0.6), Label(1, 3, "a", 0.9), Label(1, 3, "b", 0.5), Label(4, 6, "a", 0.7)]
    assert merged(iter(labels)) == [Label(0, 3, "a", 0.9), Label(1, 3, "b", 0.5), Label(4, 6, "a", 0.7)]


def test_failures_are_listed_and_the_rest_is_labelled(tmp_path, weights, recording, capsys):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "broken.wav", recording[0], "--weights", weights, "--out", tmp_path / "p.csv")
    assert ended.value.code == 3
    assert "1 file could not be labelled" in capsys.readouterr().err
    assert [row["path"] for row in rows_of(tmp_path / "p.csv")] == [str(recording[0])]
    (failed,) = rows_of(tmp_path / "p.csv.failed.csv")
    assert failed["path"] == str(tmp_path / "broken.wav")
    with pytest.raises(SystemExit, match=r"broken.wav: .*\(--strict\)"):
        run(tmp_path / "broken.wav", recording[0], "--weights", weights, "--out", tmp_path / "s.csv", "--strict")


@pytest.fixture
def four(tmp_path, monkeypatch):
    """Recordings of 1 to 4 s. The first two are labelled together."""
    monkeypatch.setattr(clips_module, "GROUP_FRAMES", 150)
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", sound("high", 1 + number), RATE)
    return sorted(tmp_path.glob("*.wav"))


def interrupted(monkeypatch, *arguments):
    """A run that Ctrl-C ends after two groups."""
    seen = []
    real = predict.Labelling.rows

    def rows(self, classifier, group):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(group)
        return real(self, classifier, group)

    with monkeypatch.context() as patched:
        patched.setattr(predict.Labelling, "rows", rows)
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
    assert ended.value.code == 130


def test_an_interrupted_run_resumes_with_the_same_bytes(tmp_path, weights, four, monkeypatch):
    files, out = four, tmp_path / "parts.csv"
    run(*files, "--weights", weights, "--out", tmp_path / "whole.csv")
    interrupted(monkeypatch, *files, "--weights", weights, "--out", out)
    assert not out.exists()
    with pytest.raises(SystemExit, match="continue it with --resume"):
        run(*files, "--weights", weights, "--out", out)
    with pytest.raises(SystemExit, match="another window"):
        run(*files, "--weights", weights, "--out", out, "--resume", "--window", 1)
    run(*files, "--weights", weights, "--out", out, "--resume")
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    run(*files, "--weights", weights, "--out", out, "--resume")  # complete already
    with pytest.raises(SystemExit, match="another top"):
        run(*files, "--weights", weights, "--out", out, "--resume", "--threshold", 0.3)


def test_files_that_have_changed_are_labelled_again(tmp_path, weights, four, monkeypatch, capsys):
    out = tmp_path / "parts.csv"
    interrupted(monkeypatch, *four, "--weights", weights, "--out", out)
    soundfile.write(four[2], sound("hiss", 2), RATE)
    capsys.readouterr()
    run(*four, "--weights", weights, "--out", out, "--resume")
    error = capsys.readouterr().err
    assert f"predict: 1 file(s) have changed since, or can be read now, the first is {four[2]};" in error
    assert "the results of 2 files before it are kept, the others are labelled again" in error and "embed" not in error
    assert [row["label"] for row in rows_of(out)] == ["high", "high", "hiss", "high"]


@pytest.mark.parametrize("channel", ["mix", "each"])
def test_a_file_that_can_be_read_again_is_labelled_on_resume(tmp_path, weights, four, monkeypatch, channel):
    """Its size and time are those of the damaged file."""
    for number, path in enumerate(four):
        soundfile.write(path, np.stack([sound("high", 2 + number), sound("hiss", 2 + number)], axis=1), RATE)
    command = [*four, "--weights", weights, "--channel", channel, "--window", 1, "--out"]
    content, status = four[0].read_bytes(), four[0].stat()
    four[0].write_bytes(bytes(len(content)))
    os.utime(four[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    interrupted(monkeypatch, *command, tmp_path / "parts.csv")
    four[0].write_bytes(content)
    os.utime(four[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    run(*command, tmp_path / "parts.csv", "--resume")
    run(*command, tmp_path / "whole.csv")
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl"])
def test_a_table_of_somebody_else_is_not_taken_for_the_result(tmp_path, weights, recording, name):
    (tmp_path / name).write_text("file,label\n")
    with pytest.raises(SystemExit, match=f"{name} exists already and cannot be read as a result of this command"):
        run(recording[0], "--weights", weights, "--out", tmp_path / name, "--resume")
    assert (tmp_path / name).read_text() == "file,label\n"


@pytest.mark.parametrize(
    "options, sentence",
    [
        (("--hop", 1), "--hop needs --window"),
        (("--window", 0.001), "--window must be at least 0.01 seconds"),
        (("--top", 0), "--top must be at least 1"),
        (("--threshold", 2), "--threshold is a probability"),
        (("--out", "p.txt"), "write it as .csv or .jsonl"),
        (("--out", "p.csv", "--format", "raven"), "without a suffix for a folder"),
        (("--device", "turbo"), "predict: device turbo: .*turbo"),
    ],
)
def test_options_that_cannot_be(weights, recording, options, sentence):
    with pytest.raises(SystemExit, match=sentence):
        run(recording[0], "--weights", weights, *options)


def test_the_settings_have_the_precision_on_the_device(tmp_path, weights, recording, monkeypatch):
    """As float16 on a GPU, which the classifier is moved to once the processes that decode have started."""
    moved, to = [], AudioClassifier.to
    monkeypatch.setattr(AudioClassifier, "to", lambda self, device: to(self, moved.append(device) or device))
    precision = property(lambda _: "bfloat16" if len(moved) > 1 else "float32")
    monkeypatch.setattr(RuntimeSSAST, "working_precision", precision)
    run(recording[0], "--weights", weights, "--out", tmp_path / "p.csv")
    assert len(moved) == 2  # as it was loaded, and to --device
    assert json.loads((tmp_path / "p.csv.settings.json").read_text())["precision"] == "bfloat16"


def test_temperature_divides_the_logits_and_keeps_the_order(tmp_path, weights, recording):
    hot = load_classifier(build(tmp_path / "hot", temperature=3.0), "cpu").probabilities([recording[0]])
    cold = load_classifier(weights, "cpu").probabilities([recording[0]])
    expected = np.exp(np.log(cold) / 3)
    np.testing.assert_allclose(hot, expected / expected.sum(), rtol=1e-3)


def test_several_labels_have_probabilities_of_their_own(tmp_path, recording):
    folder = build(tmp_path / "multi", loss="multi")
    (likely,) = load_classifier(folder, "cpu").predict(sound("high", 2))
    assert likely["high"] > 0.9 and sum(likely.values()) != pytest.approx(1, abs=1e-3)
    run(recording[0], "--weights", folder, "--window", 2, "--out", tmp_path / "p.csv")
    assert all(float(row["probability"]) >= 0.5 for row in rows_of(tmp_path / "p.csv"))


def test_folders_that_are_no_classifier(tmp_path, weights):
    with pytest.raises(FileNotFoundError, match="no classifier"):
        load_classifier(tmp_path)
    (tmp_path / "fold-1" / "classifier").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="a classifier for each fold; name one"):
        find_classifier(tmp_path)
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(FileNotFoundError):
            load_classifier(tmp_path)
        (tmp_path / name).write_bytes((weights / name).read_bytes())
    entries = json.loads((weights / "config.json").read_text())
    for change, message in (({"format": "other"}, "its format is not"), ({"classes": ["a"]}, "another architecture")):
        (tmp_path / "config.json").write_text(json.dumps(entries | change))
        with pytest.raises(CheckpointError, match=message):
            load_classifier(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_classifier(tmp_path)


@pytest.mark.slow
def test_an_exported_program_gives_the_same_probabilities(tmp_path, weights):
    export.main(["--weights", str(weights), "--out", str(tmp_path / "c.pt2")])
    program = torch.export.load(tmp_path / "c.pt2").module()
    classifier = load_classifier(weights, "cpu")
    audio = np.stack([sound(kind, 1.99) for kind in CLASSES])  # 200 frames, one segment
    with torch.no_grad():
        found = program(classifier.runtime.spectrogram(torch.from_numpy(audio))[:, None])
    np.testing.assert_allclose(found, classifier.probabilities(list(audio)), atol=1e-5)


def test_a_copied_classifier_is_the_same(tmp_path, weights):
    export.main(["--weights", str(weights), "--out", str(tmp_path / "copy")])
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (weights / name).read_bytes()
    for option in (("--dtype", "float16"), ("--layout", "published"), ("--config", "ssam_tiny_200_16x4")):
        with pytest.raises(SystemExit, match=f"export: {' '.join(option)}: .* is a classifier"):
            export.main(["--weights", str(weights), "--out", str(tmp_path / "other"), *option])
    assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit, match="as .pt2, or without a suffix"):
        export.main(["--weights", str(weights), "--out", str(tmp_path / "c.onnx")])
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"format": "of another program"}')
    for name in ("run", "model"):
        with pytest.raises(SystemExit, match="holds something else"):
            export.main(["--weights", str(weights), "--out", str(tmp_path / name)])


def test_a_classifier_is_not_copied_onto_itself(tmp_path, weights):
    shutil.copytree(weights, tmp_path / "run" / "classifier")
    for source in ("run", "run/classifier"):
        with pytest.raises(SystemExit, match="classifier is the classifier itself"):
            export.main(["--weights", str(tmp_path / source), "--out", str(tmp_path / "run" / "classifier")])
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "run" / "classifier" / name).read_bytes() == (weights / name).read_bytes()


def test_left_and_right_channels(tmp_path, weights):
    stereo = np.stack([sound("high", 2), sound("hiss", 2)], axis=1)
    soundfile.write(tmp_path / "s.wav", stereo, RATE, subtype="FLOAT")
    for channel, label in (("left", "high"), ("right", "hiss")):
        out = tmp_path / f"{channel}.csv"
        run(tmp_path / "s.wav", "--weights", weights, "--channel", channel, "--out", out)
        assert [row["label"] for row in rows_of(out)] == [label]


def test_raven_shows_labels_at_the_chosen_channel(tmp_path, weights):
    soundfile.write(tmp_path / "a.wav", np.stack([sound("high", 2), sound("hiss", 2)], axis=1), RATE)
    soundfile.write(tmp_path / "b.wav", sound("hiss", 2), RATE)
    for channel, expected in (("left", ["1", "1"]), ("right", ["2", "1"]), ("mix", ["1", "1"])):
        out = tmp_path / channel
        options = ("--channel", channel, "--format", "raven", "--out", out)
        run(tmp_path / "a.wav", tmp_path / "b.wav", "--weights", weights, *options)
        tables = [path.read_text().splitlines() for path in sorted(out.glob("*.selections.txt"))]
        assert [table[1].split("\t")[2] for table in tables] == expected


def test_raven_knows_the_channels_of_files_whose_names_are_not_text(tmp_path, weights):
    for name in (b"a.wav", b"\xe9.wav", b"\xe9 cannot be read.wav"):
        soundfile.write(os.fsencode(tmp_path) + b"/" + name, sound("hiss", 2), RATE)
    (tmp_path / os.fsdecode(b"\xe9 cannot be read.wav")).write_bytes(b"RIFF")
    with pytest.raises(SystemExit):
        run(tmp_path, "--weights", weights, "--channel", "right", "--format", "raven", "--out", tmp_path / "out")
    tables = [path.read_text().splitlines() for path in sorted((tmp_path / "out").glob("*.selections.txt"))]
    assert [table[1].split("\t")[2] for table in tables] == ["1", "1"]


def test_each_channel_has_labels_of_its_own(tmp_path, weights):
    soundfile.write(tmp_path / "s.wav", np.stack([sound("high", 4), sound("hiss", 4)], axis=1), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "t.wav", sound("low, hum", 2), RATE, subtype="FLOAT")
    (tmp_path / "x.wav").write_bytes(b"not audio")
    inputs = [*(tmp_path / name for name in ("s.wav", "x.wav", "t.wav")), "--weights", weights, "--channel", "each"]
    found = [("s.wav", 0, "high"), ("s.wav", 1, "hiss"), ("t.wav", 0, "low, hum")]
    for name in ("each.csv", "each.jsonl"):
        with pytest.raises(SystemExit, match="3"):
            run(*inputs, "--out", tmp_path / name)
    rows = rows_of(tmp_path / "each.csv")
    assert [(Path(row["path"]).name, int(row["channel"]), row["label"]) for row in rows] == found
    windows = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    labels = [(Path(one["path"]).name, one["channel"], *one["labels"]) for one in windows]
    assert labels == found
    for name in ("audacity", "raven"):
        with pytest.raises(SystemExit, match="3"):
            run(*inputs, "--out", tmp_path / name, "--format", name)
    tracks = {path.name: path.read_text() for path in (tmp_path / "audacity").glob("*.txt")}
    assert {name: parse_audacity(text) for name, text in tracks.items()} == {
        "000000_ch0_s.txt": [(0, 4, "high")],
        "000001_ch1_s.txt": [(0, 4, "hiss")],
        "000002_ch0_t.txt": [(0, 2, "low, hum")],
    }
    for name in ("audacity", "raven"):
        index = rows_of(tmp_path / name / "index.csv")
        assert [(Path(row["path"]).name, int(row["channel"])) for row in index] == [entry[:2] for entry in found]
    table = (tmp_path / "raven" / "000001_ch1_s.selections.txt").read_text().splitlines()
    assert table[1].split("\t")[2] == "2"  # Raven counts channels from 1


def test_the_most_likely_classes_come_first(weights):
    classifier = load_classifier(weights, "cpu")
    (all_of_them,) = classifier.predict([sound("high", 1)])
    (likely,) = classifier.predict([sound("high", 1)], top=2)
    assert list(likely) == list(all_of_them)[:2] and list(likely)[0] == "high" and len(all_of_them) == 3


@pytest.mark.parametrize("top", [0, -1, 1.5, "2"])
def test_top_is_a_number_of_classes(weights, top):
    with pytest.raises(ValueError, match="top must be a whole number of classes"):
        load_classifier(weights, "cpu").predict([sound("high", 1)], top=top)
