"""Resamples the audio of a HEAR task once, into a folder with the kit's layout and file names."""

import json
import math
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
import soxr
from tqdm import tqdm

from audio_mamba.external_sources import task_files
from audio_mamba.external_sources.task_files import RESAMPLED, TaskError
from audio_mamba.system import machine
from audio_mamba.system.atomic_files import PARTIAL_SUFFIX, atomic_write
from audio_mamba.system.folder_lock import lock_folder

QUALITY = "HQ"  # of soxr


def at_rate(task: Path, sample_rate: int, cache: Path) -> Path:
    """The folder of a task with audio at `sample_rate`: its own, or one in `cache` with resampled audio.

    The resampled audio is in `cache/<task>/<sample_rate>/<split>/`, with copies of the files of labels beside it and a
    note on its source files and on soxr in it. It appears once all of it is there, and is made again if a source has
    changed.

    Args:
        task: folder of the task; see `task_check.check_task`. Without audio at `sample_rate`, its highest rate is
            resampled.
        sample_rate: in Hz.
        cache: created if missing; it may be the folder that `task` is in.

    Raises:
        TaskError: a file of the task is missing, or the cache has other audio in that place.
    """
    rate = task_files.source_rate(task, sample_rate)
    if rate == sample_rate:
        return task
    folder = cache / task.name
    audio = folder / str(sample_rate)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, patience=math.inf):
        if not folder.samefile(task) and task_files.sample_rates(folder):
            raise TaskError(f"{folder} has audio that was not resampled from {task}; choose another CACHE")
        noted = task_files.read_note(audio)
        if noted is None or noted.sample_rate != rate or task_files.changed_files(noted, task):
            _resample(task, rate, sample_rate, audio)
        for name in task_files.label_files(task):
            _copy_changed(task / name, folder / name)
    return folder


def _resample(task: Path, rate: int, sample_rate: int, audio: Path) -> None:
    """Replace the folder `audio` by the audio of a task at another rate."""
    for left in audio.parent.glob(f".{audio.name}.*{PARTIAL_SUFFIX}"):  # by killed processes
        shutil.rmtree(left)
    partial = audio.with_name(f".{audio.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    files = task_files.read_files(task, sample_rate)  # first, so that later changes are noticed
    paths = [Path(name).relative_to(str(rate)) for name in task_files.audio_files(task, rate)]
    try:
        for folder in {path.parent for path in paths}:
            (partial / folder).mkdir(parents=True)
        with ThreadPoolExecutor(machine.usable_cores()) as pool:  # both libraries release Python's lock
            calls = pool.map(lambda path: _resample_clip(task / str(rate) / path, partial / path, sample_rate), paths)
            for _ in tqdm(calls, f"{task.name}: {rate} to {sample_rate} Hz", total=len(paths), unit="clip"):
                pass
        task_files.write_note(partial, files)
        settings = {"source_sha256": files.digest(), "soxr": soxr.__version__, "quality": QUALITY}
        (partial / RESAMPLED).write_text(json.dumps(settings, indent=1))
        os.sync()  # all of it is on the disk before it appears
        if audio.exists():
            shutil.rmtree(audio)
        os.rename(partial, audio)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _resample_clip(source: Path, target: Path, sample_rate: int) -> None:
    with soundfile.SoundFile(source) as file:
        samples, rate, kind, subtype = file.read(dtype="float32"), file.samplerate, file.format, file.subtype
    resampled = soxr.resample(samples, rate, sample_rate, quality=QUALITY)
    soundfile.write(target, resampled, sample_rate, subtype, format=kind)


def _copy_changed(source: Path, target: Path) -> None:
    content = source.read_bytes()
    if not target.is_file() or target.read_bytes() != content:
        with atomic_write(target) as file:
            file.write(content)
