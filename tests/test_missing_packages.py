"""Collecting the tests in a Python that has torch and pytest but few other packages, such as a bare GPU machine's."""

import re
import subprocess
import sys

from tests.conftest import OPTIONAL_PACKAGES, ROOT

COLLECT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import pytest
options = ["--collect-only", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
sys.exit(pytest.main([*options, *sys.argv[1:]]))
"""


def collect(missing, *arguments):
    command = [sys.executable, "-c", COLLECT.format(missing=sorted(missing)), *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True)


def test_files_that_need_a_missing_package_are_skipped_and_the_others_collected():
    done = collect(OPTIONAL_PACKAGES, "tests")
    assert done.returncode == 0, done.stdout[-3000:]
    skipped = dict(re.findall(r"SKIPPED \[1\] (\S+):1: the package (\w+) is not installed", done.stdout))
    assert skipped["tests/data/test_loader.py"] == "webdataset" and skipped["tests/data/test_prepare.py"] == "soundfile"
    assert "tests/training/test_prefetch.py::" in done.stdout and "tests/test_machine.py::" in done.stdout


def test_any_other_missing_module_is_an_error(tmp_path):
    (tmp_path / "test_it.py").write_text("import no_such_module\n")
    done = collect([], str(tmp_path / "test_it.py"), "-c", "pyproject.toml", "-p", "tests.conftest")
    assert done.returncode == 2 and "No module named 'no_such_module'" in done.stdout, done.stdout[-3000:]
