"""The embed command: same numbers as `RuntimeSSAST.embed`, resume after any kill, failures, bounded memory."""

import contextlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import soundfile
import torch

from audio_mamba.hear_api import RuntimeSSAST, clips, journal
from audio_mamba.hear_api.embed import main
from audio_mamba.hear_api.file_runs import decoding_pool
from audio_mamba.hear_api.journal import Entry, Journal, JournalError
from audio_mamba.hear_api.pretrained import save_pretrained
from audio_mamba.hear_api.runtime import build_runtime
from audio_mamba.hear_api.writers import read_settings, write_npz
from audio_mamba.system import folder_lock
from tests.conftest import ROOT
from tests.hear_api import wide_config
from tests.hear_api.small_config import get_config

LENGTHS = {"a.wav": 16000, "deep/b.flac": 50001, "deep/c.ogg": 33000, "d.mp3": 40000, "e.wav": 4000}
MODEL = ["--config", "tests.hear_api.small_config", "--weights", "untrained", "--workers", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    for number, (name, samples) in enumerate(LENGTHS.items()):
        (folder / name).parent.mkdir(exist_ok=True)
        t = np.arange(samples) / 16000
        noise = np.random.default_rng(number).standard_normal(samples)
        soundfile.write(folder / name, 0.3 * np.sin(2 * np.pi * (200 + 90 * number) * t) + 0.02 * noise, 16000)
    return folder


@pytest.fixture(scope="module")
def runtime():
    return RuntimeSSAST(get_config(), None)


def sorted_paths(folder):
    return sorted(path for path in folder.rglob("*.*") if path.is_file())


def test_scenes_of_a_folder_as_npz(audio, runtime, tmp_path):
    main([str(audio), *MODEL, "--out", str(tmp_path / "out.npz")])
    result, paths = np.load(tmp_path / "out.npz"), sorted_paths(audio)
    assert list(result["path"]) == [str(path) for path in paths]
    np.testing.assert_allclose(result["embedding"], runtime.embed(paths), rtol=0, atol=1e-4)
    durations = [LENGTHS[path.relative_to(audio).as_posix()] / 16000 for path in paths]
    np.testing.assert_allclose(result["duration"], durations, atol=0.1)
    assert list(result["offset"]) == list(range(len(paths) + 1)) and not result["start"].any()
    assert str(result["model"]) == "small_config:untrained" and str(result["layout"]) == "published"
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_timestamps_are_the_same_in_every_format(audio, runtime, tmp_path):
    paths = sorted_paths(audio)
    outs = [tmp_path / name for name in ("out.npz", "out.parquet", "out")]
    for out in outs:
        main([*map(str, paths), *MODEL, "--out", str(out), "--kind", "timestamps"])
    expected = runtime.embed(paths, kind="timestamps")
    rows, starts = (np.concatenate(parts) for parts in zip(*expected))
    starts = starts / 1000

    npz = np.load(outs[0])
    np.testing.assert_allclose(npz["embedding"], rows, rtol=0, atol=1e-4)
    np.testing.assert_allclose(npz["start"], starts, atol=1e-6)
    assert str(npz["layout"]) == "bands"
    assert [npz["offset"][i + 1] - npz["offset"][i] for i in range(len(paths))] == [len(r) for r, _ in expected]

    table = pd.read_parquet(outs[1])
    assert list(table) == ["path", "start", "embedding", "duration", "model", "layout"]
    np.testing.assert_array_equal(np.stack(table["embedding"]), npz["embedding"])
    np.testing.assert_array_equal(table["start"], npz["start"])
    assert list(table["path"].unique()) == [str(path) for path in paths]

    index = pd.read_csv(outs[2] / "index.csv")
    assert list(index["path"]) == [str(path) for path in paths]
    np.testing.assert_array_equal(np.concatenate([np.load(outs[2] / name) for name in index["npy"]]), npz["embedding"])


@pytest.mark.parametrize("kind", ["scene", "timestamps"])
def test_long_files_in_chunks_equal_whole_files(audio, tmp_path, monkeypatch, kind):
    main([str(audio), *MODEL, "--out", str(tmp_path / "whole.npz"), "--kind", kind])
    monkeypatch.setattr(clips, "LONG_SECONDS", 2)
    monkeypatch.setattr("audio_mamba.data.audio.BLOCK_SECONDS", 0.7)
    monkeypatch.setattr(clips, "GROUP_FRAMES", 200)
    monkeypatch.setattr("soundfile.SoundFile.read", _whole_seconds(soundfile.SoundFile.read))
    main([str(audio), *MODEL, "--out", str(tmp_path / "chunks.npz"), "--kind", kind])
    whole, in_chunks = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "chunks.npz")
    for name in whole:
        if whole[name].dtype.kind == "f":
            np.testing.assert_allclose(in_chunks[name], whole[name], rtol=0, atol=2e-4)
        else:
            np.testing.assert_array_equal(in_chunks[name], whole[name])


