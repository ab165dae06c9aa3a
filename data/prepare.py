"""Turns a tree of audio files into an archive of log-mel spectrograms.

    python -m data.prepare AUDIO_DIR OUT_DIR [--labels labels.csv] [--workers N]

Files are dealt out to shards before the work begins, so each shard is the work of one process alone, and its bytes do
not depend on how many there are. OUT_DIR/manifest.json is written last: where it is, the archive is complete.
"""

import argparse
import dataclasses
import hashlib
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from data import features
from data.archives import SHARD_PATTERN, read_manifest, write_manifest, write_shard
from data.audio import AudioError, find_audio, stream_audio
from data.files import PARTIAL_SUFFIX, atomic_write
from data.labels import labels_of
from data.samples import Sample

UNFINISHED_NAME = "unfinished"      # marks an OUT_DIR that this command began and did not end
CLIP_SECONDS = 10.0
SHARD_SIZE = 512                    # clips; about 80 MB as float16
SHORTEST_REST = 0.1                 # what remains after the last whole clip is kept from this part of a clip on


class PrepareError(ValueError):
    """The archive cannot be made as asked; the message says why."""


class _Stopped(Exception):
    """The main process has asked its workers to leave."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the bytes of the shards depend on, besides the audio."""

    dtype: str = "float16"
    clip_seconds: float = CLIP_SECONDS
    shard_size: int = SHARD_SIZE

    def __post_init__(self):
        if self.dtype not in ("float16", "float32"):
            raise PrepareError(f"dtype is {self.dtype!r}; accepted are float16 and float32")
        if self.clip_samples < features.MIN_SAMPLES:
            raise PrepareError(f"clips of {self.clip_seconds} s are too short; "
                               f"at least {features.MIN_SAMPLES / features.SAMPLE_RATE:.4f} s are needed")
        if self.shard_size < 1:
            raise PrepareError(f"a shard of {self.shard_size} clips cannot be; at least 1 is needed")

    @property
    def clip_samples(self) -> int:
        return round(self.clip_seconds * features.SAMPLE_RATE)


@dataclasses.dataclass(frozen=True)
class AudioFile:
    number: int                     # its place among all files, which makes its keys unique
    path: Path
    label_ids: tuple[int, ...]


@dataclasses.dataclass
class ShardReport:
    """What became of the files of one shard."""

    name: str
    samples: int = 0
    audio_samples: int = 0
    skipped: list[dict] = dataclasses.field(default_factory=list)      # file, reason, clips_kept


def prepare(audio_dir: str | Path, out_dir: str | Path, labels_csv: str | Path | None = None,
            workers: int = 1, settings: Settings = Settings()) -> dict:
    """Make an archive (see the module) with a progress bar on stderr.

    Args:
        audio_dir: folder of wav, flac, ogg and mp3 files, of any depth.
        out_dir: folder for the shards; made where it does not exist.
        labels_csv: table of labels (see `data.labels.labels_of`); None takes the first folder level.
        workers: number of processes; the result is the same for any.

    Returns:
        the manifest. Where out_dir already holds this very archive, nothing is done.

    Raises:
        ValueError: no audio, no usable file, bad labels or settings, or an out_dir that holds something else.
    """
    if workers < 1:
        raise PrepareError(f"{workers} workers cannot work; at least 1 is needed")
    audio_dir, out_dir = Path(audio_dir), Path(out_dir)
    paths = find_audio(audio_dir)
    labels = labels_of(paths, audio_dir, None if labels_csv is None else Path(labels_csv))
    vocabulary = sorted(set().union(*labels))
    id_of = {label: i for i, label in enumerate(vocabulary)}
    files = [AudioFile(i, path, tuple(id_of[label] for label in labels[i])) for i, path in enumerate(paths)]
    described = _describe(settings, files, labels, audio_dir)

    finished = _check_out_dir(out_dir, described)
    if finished is not None:
        return finished
    plan = _plan_shards(files, settings)
    reports = _run(plan, out_dir, settings, workers)

    skipped = [entry | {"file": str(Path(entry["file"]).relative_to(audio_dir))}
               for report in reports for entry in report.skipped]
    manifest = {
        "samples": sum(report.samples for report in reports),
        "hours": round(sum(report.audio_samples for report in reports) / features.SAMPLE_RATE / 3600, 6),
        "files": len(files),
        "files_skipped": len(skipped),
        "settings": described,
        "labels": vocabulary,
        "shards": [{"name": report.name, "samples": report.samples} for report in reports if report.samples],
        "skipped": skipped,
    }
    if not manifest["samples"]:
        (out_dir / UNFINISHED_NAME).unlink()
        raise PrepareError(f"none of the {len(files)} audio files below {audio_dir} could be used; "
                           f"the first: {skipped[0]['file']}: {skipped[0]['reason']}")
    write_manifest(out_dir, manifest)
    (out_dir / UNFINISHED_NAME).unlink()
    return manifest


