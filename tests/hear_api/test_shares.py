"""Several processes embed one list of files into the bytes that one process writes."""

import contextlib
import multiprocessing
import os
import re
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

from audio_mamba.external_sources import embeddings
from audio_mamba.hear_api import clips, embed
from audio_mamba.hear_api.embed import main
from audio_mamba.hear_api.journal import Entry, JoinedJournal, Journal
from audio_mamba.hear_api.output import Output
from audio_mamba.hear_api.runtime import RuntimeSSAST
from audio_mamba.models.ops.private_torch import has_onednn_linear
from audio_mamba.system.shares import Share
from tests.conftest import ROOT

MODEL = ["--config", "tests.hear_api.small_config", "--weights", "untrained", "--workers", "1", "--device", "cpu"]
# Other libraries round by the number of rows, so by the clips that share a batch.
pytestmark = pytest.mark.skipif(not has_onednn_linear(), reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    monkeypatch.setenv("AUDIO_MAMBA_LINEAR", "onednn")
    monkeypatch.setattr("audio_mamba.models.ops.linear_choice._choice", "onednn")


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    for number in range(7):
        noise = np.random.default_rng(number).uniform(-0.3, 0.3, 9000 + 6000 * number)
        soundfile.write(folder / f"{number}.wav", noise, 16000)
    (folder / "4.wav").write_bytes(b"no audio at all")
    return folder


def run(audio, out, *options):
    """The exit status of the command; 0 if it returns."""
    try:
        main([str(audio), *MODEL, "--out", str(out), *options])
        return 0
    except SystemExit as exit:
        return exit.code


@pytest.mark.parametrize("suffix, kind", [(".npz", "timestamps"), (".parquet", "scene"), ("", "timestamps")])
def test_shares_give_the_bytes_of_one_process(audio, tmp_path, suffix, kind, monkeypatch, capsys):
    monkeypatch.setattr("audio_mamba.hear_api.journal.READ_ROWS", 16)  # so that blocks lie across shares
    whole, shared = tmp_path / f"whole{suffix}", tmp_path / f"shared{suffix}"
    assert run(audio, whole, "--kind", kind) == 3
    for share in ("3/3", "1/3"):
        assert run(audio, shared, "--kind", kind, "--share", share) == 0
        assert not shared.exists()
    assert "share 1 of 3 is complete" in (said := capsys.readouterr().err)
    assert "nobody works on them now: 2; start them with --resume" in said
    assert run(audio, shared, "--kind", kind, "--share", "2/3") == 3  # the last one reports failures of all
    assert re.search(r"1 file could not be embedded.*\n.*4\.wav", capsys.readouterr().err)
    pairs = [(path, shared / path.name) for path in whole.iterdir()] if suffix == "" else [(whole, shared)]
    assert all(ours.read_bytes() == theirs.read_bytes() for theirs, ours in pairs)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [whole.name, shared.name, f"{whole.name}.failed.csv", f"{shared.name}.failed.csv"]
    )
    assert run(audio, shared, "--kind", kind, "--share", "1/3", "--resume") == 3
    assert "is complete already" in capsys.readouterr().err


