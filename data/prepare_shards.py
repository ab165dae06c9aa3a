"""The work of `data.prepare`: audio files -> clips -> log-mels -> finished shards, in processes of its own.

Each shard is the work of one process alone, which reads, computes and writes clip by clip, so that nothing piles up
however many files there are.
"""

import multiprocessing
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from audio_mamba.data.archives import write_shard
from audio_mamba.data.audio import AudioError, StorageError, channel_count, printable, stream_audio
from audio_mamba.data.features import log_mel
from audio_mamba.data.prepare_job import AudioFile, Job, Settings, ShardReport, versions_of, write_report
from audio_mamba.data.samples import Sample
from audio_mamba.data.shard_index import index_path
from audio_mamba.front_end import PUBLISHED, FrontEnd
from audio_mamba.system.atomic_files import sha256
from audio_mamba.system.workers import check_stop, stoppable_pool

LOUDEST = 1e4  # beyond, samples are not sound, and their power overflows soon
SHORTEST_REST = 0.1  # what remains after the last whole clip is kept from this part of a clip on


# ---------------------------------------------------------------- the main process


def make_shards(job: Job, shards: list[int], settings: Settings, audio_dir: Path, workers: int) -> None:
    """Make shards of the plan, with a progress bar on stderr. Raises what a worker raises."""
    files_done = multiprocessing.Value("q")
    with stoppable_pool(workers, _start_worker, (files_done,)) as pool:
        futures = [pool.submit(_make_shard, job.path(i), job.plan[i], settings, audio_dir) for i in shards]
        _watch(futures, files_done, total=sum(len(job.plan[i]) for i in shards))


def _watch(futures: list[Future], files_done, total: int) -> None:
    """Keep the progress bar going until all is done; raise what a worker raised as soon as it has."""
    waiting = set(futures)
    with tqdm(total=total, desc="preparing", unit="file") as bar:
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            bar.update(files_done.value - bar.n)
            for future in done:
                future.result()


# ---------------------------------------------------------------- the workers


_files_done: Synchronized  # of this worker, set as it starts


def _start_worker(files_done: Synchronized) -> None:
    global _files_done
    _files_done = files_done
    torch.set_num_threads(1)


def _make_shard(path: Path, files: list[AudioFile], settings: Settings, audio_dir: Path) -> None:
    report = ShardReport(path.name, versions=versions_of(files))  # before they are read
    if write_shard(path, _samples(files, settings, audio_dir, report), as_pickle=settings.format == "pickle"):
        report.checksums = {file.name: sha256(file) for file in (path, index_path(path))}
    write_report(path, report)


def key_part(path: Path) -> str:
    """What a key has of the name of a file, behind its number: dots end a key, and names in a tar are short."""
    return re.sub("[^A-Za-z0-9_-]+", "_", path.stem)[:40]


def _samples(files: list[AudioFile], settings: Settings, audio_dir: Path, report: ShardReport) -> Iterator[Sample]:
    """The samples of a shard, one after the other; `report` gathers the counts on the way."""
    front_end = settings.front_end
    for file in files:
        stem = key_part(file.path)
        clips_kept = 0
        try:
            for name, clip in _clips(file.path, settings):
                check_stop()
                spectrogram = _log_mel(file.path, clip, settings)
                key = f"{file.number:08d}_{name}_{stem}"
                yield Sample(key, spectrogram, np.array(file.label_ids, np.int64))
                clips_kept += 1
                report.samples += 1
                report.audio_samples += len(clip)
            if clips_kept == 0:
                raise AudioError(
                    f"{file.path}: too short, fewer than {front_end.min_samples} samples at {front_end.sample_rate} Hz"
                )
        except StorageError:
            raise
        except AudioError as error:
            reason = str(error).removeprefix(f"{file.path}: ")
            name = printable(file.path.relative_to(audio_dir))
            report.skipped.append({"file": name, "reason": reason, "clips_kept": clips_kept})
        with _files_done.get_lock():
            _files_done.value += 1


def _clips(path: Path, settings: Settings) -> Iterator[tuple[str, np.ndarray]]:
    """The clips of a file, each with its number, behind that of its channel where each channel gives its own.

    AudioError after the last clip that can be read; with several channels, after that of the last one.
    """
    channels: Iterable[str | int] = [settings.channel]
    if settings.channel == "each":
        channels = range(channel_count(path))
    fault = None
    for channel in channels:
        prefix = f"ch{channel}_" if settings.channel == "each" else ""
        try:
            for i, clip in enumerate(cut_clips(path, settings.clip_samples, settings.front_end, channel)):
                yield f"{prefix}{i:05d}", clip
        except StorageError:
            raise
        except AudioError as error:
            fault = fault or error
    if fault:
        raise fault


def _log_mel(path: Path, clip: np.ndarray, settings: Settings) -> np.ndarray:
    """The log-mel of a clip; AudioError where the clip is too loud for one."""
    peak = float(np.abs(clip).max())
    spectrogram = log_mel(torch.from_numpy(clip), settings.front_end).numpy().astype(settings.dtype)
    if peak > LOUDEST or not np.isfinite(spectrogram).all():
        raise AudioError(f"{path}: its samples reach {peak:.3g}; they must be in [-1, 1], or near it")
    return spectrogram


def cut_clips(
    path: Path, clip_samples: int, front_end: FrontEnd = PUBLISHED, channel: str | int = "mix"
) -> Iterator[np.ndarray]:
    """A file as successive clips, float32 [clip_samples], read block by block.

    The rest at the end is a shorter clip of its own where it is at least a tenth of a clip (a second clip of a few
    milliseconds would only repeat itself in training), or all there is. A file too short for the front end gives none.
    Raises AudioError where the file cannot be read any further.
    """
    held, clips = np.zeros(0, np.float32), 0
    for block in stream_audio(path, front_end.sample_rate, channel):
        held = np.concatenate([held, block])
        while len(held) >= clip_samples:
            yield held[:clip_samples]
            held = held[clip_samples:]
            clips += 1
    shortest = SHORTEST_REST * clip_samples if clips else 0
    if len(held) >= max(front_end.min_samples, shortest):
        yield held
