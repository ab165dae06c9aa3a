"""Standard streams that are closed or go away, in real processes."""

import os
import shlex
import subprocess
import sys

import pytest

from audio_mamba.cli.main import main as audio_mamba_command
from tests.conftest import ROOT

SCRIPT = """
import os, sys
from audio_mamba.system.terminal import quiet_exit
with quiet_exit():
    file = open(sys.argv[1], "wb")
    file.write(b"rows")
    for number in (1, 2):
        os.write(number, b"a message of a C library")
    print("a bar", file=sys.stderr)
    print(sys.stdin.read())
    file.close()
"""


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "</dev/null >&-"])
def test_a_closed_stream_is_never_the_next_file(tmp_path, closed):
    command = f'"$0" -c "$1" {tmp_path}/rows </dev/null {closed}'
    done = subprocess.run(["bash", "-c", command, sys.executable, SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, (tmp_path / "rows").read_bytes()) == (0, b"rows")


def test_a_locale_without_unicode_is_no_error():
    """Neither in the files that are read, nor in paths that are printed."""
    script = "import audio_mamba\nfrom audio_mamba.system.terminal import quiet_exit\naudio_mamba.load_model()\n"
    script += "with quiet_exit():\n    print('m\\xe9')"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "m\\xe9\n"), done.stderr


@pytest.mark.parametrize("command", ["embed", "listen", "probe", "export", "predict"])
def test_help_of_a_module_into_a_closed_output_says_nothing(command):
    line = f'"$0" -m audio_mamba.hear_api.{command} --help | true'
    done = subprocess.run(["bash", "-c", line, sys.executable], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command, argument",
    [
        ("embed '' --out x.npz", "INPUT"),
        ("embed a.wav --out ''", "--out"),
        ("embed a.wav --weights ''", "--weights"),
        ("embed a.wav --config ''", "--config"),
        ("listen ''", "FILE_OR_-"),
        ("export --weights '' --out x", "--weights"),
        ("predict '' --weights w", "INPUT"),
        ("predict a.wav --weights ''", "--weights"),
        ("probe ''", "SOURCE"),
        ("probe a --model ''", "--model"),
        ("prepare '' out", "AUDIO_DIR"),
        ("verify ''", "ARCHIVE_DIR"),
        ("inspect ''", "ARCHIVE_DIR"),
        ("index ''", "ARCHIVE_DIR"),
        ("convert '' --out x", "CHECKPOINT"),
        ("train --config configs.ssam_tiny_200_16x4 --workdir ''", "--workdir"),
        ("train --config ssam_tiny_200_16x4 --workdir w --val-data ''", "--val-data"),
        ("train --config ssam_tiny_200_16x4 --workdir w --init ''", "--init"),
        ("train --config ssam_tiny_200_16x4 --workdir w --resume ''", "--resume"),
        ("finetune --workdir w --data ''", "--data"),
        ("finetune --workdir w --val-data ''", "--val-data"),
        ("finetune --workdir w --test-data ''", "--test-data"),
        ("finetune --workdir w --model ''", "--model"),
        ("finetune --workdir w --resume ''", "--resume"),
        ("report ''", "WORKDIR"),
        ("hear extract '' out", "TASKS_DIR"),
        ("hear table --base-dir '' --output-dir out", "--base-dir"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch, capsys, command, argument):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        audio_mamba_command(shlex.split(command))
    assert ended.value.code == 2
    assert f"argument {argument}: it is empty; is a shell variable unset?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_command_of_the_package_ends_quietly():
    folders = ("audio_mamba", "data", "training", "hear_api", "external_sources")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")] + list(ROOT.glob("*.py"))
    commands = [path for path in files if '__name__ == "__main__"' in path.read_text()]
    assert len(commands) > 12
    loud = [path.relative_to(ROOT).as_posix() for path in commands if "with quiet_exit():" not in path.read_text()]
    assert not loud
