"""Archives that the tests of training share."""

import pytest


@pytest.fixture(scope="session")
def synthetic_archive(tmp_path_factory):
    from audio_mamba.data.prepare import prepare  # here, so that tests of the GPU need no libraries for audio
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
