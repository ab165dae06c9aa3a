"""Fixtures for all tests, and what happens on a machine without a GPU or without some packages."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts it in the background. Commands that tests start would ignore Ctrl-C, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read by Triton when torch imports it
# The mark of tests that run on DEVICE: on a machine with a GPU they are among `-m cuda`, elsewhere among the default.
runs_on_device = [pytest.mark.cuda] if DEVICE == "cuda" else []
ROOT = Path(__file__).resolve().parent.parent
# What a machine for embedding or for GPU kernels may lack.
OPTIONAL_PACKAGES = {
    *("av", "hypothesis", "jinja2", "matplotlib", "ml_collections", "pandas", "pyarrow", "safetensors", "scipy"),
    *("sklearn", "soundfile", "soxr", "torchdata", "tqdm", "webdataset"),
}


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A test file that imports a missing package is skipped, with the reason, instead of an error."""
    report = yield
    excinfo = getattr(getattr(report, "call", None), "excinfo", None)
    error = excinfo and excinfo.value.__cause__
    if isinstance(error, ModuleNotFoundError) and (name := str(error.name).split(".")[0]) in OPTIONAL_PACKAGES:
        del report.call  # otherwise pytest announces the exception
        report.outcome, report.longrepr = "skipped", (str(collector.path), 1, f"the package {name} is not installed")
    return report


@pytest.fixture(scope="session", autouse=True)
def lower_precisions_on_any_processor():
    """However slow they are on this one; test_precision.py tests what is done then."""
    from audio_mamba.models import precision

    precision.TOO_SLOW = float("inf")


@pytest.fixture(autouse=True)
def fresh_compiler():
    """torch.compile remembers the functions that it gave up on, in whichever test of the process that was."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def slow_precisions_give_way(monkeypatch):
    """As outside of the tests."""
    from audio_mamba.models import precision

    monkeypatch.setattr(precision, "TOO_SLOW", 3.0)
    precision._is_too_slow.cache_clear()
    yield
    precision._is_too_slow.cache_clear()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numbers of the published model."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared_tasks() -> Path:
    """Real recordings as HEAR tasks, in a folder beside the checkout that is not part of the project."""
    path = ROOT.parent / "shared" / "tasks"
    if not path.is_dir():
        pytest.skip("the folder of real recordings ../shared/tasks is absent")
    return path


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Damaged inputs that are too large for the checkout; they are beside it, like the recordings."""
    path = ROOT.parent / "shared" / "cases"
    if not path.is_dir():
        pytest.skip("the folder of damaged inputs ../shared/cases is absent")
    return path
