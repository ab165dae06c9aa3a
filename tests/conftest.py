"""Fixtures that all test rooms share."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported, which torch does with `import models`
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numbers of the published model."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared_tasks() -> Path:
    """Real recordings as HEAR tasks, which lie beside a checkout of the project but do not belong to it."""
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
