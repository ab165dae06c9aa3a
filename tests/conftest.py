"""Fixtures that all test rooms share."""
from pathlib import Path

import pytest

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
