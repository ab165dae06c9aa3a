"""Collecting the tests in a Python that has torch and pytest but few other packages, such as a bare GPU machine's."""

import re
import subprocess
import sys

import pytest

from tests.conftest import OPTIONAL_PACKAGES, ROOT

HIDE = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
COLLECT = (
    HIDE
    + """import pytest
options = ["--collect-only", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
sys.exit(pytest.main([*options, *sys.argv[1:]]))
"""
)


def collect(missing, *arguments):
    command = [sys.executable, "-c", COLLECT.format(missing=sorted(missing)), *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True)


@pytest.mark.slow
def test_files_that_need_a_missing_package_are_skipped_and_the_others_collected():
    done = collect(OPTIONAL_PACKAGES, "tests")
    assert done.returncode == 0, done.stdout[-3000:]
    skipped = dict(re.findall(r"SKIPPED \[1\] (\S+):1: the package (\w+) is not installed", done.stdout))
    assert skipped["tests/data/test_loader.py"] == "webdataset" and skipped["tests/data/test_prepare.py"] == "soundfile"
    assert "tests/training/test_prefetch.py::" in done.stdout and "tests/test_machine.py::" in done.stdout


@pytest.mark.parametrize(
    "command, missing, extra",
    [
        ("prepare", "webdataset", "train"),
        ("train", "torchdata", "train"),
        ("finetune", "torchdata", "train"),
        ("report", "jinja2", "train"),
        ("hear table", "pandas", "hear"),
    ],
)
def test_a_command_without_its_packages_names_the_extra(command, missing, extra):
    run = HIDE.format(missing=[missing]) + "from audio_mamba.cli.main import main\nmain(sys.argv[1:])"
    line = [sys.executable, "-c", run, *command.split(), "--help"]
    done = subprocess.run(line, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"No module named '{missing}'" in done.stderr and f'"audio-mamba[{extra}]"' in done.stderr


def test_any_other_missing_module_is_an_error(tmp_path):
    (tmp_path / "test_it.py").write_text("import no_such_module\n")
    done = collect([], str(tmp_path / "test_it.py"), "-c", "pyproject.toml", "-p", "tests.conftest")
    assert done.returncode == 2 and "No module named 'no_such_module'" in done.stdout, done.stdout[-3000:]