@pytest.mark.parametrize("shares", [[[]], [["--share", "1/2"], ["--share", "2/2"]]])
def test_no_file_is_open_when_its_folder_is_removed(audio, tmp_path, monkeypatch, shares):
    """NFS would keep the file under another name, and so the folder."""
    remove, removed, still_open = shutil.rmtree, [], []

    def watched(folder, *arguments, **options):
        removed.append(folder)
        processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        links = [link for pid in processes for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_file()]
        still_open.extend(path for link in links if (path := link.readlink()).is_relative_to(folder))
        remove(folder, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", watched)
    out = tmp_path / "out.npz"
    assert [run(audio, out, *share) for share in shares][-1] == 3
    assert removed == [tmp_path / "out.npz.partial"] and not still_open


def test_channels_of_one_file_stay_in_one_share(tmp_path):
    """A file that got another channel between the shares must not move the others out of both, or into both."""
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", np.random.default_rng(number).uniform(-0.3, 0.3, 9000), 16000)
    assert run(tmp_path, tmp_path / "out.npz", "--channel", "each", "--share", "2/2") == 0
    soundfile.write(tmp_path / "0.wav", np.random.default_rng(4).uniform(-0.3, 0.3, (9000, 2)), 16000)
    assert run(tmp_path, tmp_path / "out.npz", "--channel", "each", "--share", "1/2") == 0
    with np.load(tmp_path / "out.npz") as result:
        found = [(os.path.basename(path), channel) for path, channel in zip(result["path"], result["channel"])]
    assert found == [("0.wav", 0), ("0.wav", 1), ("1.wav", 0), ("2.wav", 0), ("3.wav", 0)]


@pytest.mark.parametrize(
    "options, setting",
    [(["--kind", "timestamps"], "kind"), (["--layout", "bands"], "layout"), (["--channel", "left"], "channel")],
)
def test_shares_with_other_settings_are_refused(audio, tmp_path, options, setting):
    out = tmp_path / "out.npz"
    assert run(audio, out, "--share", "2/2") == 0
    for more in ([], ["--resume"]):
        refusal = run(audio, out, "--share", "1/2", *options, *more)
        assert f"{out}.partial/share-2-of-2 was started with another {setting} (" in refusal
    assert run(audio, out, "--share", "1/2") == 3


def test_shares_of_other_lists_of_files_are_refused(audio, tmp_path):
    shutil.copytree(audio, tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "out.npz", "--share", "1/2") == 0
    shutil.copy(audio / "0.wav", tmp_path / "in" / "00.wav")
    refusal = run(tmp_path / "in", tmp_path / "out.npz", "--share", "2/2")
    assert "share-1-of-2 was started with another list of files ('7 files, " in refusal


def test_shares_with_other_settings_that_start_together_are_not_joined(audio, tmp_path, monkeypatch):
    out, check = tmp_path / "out.npz", Output._check_shares
    assert run(audio, out, "--share", "1/2") == 0
    with monkeypatch.context() as patched:
        seen = []

        def blind_at_first(*arguments):
            seen.append(arguments)
            return check(*arguments) if len(seen) > 1 else None

        patched.setattr(Output, "_check_shares", blind_at_first)
        assert "was started with another kind" in run(audio, out, "--share", "2/2", "--kind", "timestamps")
    assert not out.exists()


def test_a_share_whose_files_have_changed_is_made_again(audio, tmp_path, capsys):
    shutil.copytree(audio, tmp_path / "in")
    arguments = [tmp_path / "in", tmp_path / "out.npz", "--share"]
    assert run(*arguments, "1/2") == 0
    shutil.copy(audio / "5.wav", tmp_path / "in" / "1.wav")
    capsys.readouterr()
    assert run(*arguments, "2/2") == 0 and not (tmp_path / "out.npz").exists()
    said = capsys.readouterr().err
    assert "(or their files have changed since), and nobody works on them now: 1; start them with --resume" in said
    assert run(*arguments, "1/2", "--resume") == 3
    assert run(tmp_path / "in", tmp_path / "whole.npz") == 3
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_an_interrupted_share_is_resumed(audio, tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "GROUP_FRAMES", 1)  # one file per group
    embed_group, groups = RuntimeSSAST.embed_group, []

    def interrupted(self, *arguments):
        groups.append(arguments)
        if len(groups) == 3:
            raise KeyboardInterrupt
        return embed_group(self, *arguments)

    whole, shared = tmp_path / "whole.npz", tmp_path / "shared.npz"
    assert run(audio, whole) == 3
    assert run(audio, shared, "--share", "1/2") == 0
    monkeypatch.setattr(RuntimeSSAST, "embed_group", interrupted)
    assert run(audio, shared, "--share", "2/2") == 130
    assert "holds an interrupted run" in run(audio, shared, "--share", "2/2")
    assert "was started by 2 processes, this run has 3" in run(audio, shared, "--share", "1/3", "--resume")
    assert "was started by 2 processes, this run has 1" in run(audio, shared, "--resume")
    groups[:] = [None] * 3  # so that it is not interrupted again
    assert run(audio, shared, "--share", "2/2", "--resume") == 3
    assert len(groups) == 3 + 1 and shared.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_under_torchrun_and_after_a_killed_process(audio, tmp_path):
    """A process is killed; the same command with --resume takes up its share."""
    whole, shared = tmp_path / "whole.npz", tmp_path / "shared.npz"
    assert run(audio, whole) == 3
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "audio_mamba.hear_api.embed", str(audio), *MODEL, "--out", str(shared)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    journal, end = tmp_path / "shared.npz.partial" / "share-2-of-2" / "settings.json", time.monotonic() + 120
    while not journal.exists() and not shared.exists() and time.monotonic() < end:
        time.sleep(0.01)
    pids = subprocess.run(["pgrep", "-f", f"hear_api.embed.*{shared}"], capture_output=True, text=True).stdout.split()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended in the meantime
            if "\0RANK=1\0" in open(f"/proc/{pid}/environ").read():
                os.kill(int(pid), signal.SIGKILL)
    first.communicate(timeout=120)
    again = subprocess.run([*command, "--resume"], cwd=tmp_path, env=environment, capture_output=True, timeout=240)
    assert again.returncode != 0  # since a file failed
    assert shared.read_bytes() == whole.read_bytes(), again.stderr.decode()[-2000:]


@pytest.mark.slow
def test_two_thousand_files_by_two_processes(tmp_path):
    (tmp_path / "audio").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2000):
        samples = rng.uniform(-0.3, 0.3, rng.integers(2000, 12000))
        soundfile.write(tmp_path / "audio" / f"{number:04d}.flac", samples, 16000)
    assert run(tmp_path / "audio", tmp_path / "whole.npz") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "audio_mamba.hear_api.embed", str(tmp_path / "audio"), *MODEL]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--out", "shared.npz"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "shared.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def write_journal(folder, settings, commits=2):
    """Two rows of ones with each commit."""
    journal = Journal(folder, settings, 3, resume=False)
    for number in range(commits):
        journal.append(np.ones((2, 3)))
        journal.commit([Entry(f"{number}.wav", rows=2, version="v")])
    journal.close()


