"""The environment that quickstart.sh and run_tests.sh make, with a stand-in for pip."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FILES = ("requirements.txt", "requirements-hear.txt")
PYTHON = f"""#!/bin/bash
{sys.executable} -m venv --without-pip "${{@:3}}"
printf '#!/bin/sh\\necho "$*" >> "$CALLS"\\n' > "${{@: -1}}/bin/pip"
chmod +x "${{@: -1}}/bin/pip"
"""


@pytest.fixture
def set_up(tmp_path):
    """A function that sources the script and returns what pip was asked for."""
    for name in ("set_up_environment.sh", *FILES):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)

    def run():
        calls = tmp_path / "calls"
        calls.write_text("")
        subprocess.run(
            ["bash", "-euc", "source ./set_up_environment.sh requirements.txt"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python"), "CALLS": str(calls)},
            check=True,
            timeout=60,
        )
        return calls.read_text()

    return run


def test_packages_are_installed_once_and_again_when_the_list_changes(set_up, tmp_path):
    asked = set_up()
    assert all(f"-r {name}" in asked for name in FILES)
    assert set_up() == ""
    with open(tmp_path / FILES[0], "a") as file:
        file.write("another\n")
    assert "-r requirements.txt" in set_up()


def test_an_environment_that_was_interrupted_is_completed(set_up, tmp_path):
    set_up()
    for name in ("activate", "pip"):  # venv runs pip before it writes bin/activate
        (tmp_path / ".venv" / "bin" / name).unlink()
    for name in FILES:
        (tmp_path / ".venv" / f"installed-{name}").unlink()
    assert "-r requirements.txt" in set_up()


def test_an_environment_whose_python_is_gone_is_made_again(set_up, tmp_path):
    set_up()
    links = [path for path in (tmp_path / ".venv" / "bin").glob("python*") if os.readlink(path).startswith("/")]
    for path in links:
        path.unlink()
        path.symlink_to("/nowhere/python3")
    assert "-r requirements.txt" in set_up()
    assert links and all(path.exists() for path in links)


def test_a_folder_that_is_no_environment_is_not_emptied(set_up, tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "mine").write_text("kept")
    set_up()
    assert (tmp_path / ".venv" / "mine").read_text() == "kept"
