"""INPUTs of the embed command name the right files, and the channels and versions of each are told apart."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from audio_mamba.data.audio import AudioError, fingerprint
from audio_mamba.hear_api import RuntimeSSAST, clips
from audio_mamba.hear_api.embed import main
from audio_mamba.hear_api.sources import list_audio
from tests.conftest import ROOT
from tests.hear_api.small_config import get_config
from tests.hear_api.test_embed import MODEL

RATE = 16000


def noise(seed: int, seconds: float = 1.5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * RATE)).astype(np.float32)


def write(path, *channels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack(channels, 1), RATE, subtype="FLOAT")


def embed(*arguments, status: int = 0) -> None:
    """Runs the command in this process and checks its exit status."""
    if status == 0:
        return main([*map(str, arguments), *MODEL])
    with pytest.raises(SystemExit) as exit:
        main([*map(str, arguments), *MODEL])
    assert exit.value.code == status


@pytest.fixture(scope="module")
def runtime():
    return RuntimeSSAST(get_config(), None)


# ---------------------------------------------------------------- which files


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.wav", "a.flac", "sub/c.MP3", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def names(files, folder):
    return [path.relative_to(folder).as_posix() for path in files]


def test_files_folders_and_globs_are_listed_once_in_order(folder):
    files = list_audio([str(folder / "b.wav"), str(folder), str(folder / "**" / "*.MP3"), str(folder / "notes.txt")])
    assert names(files, folder) == ["b.wav", "a.flac", "sub/c.MP3", "notes.txt"]


def test_a_folder_whose_name_is_a_pattern_is_that_folder(folder, monkeypatch):
    for name in ("a/1.wav", "[ab]/2.wav", "[ab]/c/3.wav"):
        write(folder / name, noise(0))
    monkeypatch.chdir(folder)
    assert list_audio(["[ab]/*.wav"]) == [Path("[ab]/2.wav")]
    assert list_audio([f"{folder}/[ab]/[c]/*.wav"]) == [folder / "[ab]" / "c" / "3.wav"]
    assert list_audio(["[as]*/*.wav", "[b].wav"]) == [Path("a/1.wav"), Path("b.wav")]


@pytest.mark.parametrize(
    "text",
    [
        "path,label\nb.wav,1\nsub/c.MP3,2\n",
        "label,File\n1,b.wav\n2, sub/c.MP3\n\n",
        "b.wav\nsub/c.MP3\n",
        "b.wav,dog,1\r\n\r\nsub/c.MP3,cat\r\n",
        'path,note\n"b.wav","loud, near"\nsub/c.MP3\n',
        "\ufefffilename,label,\nb.wav,1,\nsub/c.MP3,2,\n",
    ],
)
def test_csv_lists(folder, text):
    (folder / "list.csv").write_text(text, newline="")
    assert names(list_audio([str(folder / "list.csv")]), folder) == ["b.wav", "sub/c.MP3"]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "list.csv: the list is empty"),
        ("path,label\n", "list.csv: the list has a header and no rows"),
        ("File\r\n\r\n", "list.csv: the list has a header and no rows"),
        ("path;label\nb.wav;1\n", "list.csv: it has semicolons between its columns"),
        ("label,path\n1,b.wav\n\n2\n", "list.csv, line 4: the row has no path in column 'path'"),
        ("path,label\nb.wav,1\n ,2\n", "list.csv, line 3: the row has no path in column 'path'"),
        ("b.wav,1\n,2\n", "list.csv, line 2: the row has no path"),
        ("b.wav\n  \n", "list.csv, line 2: the row has no path"),
        ("path,label\nb.wav,1\na\0.wav,2\n", r"list.csv, line 3: the path 'a\\x00.wav' has a null character"),
        ('path,note\nb.wav,"two\nlines"\n,x\n', "list.csv, line 4: the row has no path"),
        ("label,path\n1,b.wav\n2,cat, dog.wav\n", "list.csv, line 3: 3 cells, but the header has 2; put cells with"),
        ('path\n"b.wav\nsub/c.MP3\n', "list.csv, line 2: a quote is not closed"),
        ('path\n"b"x.wav\n', "list.csv, line 2: cannot be read as csv"),
    ],
)
def test_a_list_without_rows_or_paths_is_refused_with_the_line(folder, text, problem):
    (folder / "list.csv").write_text(text, newline="")
    with pytest.raises(AudioError, match=problem) as raised:
        list_audio([str(folder / "list.csv")])
    assert "\n" not in str(raised.value)


def test_inputs_that_name_no_file_are_refused(folder):
    for name, message in (("x.wav", "no such file"), ("*.ogg", "matches no file")):
        with pytest.raises(AudioError, match=message):
            list_audio([str(folder / name)])


def test_matches_that_cannot_be_looked_at_are_left_out_with_a_warning(folder, monkeypatch, caplog):
    stat = os.stat

    def refuse(path, *args, **options):
        if "/sub/" in str(path):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refuse)
    assert names(list_audio([f"{folder}/**/*.[wM][aP][v3]"]), folder) == ["b.wav"]
    assert f"that cannot be read: 1, the first is {folder}/sub/c.MP3 (Permission denied)" in caplog.text


HIDDEN = (".Trash-1000/files/a.wav", ".ipynb_checkpoints/a.wav", "@eaDir/a.wav", "__MACOSX/b.wav", "b/._c.wav")


@pytest.fixture
def cluttered(tmp_path):
    for name in (*HIDDEN, "a.wav", "b/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    return tmp_path


def test_hidden_and_system_files_below_a_folder_are_counted_and_left_out(cluttered, caplog):
    assert names(list_audio([str(cluttered)]), cluttered) == ["a.wav", "b/c.wav"]
    assert [record.getMessage() for record in caplog.records] == [
        f"left out hidden or system files and folders: 5, the first is {cluttered}/.Trash-1000; --hidden takes them"
    ]
    assert names(list_audio([str(cluttered)], hidden=True), cluttered) == sorted((*HIDDEN, "a.wav", "b/c.wav"))


def test_a_link_that_leads_back_gives_no_file_twice(tmp_path):
    for name in ("a.wav", "sub/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(".")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "sub")
    expected = [tmp_path / name for name in ("a.wav", "elsewhere/b.wav", "sub/b.wav")]
    assert list_audio([f"{tmp_path}/**/*.wav"]) == expected
    assert list_audio([f"{tmp_path}/sub/loop/*.wav"]) == [tmp_path / "sub" / "loop" / "b.wav"]


def test_so_are_those_that_a_glob_matches_unless_it_names_them(cluttered, caplog):
    assert names(list_audio([f"{cluttered}/**/*.wav"]), cluttered) == ["a.wav", "b/c.wav"]
    assert [record.getMessage() for record in caplog.records] == [
        f"left out hidden or system files: 2, the first is {cluttered}/@eaDir/a.wav; --hidden takes them"
    ]
    everything = names(list_audio([f"{cluttered}/**/*.wav"], hidden=True), cluttered)
    assert everything == sorted((*HIDDEN, "a.wav", "b/c.wav"))
    caplog.clear()
    assert names(list_audio([f"{cluttered}/@eaDir/*.wav"]), cluttered) == ["@eaDir/a.wav"]
    assert names(list_audio([f"{cluttered}/.Trash-1000"]), cluttered) == [".Trash-1000/files/a.wav"]
    assert names(list_audio([f"{cluttered}/b/._c.wav"]), cluttered) == ["b/._c.wav"]
    assert not caplog.records


def test_the_command_takes_hidden_files_when_it_is_told_to(tmp_path):
    for name in ("a.wav", ".b.wav"):
        write(tmp_path / "in" / name, noise(0))
    embed(tmp_path / "in", "--out", tmp_path / "few.npz")
    embed(tmp_path / "in", "--hidden", "--out", tmp_path / "all.npz")
    found = [[os.path.basename(path) for path in np.load(tmp_path / f"{name}.npz")["path"]] for name in ("few", "all")]
    assert found == [["a.wav"], [".b.wav", "a.wav"]]


@pytest.mark.parametrize("argument", ["in", "in/*.wav", "in/b.wav in/a.wav"])
def test_dangling_links_are_listed_as_files_that_failed(tmp_path, capfd, caplog, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in" / "a.wav", noise(0))
    (tmp_path / "in" / "b.wav").symlink_to("../annex/not fetched")
    embed(*argument.split(), "--out", "out.npz", status=3)
    error = capfd.readouterr().err
    assert "1 file could not be embedded" in error and re.search(r"b\.wav +a dangling link \(was its file fetch", error)
    assert ("dangling links: 1 (were their files fetched?)" in caplog.text) == (argument == "in")
    assert list(np.load("out.npz")["path"]) == ["in/a.wav"]


@pytest.mark.parametrize("out", ["run:2/out.npz", "run:2/out"])
def test_a_folder_with_a_colon_in_its_name_is_a_folder(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run:1" / "a.wav", noise(0))
    (tmp_path / "run:2").mkdir()
    embed("run:1", "--out", out)
    assert (tmp_path / out).exists()


# ---------------------------------------------------------------- channels


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """One, two and three channels: the folder, and the samples of each channel as a file of its own."""
    folder = tmp_path_factory.mktemp("recordings")
    alone = {}
    for number, name in enumerate(("mono.wav", "stereo.wav", "three.wav"), start=1):
        samples = [noise(10 * number + channel, 1 + number / 3) for channel in range(number)]
        write(folder / "in" / name, *samples)
        for channel, one in enumerate(samples):
            alone[name, channel] = folder / "alone" / f"{channel}_{name}"
            write(alone[name, channel], one)
    return folder / "in", alone


@pytest.mark.parametrize("long_seconds", [120, 1])
def test_each_channel_has_its_own_embedding_in_every_format(recordings, runtime, tmp_path, monkeypatch, long_seconds):
    folder, alone = recordings
    parts = [rows for rows, _ in runtime.embed(list(alone.values()), kind="timestamps")]
    monkeypatch.setattr(clips, "LONG_SECONDS", long_seconds)
    for name in ("out.npz", "out.parquet", "out"):
        embed(folder, "--channel", "each", "--kind", "timestamps", "--out", tmp_path / name)
    expected, files = np.concatenate(parts), [str(folder / name) for name, _ in alone]
    numbers, counts = [channel for _, channel in alone], list(map(len, parts))

    npz = np.load(tmp_path / "out.npz")
    assert list(npz["path"]) == files and list(npz["channel"]) == numbers
    assert list(np.diff(npz["offset"])) == counts
    np.testing.assert_allclose(npz["embedding"], expected, rtol=0, atol=2e-4)

    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table) == ["path", "channel", "start", "embedding", "duration", "model", "layout"]
    assert list(table["path"]) == list(np.repeat(files, counts))
    assert list(table["channel"]) == list(np.repeat(numbers, counts))
    np.testing.assert_array_equal(np.stack(table["embedding"]), npz["embedding"])

    index = pd.read_csv(tmp_path / "out" / "index.csv")
    assert list(index["path"]) == files and list(index["channel"]) == numbers and list(index["rows"]) == counts
    assert list(index["npy"])[:3] == ["000000_ch0_mono.npy", "000001_ch0_stereo.npy", "000002_ch1_stereo.npy"]
    np.testing.assert_array_equal(
        np.concatenate([np.load(tmp_path / "out" / name) for name in index["npy"]]), npz["embedding"]
    )


@pytest.mark.parametrize("channel, taken", [("left", 0), ("right", 1)])
@pytest.mark.parametrize("long_seconds", [120, 1])
def test_one_channel_or_the_only_one_is_embedded(
    recordings, runtime, tmp_path, monkeypatch, channel, taken, long_seconds
):
    folder, alone = recordings
    expected = runtime.embed([alone["mono.wav", 0], alone["stereo.wav", taken], alone["three.wav", taken]])
    monkeypatch.setattr(clips, "LONG_SECONDS", long_seconds)
    embed(folder, "--channel", channel, "--out", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as result:
        assert "channel" not in result and json.loads(str(result["settings"]))["channel"] == channel
        np.testing.assert_allclose(result["embedding"], expected, rtol=0, atol=2e-4)


def test_opposite_phase_is_named_by_the_command(tmp_path, runtime):
    def run(channel: str) -> str:
        command = [sys.executable, "-m", "hear_api.embed", str(tmp_path / "in"), *MODEL, "--channel", channel]
        return subprocess.run(
            [*command, "--out", str(tmp_path / f"{channel}.npz")], cwd=ROOT, check=True, capture_output=True, text=True
        ).stderr

    write(tmp_path / "in" / "phase.wav", noise(0), -noise(0))
    write(tmp_path / "in" / "sound.wav", noise(0), noise(1))
    write(tmp_path / "alone.wav", noise(0))
    error = run("mix")
    assert f"{tmp_path}/in/phase.wav: its channels cancel out (opposite phase); consider --channel left" in error
    assert "sound.wav" not in error
    for channel in ("left", "each"):
        assert "cancel out" not in run(channel)
        rows = np.load(tmp_path / f"{channel}.npz")["embedding"]
        np.testing.assert_allclose(rows[0], runtime.embed(tmp_path / "alone.wav")[0], rtol=0, atol=2e-4)


def test_a_damaged_file_is_listed_with_each_of_its_channels_and_told_once(recordings, tmp_path, capsys):
    folder, _ = recordings
    write(tmp_path / "a.wav", *[noise(0, 12)] * 2)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()  # of the last of three blocks
    (tmp_path / "a.wav").write_bytes(content)
    (tmp_path / "b.wav").write_text("not audio")
    arguments = [tmp_path / "a.wav", tmp_path / "b.wav", folder, "--channel", "each", "--out", tmp_path / "out.npz"]
    for again in ([], ["--resume"]):  # which is complete already
        embed(*arguments, *again, status=3)
        error = capsys.readouterr().err
        assert "2 files could not be embedded" in error and error.count("a.wav  ") == error.count("b.wav  ") == 1
    table = pd.read_csv(tmp_path / "out.npz.failed.csv")
    assert list(table) == ["path", "channel", "error"] and list(table["channel"]) == [0, 1, 0]
    assert len(np.load(tmp_path / "out.npz")["embedding"]) == 6


def test_lists_that_commands_write_are_inputs(tmp_path, monkeypatch):
    """Their paths are those of the command line, relative to the current folder, not to theirs."""
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.wav", "in/c.wav"):
        write(tmp_path / name, noise(0))
    (tmp_path / "in" / "b.wav").write_text("not audio")
    embed("in", "--out", "out/all", status=3)
    write(tmp_path / "in" / "b.wav", noise(1))
    assert list_audio(["out/all.failed.csv"]) == [Path("in/b.wav")]
    assert list_audio(["out/all/index.csv"]) == [Path("in/a.wav"), Path("in/c.wav")]
    embed("out/all.failed.csv", "--out", "out/rest.npz")
    assert list(np.load("out/rest.npz")["path"]) == ["in/b.wav"]
    # Another file of that name, beside the list, is not the one that failed; it is for lists that users write.
    write(tmp_path / "out" / "in" / "b.wav", noise(2))
    assert list_audio(["out/all.failed.csv"]) == [Path("in/b.wav")]
    Path("out/mine.csv").write_text("path\nin/b.wav\n")
    assert list_audio(["out/mine.csv"]) == [Path("out/in/b.wav")]


def test_the_list_of_failures_keeps_blanks_of_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(" a.wav").write_text("not audio")
    write(tmp_path / "a.wav", noise(0))
    embed(" a.wav", "--out", "out.npz", status=3)
    assert list_audio(["out.npz.failed.csv"]) == [Path(" a.wav")]


def test_lists_may_write_names_as_other_systems_do(folder):
    (folder / "list.csv").write_text("path\nsub\\c.MP3\nre\u0301p.wav\n", encoding="utf-8")
    write(folder / "r\u00e9p.wav", noise(0))
    assert names(list_audio([str(folder / "list.csv")]), folder) == ["sub/c.MP3", "r\u00e9p.wav"]


def interrupt(monkeypatch, group: int) -> list[tuple]:
    """Ctrl-C, once, before this group of clips, counted from 1; each clip is a group of its own. Returns the groups."""
    monkeypatch.setattr(clips, "GROUP_FRAMES", 1)
    embed_group, groups, pressed = RuntimeSSAST.embed_group, [], []

    def interrupted(self, *arguments):
        groups.append(arguments)
        if len(groups) == group and not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        return embed_group(self, *arguments)

    monkeypatch.setattr(RuntimeSSAST, "embed_group", interrupted)
    return groups


@pytest.mark.parametrize("done", range(1, 6))
def test_a_run_resumes_between_the_channels_of_a_file(recordings, tmp_path, monkeypatch, done):
    folder, _ = recordings
    arguments = [folder, "--channel", "each", "--out"]
    groups = interrupt(monkeypatch, group=done + 1)
    embed(*arguments, tmp_path / "out.npz", status=130)
    embed(*arguments, tmp_path / "out.npz", "--resume")
    assert len(groups) == 6 + 1  # none twice, and the interruption
    embed(*arguments, tmp_path / "whole.npz")
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    with pytest.raises(SystemExit, match=r"another channel \('each', now 'left'\)"):
        main([str(folder), *MODEL, "--channel", "left", "--out", str(tmp_path / "out.npz"), "--resume"])


# ---------------------------------------------------------------- files that change


@pytest.fixture
def five(tmp_path):
    for number in range(5):
        write(tmp_path / "in" / f"{number}.wav", noise(number))
    return tmp_path / "in"


@pytest.mark.parametrize("channel", ["mix", "each"])
@pytest.mark.parametrize(
    "changed, kept",
    [([0], 0), ([1], 1), ([2], 2), ([1, 2], 1), ([3], None), ([], None)],  # 0, 1 and 2 are finished
)
def test_changed_files_are_embedded_again_on_resume(five, tmp_path, monkeypatch, capsys, channel, changed, kept):
    out, arguments = tmp_path / "out.npz", [five, "--channel", channel, "--out"]
    groups = interrupt(monkeypatch, group=4)
    embed(*arguments, out, status=130)
    for number in changed:
        write(five / f"{number}.wav", noise(number + 100, 2), noise(number + 200, 2))  # two channels now
    capsys.readouterr()
    del groups[:]
    embed(*arguments, out, "--resume")
    error = capsys.readouterr().err
    if kept is None:
        assert "changed" not in error and len(groups) == 2 + len(changed) * (channel == "each")
    else:
        assert f"embed: {len(changed)} file(s) have changed since, or can be read now, the first is" in error
        assert f"{five}/{changed[0]}.wav; the results of {kept} files before it are kept" in error
    embed(*arguments, tmp_path / "whole.npz")
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_file_of_the_same_size_that_was_written_again_is_a_changed_one(five, tmp_path, monkeypatch, capsys):
    interrupt(monkeypatch, group=4)
    embed(five, "--out", tmp_path / "out.npz", status=130)
    status = (five / "1.wav").stat()
    write(five / "1.wav", noise(99))
    os.utime(five / "1.wav", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert (five / "1.wav").stat().st_size == status.st_size
    embed(five, "--out", tmp_path / "out.npz", "--resume")
    assert "1 file(s) have changed since" in capsys.readouterr().err
    embed(five, "--out", tmp_path / "whole.npz")
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_the_groups_of_a_run_with_a_changed_file_are_those_of_a_whole_run(five, tmp_path, monkeypatch):
    """Two clips are encoded together; the second has changed."""
    groups = interrupt(monkeypatch, group=3)
    monkeypatch.setattr(clips, "GROUP_FRAMES", 200)
    embed(five, "--kind", "timestamps", "--out", tmp_path / "out.npz", status=130)
    write(five / "3.wav", noise(33))
    del groups[:]
    embed(five, "--kind", "timestamps", "--out", tmp_path / "out.npz", "--resume")
    assert [len(group) for group, _ in groups] == [2, 1]
    embed(five, "--kind", "timestamps", "--out", tmp_path / "whole.npz")
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_file_that_failed_and_was_repaired_is_embedded_on_resume(five, tmp_path, monkeypatch):
    content = (five / "1.wav").read_bytes()
    (five / "1.wav").write_bytes(content[:1000])
    (five / "2.wav").rename(tmp_path / "annexed")
    (five / "2.wav").symlink_to("../not fetched")
    interrupt(monkeypatch, group=3)  # failures and the next clip are one group
    embed(five, "--out", tmp_path / "out.npz", status=130)
    (five / "1.wav").write_bytes(content)
    (tmp_path / "annexed").rename(tmp_path / "not fetched")
    embed(five, "--out", tmp_path / "out.npz", "--resume")
    assert len(np.load(tmp_path / "out.npz")["embedding"]) == 5 and not (tmp_path / "out.npz.failed.csv").exists()


def exchange(path, content: bytes) -> bytes:
    """Put other bytes into a file of this size, under its time; returns those that were there."""
    before, status = path.read_bytes(), path.stat()
    assert len(content) == len(before)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return before


@pytest.mark.parametrize("channel", ["mix", "each"])
@pytest.mark.parametrize("damaged", ["all of it", "its end"])
def test_a_file_that_can_be_read_again_is_embedded_on_resume(five, tmp_path, monkeypatch, capsys, channel, damaged):
    """Its size and time are those of the file that could not be read, as after a chmod."""
    for number in range(5):
        write(five / f"{number}.wav", noise(number), noise(number + 10))
    content = (five / "1.wav").read_bytes()
    bad = bytes(len(content)) if damaged == "all of it" else content[:-4] + np.float32(np.nan).tobytes()
    exchange(five / "1.wav", bad)
    out, arguments = tmp_path / "out.npz", [five, "--channel", channel, "--out"]
    interrupt(monkeypatch, group=4)
    embed(*arguments, out, status=130)
    exchange(five / "1.wav", content)
    capsys.readouterr()
    embed(*arguments, out, "--resume")
    assert f"embed: 1 file(s) have changed since, or can be read now, the first is {five}/1.wav" in (
        capsys.readouterr().err
    )
    embed(*arguments, tmp_path / "whole.npz")
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


@pytest.mark.parametrize("done", [3, 4, 5])  # channels: the second of file 1 is the fourth
def test_a_file_that_cannot_be_read_any_more_moves_no_rows_on_resume(five, tmp_path, monkeypatch, done):
    for number in range(5):
        write(five / f"{number}.wav", noise(number), noise(number + 10))
    out, arguments = tmp_path / "out.npz", [five, "--channel", "each", "--out"]
    interrupt(monkeypatch, group=done + 1)
    embed(*arguments, out, status=130)
    exchange(five / "1.wav", bytes((five / "1.wav").stat().st_size))
    embed(*arguments, out, "--resume", status=3)
    embed(*arguments, tmp_path / "whole.npz", status=3)
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


@pytest.mark.parametrize("channel", ["mix", "each"])
def test_a_file_that_still_fails_costs_a_resumed_run_nothing(five, tmp_path, monkeypatch, capsys, channel):
    (five / "1.wav").write_text("not audio")
    groups = interrupt(monkeypatch, group=4)
    embed(five, "--channel", channel, "--out", tmp_path / "out.npz", status=130)
    del groups[:]
    embed(five, "--channel", channel, "--out", tmp_path / "out.npz", "--resume", status=3)
    assert len(groups) == 1 and "changed" not in capsys.readouterr().err


def test_a_journal_that_noted_versions_of_files_that_cannot_be_read_goes_on(five, tmp_path, monkeypatch, capsys):
    """As an earlier version did with `--channel each`."""
    (five / "1.wav").write_text("not audio")
    groups, journal = interrupt(monkeypatch, group=4), tmp_path / "out.npz.partial" / "files.jsonl"
    embed(five, "--channel", "each", "--out", tmp_path / "out.npz", status=130)
    lines = [json.loads(line) for line in open(journal)]
    (failed,) = [entry for line in lines for entry in line if entry["error"]]
    assert failed["version"] == ""
    failed["version"] = " ".join(map(str, fingerprint(five / "1.wav")))
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    del groups[:]
    embed(five, "--channel", "each", "--out", tmp_path / "out.npz", "--resume", status=3)
    assert len(groups) == 1 and "changed" not in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ""])
def test_a_complete_result_of_files_that_changed_since_is_refused(five, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    embed(five, "--out", out)
    embed(five, "--out", out, "--resume")
    os.utime(five / "3.wav", (0, 0))
    with pytest.raises(SystemExit, match=f"embed: {out} was made before some of its files changed .*; remove it"):
        main([str(five), *MODEL, "--out", str(out), "--resume"])


def test_a_journal_of_an_earlier_version_resumes_by_names(five, tmp_path, monkeypatch, capsys):
    groups = interrupt(monkeypatch, group=4)
    out, journal = tmp_path / "out.npz", tmp_path / "out.npz.partial"
    embed(five, "--out", out, status=130)
    entries = [entry for line in open(journal / "files.jsonl") for entry in json.loads(line)]
    known = ("path", "rows", "seconds", "error")
    with open(journal / "files.jsonl", "w") as file:
        file.writelines(json.dumps({name: entry[name] for name in known}) + "\n" for entry in entries)
    settings = json.loads((journal / "settings.json").read_text())
    del settings["channel"]
    (journal / "settings.json").write_text(json.dumps(settings))
    os.utime(five / "1.wav", (0, 0))  # which cannot be noticed
    del groups[:]
    with pytest.raises(SystemExit, match=r"another channel \('mix', now 'left'\)"):
        main([str(five), *MODEL, "--channel", "left", "--out", str(out), "--resume"])
    embed(five, "--out", out, "--resume")
    assert "this run was started by an earlier version, which noted no sizes and times" in capsys.readouterr().err
    assert len(groups) == 2
    embed(five, "--out", tmp_path / "whole.npz")
    for name in ("path", "embedding"):
        np.testing.assert_array_equal(np.load(out)[name], np.load(tmp_path / "whole.npz")[name])
    os.utime(five / "1.wav", (1, 1))
    embed(five, "--out", out, "--resume")  # complete, and nothing to compare with


# ---------------------------------------------------------------- the terminal


def test_closed_standard_streams_do_no_harm(five, tmp_path):
    """Without them the journal would have their numbers, and a library's message would end up among the rows."""
    (five / "9.mp3").write_bytes(b"\xff\xfb\x90\x64" + bytes(10_000))  # damaged
    command = f"{sys.executable} -m hear_api.embed {five} {' '.join(MODEL)} --out "
    for number, closed in enumerate(("2>&-", "<&- >&- 2>&-")):
        done = subprocess.run(
            ["bash", "-c", f"{command} {tmp_path}/{number}.npz {closed}"], cwd=ROOT, capture_output=True
        )
        assert done.returncode == 3 and done.stderr == b""
    embed(five, "--out", tmp_path / "here.npz", status=3)
    for number in range(2):
        assert (tmp_path / f"{number}.npz").read_bytes() == (tmp_path / "here.npz").read_bytes()