def _whole_seconds(read):
    return lambda self, frames, **arguments: read(self, int(frames), **arguments)


@pytest.mark.parametrize("long_seconds", [120, 1])
def test_files_are_read_with_the_front_end_of_the_model(tmp_path, monkeypatch, long_seconds):
    monkeypatch.setattr(clips, "LONG_SECONDS", long_seconds)
    samples = 0.1 * np.random.default_rng(0).standard_normal(80_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 32000, subtype="FLOAT")
    runtime = RuntimeSSAST(wide_config.get_config(), None)
    expected = runtime.get_timestamp_embeddings(samples)[0][0].numpy()
    model = ["--config", "tests.hear_api.wide_config", *MODEL[2:]]
    main([str(tmp_path / "a.wav"), *model, "--kind", "timestamps", "--out", str(tmp_path / "out.npz")])
    # Afterwards: a thread of it that still frees MKL's memory while the command forks makes the new process hang.
    (rows, times), (of_array, _) = runtime.embed([tmp_path / "a.wav", samples], kind="timestamps")
    for ours in (rows, of_array, np.load(tmp_path / "out.npz")["embedding"]):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-4)
    assert times[1] == 40 and np.load(tmp_path / "out.npz")["duration"] == 2.5


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ""])
def test_a_folder_of_damaged_files_alone_gives_a_list_and_an_empty_result(tmp_path, capsys, suffix):
    for number in range(3):
        (tmp_path / f"{number}.wav").write_text("not audio")
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path), *MODEL, "--out", str(tmp_path / f"out{suffix}")])
    assert exit.value.code == 3 and "3 files could not be embedded" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / f"out{suffix}.failed.csv")) == 3 and (tmp_path / f"out{suffix}").exists()


def test_a_damaged_file_before_a_long_one_stops_nothing(audio, tmp_path, monkeypatch):
    """It is in a group of its own, which has nothing to encode."""
    monkeypatch.setattr(clips, "LONG_SECONDS", 3.0)
    (tmp_path / "0.wav").write_text("not audio")
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path), str(audio / "deep"), *MODEL, "--out", str(tmp_path / "out.npz")])
    assert exit.value.code == 3
    assert len(np.load(tmp_path / "out.npz")["embedding"]) == 2