def test_rows_without_settings_are_not_taken_for_those_of_a_new_run(tmp_path):
    """As a removal leaves them that was killed half-way."""
    write_journal(tmp_path / "journal", {"model": "A"})
    (tmp_path / "journal" / "settings.json").unlink()
    journal = Journal(tmp_path / "journal", {"model": "B"}, 3, resume=False)
    assert journal.entries == [] and list(journal.read_rows()) == []
    journal.close()


@pytest.mark.parametrize("rows, kept", [(4, 2), (3, 1), (2, 1), (0, 0)])
def test_entries_without_their_rows_do_not_count(tmp_path, rows, kept):
    """As in a journal that was copied while it grew."""
    write_journal(tmp_path / "journal", {})
    os.truncate(tmp_path / "journal" / "rows.f32", rows * 3 * 4)
    journal = Journal(tmp_path / "journal", {}, 3, resume=True)
    assert [entry.path for entry in journal.entries] == ["0.wav", "1.wav"][:kept]
    journal.append(np.full((1, 3), 7))
    journal.commit([Entry("next.wav", rows=1, version="v")])
    journal.close()
    again = Journal(tmp_path / "journal", {}, 3, resume=True)
    assert len(again.entries) == kept + 1
    np.testing.assert_array_equal(np.concatenate(list(again.read_rows())), [[1] * 3] * (2 * kept) + [[7] * 3])
    again.close()


