"""Manifests and indexes that can be parsed but are wrong, holes among the values, and members of unknown types."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset

from audio_mamba.data import array_bytes
from audio_mamba.data.archives import read_shard, write_shard
from audio_mamba.data.dataset import LogMelDataset
from audio_mamba.data.index import main as index_command
from audio_mamba.data.inspect import main as inspect_command
from audio_mamba.data.loader import make_loader, make_remote_loader, set_epoch
from audio_mamba.data.manifest import read_manifest
from audio_mamba.data.prepare import main as prepare_command
from audio_mamba.data.prepare import prepare
from audio_mamba.data.prepare_job import Settings
from audio_mamba.data.samples import ArchiveError, Sample, decode_labels
from audio_mamba.data.shard_index import PLACE, index_from_headers, index_path, read_index, saved_index
from audio_mamba.data.verify import main as verify_command
from audio_mamba.data.verify import verify_shard
from audio_mamba.front_end import FrontEnd
from tests.conftest import ROOT

SILENCE = np.log(np.float32(1.1920929e-07))


def clip(number: int, frames: int = 14) -> np.ndarray:
    return (np.random.default_rng(number).standard_normal((frames, 80)) * 3 - 5).astype(np.float32)


def write_clips(path: Path, clips: list[np.ndarray]) -> None:
    write_shard(path, [Sample(f"clip{i:03d}", values, np.array([i])) for i, values in enumerate(clips)])


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    for number in range(6):
        noise = np.random.default_rng(number).standard_normal(16000) * 0.1
        soundfile.write(folder / f"{number}.wav", noise, 16000)
    return folder


@pytest.fixture
def archive(audio, tmp_path) -> Path:
    """An archive of data.prepare with two shards of three samples."""
    prepare(audio, tmp_path / "archive", settings=Settings("float32", 1.0, 3))
    return tmp_path / "archive"


def change_manifest(archive: Path, change) -> None:
    manifest = json.loads((archive / "manifest.json").read_text())
    changed = change(manifest)
    (archive / "manifest.json").write_text(json.dumps(manifest if changed is None else changed))


# ---------------------------------------------------------------- manifests

WRONG_MANIFESTS = {
    "shards null": (lambda m: m.update(shards=None), "is not valid: shards must be a list, got null"),
    "shards a dict": (lambda m: m.update(shards={"a.tar": 3}), 'shards must be a list, got {"a.tar": 3}'),
    "an entry without name": (lambda m: m["shards"][1].pop("name") and None, "shard 2: name must be .* file, got null"),
    "an entry without samples": (
        lambda m: m["shards"][0].pop("samples") and None,
        "shard 1: samples must be .*, got null",
    ),
    "an entry that is a name": (lambda m: m["shards"].insert(0, "a.tar"), 'shard 1: must be an object, got "a.tar"'),
    "a path for a name": (lambda m: m["shards"][0].update(name="../a.tar"), "name of a file, got .*/a.tar"),
    "half a character": (lambda m: m["shards"][0].update(name="\ud800.tar"), "name of a file, got .*ud800"),
    "a shard twice": (lambda m: m["shards"].append(m["shards"][0]), "shard 3: shard-000000.tar is listed twice"),
    "samples a text": (lambda m: m["shards"][0].update(samples="3"), 'shard 1: samples must be .*, got "3"'),
    "samples true": (lambda m: m["shards"][0].update(samples=True), "shard 1: samples must be .*, got true"),
    "samples below zero": (lambda m: m["shards"][0].update(samples=-3), "shard 1: samples must be .*, got -3"),
    "checksums a list": (lambda m: m["shards"][0].update(sha256=["ab"]), "sha256 must hold a checksum for each"),
    "a checksum null": (lambda m: m["shards"][0]["sha256"].update({"a.tar": None}), "sha256 must hold a checksum"),
    "settings null": (lambda m: m.update(settings=None), "settings must be an object, got null"),
    "labels a number": (lambda m: m.update(labels=5), "labels must be a list of names, got 5"),
    "a label null": (lambda m: m.update(labels=[None]), "labels must be a list of names"),
    "the sum of samples": (lambda m: m.update(samples=7), "samples is 7, but the samples of its shards add up to 6"),
    "samples a fraction": (lambda m: m.update(samples=6.0), "samples must be a whole number of at least 0, got 6.0"),
    "fewer folds than files": (
        lambda m: m.update(folds=["1"] * 5),
        "folds must have a name for each file, got 5 for 6 files",
    ),
    "more groups than files": (lambda m: m.update(groups=["a"] * 7), "groups must have a name .*, got 7 for 6 files"),
    "skipped null": (lambda m: m.update(skipped=None), "skipped must be a list of objects"),
    "hours a text": (lambda m: m.update(hours="1"), "hours must be a number"),
    "a list": (lambda m: [m], "is not a manifest written by `audio-mamba prepare`"),
    "null": (lambda m: "null", "is not a manifest written by `audio-mamba prepare`"),
}


@pytest.mark.parametrize("how", WRONG_MANIFESTS)
def test_a_wrong_manifest_gives_one_sentence_from_every_command(audio, archive, tmp_path, how):
    change, problem = WRONG_MANIFESTS[how]
    change_manifest(archive, change)
    commands = {
        "verify": lambda: verify_command([str(archive)]),
        "index": lambda: index_command([str(archive)]),
        "inspect": lambda: inspect_command([str(archive), "--picture", str(tmp_path / "a.png")]),
        "prepare": lambda: prepare_command(
            [str(audio), str(archive), "--dtype", "float32", "--clip-seconds", "1", "--shard-size", "3"]
        ),
    }
    before = (archive / "manifest.json").read_bytes()
    for command, run in commands.items():
        with pytest.raises(SystemExit, match=f"^{command}: .*manifest.json.*{problem}") as raised:
            run()
        assert "\n" not in str(raised.value)
    for strict in (False, True):
        with pytest.raises(ArchiveError, match=f"manifest.json.*{problem}"):
            make_loader([archive], num_frames=10, batch_size=2, strict=strict)
    assert (archive / "manifest.json").read_bytes() == before


def test_inspect_names_a_seed_that_cannot_be(archive):
    with pytest.raises(SystemExit, match="inspect: --seed must not be negative, got -1"):
        inspect_command([str(archive), "--seed", "-1"])


def test_a_wrong_setting_is_named_by_every_command_that_needs_it(archive, tmp_path):
    change_manifest(archive, lambda manifest: manifest["settings"].update(n_mels="80"))
    problem = "manifest.json: front_end.n_mels must be a whole number of at least 1, got '80'"
    with pytest.raises(SystemExit, match=f"verify: .*{problem}"):
        verify_command([str(archive)])
    with pytest.raises(SystemExit, match=f"inspect: .*{problem}"):
        inspect_command([str(archive), "--picture", str(tmp_path / "a.png")])
    with pytest.raises(ArchiveError, match=problem):
        make_loader([archive], num_frames=10, batch_size=2)


def test_a_manifest_of_prepare_without_its_own_keys_is_refused_by_prepare(audio, archive):
    change_manifest(archive, lambda manifest: [manifest.pop(key) for key in ("labels", "hours")] and None)
    with pytest.raises(SystemExit, match="prepare: .*manifest.json lacks hours, labels; choose another folder"):
        prepare_command([str(audio), str(archive), "--dtype", "float32", "--clip-seconds", "1", "--shard-size", "3"])
    verify_command([str(archive)])


@pytest.mark.parametrize("text", ["{", "", "nul", "[" * 100_000, "\ud800"])
def test_a_manifest_that_is_not_json_is_named(archive, text):
    (archive / "manifest.json").write_text(text, errors="surrogatepass")
    with pytest.raises(ArchiveError, match="manifest.json is not a manifest written by `audio-mamba prepare`"):
        read_manifest(archive)


def test_shards_that_the_manifest_does_not_list_are_named_by_every_command(audio, archive, tmp_path, capsys, caplog):
    write_clips(archive / "extra.tar", [clip(1)])
    (archive / "._extra.tar").write_bytes(b"left by a file manager")
    sentence = "manifest.json does not list 1 tar file(s) of its folder, which are not used, such as extra.tar"
    with pytest.raises(SystemExit, match="verify: 1 of 3 shards are damaged"):
        verify_command([str(archive)])
    assert f"{archive / 'extra.tar'}: manifest.json does not list this shard" in capsys.readouterr().out
    for command in (
        lambda: index_command([str(archive)]),
        lambda: inspect_command([str(archive), "--picture", str(tmp_path / "a.png")]),
        lambda: LogMelDataset([archive], 10, strict=True),
        lambda: prepare(audio, archive, settings=Settings("float32", 1.0, 3)),
    ):
        caplog.clear()
        command()
        assert [record.getMessage() for record in caplog.records if "extra.tar" in record.getMessage()] == [
            f"{archive}/{sentence}"
        ]
    assert len(LogMelDataset([archive], 10)) == 6


@pytest.mark.slow
def test_real_commands_end_with_status_1_and_no_traceback(audio, archive, tmp_path):
    change_manifest(archive, lambda manifest: manifest.update(shards=None))
    for command in (
        ["-m", "audio_mamba.data.verify", archive],
        ["-m", "data.inspect", archive, "--picture", tmp_path / "a.png"],
        ["-m", "data.index", archive],
        ["-m", "data.prepare", audio, archive],
        [
            "train.py",
            "--config",
            "configs.ssam_tiny_200_16x4",
            "--no-wandb",
            "--workdir",
            tmp_path / "run",
            "--data",
            archive,
        ],
    ):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr, (command, done.stderr)
        told = [line for line in done.stderr.splitlines() if "manifest.json" in line]
        assert len(told) == 1 and "shards must be a list, got null" in told[0], (command, done.stderr)


# ---------------------------------------------------------------- indexes


def save(shard: Path, **changed) -> None:
    """The index of a shard with other columns in place of its own; None leaves a column out."""
    with np.load(index_path(shard)) as saved:
        columns = dict(saved) | changed
    np.savez(index_path(shard), **{name: column for name, column in columns.items() if column is not None})


def set_column(column: str, value: float):
    def change(places: np.ndarray) -> np.ndarray:
        places[column][1] = value
        return places

    return change


WRONG_PLACES = {
    "no frames": (set_column("frames", 0), "clip001: a shape must be positive"),
    "frames below zero": (set_column("frames", -14), "clip001: a shape must be positive"),
    "no mel bands": (set_column("mels", 0), "clip001: a shape must be positive"),
    "3 bytes": (set_column("value_bytes", 3), "clip001: values must have 2, 4 or 8 bytes"),
    "16 bytes": (set_column("value_bytes", 16), "clip001: values must have 2, 4 or 8 bytes"),
    "more frames than values": (set_column("frames", 15), "clip001: values are outside their member"),
    "frames without end": (set_column("frames", 2**31 - 1), "clip001: values are outside their member"),
    "values before the member": (set_column("values_offset", 3), "clip001: values are outside their member"),
    "values below zero": (set_column("values_offset", -2), "clip001: values are outside their member"),
    "a member outside": (set_column("data_offset", 2**62), "clip001: a member is outside the shard"),
    "a size below zero": (set_column("data_size", -1), "clip001: a member is outside the shard"),
    "labels outside": (set_column("labels_size", 2**40), "clip001: labels are outside the shard"),
    "a deviation below zero": (set_column("std", -1), "clip001: a mean or deviation is invalid"),
    "a mean of NaN": (set_column("mean", np.nan), "clip001: a mean or deviation is invalid"),
    "two dimensions": (lambda places: np.stack([places] * 2), "two columns of the same length"),
    "a table of places": (lambda places: places[:, None], "two columns of the same length"),
    "one place": (lambda places: places[0], "two columns of the same length"),
    "fewer places": (lambda places: places[:2], "two columns of the same length"),
    "other columns": (lambda places: places.astype([(name, "<f8") for name in PLACE.names]), "two columns"),
}


@pytest.mark.parametrize("how", WRONG_PLACES)
def test_a_wrong_index_gives_one_sentence_and_the_shard_is_read_without_it(tmp_path, caplog, capsys, how):
    write_clips(tmp_path / "a.tar", [clip(i) for i in range(250)])
    expected = LogMelDataset([tmp_path], 10)[0, 1]["spectrogram"]
    change, problem = WRONG_PLACES[how]
    save(tmp_path / "a.tar", places=change(saved_index(tmp_path / "a.tar").places.copy()))
    found = LogMelDataset([tmp_path], 10)[0, 1]["spectrogram"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert len(caplog.records) == 1
    assert f"{tmp_path / 'a.index.npz'} is damaged (" in caplog.text and problem in caplog.text
    with pytest.raises(ArchiveError, match=f"a.index.npz is damaged .*{problem}"):
        LogMelDataset([tmp_path], 10, strict=True)
    with pytest.raises(SystemExit, match="verify: 1 of 1 shards are damaged"):
        verify_command([str(tmp_path)])
    assert problem in capsys.readouterr().out
    index_command([str(tmp_path)])  # writes it again
    verify_command([str(tmp_path)])


@pytest.mark.parametrize(
    "changed",
    [
        {"keys": np.arange(3)},
        {"keys": np.array([[b"a"], [b"b"], [b"c"]])},
        {"keys": None},
        {"shard_bytes": None},
        {"shard_bytes": np.array("text")},
        {"shard_bytes": np.arange(4)},
        {"shard_digest": np.array("", object)},  # whose unpickling could run anything
    ],
    ids=str,
)
def test_an_index_without_usable_columns_is_named(tmp_path, changed):
    write_clips(tmp_path / "a.tar", [clip(i) for i in range(3)])
    save(tmp_path / "a.tar", **changed)
    with pytest.raises(ArchiveError, match="a.index.npz is damaged"):
        read_index(tmp_path / "a.tar")
    assert len(read_index(tmp_path / "a.tar", report=lambda problem: None)) == 3


def test_samples_without_labels_are_indexed_too(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as tar:
        tar.write({"__key__": "clip000", "data.npy": array_bytes.encode(clip(0))})
    index_command([str(tmp_path)])
    assert read_index(tmp_path / "a.tar").places["frames"].tolist() == [len(clip(0))]


@pytest.mark.parametrize("place", ["first", "last"])
def test_an_index_of_another_shard_of_the_same_size_is_not_used(tmp_path, caplog, place):
    clips = [clip(i, 500) for i in range(4)]
    write_clips(tmp_path / "a.tar", clips)
    kept = index_path(tmp_path / "a.tar").read_bytes()
    number = 0 if place == "first" else 3
    clips[number] = clips[number][::-1].copy()
    write_clips(tmp_path / "a.tar", clips)
    index_path(tmp_path / "a.tar").write_bytes(kept)
    with pytest.raises(ArchiveError, match="a.index.npz does not belong to this shard"):
        LogMelDataset([tmp_path], 10, strict=True)
    assert "a.index.npz does not belong to this shard" in verify_shard(tmp_path / "a.tar")[1][0]
    index_command([str(tmp_path)])
    assert verify_shard(tmp_path / "a.tar") == (4, [])
    assert len(LogMelDataset([tmp_path], 10, strict=True)) == 4


def test_an_index_without_a_digest_is_still_read(tmp_path):
    write_clips(tmp_path / "a.tar", [clip(i) for i in range(3)])
    save(tmp_path / "a.tar", shard_digest=None)
    index = read_index(tmp_path / "a.tar")
    assert (index.places["frames"] == 14).all()  # which headers do not tell
    assert verify_shard(tmp_path / "a.tar") == (3, [])


@pytest.mark.parametrize("column, value", [("mean", -4.9), ("std", 3.1), ("frames", 13), ("values_offset", 4)])
def test_verify_compares_all_that_an_index_says(tmp_path, column, value):
    write_clips(tmp_path / "a.tar", [clip(i) for i in range(3)])
    places = saved_index(tmp_path / "a.tar").places.copy()
    places["frames"] -= column == "values_offset"  # so that the moved values are inside the member
    places[column][1] = places[column][1] - value if column == "values_offset" else value
    save(tmp_path / "a.tar", places=places)
    assert any("clip001: the values are not those that a.index.npz" in p for p in verify_shard(tmp_path / "a.tar")[1])


# ---------------------------------------------------------------- holes among the values


def zero_values(shard: Path, number: int, first_frame: int, frames: int) -> None:
    place = index_from_headers(shard).places[number]
    values = int(place["data_offset"] + place["data_size"]) - 500 * 80 * 4
    with open(shard, "r+b") as file:
        file.seek(values + first_frame * 320)
        file.write(bytes(frames * 320))


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("frames", [500, 250])
def test_crops_inside_a_hole_are_bad(tmp_path, indexed, frames):
    write_clips(tmp_path / "a.tar", [clip(i, 500) for i in range(5)])
    if not indexed:
        index_path(tmp_path / "a.tar").unlink()
    zero_values(tmp_path / "a.tar", 2, 0, frames)
    dataset = LogMelDataset([tmp_path], 10, strict=True)
    outcomes = []
    for epoch in range(60):
        try:
            crop = dataset[epoch, 2]["spectrogram"]
            assert crop.std() > 0
            outcomes.append("good")
        except ArchiveError as error:
            assert "a.tar, sample clip002: all values of the crop are 0, and silence would be -15.9424" in str(error)
            outcomes.append("bad")
    assert "bad" in outcomes and ("good" in outcomes) == (frames < 500)
    problems = verify_shard(tmp_path / "a.tar")[1]
    assert len(problems) == 1 and f"sample clip002: {frames} successive frames hold one single value" in problems[0]


def test_the_remote_reader_refuses_crops_inside_a_hole(tmp_path):
    write_clips(tmp_path / "a.tar", [clip(i, 500) for i in range(5)])
    zero_values(tmp_path / "a.tar", 2, 0, 500)
    options = {"samples": 5, "num_frames": 10, "batch_size": 1, "strict": True}
    with pytest.raises(ArchiveError, match="sample clip002: all values of the crop are 0"):
        list(make_remote_loader([str(tmp_path / "a.tar")], **options))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("log_offset", [1.1920929e-07, 1e-10])
def test_true_silence_is_accepted_in_every_type(tmp_path, dtype, indexed, log_offset):
    front_end = FrontEnd(log_offset=log_offset)
    half_silent = clip(1, 60)
    half_silent[:40] = np.log(np.float32(log_offset))
    for number, values in enumerate((half_silent, np.full_like(half_silent, half_silent[0, 0]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_clips(folder / "a.tar", [values.astype(dtype)])
        (folder / "manifest.json").write_text(
            json.dumps(
                {
                    "samples": 1,
                    "settings": front_end.settings(),
                    "shards": [{"name": "a.tar", "samples": 1}],
                }
            )
        )
        if not indexed:
            index_path(folder / "a.tar").unlink()
        dataset = LogMelDataset([folder], 10, front_end, strict=True)
        crops = [dataset[epoch, 0]["spectrogram"] for epoch in range(30)]
        assert any(crop.min() == crop.max() for crop in crops)
        verify_command([str(folder)])


# ---------------------------------------------------------------- members


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize != 16, reason="needs numpy's float128")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_float128_member_is_skipped_counted_and_named(tmp_path, caplog, capsys, num_workers):
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as tar:
        for number in range(250):
            values = clip(number).astype(np.longdouble if number == 77 else np.float32)
            tar.write({"__key__": f"clip{number:03d}", "data.npy": array_bytes.encode(values), "target.json": b"[1]"})
    loader = make_loader([tmp_path], num_frames=10, batch_size=10, num_workers=num_workers)
    set_epoch(loader, 0)
    seen = np.concatenate([batch["index"] for batch in loader])
    assert 77 not in seen and len(seen) == 250
    assert len(caplog.records) == 1
    assert "a.tar, sample clip077: a float128 array of shape [14, 80] is not a spectrogram" in caplog.text
    with pytest.raises(SystemExit, match="verify: 1 of 1 shards are damaged"):
        verify_command([str(tmp_path)])
    assert "sample clip077: a float128 array" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="index: problems found: 1"):
        index_command([str(tmp_path)])
    assert "sample clip077: a float128 array" in capsys.readouterr().err
    with pytest.raises(ArchiveError, match="clip077: a float128 array"):
        LogMelDataset([tmp_path], 10, strict=True)[0, 77]


def test_plain_webdataset_decodes_both_formats(audio, tmp_path):
    for form, data_name, labels_name in (("npy", "data.npy", "target.json"), ("pickle", "data.pyd", "target.pyd")):
        prepare(audio, tmp_path / form, settings=Settings("float32", 1.0, 10, form))
        samples = list(read_shard(tmp_path / form / "shard-000000.tar"))
        decoded = list(webdataset.WebDataset(str(tmp_path / form / "shard-000000.tar"), shardshuffle=False).decode())
        assert len(samples) == len(decoded) == 6
        for sample, item in zip(samples, decoded):
            assert item["__key__"] == sample.key
            np.testing.assert_array_equal(item[data_name], sample.spectrogram)
            assert item[labels_name] == sample.labels.tolist()


def test_older_npy_archives_with_pyd_names_are_read(tmp_path):
    clips, labels = [clip(i, 40) for i in range(5)], [np.arange(i) for i in range(5)]
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as tar:
        for i in range(5):
            members = {"data.pyd": array_bytes.encode(clips[i]), "target.pyd": array_bytes.encode(labels[i])}
            tar.write({"__key__": f"clip{i:03d}"} | members)
    for _ in range(2):
        for i, sample in enumerate(read_shard(tmp_path / "a.tar")):
            np.testing.assert_array_equal(sample.spectrogram, clips[i])
            np.testing.assert_array_equal(sample.labels, labels[i])
        assert verify_shard(tmp_path / "a.tar") == (5, [])
        index_command([str(tmp_path)])  # and with an index
    batches = list(make_remote_loader([str(tmp_path / "a.tar")], samples=5, num_frames=10, batch_size=1))
    assert len(batches) == 5


def test_a_key_with_both_names_is_reported(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as tar:
        data = array_bytes.encode(clip(1))
        tar.write({"__key__": "clip", "data.npy": data, "data.pyd": data})
    with pytest.raises(ArchiveError, match="a.tar: two members clip.data.pyd"):
        read_index(tmp_path / "a.tar")


@pytest.mark.parametrize("data", [b"[1, 2", b'["a"]', b"[1.5]", b"[[1], [2]]", b"[1" + b"0" * 30 + b"]", b"[" * 9999])
def test_labels_that_are_not_a_list_of_ids_are_refused(data):
    with pytest.raises(ValueError):
        decode_labels(data)


def test_json_labels_are_read():
    for data, expected in ((b"[]", []), (b" [3, 1]\n", [3, 1]), (b"7", [7])):
        labels = decode_labels(data)
        assert labels.dtype == np.int64 and labels.tolist() == expected


def test_label_ids_without_a_class_are_named(tmp_path):
    write_shard(tmp_path / "a.tar", [Sample(f"clip{i}", clip(0), np.array([0, i])) for i in (0, 2, -3)])
    problems = verify_shard(tmp_path / "a.tar")[1]
    assert problems == [f"{tmp_path}/a.tar, sample clip-3: the label id -3 is negative"]
    problems = verify_shard(tmp_path / "a.tar", classes=2)[1]
    assert len(problems) == 2 and "clip2: the label id 2 has no name among the 2 of manifest.json" in problems[0]
    assert len(verify_shard(tmp_path / "a.tar", classes=3)[1]) == 1


def test_an_archive_whose_manifest_lacks_a_class_is_not_good(tmp_path, audio, capsys):
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{i}.wav,{'ab'[i % 2]}\n" for i in range(6)))
    prepare(audio, tmp_path / "archive", labels_csv=tmp_path / "labels.csv")
    verify_command([str(tmp_path / "archive")])
    change_manifest(tmp_path / "archive", lambda m: m["labels"].pop() and None)
    with pytest.raises(SystemExit) as ended:
        verify_command([str(tmp_path / "archive")])
    assert ended.value.code and "the label id 1 has no name among the 1 of manifest" in capsys.readouterr().out


def test_an_unreadable_place_gives_a_sentence_not_a_traceback(tmp_path):
    (tmp_path / "a.tar").mkdir()
    os.symlink(tmp_path / "absent", tmp_path / "b.tar")
    count, problems = verify_shard(tmp_path / "a.tar")
    assert count == 0 and len(problems) == 1 and "a.tar" in problems[0]
    with pytest.raises(ArchiveError, match="b.tar: no such file"):
        read_index(tmp_path / "b.tar")