def test_invalid_files_are_listed_and_the_others_embedded(audio, tmp_path, capsys):
    soundfile.write(tmp_path / "short.wav", np.zeros(200), 16000)
    (tmp_path / "text.flac").write_text("not audio")
    soundfile.write(tmp_path / "unscaled.wav", np.full(8000, 20_000.0), 16000, subtype="FLOAT")
    arguments = [str(tmp_path), str(audio), *MODEL, "--out", str(tmp_path / "out.npz")]
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 3
    error = capsys.readouterr().err
    assert f"3 files could not be embedded (this list: {tmp_path}/out.npz.failed.csv)" in error
    assert re.search("short.wav +too short, 200 samples", error) and "cannot be read as audio" in error
    assert "its peak is 20000: integer PCM needs scaling" in error
    assert len(np.load(tmp_path / "out.npz")["embedding"]) == len(LENGTHS)
    table = pd.read_csv(tmp_path / "out.npz.failed.csv")
    assert list(table["path"]) == [str(tmp_path / name) for name in ("short.wav", "text.flac", "unscaled.wav")]
    assert table["error"][0].startswith("too short, 200 samples")

    with pytest.raises(SystemExit) as exit:
        main([*arguments, "--resume"])
    assert exit.value.code == 3 and "3 files could not be embedded" in capsys.readouterr().err
    for damage in ("paths\n", "path,error\na.wav,bad\n", None):
        (tmp_path / "out.npz.failed.csv").unlink()
        if damage:
            (tmp_path / "out.npz.failed.csv").write_text(damage)
        with pytest.raises(SystemExit, match=r"embed: .*out\.npz\.failed\.csv, the list .* is damaged or gone; remove"):
            main([*arguments, "--resume"])

    (tmp_path / "out.npz").unlink()
    with pytest.raises(SystemExit, match=r"embed: .*short.wav: too short.*\(--strict\)"):
        main([*arguments, "--strict"])
    (tmp_path / "out.npz.partial").rename(tmp_path / "of the strict run")
    main([str(audio), *MODEL, "--out", str(tmp_path / "out.npz")])
    assert not (tmp_path / "out.npz.failed.csv").exists()


def test_a_file_at_which_a_decoder_itself_fails_is_named_and_ends_the_run(audio, tmp_path, monkeypatch):
    monkeypatch.setattr("audio_mamba.data.audio.parts_of", lambda file: file.no_such_attribute)
    with pytest.raises(SystemExit, match=r"^embed: .*a\.wav: reading it failed unexpectedly \(AttributeError"):
        main([str(audio), *MODEL, "--out", str(tmp_path / "out.npz")])


def test_a_resumed_run_gives_the_same_bytes(audio, tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "GROUP_FRAMES", 300)
    arguments = [str(audio), *MODEL, "--kind", "timestamps", "--out"]
    main([*arguments, str(tmp_path / "whole.npz")])
    encode, calls = RuntimeSSAST.encode, []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *args)

    monkeypatch.setattr(RuntimeSSAST, "encode", interrupted)
    out = tmp_path / "out.npz"
    with pytest.raises(SystemExit) as exit:
        main([*arguments, str(out)])
    assert exit.value.code == 130 and not out.exists()
    with pytest.raises(SystemExit, match="continue it with --resume"):
        main([*arguments, str(out)])
    with pytest.raises(SystemExit, match="started with another kind"):
        main([str(audio), *MODEL, "--resume", "--out", str(out)])
    with open(tmp_path / "out.npz.partial" / "files.jsonl", "a") as file:
        file.write('{"path": "torn')
    done_before = len(calls)
    main([*arguments, str(out), "--resume"])
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert len(calls) - done_before < 4  # finished groups are not encoded again


def test_a_run_resumes_under_any_name_of_its_config(audio, tmp_path, monkeypatch, capsys):
    name, out = "ssast_tiny_200_16x4", tmp_path / "out.npz"
    monkeypatch.setattr(clips, "GROUP_FRAMES", 1)  # one file per group
    embed_group, groups = RuntimeSSAST.embed_group, []

    def interrupted(self, *arguments):
        groups.append(arguments)
        if len(groups) in (2, 4):
            raise KeyboardInterrupt
        return embed_group(self, *arguments)

    monkeypatch.setattr(RuntimeSSAST, "embed_group", interrupted)
    command = [str(audio), "--weights", "untrained", "--workers", "1", "--device", "cpu", "--out", str(out)]
    for config in (f"configs.poc.{name}", name):
        with pytest.raises(SystemExit) as exit:
            main([*command, "--config", config, "--resume"])
        assert exit.value.code == 130
    main([*command, "--config", f"audio_mamba.configs.{name}", "--resume"])
    assert len(groups) == len(LENGTHS) + 2  # each file once, and two interruptions
    assert str(np.load(out)["model"]) == f"{name}:untrained"
    main([*command, "--config", f"configs.{name}", "--resume"])
    assert "is complete already" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="another model"):
        main([*command, "--config", "configs.poc.ssam_tiny_200_16x4", "--resume"])