@pytest.mark.parametrize("line", ["{}", "[1", '{"path": "a", "colour": "red"}', "[3]"])
def test_a_damaged_journal_is_named(tmp_path, line):
    write_journal(tmp_path / "journal", {})
    with open(tmp_path / "journal" / "files.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="files.jsonl is damaged .*; remove its folder to start again"):
        Journal(tmp_path / "journal", {}, 3, resume=True)


@pytest.mark.parametrize("settings", ["[]", "{"])
def test_damaged_settings_are_named(tmp_path, settings):
    write_journal(tmp_path / "journal", {})
    (tmp_path / "journal" / "settings.json").write_text(settings)
    with pytest.raises(ValueError, match="settings.json .*; remove its folder to start again"):
        Journal(tmp_path / "journal", {}, 3, resume=True)


def test_the_share_of_a_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert Share.of_process() == Share() and Share().part("abc") == "abc"
    assert Share.of_process("2/4") == Share(1, 4)
    for text in ("0/4", "5/4", "1", "1/0", "a/b", "-1/2", "1/2/3"):
        with pytest.raises(ValueError, match="written as NUMBER/COUNT"):
            Share.of_process(text)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert Share.of_process() == Share(), "a batch script that did not start the command by srun"
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert Share.of_process() == Share(3, 8, 1, 1)
    for name, value in (("RANK", 5), ("WORLD_SIZE", 6), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    assert Share.of_process() == Share(5, 6, 1, 2)
    for rank in ("6", "-1", "one"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ValueError, match=rf"\$RANK is '{rank}' and \$WORLD_SIZE is '6': there is no such share"):
            Share.of_process()
    with pytest.raises(SystemExit, match="embed: --share: a share is written"):
        main(["a.wav", "--share", "half"])


@pytest.mark.parametrize("count", range(1, 9))
def test_shares_cover_the_list_once_and_in_order(count):
    for length in range(20):
        parts = [share.part(range(length)) for share in Share(0, count).all()]
        assert [item for part in parts for item in part] == list(range(length))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        interleaved = [share.every(range(length)) for share in Share(0, count).all()]
        assert sorted(item for part in interleaved for item in part) == list(range(length))
        assert interleaved[-1] == range(count - 1, length, count)


def test_joined_journals_read_like_one(tmp_path, monkeypatch):
    monkeypatch.setattr("audio_mamba.hear_api.journal.READ_ROWS", 3)
    rows = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    folders = [tmp_path / name for name in "ab"]
    for folder, part in zip(folders, (rows[:4], rows[4:])):
        journal = Journal(folder, {"channel": "mix"}, 3, resume=False)
        journal.append(part)
        journal.commit([Entry(folder.name, len(part))])
        journal.close()
    joined = JoinedJournal(tmp_path, folders, {"channel": "mix"}, 3)
    assert [entry.path for entry in joined.entries] == ["a", "b"] and joined.count == 10
    blocks = list(joined.read_rows())
    assert list(map(len, blocks)) == [3, 3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), rows)


@pytest.mark.parametrize("seen, number, expected", [(4, 3, "cuda:3"), (1, 3, "cuda:0"), (2, 3, "cuda:1")])
def test_each_process_takes_a_gpu_that_it_sees(monkeypatch, seen, number, expected):
    """srun may show each of its processes one GPU only, which is then number 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    share = Share(number, 8, local_number=number)
    assert embed._own_device("cuda", share) == expected
    assert embed._own_device("cpu", share) == "cpu" and embed._own_device("cuda:1", share) == "cuda:1"
    assert embed._own_device("cuda", Share()) == "cuda"


def test_extraction_runs_on_the_gpu_of_the_process(monkeypatch, tmp_path):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="contains no HEAR task"):
        embeddings.main([str(tmp_path), str(tmp_path / "out")])
    assert chosen == [1]