def _describe(settings: Settings, files: list[AudioFile], labels: list[tuple[str, ...]], audio_dir: Path) -> dict:
    """Everything the archive follows from, as the manifest keeps it: equal descriptions mean equal archives."""
    inputs = hashlib.sha256()
    for file, names in zip(files, labels):
        line = (file.path.relative_to(audio_dir).as_posix(), file.path.stat().st_size, names)
        inputs.update(repr(line).encode())
    return dataclasses.asdict(settings) | {
        "sample_rate": features.SAMPLE_RATE, "n_fft": features.N_FFT, "hop_length": features.HOP_LENGTH,
        "n_mels": features.N_MELS, "mel_min_hz": features.MEL_MIN_HZ, "mel_max_hz": features.MEL_MAX_HZ,
        "log_offset": features.LOG_OFFSET, "inputs_sha256": inputs.hexdigest(),
    }


def _check_out_dir(out_dir: Path, described: dict) -> dict | None:
    """The manifest where out_dir is complete already; otherwise clear it for a new start and return None."""
    manifest = read_manifest(out_dir)
    if manifest is not None:
        differing = [key for key in described if manifest["settings"].get(key) != described[key]]
        if differing:
            raise PrepareError(f"{out_dir} already holds an archive made with other {', '.join(differing)}; "
                               "choose another folder or remove it")
        missing = [entry["name"] for entry in manifest["shards"] if not (out_dir / entry["name"]).exists()]
        if missing:
            raise PrepareError(f"{out_dir} has lost {len(missing)} of its shards, the first {missing[0]}; "
                               "remove the folder and prepare it again")
        return manifest
    out_dir.mkdir(parents=True, exist_ok=True)
    if (out_dir / UNFINISHED_NAME).exists():
        for pattern in ("shard-*.tar", "shard-*.index.npz", f"*{PARTIAL_SUFFIX}"):
            for path in out_dir.glob(pattern):
                path.unlink()
    elif any(out_dir.glob("*.tar")):
        raise PrepareError(f"{out_dir} holds tar files that data.prepare did not make; choose another folder")
    with atomic_write(out_dir / UNFINISHED_NAME):
        pass
    return None


def _plan_shards(files: list[AudioFile], settings: Settings) -> list[list[AudioFile]]:
    """Deal files out in order; a shard is full when the headers promise `shard_size` clips. A file is never split."""
    plan, clips = [[]], 0
    for file in tqdm(files, desc="looking at files", unit="file", delay=2, leave=False):
        if clips >= settings.shard_size:
            plan.append([])
            clips = 0
        plan[-1].append(file)
        try:
            clips += max(1, round(soundfile.info(str(file.path)).duration / settings.clip_seconds))
        except (soundfile.SoundFileError, OSError):
            clips += 1        # the worker that meets it again says why
    return plan


# ---------------------------------------------------------------- the main process

def _run(plan: list[list[AudioFile]], out_dir: Path, settings: Settings, workers: int) -> list[ShardReport]:
    """Have all shards written; reports in the order of the plan."""
    files_done, stop = multiprocessing.Value("q"), multiprocessing.Event()
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(files_done, stop)) as pool:
        futures = [pool.submit(_write_one_shard, out_dir / SHARD_PATTERN.format(i), files, settings)
                   for i, files in enumerate(plan)]
        try:
            _watch(futures, files_done, total=sum(map(len, plan)))
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


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