@pytest.mark.parametrize("suffix", [".npz", ""])
def test_leftovers_of_a_kill_while_writing_are_gone_after_resume(audio, tmp_path, monkeypatch, suffix):
    out = tmp_path / f"out{suffix}"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("audio_mamba.hear_api.writers._write_npy", killed)
        with pytest.raises(SystemExit):
            main([str(audio), *MODEL, "--out", str(out)])
    for leaving in (
        tmp_path / f"{out.name}.0123abcd.partial",
        tmp_path / f"{out.name}.partial" / "result" / "torn.npy",
    ):
        leaving.parent.mkdir(exist_ok=True)
        leaving.touch()
    main([str(audio), *MODEL, "--out", str(out), "--resume"])
    assert list(tmp_path.iterdir()) == [out]
    assert suffix or len(list(out.iterdir())) == 2 + len(LENGTHS)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ""])
def test_a_complete_result_is_accepted_only_with_its_settings(audio, tmp_path, capsys, suffix):
    out = tmp_path / f"out{suffix}"
    command = [str(audio / "e.wav"), "--out", str(out), *MODEL, "--device", "cpu"]
    main(command)
    assert read_settings(out)["model"] == "small_config:untrained" and read_settings(out)["layout"] == "published"
    main([*command, "--resume", "--workers", "2", "--precision", "float32"])
    assert f"{out} is complete already" in capsys.readouterr().err
    for other, sentence in (
        (["--kind", "timestamps"], "another kind ('scene', now 'timestamps'); remove it to start again, or choose"),
        ([str(audio / "a.wav")], "another list of files ('1 files, "),
        (["--layout", "bands"], "another layout"),
        (["--precision", "bfloat16"], "another precision ('float32', now 'bfloat16')"),
    ):
        with pytest.raises(SystemExit) as exit:
            main([*other, *command, "--resume"])
        assert exit.value.code.startswith(f"embed: {out} was made with {sentence}")


def test_weights_are_identified_by_their_bytes(audio, runtime, tmp_path, capsys):
    """A result is then the same in every copy of a project, though file times differ."""
    save_pretrained(runtime, tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "copy" / "model", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy" / "model" / "model.safetensors", (0, 0))
    other = RuntimeSSAST(get_config(), None)
    torch.nn.init.normal_(other.model.mask_token)
    save_pretrained(other, tmp_path / "other" / "model")

    def run(weights, out, *more):
        main(
            [
                str(audio / "e.wav"),
                "--weights",
                str(tmp_path / weights),
                "--workers",
                "1",
                "--out",
                str(tmp_path / out),
                *more,
            ]
        )

    run("model", "1.npz")
    run("copy/model", "2.npz")
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    run("copy/model", "1.npz", "--resume")
    assert "1.npz is complete already" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"1.npz was made with another weights file \('SHA-256 \w{16}', now 'SHA-256 "):
        run("other/model", "1.npz", "--resume")


def test_a_complete_result_of_earlier_versions_is_accepted(audio, tmp_path, capsys):
    command = [str(audio / "e.wav"), *MODEL, "--out"]
    for name in ("out.npz", "out.parquet", "out"):
        main([*command, str(tmp_path / name)])
    np.savez(
        tmp_path / "out.npz",
        **{name: array for name, array in np.load(tmp_path / "out.npz").items() if name != "settings"},
    )
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert json.loads(table.schema.metadata[b"settings"]) == json.loads((tmp_path / "out/settings.json").read_text())
    pyarrow.parquet.write_table(table.replace_schema_metadata(None), tmp_path / "out.parquet")
    (tmp_path / "out" / "settings.json").unlink()
    for name in ("out.npz", "out.parquet", "out"):
        main([*command, str(tmp_path / name), "--kind", "timestamps", "--resume"])
        assert f"{name} is complete already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.npz", "out.parquet", "out"])
