"""Archives and undisturbed runs that the tests of training share."""

import functools
import signal

import pytest

from audio_mamba.training import checkpoint
from tests.training.runs import finish, losses, start_checkpointing


@pytest.fixture(autouse=True)
def signals_of_a_fresh_process():
    """A run that was asked to stop ignores SIGTERM and SIGUSR1 for the rest of its process, here that of all tests."""
    yield
    for number in (signal.SIGTERM, signal.SIGUSR1):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def synthetic_archive(tmp_path_factory):
    from audio_mamba.data.prepare import prepare  # not above, so that GPU tests need no audio libraries
    from audio_mamba.data.synthetic import write_audio

    folder = tmp_path_factory.mktemp("synthetic")
    write_audio(folder / "audio", minutes=2)
    prepare(folder / "audio", folder / "archive")
    return folder / "archive"


@pytest.fixture(scope="session")
def larger_archive(tmp_path_factory):
    """48 samples of synthetic audio."""
    from audio_mamba.data.prepare import prepare
    from audio_mamba.data.synthetic import write_audio

    folder = tmp_path_factory.mktemp("larger")
    write_audio(folder / "audio", minutes=8)
    assert prepare(folder / "audio", folder / "archive")["samples"] == 48
    return folder / "archive"


@pytest.fixture(scope="session")
def real_archive(tmp_path_factory, shared_tasks):
    """48 drum hits."""
    from audio_mamba.data.prepare import prepare

    folder = tmp_path_factory.mktemp("real")
    (folder / "audio").mkdir()
    for path in sorted((shared_tasks / "drum_hits-v1-full" / "16000").rglob("*.wav"))[::11][:48]:
        (folder / "audio" / path.name).symlink_to(path)
    manifest = prepare(folder / "audio", folder / "archive")
    assert manifest["samples"] == 48
    return folder / "archive"


@pytest.fixture(scope="session")
def references(tmp_path_factory, larger_archive):
    """Losses and last checkpoint of an undisturbed run on `larger_archive`, by the number of its processes."""

    @functools.cache
    def undisturbed(processes):
        workdir = tmp_path_factory.mktemp(f"undisturbed{processes}")
        run = start_checkpointing(processes, workdir, larger_archive)
        output = finish(run)
        assert run.returncode == 0, output
        return losses(workdir), checkpoint.load_checkpoint(workdir / "checkpoints" / "checkpoint-7.pth")

    return undisturbed
