"""Tasks as they are downloaded: tar.gz files at 48 kHz."""

import io
import json
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr

from audio_mamba.external_sources import embeddings, layout, resample, sources, task_files, unpack
from audio_mamba.external_sources.task_files import TaskError
from audio_mamba.system import folder_lock
from audio_mamba.system.shares import Share
from tests.conftest import ROOT
from tests.evaluation.conftest import LABELS, PITCHES

MODULE = "benchmarks.log_mel_baseline"
SPLITS = {"train": 9, "valid": 6, "test": 6}


def write_release(folder):
    """A scene task of tones and hiss at 48 kHz, as `<folder>/48000/<split>/<clip>`."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    metadata = {
        "task_name": "tones",
        "version": "v1.0",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "trainvaltest",
        "sample_duration": 0.5,
        "evaluation": ["top1_acc"],
        "evaluation_params": {},
        "splits": list(SPLITS),
    }
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    (folder / "labelvocabulary.csv").write_text("idx,label\n" + "".join(f"{i},{x}\n" for i, x in enumerate(LABELS)))
    time = np.arange(24000) / 48000
    for split, clips in SPLITS.items():
        (folder / "48000" / split).mkdir(parents=True)
        names = {f"{split} clip.{i}.wav": [LABELS[i % 3]] for i in range(clips)}
        for name, (label,) in names.items():
            hiss = 0.05 * np.sin(2 * np.pi * 12000 * time)  # above what 16 kHz can hold
            tone = 0.3 * np.sin(2 * np.pi * PITCHES[label] * time) + hiss + 0.01 * rng.standard_normal(len(time))
            soundfile.write(folder / "48000" / split / name, tone, 48000, "PCM_16")
        (folder / f"{split}.json").write_text(json.dumps(names))
    return folder


def pack(folder, archive, inside="hear-2021.0.6/tasks"):
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, f"{inside}/{folder.name}")
    return archive


@pytest.fixture
def release(tmp_path):
    """TASKS_DIR with one archive as it is on Zenodo."""
    task = write_release(tmp_path / "made" / "tones-v1.0-full")
    (tmp_path / "tasks").mkdir()
    archive = pack(task, tmp_path / "tasks" / "hear2021-tones-v1.0-full-48000.tar.gz")
    shutil.rmtree(tmp_path / "made")
    return archive


@pytest.mark.slow
def test_from_one_download_to_a_table_by_three_commands(release, command, tmp_path, capsys):
    tasks, output = release.parent, tmp_path / "output"
    grid = {"max_epochs": [90], "check_val_every_n_epoch": [90], "hidden_dim": [32], "dropout": [0.1], "lr": [1e-2]}
    command("extract_features.sh", tasks, output, MODULE)
    command("downstream_experiments.sh", MODULE, output, SEEDS="1", GRID=json.dumps(grid))
    command(ROOT / "stats_aggregation_v2.py", "--base-dir", output / layout.RUNS, "--output-dir", tmp_path / "results")

    table = pd.read_csv(tmp_path / "results" / "summary.csv", index_col="model")
    assert table.loc[f"{MODULE}_r1", "tones-v1.0-full"] > 0.9  # of three tones
    assert list(tasks.iterdir()) == [release], "TASKS_DIR was changed"
    clips = sorted(tmp_path.glob("tasks.16k/tones-v1.0-full/16000/*/*.wav"))
    assert len(clips) == sum(SPLITS.values())
    embeddings.main([str(tasks), str(output), MODULE])
    assert "1 of 1 tasks are already extracted" in capsys.readouterr().out


def test_resampled_audio_has_the_kits_names_and_is_soxrs(tmp_path):
    task = write_release(tmp_path / "tasks" / "tones")
    folder = resample.at_rate(task, 16000, tmp_path / "tasks.16k")
    assert folder == tmp_path / "tasks.16k" / "tones"
    names = sorted(path.relative_to(task / "48000") for path in task.glob("48000/*/*"))
    assert names == sorted(path.relative_to(folder / "16000") for path in folder.glob("16000/*/*"))
    for name in task_files.label_files(task):
        assert (folder / name).read_bytes() == (task / name).read_bytes()
    for name in names[:3]:
        audio, rate = soundfile.read(task / "48000" / name, dtype="float32")
        resampled, new_rate = soundfile.read(folder / "16000" / name, dtype="float32")
        assert (rate, new_rate, len(resampled)) == (48000, 16000, 8000)
        assert soundfile.info(folder / "16000" / name).subtype == "PCM_16"
        np.testing.assert_allclose(resampled, soxr.resample(audio, 48000, 16000, "HQ"), atol=2**-15)
        spectrum = np.abs(np.fft.rfft(resampled))
        assert spectrum[2000:].max() < 0.02 * spectrum.max()  # 12 kHz is gone, not folded down to 4 kHz
    note = json.loads((folder / "16000" / task_files.RESAMPLED).read_text())
    assert note["soxr"] == soxr.__version__ and note["source_sha256"] == task_files.read_files(task, 16000).digest()


def test_resampling_is_repeated_only_for_changed_sources(tmp_path):
    task, cache = write_release(tmp_path / "tasks" / "tones"), tmp_path / "cache"
    made = resample.at_rate(task, 16000, cache) / "16000" / "test" / "test clip.0.wav"
    before = made.stat().st_mtime_ns, made.read_bytes()
    resample.at_rate(task, 16000, cache)
    assert (made.stat().st_mtime_ns, made.read_bytes()) == before
    source = task / "48000" / "test" / "test clip.0.wav"
    audio, rate = soundfile.read(source)
    soundfile.write(source, audio / 2, rate)
    resample.at_rate(task, 16000, cache)
    assert np.abs(soundfile.read(made)[0]).max() < 0.2
    (task / "test.json").write_text((task / "test.json").read_text() + "\n")
    resample.at_rate(task, 16000, cache)
    assert (made.parents[2] / "test.json").read_text().endswith("\n")


def test_a_task_with_the_models_rate_is_used_as_it_is(tiny_tasks, tmp_path):
    assert resample.at_rate(tiny_tasks / "scene", 16000, tmp_path / "cache") == tiny_tasks / "scene"
    assert not (tmp_path / "cache").exists()


def test_interrupted_resampling_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    task = write_release(tmp_path / "tasks" / "tones")
    monkeypatch.setattr(resample.soxr, "resample", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        resample.at_rate(task, 16000, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "tones").iterdir())
    monkeypatch.undo()
    leftover = tmp_path / "cache" / "tones" / ".16000.0a.partial"  # as a killed process leaves it
    leftover.mkdir()
    resample.at_rate(task, 16000, tmp_path / "cache")
    assert not leftover.exists()


def test_audio_of_the_user_in_the_cache_is_not_replaced(tmp_path):
    task = write_release(tmp_path / "tasks" / "tones")
    own = tmp_path / "cache" / "tones" / "16000"
    own.mkdir(parents=True)
    (own / "mine.wav").touch()
    with pytest.raises(TaskError, match="has audio that was not resampled from .*; choose another CACHE"):
        resample.at_rate(task, 16000, tmp_path / "cache")
    assert [path.name for path in own.parent.iterdir()] == ["16000"] and (own / "mine.wav").exists()


def test_changed_audio_at_48_khz_makes_embeddings_stale(tmp_path):
    task, output = write_release(tmp_path / "tasks" / "tones"), tmp_path / "output"
    embeddings.main([str(task.parent), str(output), MODULE])
    source = task / "48000" / "test" / "test clip.0.wav"
    audio, rate = soundfile.read(source)
    soundfile.write(source, -audio, rate)
    with pytest.raises(SystemExit, match=f"TASKS_DIR: {source} changed since"):
        embeddings.main([str(task.parent), str(output), MODULE])
    embeddings.main([str(task.parent), str(output), MODULE, "--redo"])
    resampled = soundfile.read(tmp_path / "tasks.16k/tones/16000/test/test clip.0.wav")[0]
    np.testing.assert_allclose(resampled, soxr.resample(-audio, rate, 16000, "HQ"), atol=2**-14)


def test_an_archive_is_unpacked_once_and_again_when_it_has_changed(release, tmp_path):
    task = unpack.unpack(release, tmp_path / "cache")
    assert task.name == unpack.task_name(release) == "tones-v1.0-full"
    metadata = task / "task_metadata.json"
    stamp = metadata.stat().st_mtime_ns, metadata.stat().st_ino
    assert unpack.unpack(release, tmp_path / "cache") == task
    shutil.copyfile(release, release.with_suffix(".copy"))
    release.with_suffix(".copy").rename(release)  # another time, the same content
    unpack.unpack(release, tmp_path / "cache")
    assert (metadata.stat().st_mtime_ns, metadata.stat().st_ino) == stamp
    made = write_release(tmp_path / "made" / "tones-v1.0-full")
    (made / "test.json").write_text(json.dumps({"test clip.0.wav": ["high"]}))
    pack(made, release)
    unpack.unpack(release, tmp_path / "cache")
    assert json.loads((task / "test.json").read_text()) == {"test clip.0.wav": ["high"]}


def test_a_folder_is_preferred_to_its_archive_and_patterns_choose(release):
    assert sources.find_sources(release.parent) == {"tones-v1.0-full": release}
    folder = write_release(release.parent / "tones-v1.0-full")
    shutil.copytree(folder, release.parent / "other")
    found = sources.find_sources(release.parent)
    assert found == {"other": release.parent / "other", "tones-v1.0-full": folder}
    assert list(sources.choose(found, "x* o*")) == ["other"]


def spoiled(kind, archive):
    """Rewrite an archive with one fault."""
    with tarfile.open(archive) as file:
        members = [(member, file.extractfile(member)) for member in file.getmembers() if member.isfile()]
        members = [(member, source.read()) for member, source in members]
    extra = tarfile.TarInfo("hear-2021.0.6/tasks/tones-v1.0-full/48000/train/extra.wav")
    if kind == "traversal":
        extra.name = "hear-2021.0.6/tasks/tones-v1.0-full/48000/../../../../../evil.wav"
    elif kind == "absolute":
        extra.name = "/tmp/evil/48000/train/evil.wav"
    elif kind == "link":
        extra.type, extra.linkname = tarfile.SYMTYPE, "/etc/passwd"
    elif kind == "twice":
        extra.name = members[0][0].name
    elif kind == "two tasks":
        extra.name = "hear-2021.0.6/tasks/second/48000/train/extra.wav"
    with tarfile.open(archive, "w:gz") as file:
        for member, content in members:
            if kind != "no metadata" or not member.name.endswith("task_metadata.json"):
                file.addfile(member, io.BytesIO(content))
        if kind != "no metadata":
            file.addfile(extra, io.BytesIO())
    if kind == "cut off":
        archive.write_bytes(archive.read_bytes()[:-2000])
    elif kind == "checksum":
        content = bytearray(archive.read_bytes())
        content[-8] ^= 1  # of gzip
        archive.write_bytes(content)


@pytest.mark.parametrize(
    "kind, sentence",
    [
        ("traversal", "evil.wav' is not a plain file below the folder of the archive"),
        ("absolute", "evil.wav' is not a plain file below the folder of the archive"),
        ("link", "extra.wav' is not a plain file below the folder of the archive"),
        ("twice", "' twice"),
        ("two tasks", "has two tasks in it, tones-v1.0-full and second"),
        ("no metadata", "has no task_metadata.json of tones-v1.0-full"),
        ("cut off", "cannot be unpacked, it is damaged or cut off"),
        ("checksum", "cannot be unpacked, it is damaged or cut off"),
    ],
)
def test_unsafe_and_damaged_archives_are_refused_whole(release, tmp_path, kind, sentence):
    spoiled(kind, release)
    with pytest.raises(TaskError, match=sentence) as error:
        unpack.unpack(release, tmp_path / "cache")
    assert str(release) in str(error.value)
    assert not list((tmp_path / "cache").iterdir()) and not list(tmp_path.rglob("evil*"))


def test_an_archive_without_a_task_is_skipped_by_name(release, tmp_path, capsys):
    other = release.with_name("other.tar.gz")
    with tarfile.open(other, "w:gz"):
        pass
    assert sources.find_tasks(release.parent, "*", tmp_path / "cache") == [tmp_path / "cache" / "tones-v1.0-full"]
    assert f"skipped {other}" in capsys.readouterr().err
    release.unlink()
    with pytest.raises(SystemExit, match="TASKS_DIR: .*tasks contains no HEAR task"):
        sources.find_tasks(release.parent, "*", tmp_path / "cache")
    release.write_bytes(b"not an archive")
    with pytest.raises(SystemExit, match="TASKS_DIR: .*-48000.tar.gz cannot be unpacked, it is damaged or cut off"):
        sources.find_tasks(release.parent, "*", tmp_path / "cache")


def test_a_share_unpacks_its_own_archives_alone(release, tmp_path):
    other = write_release(tmp_path / "hisses-v1.0-full")
    pack(other, release.with_name("hisses.tar.gz"))
    cache = tmp_path / "cache"
    assert sources.find_tasks(release.parent, "*", cache, share=Share(1, 2)) == [cache / "tones-v1.0-full"]
    assert [path.name for path in cache.iterdir()] == ["tones-v1.0-full"]
    assert sources.find_tasks(release.parent, "*", cache, share=Share(0, 2)) == [cache / "hisses-v1.0-full"]
    assert sources.find_tasks(release.parent, "*", cache, share=Share(2, 3)) == []


def test_another_process_that_unpacks_or_resamples_is_waited_for(release, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.2)
    cache = tmp_path / "cache"
    steps = [
        (cache, lambda: unpack.unpack(release, cache)),
        (cache / "tones-v1.0-full", lambda: resample.at_rate(cache / "tones-v1.0-full", 16000, cache)),
    ]
    for folder, step in steps:
        folder.mkdir(exist_ok=True)
        with ThreadPoolExecutor(1) as pool:
            with folder_lock.lock_folder(folder):
                waiting = pool.submit(step)
                with pytest.raises(TimeoutError):
                    waiting.result(timeout=0.6)
            assert waiting.result() == cache / "tones-v1.0-full"
        assert f"{folder}: waiting for another process that is using this folder" in caplog.text


def test_a_folder_of_the_user_is_not_replaced_by_an_archive(release, tmp_path):
    own = tmp_path / "cache" / "tones-v1.0-full"
    own.mkdir(parents=True)
    (own / "mine.txt").touch()
    with pytest.raises(TaskError, match="was not unpacked from an archive; remove it, or choose another CACHE"):
        unpack.unpack(release, tmp_path / "cache")
    assert [path.name for path in own.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["tasks", "tasks/", "sub/../tasks"])
def test_the_cache_is_beside_the_tasks(tmp_path, name):
    assert sources.default_cache(tmp_path / name) == tmp_path / "tasks.16k"