def test_another_file_is_not_taken_for_a_result(audio, tmp_path, name):
    (tmp_path / name).write_bytes(b"theirs") if "." in name else (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match=f"embed: .*{name} exists already and cannot be read as a result of this com"):
        main([str(audio / "e.wav"), *MODEL, "--out", str(tmp_path / name), "--resume"])


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ""])
def test_any_file_name_is_embedded(audio, tmp_path, suffix):
    names = [b"not utf-8 \xe9.wav", b"new\nline.wav", '日本, "é".wav'.encode(), b"a" * 251 + b".wav"]
    folder, out = tmp_path / "files", tmp_path / f"out{suffix}"
    folder.mkdir()
    for name in names:
        shutil.copy(audio / "e.wav", folder / os.fsdecode(name))
    (folder / os.fsdecode(b"bad \xe9.wav")).touch()
    with pytest.raises(SystemExit) as exit:
        main([str(folder), *MODEL, "--out", str(out)])
    assert exit.value.code == 3
    read = {".npz": np.load, ".parquet": pd.read_parquet, "": lambda folder: pd.read_csv(folder / "index.csv")}[suffix]
    expected = {
        os.path.join(folder, name.decode(errors="surrogateescape").replace("\udce9", r"\xe9")) for name in names
    }
    assert set(read(out)["path"]) == expected


def test_progress_within_a_long_file_is_shown(audio, tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "LONG_SECONDS", 1)
    monkeypatch.setattr(clips, "GROUP_FRAMES", 200)
    seen = []
    monkeypatch.setattr("audio_mamba.hear_api.embed.tqdm.update", lambda bar, n: seen.append(n))
    main([str(audio / "deep/b.flac"), *MODEL, "--out", str(tmp_path / "out.npz")])
    parts = [n for n in seen if 0 < n < 1]  # the last call adds the rest
    assert len(parts) == 2 and sum(parts) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["scene", "timestamps"])
