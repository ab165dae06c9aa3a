"""The prepare command on real files: what it keeps, what it skips, and what it leaves behind when stopped."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset

from audio_mamba.data import prepare as prepare_module
from audio_mamba.data import prepare_job
from audio_mamba.data.archives import read_shard, shard_indices
from audio_mamba.data.audio import AudioError, load_audio
from audio_mamba.data.decoding import parts_of
from audio_mamba.data.features import log_mel
from audio_mamba.data.prepare import main, prepare
from audio_mamba.data.prepare_inputs import held_out
from audio_mamba.data.prepare_job import AudioFile, Job, PrepareError, Settings, start_or_resume
from audio_mamba.data.prepare_shards import cut_clips, make_shards
from audio_mamba.data.samples import ArchiveError
from audio_mamba.data.verify import verify_archive
from audio_mamba.system.atomic_files import sha256
from audio_mamba.system.shares import Share

ROOT = Path(__file__).resolve().parents[2]


def write_audio(path: Path, seconds: float, rate: int = 16000, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * rate))
    soundfile.write(path, noise, rate, **({"subtype": "PCM_16"} if path.suffix == ".wav" else {}))


@pytest.fixture
def tree(tmp_path) -> Path:
    """Five usable files in two folders (nine clips of one second) and three that are not."""
    audio = tmp_path / "audio"
    write_audio(audio / "dogs" / "long.wav", 3.5, seed=1)  # 4 clips, the last of half a second
    write_audio(audio / "dogs" / "rest.flac", 2.05, 44100, seed=2)  # 2 clips, and a rest not worth keeping
    write_audio(audio / "cats" / "a.b.ogg", 1.0, 22050, seed=3)  # dots in the name
    write_audio(audio / "cats" / "deep" / "short.mp3", 0.3, 44100, seed=4)
    write_audio(audio / "top.wav", 1.0, seed=5)
    (audio / "cats" / "broken.wav").write_bytes(b"no audio")
    write_audio(audio / "cats" / "empty.wav", 0)
    write_audio(audio / "dogs" / "click.wav", 0.012)  # 192 samples
    return audio


def all_samples(archive: Path) -> list:
    return [sample for path, _ in shard_indices(archive) for sample in read_shard(path)]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


SMALL = Settings(dtype="float32", clip_seconds=1.0, shard_size=3)


@pytest.mark.parametrize("out", ["taken", "taken/archive"])
def test_a_file_in_the_place_of_the_archive_is_named(tree, tmp_path, out):
    (tmp_path / "taken").write_text("notes")
    with pytest.raises(PrepareError, match="taken is a file; name a folder for the archive"):
        prepare(tree, tmp_path / out)
    assert (tmp_path / "taken").read_text() == "notes"


def test_every_usable_second_is_kept_and_the_rest_is_listed(tree, tmp_path):
    manifest = prepare(tree, tmp_path / "out", workers=2, settings=SMALL)
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["samples"], manifest["files"], manifest["files_skipped"]) == (9, 8, 3)
    assert manifest["hours"] == pytest.approx((3.5 + 2 + 1 + 0.3 + 1) / 3600, abs=1e-5)
    assert manifest["labels"] == ["cats", "dogs"]
    assert sum(shard["samples"] for shard in manifest["shards"]) == 9 and len(manifest["shards"]) > 1
    reasons = {entry["file"]: entry["reason"] for entry in manifest["skipped"]}
    assert reasons.keys() == {"cats/broken.wav", "cats/empty.wav", "dogs/click.wav"}
    assert "no samples" in reasons["cats/empty.wav"] and "too short" in reasons["dogs/click.wav"]

    samples = all_samples(tmp_path / "out")
    assert len({sample.key for sample in samples}) == 9 and not any("." in sample.key for sample in samples)
    labels = [[manifest["labels"][i] for i in sample.labels] for sample in samples]
    assert sorted(map(str, labels)) == sorted(map(str, [["cats"]] * 2 + [["dogs"]] * 6 + [[]]))


def test_names_that_are_no_utf8_are_taken_and_shown_with_escapes(tmp_path, capsys):
    latin1 = os.fsencode(tmp_path / "audio") + b"/v\xf6gel/"
    os.makedirs(latin1)
    for name, seconds in ((b"g\xe4ns.wav", 1.0), (b"\xfc.wav", 0.01)):
        write_audio(tmp_path / "one.wav", seconds)
        shutil.move(tmp_path / "one.wav", latin1 + name)
    main([str(tmp_path / "audio"), str(tmp_path / "out"), "--workers", "1"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["samples"], manifest["labels"]) == (1, ["v\\xf6gel"])
    assert manifest["skipped"][0]["file"] == "v\\xf6gel/\\xfc.wav"
    assert "the first: v\\xf6gel/\\xfc.wav: too short" in capsys.readouterr().out.encode("utf-8").decode()


def test_a_sample_is_the_log_mel_of_its_second(tree, tmp_path):
    for dtype, tolerance in (("float32", 1e-5), ("float16", 0.004)):
        prepare(tree, tmp_path / dtype, settings=Settings(dtype, 1.0))
        clips = [sample.spectrogram for sample in all_samples(tmp_path / dtype) if sample.key.endswith("_long")]
        audio = torch.from_numpy(load_audio(tree / "dogs" / "long.wav"))
        assert [len(clip) for clip in clips] == [101, 101, 101, 51]
        for i, clip in enumerate(clips):
            assert clip.dtype == dtype
            np.testing.assert_allclose(clip, log_mel(audio[16000 * i : 16000 * (i + 1)]), rtol=0, atol=tolerance)


def test_the_number_of_workers_changes_no_byte(tree, tmp_path):
    for workers in (1, 3):
        prepare(tree, tmp_path / str(workers), workers=workers, settings=SMALL)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_several_processes_share_the_work_and_the_last_one_merges(tree, tmp_path):
    prepare(tree, tmp_path / "alone", settings=SMALL)
    assert prepare(tree, tmp_path / "out", settings=SMALL, share=Share(0, 3)) is None
    made = {path.name for path in (tmp_path / "out").glob("*.tar")}
    assert made < set(contents(tmp_path / "alone")) and not (tmp_path / "out" / "manifest.json").exists()
    assert prepare(tree, tmp_path / "out", settings=SMALL, share=Share(2, 3)) is None
    manifest = prepare(tree, tmp_path / "out", settings=SMALL, share=Share(1, 3))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert prepare(tree, tmp_path / "out", settings=SMALL, share=Share(0, 3)) == manifest


def test_a_process_that_is_still_checking_when_another_completes_the_archive_removes_nothing(
    tree, tmp_path, monkeypatch
):
    prepare(tree, tmp_path / "alone", settings=SMALL)
    assert prepare(tree, tmp_path / "out", settings=SMALL, share=Share(1, 2)) is None
    versions_of = prepare_job.versions_of

    def other_completes(files):
        monkeypatch.setattr(prepare_job, "versions_of", versions_of)
        assert prepare(tree, tmp_path / "out", settings=SMALL, share=Share(0, 2)) is not None
        return versions_of(files)

    monkeypatch.setattr(prepare_job, "versions_of", other_completes)
    manifest = prepare(tree, tmp_path / "out", settings=SMALL, share=Share(1, 2))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert manifest == prepare(tree, tmp_path / "alone", settings=SMALL)


def test_no_process_waits_for_one_that_has_failed(tree, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("audio_mamba.data.prepare_job.plan_shards", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(tree, tmp_path / "out", settings=SMALL, share=Share(0, 2))
    assert prepare(tree, tmp_path / "out", settings=SMALL, share=Share(1, 2)) is None
    prepare(tree, tmp_path / "out", settings=SMALL, share=Share(0, 2))
    prepare(tree, tmp_path / "alone", settings=SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


@pytest.mark.parametrize("share", [Share(0, 1), Share(0, 2)])
def test_another_order_of_labels_is_another_archive(tree, tmp_path, share):
    """Finished or not: the same words with other ids."""
    (tmp_path / "classes.csv").write_text(
        "index,mid,display_name\n"
        + "".join(f"{number},{name},{name}\n" for number, name in enumerate(["dogs", "cats"]))
    )
    prepare(tree, tmp_path / "out", settings=SMALL, share=share)
    before = contents(tmp_path / "out")
    with pytest.raises(PrepareError, match="archive made with other order of labels"):
        prepare(tree, tmp_path / "out", settings=SMALL, classes_csv=tmp_path / "classes.csv", share=share)
    assert contents(tmp_path / "out") == before


def test_archives_of_versions_that_noted_no_order_of_labels_are_known_again(tree, tmp_path):
    finished = prepare(tree, tmp_path / "finished", settings=SMALL)
    prepare(tree, tmp_path / "begun", settings=SMALL, share=Share(0, 2))
    for path in (tmp_path / "finished" / "manifest.json", tmp_path / "begun" / "unfinished"):
        noted = json.loads(path.read_text())
        del noted["settings"]["labels_sha256"]
        path.write_text(json.dumps(noted))
    assert prepare(tree, tmp_path / "finished", settings=SMALL)["samples"] == finished["samples"]
    prepare(tree, tmp_path / "begun", settings=SMALL)
    (tmp_path / "classes.csv").write_text("idx,label\n0,dogs\n1,cats\n")
    with pytest.raises(PrepareError, match="made with other order of labels"):
        prepare(tree, tmp_path / "finished", settings=SMALL, classes_csv=tmp_path / "classes.csv")


def test_a_share_of_the_files_is_kept_for_validation(tree, tmp_path, capsys):
    arguments = [str(tree), str(tmp_path / "out"), "--clip-seconds", "1", "--workers", "1", "--validation", "0.5"]
    main(arguments)
    whole = prepare(tree, tmp_path / "whole", settings=SMALL)
    parts = [json.loads((tmp_path / "out" / part / "manifest.json").read_text()) for part in ("train", "validation")]
    for manifest in parts:
        assert manifest["files"] == 4 and manifest["labels"] == whole["labels"]
    assert sum(manifest["samples"] for manifest in parts) == whole["samples"]
    assert sorted(skipped["file"] for manifest in parts for skipped in manifest["skipped"]) == sorted(
        skipped["file"] for skipped in whole["skipped"]
    )
    before = contents(tmp_path / "out" / "train")
    main(arguments)
    assert "was complete already" in capsys.readouterr().out and contents(tmp_path / "out" / "train") == before
    with pytest.raises(SystemExit, match="whole holds an archive made without --validation; choose another"):
        main([str(tree), str(tmp_path / "whole"), *arguments[2:]])
    assert not (tmp_path / "whole" / "train").exists()
    with pytest.raises(SystemExit, match="out/train holds an archive made with --validation; choose another"):
        main(arguments[:-2])
    assert not list((tmp_path / "out").glob("*.tar"))


def test_files_that_arrive_between_the_two_archives_are_in_neither(tmp_path, monkeypatch):
    for number in range(4):
        write_audio(tmp_path / "audio" / "a" / f"{number}.wav", 0.1)
    make, before = prepare_module.make_shards, sorted((tmp_path / "audio").rglob("*.wav"))

    def others_arrive(*arguments):
        make(*arguments)
        for number in range(30):
            write_audio(tmp_path / "audio" / "0" / f"later{number}.wav", 0.1)

    monkeypatch.setattr(prepare_module, "make_shards", others_arrive)
    main([str(tmp_path / "audio"), str(tmp_path / "out"), "--workers", "1", "--validation", "0.5"])
    manifests = [
        json.loads((tmp_path / "out" / part / "manifest.json").read_text()) for part in ("train", "validation")
    ]
    assert [(manifest["files"], manifest["labels"]) for manifest in manifests] == [(2, ["a"])] * 2
    kept = [sample.key[-1] for part in ("train", "validation") for sample in all_samples(tmp_path / "out" / part)]
    assert sorted(kept) == [path.stem for path in before]


def test_the_files_for_validation_depend_on_their_paths_alone():
    paths = [f"{number}.wav" for number in range(100)]
    numbers = held_out(paths, 0.05)
    assert len(numbers) == 5 and {paths[i] for i in numbers} == {
        path for i, path in enumerate(paths[::-1]) if i in held_out(paths[::-1], 0.05)
    }
    assert len(held_out(paths[:2], 0.01)) == 1
    for fraction in (0.0, 1.0, -1.0, float("nan"), 0.999):
        with pytest.raises(PrepareError, match="leaves nothing on one side"):
            held_out(paths, fraction)
    with pytest.raises(PrepareError, match="of 1 files"):
        held_out(paths[:1], 0.5)


def test_an_unfinished_archive_is_not_taken_for_a_complete_one(tree, tmp_path, caplog):
    prepare(tree, tmp_path / "out", settings=SMALL, share=Share(0, 2))
    with pytest.raises(ArchiveError, match="out is not complete: the same audio-mamba prepare command continues it"):
        list(verify_archive(tmp_path / "out"))
    assert shard_indices(tmp_path / "out") and "out is not complete" in caplog.text


def test_an_unfinished_archive_of_other_settings_is_not_mixed_with(tree, tmp_path):
    prepare(tree, tmp_path / "out", settings=SMALL, share=Share(0, 2))
    before = contents(tmp_path / "out")
    with pytest.raises(PrepareError, match="unfinished archive made with other clip_seconds"):
        prepare(tree, tmp_path / "out", settings=Settings("float32", 2.0, 3))
    assert contents(tmp_path / "out") == before


def test_checksums_are_in_the_manifest_and_pickles_are_as_published(tree, tmp_path):
    prepare(tree, tmp_path / "npy", settings=SMALL)
    manifest = prepare(tree, tmp_path / "pickle", settings=Settings("float32", 1.0, 3, "pickle"))
    for entry in manifest["shards"]:
        assert entry["sha256"] == {name: sha256(tmp_path / "pickle" / name) for name in entry["sha256"]}
        assert len(entry["sha256"]) == 2
    tars = [str(tmp_path / "pickle" / entry["name"]) for entry in manifest["shards"]]
    for item, sample in zip(webdataset.WebDataset(tars, shardshuffle=False), all_samples(tmp_path / "npy")):
        np.testing.assert_array_equal(pickle.loads(item["data.pyd"]), sample.spectrogram)
        assert pickle.loads(item["target.pyd"]) == sample.labels.tolist()


def test_clips_of_a_long_file_join_to_the_whole(tmp_path):
    write_audio(tmp_path / "long.flac", 47.3, 44100)
    clips = list(cut_clips(tmp_path / "long.flac", 160000))
    assert [len(clip) for clip in clips] == [160000] * 4 + [116800]
    np.testing.assert_array_equal(np.concatenate(clips), load_audio(tmp_path / "long.flac"))


def test_a_file_that_breaks_off_keeps_what_was_read(tmp_path):
    write_audio(tmp_path / "audio" / "cut.mp3", 60, 44100)
    path = tmp_path / "audio" / "cut.mp3"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    manifest = prepare(tmp_path / "audio", tmp_path / "out")
    assert 2 <= manifest["samples"] == manifest["skipped"][0]["clips_kept"] <= 3
    assert "cut off" in manifest["skipped"][0]["reason"]


@pytest.mark.parametrize("n_mels, empty", [(80, 0), (128, 3)])
def test_mel_bands_without_a_frequency_are_named(tmp_path, caplog, n_mels, empty):
    """Of 400 samples at 16 kHz the bins are 40 Hz apart, and the lowest of 128 bands are narrower than that."""
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    main([str(tmp_path), str(tmp_path / "out"), "--workers", "1", "--front-end", f"n_mels={n_mels}"])
    warned = f"{empty} of {n_mels} mel bands contain no frequency of a transform of 400 samples" in caplog.text
    assert warned == bool(empty)


@pytest.mark.parametrize("peak", [2e4, 1e19, 1e30, np.nan, np.inf])
def test_samples_far_beyond_full_scale_are_skipped_with_a_reason(tmp_path, peak):
    samples = np.random.default_rng(0).uniform(-1, 1, 32000).astype(np.float32)
    write_audio(tmp_path / "audio" / "good.wav", 2.0)
    samples[24000] = peak
    soundfile.write(tmp_path / "audio" / "bad.wav", samples, 16000, subtype="FLOAT")
    manifest = prepare(tmp_path / "audio", tmp_path / "out", settings=Settings("float16", 1.0))
    skipped = manifest["skipped"][0]
    assert skipped["file"] == "bad.wav" and ("its samples reach" in skipped["reason"]) == bool(np.isfinite(peak))
    assert all(np.isfinite(sample.spectrogram).all() for sample in all_samples(tmp_path / "out"))


def test_each_channel_gives_its_own_clips_with_its_number_in_their_keys(tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    left, right = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 24000)).astype(np.float32)
    soundfile.write(tmp_path / "audio" / "stereo.wav", np.stack([left, right], 1), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "audio" / "mono.wav", left, 16000, subtype="FLOAT")
    made = {}
    for channel in ("mix", "left", "right", "each"):
        out = tmp_path / channel
        main([str(tmp_path / "audio"), str(out), *f"--channel {channel} --clip-seconds 1 --dtype float32".split()])
        assert json.loads((out / "manifest.json").read_text())["settings"]["channel"] == channel
        made[channel] = {sample.key: sample.spectrogram for sample in all_samples(out)}
    assert sorted(made["each"]) == [
        f"0000000{file}_ch{channel}_0000{clip}_{stem}"
        for file, stem, channels in ((0, "mono", 1), (1, "stereo", 2))
        for channel in range(channels)
        for clip in range(2)
    ]
    expected = {"mix": (left + right) / 2, "left": left, "right": right}
    for channel, samples in expected.items():
        clip = log_mel(torch.from_numpy(samples[:16000]))
        np.testing.assert_allclose(made[channel]["00000001_00000_stereo"], clip, atol=1e-5)
        np.testing.assert_array_equal(made[channel]["00000000_00000_mono"], made["each"]["00000000_ch0_00000_mono"])
    for number, channel in enumerate(("left", "right")):
        np.testing.assert_array_equal(
            made["each"][f"00000001_ch{number}_00001_stereo"], made[channel]["00000001_00001_stereo"]
        )


def test_each_channel_is_kept_up_to_the_damage(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (320_000, 2))  # 20 s, read in blocks of 10 s
    soundfile.write(tmp_path / "whole.flac", samples, 16000)
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "cut.flac").write_bytes(
        (content := (tmp_path / "whole.flac").read_bytes())[: len(content) * 6 // 10]
    )
    manifest = prepare(tmp_path / "audio", tmp_path / "out", settings=Settings("float32", 2.0, channel="each"))
    keys = [sample.key for sample in all_samples(tmp_path / "out")]
    assert keys == [f"00000000_ch{channel}_0000{clip}_cut" for channel in range(2) for clip in range(5)]
    (skipped,) = manifest["skipped"]
    assert skipped["clips_kept"] == 10 and "damaged or cut off" in skipped["reason"]


def test_files_that_change_before_a_restart_are_read_again(tree, tmp_path, monkeypatch, caplog):
    """Even if they keep their size."""

    def first_shard_alone(job, shards, *arguments):
        make_shards(job, shards[:1], *arguments)
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("audio_mamba.data.prepare.make_shards", first_shard_alone)
        prepare(tree, out, settings=SMALL)
    assert (out / "shard-000000.report.json").exists()
    for path in sorted(tree.rglob("*.wav")):
        content = bytearray(path.read_bytes())
        content[100:200] = content[200:300]
        path.write_bytes(content)
    prepare(tree, out, settings=SMALL)
    assert "1 finished shards are made again, since some of their files have changed" in caplog.text
    prepare(tree, tmp_path / "fresh", settings=SMALL)
    assert contents(out) == contents(tmp_path / "fresh")


def test_what_a_kill_has_left_is_found_with_one_look_at_the_folder(tree, tmp_path, monkeypatch):
    files = [AudioFile(number, path, ()) for number, path in enumerate(sorted(tree.rglob("*.wav")))]
    job, looks, list_folder = Job(tmp_path, {}, [[file] for file in files]), [], os.scandir
    left = ["shard-000000.tar.0123abcd.partial", "shard-000002.index.npz.0123abcd.partial", "shard-000001.tar"]
    kept = ["shard-000077.tar.0123abcd.partial", "shard-000077.tar"]
    for name in (*left, *kept):
        (tmp_path / name).touch()

    def counting(folder):
        looks.append(folder)
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", counting)
    assert job.unfinished(Share()) == list(range(len(files))) and len(looks) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(kept)


def test_another_channel_is_another_archive_and_those_of_versions_that_noted_none_are_known_again(tree, tmp_path):
    prepare(tree, tmp_path / "out", settings=SMALL)
    with pytest.raises(PrepareError, match="an archive made with other channel"):
        prepare(tree, tmp_path / "out", settings=Settings("float32", 1.0, 3, channel="left"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    del manifest["settings"]["channel"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert prepare(tree, tmp_path / "out", settings=SMALL)["samples"] == manifest["samples"]


def test_hidden_files_give_no_clips_and_no_labels_unless_asked_for(tree, tmp_path, caplog):
    before = prepare(tree, tmp_path / "before", settings=SMALL)
    for name in (".Trash-1000/files/a.wav", "@eaDir/b.wav", "dogs/._long.wav"):
        write_audio(tree / name, 1.0, seed=9)
    after = prepare(tree, tmp_path / "after", settings=SMALL)
    assert contents(tmp_path / "before") == contents(tmp_path / "after") and before == after
    assert "left out hidden or system files and folders: 3" in caplog.text
    main([str(tree), str(tmp_path / "all"), "--hidden", "--clip-seconds", "1", "--workers", "1"])
    manifest = json.loads((tmp_path / "all" / "manifest.json").read_text())
    assert manifest["labels"] == [".Trash-1000", "@eaDir", "cats", "dogs"] and manifest["samples"] == 12


def test_dangling_links_are_listed_like_files_that_cannot_be_read(tree, tmp_path):
    (tree / "dogs" / "annexed.wav").symlink_to("../.git/annex/objects/absent.wav")
    manifest = prepare(tree, tmp_path / "out", settings=SMALL)
    assert (manifest["samples"], manifest["files"], manifest["files_skipped"]) == (9, 9, 4)
    reasons = {entry["file"]: entry["reason"] for entry in manifest["skipped"]}
    assert "a dangling link" in reasons["dogs/annexed.wav"]


def test_labels_come_from_a_table(tree, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text('file,labels\ndogs/long.wav,"bark;howl"\nrest,bark\na.b.ogg,"meow, purr"\nabsent.wav,moo\n')
    manifest = prepare(tree, tmp_path / "out", table, settings=SMALL)
    assert manifest["labels"] == ["bark", "howl", "meow", "purr"]
    found = {
        sample.key[15:]: [manifest["labels"][i] for i in sample.labels] for sample in all_samples(tmp_path / "out")
    }
    assert found == {"long": ["bark", "howl"], "rest": ["bark"], "a_b": ["meow", "purr"], "short": [], "top": []}


@pytest.mark.parametrize(
    "text, reason",
    [
        ("name,sound\na,b\n", "has the columns"),
        ("", "has the columns"),
        (
            "file,label\nnothing.wav,x\n",
            "labels none of the 8 audio files .*: it has 'nothing.wav', and there is 'cats/a.b.ogg'",
        ),
    ],
)
def test_bad_tables_are_named(tree, tmp_path, text, reason):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=f"labels.csv {reason}"):
        prepare(tree, tmp_path / "out", tmp_path / "labels.csv")


def test_the_same_again_does_nothing_and_anything_else_is_refused(tree, tmp_path):
    out = tmp_path / "out"
    first = prepare(tree, out, settings=SMALL)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare(tree, out, workers=2, settings=SMALL) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(PrepareError, match="made with other dtype, clip_seconds"):
        prepare(tree, out, settings=Settings("float16", 2.0, 3))
    write_audio(tree / "new.wav", 1.0)
    with pytest.raises(PrepareError, match="other files or labels of files"):
        prepare(tree, out, settings=SMALL)
    (tree / "new.wav").unlink()
    (out / "shard-000001.tar").unlink()
    with pytest.raises(PrepareError, match="lost 1 of its shards, the first shard-000001.tar"):
        prepare(tree, out, settings=SMALL)


def test_somebody_elses_shards_are_not_touched(tree, tmp_path):
    (tmp_path / "shard-000000.tar").write_bytes(b"precious")
    with pytest.raises(PrepareError, match="tar files that `audio-mamba prepare` did not make"):
        prepare(tree, tmp_path)
    assert (tmp_path / "shard-000000.tar").read_bytes() == b"precious"


def test_a_file_at_which_a_decoder_itself_fails_is_named_and_ends_the_run(tree, tmp_path, monkeypatch):
    def fails_at_one(file):
        if file.name.endswith("rest.flac"):
            raise RecursionError("too deep")
        return parts_of(file)

    monkeypatch.setattr("audio_mamba.data.audio.parts_of", fails_at_one)
    with pytest.raises(SystemExit, match=r"^prepare: .*dogs/rest.flac: reading it failed unexpectedly"):
        main([str(tree), str(tmp_path / "out"), "--workers", "1"])
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("channel, lost", [("mix", False), ("mix", True), ("each", False)])
def test_a_failing_storage_ends_the_run_which_then_resumes(tree, tmp_path, monkeypatch, channel, lost):
    """Also with zeros in place of the file, if it is lost for good."""
    arguments = ["--workers", "1", "--shard-size", "2", "--clip-seconds", "1", "--channel", channel]
    main([str(tree), str(tmp_path / "whole"), *arguments])
    arguments = [str(tree), str(tmp_path / "out"), *arguments]

    def fails_at_one(file):
        if file.name.endswith("rest.flac"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return parts_of(file)

    with monkeypatch.context() as patched:
        patched.setattr("audio_mamba.data.audio.parts_of", fails_at_one)
        with pytest.raises(
            SystemExit, match=r"^prepare: .*dogs/rest.flac: .*Input/output error.*; once its cause .* resumes .*out$"
        ):
            main(arguments)
    assert not (tmp_path / "out" / "manifest.json").exists() and list((tmp_path / "out").glob("*.tar"))
    if lost:
        file = next(tree.rglob("rest.flac"))
        file.write_bytes(bytes(file.stat().st_size))
    main(arguments)
    if lost:
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert "dogs/rest.flac" in [entry["file"] for entry in manifest["skipped"]]
    else:
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_fails_only_if_there_is_no_audio_or_all_of_it_is_bad(tmp_path):
    with pytest.raises(AudioError, match="not a folder"):
        prepare(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "audio").mkdir()
    with pytest.raises(AudioError, match="no audio found"):
        prepare(tmp_path / "audio", tmp_path / "out")
    (tmp_path / "audio" / "bad.wav").write_bytes(b"")
    with pytest.raises(PrepareError, match="none of the 1 audio files .*bad.wav: cannot be read"):
        prepare(tmp_path / "audio", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("settings", [{"dtype": "int8"}, {"clip_seconds": 0.01}, {"shard_size": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(PrepareError, match=str(next(iter(settings.values())))):
        Settings(**settings)


# ---------------------------------------------------------------- the command


def start(*arguments: object) -> subprocess.Popen:
    """The command in a process group of its own, open to Ctrl-C even where these tests run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "data.prepare", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_the_command_reports_in_words_and_exit_status(tree, tmp_path):
    command = start(tree, tmp_path / "out", "--clip-seconds", 1)
    output, errors = command.communicate(timeout=60)
    assert command.returncode == 0, errors
    assert "9 clips" in output and "3 of 8 files could not be used" in output and "preparing" in errors
    command = start(tmp_path / "absent", tmp_path / "out2")
    output, errors = command.communicate(timeout=60)
    assert command.returncode == 1
    assert errors.strip() == f"prepare: {tmp_path / 'absent'} is not a folder of audio files"


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_stopped_at_any_moment_it_leaves_no_half_shard_and_can_start_again(tmp_path, how):
    for i in range(60):
        write_audio(tmp_path / "audio" / f"{i:02d}.wav", 20, seed=i)
    arguments = (tmp_path / "audio", tmp_path / "out", "--workers", 2, "--shard-size", 80, "--clip-seconds", 1)
    command = start(*arguments)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("*.report.json")):
        assert time.monotonic() < deadline and command.poll() is None
        time.sleep(0.005)
    if how == signal.SIGINT:
        os.killpg(command.pid, how)  # as a terminal does on Ctrl-C
    else:
        command.kill()
    _, errors = command.communicate(timeout=30)  # ends when the workers, too, have let go of stderr
    assert command.returncode != 0 and "Traceback" not in errors
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "manifest.json" not in names and "unfinished" in names
    if how == signal.SIGINT:
        assert command.returncode == 130 and not any(name.endswith(".partial") for name in names)
    for path in (tmp_path / "out").glob("*.tar"):
        assert len(list(read_shard(path))) == 80
    finished = {
        path.with_suffix("").with_suffix(".tar"): path.with_suffix("").with_suffix(".tar").stat().st_mtime_ns
        for path in (tmp_path / "out").glob("*.report.json")
    }

    again = start(*arguments)
    assert again.wait(timeout=60) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # not made again
    prepare(tmp_path / "audio", tmp_path / "undisturbed", settings=Settings("float16", 1.0, 80))
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_ctrl_c_does_not_wait_for_the_shard_at_hand(tmp_path):
    write_audio(tmp_path / "audio" / "long.wav", 1200)
    command = start(tmp_path / "audio", tmp_path / "out", "--workers", 1, "--clip-seconds", 1)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("shard*.partial")):
        assert time.monotonic() < deadline and command.poll() is None
        time.sleep(0.005)
    os.killpg(command.pid, signal.SIGINT)
    command.communicate(timeout=30)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_20_times_at_random_moments_it_ends_with_the_very_bytes_of_an_undisturbed_run(tmp_path):
    for i in range(60):
        write_audio(tmp_path / "audio" / f"{i:02d}.wav", 20, seed=i)
    arguments = (tmp_path / "audio", tmp_path / "out", "--workers", 2, "--shard-size", 40, "--clip-seconds", 1)
    started = time.monotonic()
    undisturbed = start(tmp_path / "audio", tmp_path / "undisturbed", *arguments[2:])
    undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0
    duration = time.monotonic() - started
    expected = contents(tmp_path / "undisturbed")
    rng = np.random.default_rng()
    kills = 0
    while kills < 20:
        command = start(*arguments)
        try:
            command.communicate(timeout=rng.uniform(0.2, 1) * duration)
            assert command.returncode == 0
        except subprocess.TimeoutExpired:
            os.killpg(command.pid, signal.SIGKILL)  # the workers as well, in whatever they do
            command.communicate(timeout=30)
            kills += 1
        for path in (tmp_path / "out").glob("*.tar"):
            assert path.read_bytes() == expected[path.name]  # whole, or not there
        if (tmp_path / "out" / "manifest.json").exists() and kills < 20:
            assert start(*arguments).wait(timeout=60) == 0  # clears up after a kill at the very end
            assert contents(tmp_path / "out") == expected
            shutil.rmtree(tmp_path / "out")
    again = start(*arguments)
    again.communicate(timeout=120)
    assert again.returncode == 0
    assert contents(tmp_path / "out") == expected


def test_a_process_that_merges_while_another_does_finds_the_same_archive(tree, tmp_path, monkeypatch):
    alone = prepare(tree, tmp_path / "alone", settings=SMALL)
    out, rename, jobs = tmp_path / "out", os.replace, []

    def other_process_merges_first(source, target):
        if jobs and Path(target).name == "manifest.json":
            jobs.pop().merge(alone["labels"])
        rename(source, target)

    def two_jobs(*arguments):
        jobs.append(start_or_resume(*arguments))
        return start_or_resume(*arguments)

    monkeypatch.setattr("audio_mamba.data.prepare.start_or_resume", two_jobs)
    monkeypatch.setattr("os.replace", other_process_merges_first)
    assert prepare(tree, out, settings=SMALL) == alone
    assert not jobs and contents(out) == contents(tmp_path / "alone")


@pytest.mark.slow
def test_torchrun_processes_share_an_archive(tree, tmp_path):
    prepare(tree, tmp_path / "alone", settings=Settings(clip_seconds=1.0, shard_size=3))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nnodes=1",
            "--nproc-per-node=3",
            "-m",
            "data.prepare",
            str(tree),
            str(tmp_path / "out"),
            "--clip-seconds",
            "1",
            "--shard-size",
            "3",
        ],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
