"""The `audio-mamba` command: its list of commands, their help, and what it imports."""

import os
import re
import signal
import subprocess
import sys

import pytest

from audio_mamba import __version__
from audio_mamba.cli.main import COMMANDS, HEAR_COMMANDS, main
from tests.conftest import ROOT

ALL = [[name] for name in COMMANDS if name != "hear"] + [["hear", name] for name in HEAR_COMMANDS]


def exit_of(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_the_help_of_each_command_starts_with_its_own_usage(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["audio-mamba"])  # the validator of the HEAR kit replaces it
    code, out, _ = exit_of([*command, "--help"], capsys)
    assert code in (0, None)
    assert out.startswith(f"usage: audio-mamba {' '.join(command)} ")


@pytest.mark.parametrize("prefix, commands", [([], COMMANDS), (["hear"], HEAR_COMMANDS)])
def test_help_lists_all_commands_with_a_line_each(prefix, commands, capsys):
    code, out, _ = exit_of([*prefix, "--help"], capsys)
    assert code == 0
    assert re.findall(r"^  (\w+) +(\S.*)$", out.partition("commands:\n")[2], re.M) == list(commands.items())


@pytest.mark.parametrize("prefix, commands", [([], COMMANDS), (["hear"], HEAR_COMMANDS)])
def test_an_unknown_command_fails_with_the_list(prefix, commands, capsys):
    code, _, err = exit_of([*prefix, "embd"], capsys)
    assert code == 2
    assert "embd" in err and all(name in err for name in commands)
    assert exit_of(prefix, capsys)[0] == 2


def test_the_version_is_printed(capsys):
    assert exit_of(["--version"], capsys)[:2] == (0, f"{__version__}\n")
    command = [sys.executable, "-m", "audio_mamba", "--version"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    "arguments, absent",
    [
        (["--help"], ["torch", "numpy"]),
        (["embed", "--help"], ["torchdata", "matplotlib", "webdataset", "jinja2", "wandb", "pandas"]),
        (["report", "--help"], ["torch", "wandb", "pandas"]),
    ],
    ids=" ".join,
)
def test_only_the_module_of_the_command_is_imported(arguments, absent):
    script = f"""
import sys
from audio_mamba.cli.main import main
try:
    main({arguments})
except SystemExit:
    pass
assert not set({absent}) & set(sys.modules), set({absent}) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)


def start_command(body):
    """`audio-mamba inspect` with another body."""
    script = f"""
import os, signal, sys, time
from audio_mamba.cli import main as front

def body(arguments, prog):
    {body}

front.load = lambda command: body
front.main(["inspect"])
"""
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_ctrl_c_ends_a_command_without_a_traceback():
    command = start_command("print('started', flush=True); time.sleep(60)")
    assert command.stdout.readline() == "started\n"
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert (command.returncode, err) == (-signal.SIGINT, "interrupted\n")


def test_output_into_head_ends_a_command_without_a_traceback():
    command = start_command("[print('line', number) for number in range(10**6)]")
    assert command.stdout.readline() == "line 0\n"
    command.stdout.close()
    assert command.wait(timeout=60) == 128 + signal.SIGPIPE
    assert command.stderr.read() == ""


def test_another_broken_pipe_is_not_taken_for_the_output():
    command = start_command("r, w = os.pipe(); os.close(r); os.write(w, b'x')")
    _, err = command.communicate(timeout=60)
    assert command.returncode == 1 and "BrokenPipeError" in err


def test_help_into_a_closed_pipe_says_nothing():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "audio_mamba.cli.main", "--help"],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode in (128 + signal.SIGPIPE, 0)  # argparse ignores the error if Python does not buffer