@pytest.mark.parametrize(
    "change, message",
    [
        (os.remove, "no such audio file"),
        (lambda path: soundfile.write(path, np.zeros(40001), 16000), "changed"),
        (lambda path: os.truncate(path, 60000), "cut off"),
    ],
)
def test_a_long_file_that_fails_when_read_again_is_listed(audio, tmp_path, monkeypatch, capsys, kind, change, message):
    for name in ("1.wav", "2.wav", "3.wav"):
        soundfile.write(tmp_path / name, np.random.default_rng(0).uniform(-0.5, 0.5, 64000), 16000)
    monkeypatch.setattr(clips, "LONG_SECONDS", 2)
    monkeypatch.setattr("audio_mamba.data.audio.BLOCK_SECONDS", 1)
    monkeypatch.setattr(clips, "GROUP_FRAMES", 200)
    chunks = clips.LongFile.chunks

    def changed(file, *arguments):
        if file.path.name == "2.wav":
            change(file.path)
        return chunks(file, *arguments)

    monkeypatch.setattr(clips.LongFile, "chunks", changed)
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path), *MODEL, "--kind", kind, "--out", str(tmp_path / "out.npz")])
    assert exit.value.code == 3
    assert re.search(f"2.wav +{message}", capsys.readouterr().err)
    result = np.load(tmp_path / "out.npz")
    rows = result["embedding"].reshape(2, -1, result["embedding"].shape[-1])  # two identical files
    np.testing.assert_array_equal(rows[0], rows[1])
    assert [name[-5:] for name in result["path"]] == ["1.wav", "3.wav"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_ctrl_c_does_not_wait_for_the_files_at_hand(capfd, cancelled):
    others, begin = multiprocessing.active_children(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), decoding_pool(2) as pool:
        results = clips.prefetch(pool, time.sleep, [(0,), *[(60,)] * 20], 16)
        next(results)
        if cancelled:
            results.close()
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 30 and multiprocessing.active_children() == others
    assert capfd.readouterr() == ("", "")


def test_two_runs_cannot_write_the_same_journal(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.1)
    journal = Journal(tmp_path / "j", {}, width=2, resume=False)
    with pytest.raises(folder_lock.FolderInUseError, match="j: another process is using this folder"):
        Journal(tmp_path / "j", {}, width=2, resume=True)
    journal.close()
    Journal(tmp_path / "j", {}, width=2, resume=True).close()


def test_a_result_that_another_run_completes_is_kept(audio, tmp_path, monkeypatch):
    out, load = tmp_path / "out.npz", build_runtime

    def while_another_run_ends(*arguments):
        out.write_bytes(b"theirs")
        return load(*arguments)

    monkeypatch.setattr("audio_mamba.hear_api.embed.build_runtime", while_another_run_ends)
    with pytest.raises(SystemExit, match="out.npz exists already; another run has just completed it"):
        main([str(audio), *MODEL, "--out", str(out)])
    assert out.read_bytes() == b"theirs" and list(tmp_path.iterdir()) == [out]

    lock = journal.lock_folder

    @contextlib.contextmanager
    def while_the_folder_goes(folder):
        with lock(folder):
            folder.rmdir()
            yield

    monkeypatch.setattr(journal, "lock_folder", while_the_folder_goes)
    with pytest.raises(JournalError, match="j: another run has just completed it"):
        Journal(tmp_path / "j", {}, width=2, resume=True)


def test_journal_drops_rows_without_an_entry(tmp_path):
    journal = Journal(tmp_path / "j", {}, width=2, resume=False)
    journal.append(np.ones((3, 2)))
    journal.commit([Entry("a", 3), Entry("b", error="bad")])
    journal.append(np.zeros((1, 2)))
    journal.close()
    again = Journal(tmp_path / "j", {}, width=2, resume=True)
    assert [entry.path for entry in again.entries] == ["a", "b"]
    again.append(np.full((1, 2), 7))
    again.commit([Entry("c", 1)])
    np.testing.assert_array_equal(np.concatenate(list(again.read_rows())), [[1, 1]] * 3 + [[7, 7]])
    again.close()
    with pytest.raises(JournalError, match="--resume"):
        Journal(tmp_path / "j", {}, width=2, resume=False)


def test_starts_are_written_with_the_bytes_of_numpy_in_little_memory(tmp_path):
    counts = [3, 0, 500_000, 1, 0, 499_999, 8]
    rows = Journal(tmp_path / "j", {"channel": "mix", "model": "m", "layout": "bands"}, width=1, resume=False)
    rows.append(np.zeros((sum(counts), 1)))
    entries = [Entry(f"{number}.wav", count) for number, count in enumerate(counts)]
    rows.commit([*entries[:2], Entry("failed", error="bad"), *entries[2:]])
    tracemalloc.start()
    write_npz(tmp_path / "out.npz", rows, 0.04)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows.close()
    expected = io.BytesIO()
    np.save(expected, np.concatenate([np.round(np.arange(count) * 0.04, 6) for count in counts]))
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert archive.read("start.npy") == expected.getvalue()
    assert peak < 2**22  # 4 bytes for each row


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere/*.wav"], "nowhere/.*: no such file or folder, and as a pattern it matches no file"),
        (["AUDIO", "--config", "ssam_tiny_200_16x5"], "did you mean .configs.ssam_tiny_200_16x4."),
        (["AUDIO", "--config", ".ssam_tiny"], "no config module '.ssam_tiny'"),
        (["AUDIO", "--weights", "nowhere"], "no checkpoint-<epoch>.pth"),
        (["AUDIO", "--out", "a.csv"], "--out a.csv: write it as .npz, .parquet"),
        (["AUDIO", "--kind", "timestamps", "--pooling", "mean_std"], "--pooling mean_std: it applies to scene "),
        (["AUDIO", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["AUDIO", "--device", "gpu"], "device gpu: "),
        pytest.param(
            ["AUDIO", "--device", "cuda"],
            "device cuda: ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_invalid_commands_are_refused_and_leave_no_files(audio, tmp_path, arguments, message):
    arguments = [str(audio) if argument == "AUDIO" else argument for argument in arguments]
    with pytest.raises(SystemExit, match=f"embed: .*{message}"):
        main([*MODEL, "--out", str(tmp_path / "out.npz"), *arguments])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", [".", "..", "/", "in/.."])
def test_a_result_needs_a_name(audio, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--resume"]):
        with pytest.raises(SystemExit, match=f"embed: --out {out}: it needs a name, such as "):
            main([str(audio), *MODEL, "--out", out, *more])


def test_a_folder_in_the_place_of_the_journal_is_not_touched(audio, tmp_path):
    """A journal is removed with all that is in it; a browser names unfinished downloads likewise."""
    folder = shutil.copytree(audio, tmp_path / "recordings.partial")
    before = sorted(path.name for path in folder.rglob("*"))
    for more in ([], ["--resume"], ["--share", "1/2"]):
        with pytest.raises(SystemExit, match=f"embed: {folder} holds .*, which no interrupted run wrote"):
            main([str(folder), *MODEL, "--out", str(tmp_path / "recordings"), *more])
    assert sorted(path.name for path in folder.rglob("*")) == before and not (tmp_path / "recordings").exists()


@pytest.mark.parametrize("name", ["out.npz", "out"])
def test_a_dangling_link_is_refused_as_a_result(audio, tmp_path, name):
    (tmp_path / name).symlink_to("nowhere")
    for more in ([], ["--resume"]):
        with pytest.raises(SystemExit, match=f"embed: {tmp_path}/{name} is a dangling link; remove it or choose"):
            main([str(audio), *MODEL, "--out", str(tmp_path / name), *more])
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).is_symlink()


@pytest.mark.parametrize("name, limit, named", [("out.npz", 20_000, "out.npz.partial"), ("out", 33_300, "out")])
def test_a_full_disk_is_reported_with_a_name(audio, tmp_path, name, limit, named):
    """A limit on the size of files stands for the disk. The journal's largest has 33,280 bytes, the .npy a few more."""
    command = [str(audio / "a.wav"), *MODEL, "--kind", "timestamps", "--out", str(tmp_path / name)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(SystemExit, match=f"embed: .* too large: '{tmp_path}/{named}'"):
            main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    main([*command, "--resume"])


def test_a_missing_pyarrow_is_named_before_anything_is_embedded(audio, tmp_path, monkeypatch):
    monkeypatch.setattr("audio_mamba.hear_api.writers.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"out.parquet: .parquet needs pyarrow, which the extra \[export\] has"):
        main([str(audio), *MODEL, "--out", str(tmp_path / "out.parquet")])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_kill_and_resume_and_memory_of_an_hour(tmp_path):
    """Killed in the middle of a one-hour file, a resumed run gives the bytes of an uninterrupted one."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(tmp_path / "hour.wav", "w", 16000, 1) as file:
        for _ in range(60):
            file.write(0.1 * rng.standard_normal(60 * 16000))
    for number in range(4):
        soundfile.write(tmp_path / f"clip{number}.wav", 0.1 * rng.standard_normal(32000), 16000)

    def command(out):
        return [
            sys.executable,
            "-m",
            "hear_api.embed",
            str(tmp_path),
            *MODEL,
            "--kind",
            "timestamps",
            "--out",
            str(out),
        ]

    subprocess.run(command(tmp_path / "whole.npz"), cwd=ROOT, check=True)
    out = tmp_path / "out.npz"
    process = subprocess.Popen(command(out), cwd=ROOT)
    rows = tmp_path / "out.npz.partial" / "rows.f32"
    while not (rows.exists() and rows.stat().st_size > 5_000_000):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    # From a small process: a child's peak memory begins with what its parent has.
    measure = "import resource as r, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    measure += "print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss)"
    resume = [sys.executable, "-c", measure, *command(out), "--resume"]
    done = subprocess.run(resume, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) < 1_000_000  # KB
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_folder_with_settings_of_somebody_else_is_not_a_result(audio, tmp_path):
    command = [str(audio / "e.wav"), *MODEL, "--out", str(tmp_path / "out")]
    main(command)
    (tmp_path / "out" / "settings.json").write_text("[]")
    with pytest.raises(SystemExit, match="cannot be read as a result of this command .its settings are not a JSON obj"):
        main([*command, "--resume"])