def _start_worker(files_done, stop) -> None:
    global _files_done, _stop
    _files_done, _stop = files_done, stop
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)      # Ctrl-C reaches all processes; the main one tells us to stop
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A killed main process cannot tell anybody anything."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_one_shard(path: Path, files: list[AudioFile], settings: Settings) -> ShardReport:
    report = ShardReport(path.name)
    write_shard(path, _samples(files, settings, report))
    return report


def _samples(files: list[AudioFile], settings: Settings, report: ShardReport) -> Iterator[Sample]:
    """The samples of a shard, one after the other; `report` gathers the counts on the way."""
    for file in files:
        stem = re.sub("[^A-Za-z0-9_-]+", "_", file.path.stem)[:40]      # dots end a key, tar names are short
        clips_kept = 0
        try:
            for clip in cut_clips(file.path, settings.clip_samples):
                if _stop.is_set():
                    raise _Stopped
                spectrogram = features.log_mel(torch.from_numpy(clip)).numpy().astype(settings.dtype)
                yield Sample(f"{file.number:08d}_{clips_kept:05d}_{stem}", spectrogram,
                             np.array(file.label_ids, np.int64))
                clips_kept += 1
                report.samples += 1
                report.audio_samples += len(clip)
            if clips_kept == 0:
                raise AudioError(f"{file.path}: too short, fewer than {features.MIN_SAMPLES} samples at 16 kHz")
        except AudioError as error:
            reason = str(error).removeprefix(f"{file.path}: ")
            report.skipped.append({"file": str(file.path), "reason": reason, "clips_kept": clips_kept})
        with _files_done.get_lock():
            _files_done.value += 1


def cut_clips(path: Path, clip_samples: int) -> Iterator[np.ndarray]:
    """A file as successive clips, float32 [clip_samples], read block by block.

    The rest at the end is a shorter clip of its own where it is at least a tenth of a clip (a second clip of a few
    milliseconds would only repeat itself in training), or all there is. Nothing comes of fewer than 201 samples.
    Raises AudioError where the file cannot be read any further.
    """
    held, clips = np.zeros(0, np.float32), 0
    for block in stream_audio(path):
        held = np.concatenate([held, block])
        while len(held) >= clip_samples:
            yield held[:clip_samples]
            held = held[clip_samples:]
            clips += 1
    shortest = SHORTEST_REST * clip_samples if clips else 0
    if len(held) >= max(features.MIN_SAMPLES, shortest):
        yield held


# ---------------------------------------------------------------- the command

def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("audio_dir", metavar="AUDIO_DIR", type=Path, help="folder of wav, flac, ogg, mp3, any depth")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder for the shards and manifest.json")
    parser.add_argument("--labels", metavar="CSV", type=Path,
                        help="table with the columns file,label; several labels of a file between , or ; (in quotes). "
                             "Without it the first folder level below AUDIO_DIR is the label")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; any number, same result")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16",
                        help="float16 takes half the disk and rounds each value by at most 0.004")
    parser.add_argument("--clip-seconds", type=float, default=CLIP_SECONDS, help="longer files are cut into clips")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help="clips per shard, about")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = _parse(arguments)
    existed = (args.out_dir / "manifest.json").exists()
    try:
        settings = Settings(args.dtype, args.clip_seconds, args.shard_size)
        manifest = prepare(args.audio_dir, args.out_dir, args.labels, args.workers, settings)
    except KeyboardInterrupt:
        print("prepare: interrupted; the same command starts again", file=sys.stderr)
        sys.exit(130)
    except BrokenProcessPool:
        raise SystemExit("prepare: a worker process was killed, perhaps for lack of memory; try fewer --workers")
    except (ValueError, OSError) as error:
        raise SystemExit(f"prepare: {error}")
    print(f"{args.out_dir}{' was complete already' if existed else ''}: {manifest['samples']} clips, "
          f"{manifest['hours']:.2f} hours, {len(manifest['labels'])} labels, {len(manifest['shards'])} shards")
    if manifest["skipped"]:
        print(f"{manifest['files_skipped']} of {manifest['files']} files could not be used in full (manifest.json "
              f"lists them); the first: {manifest['skipped'][0]['file']}: {manifest['skipped'][0]['reason']}")


if __name__ == "__main__":
    main()
