"""Turns a tree of audio files into an archive of log-mel spectrograms.

    audio-mamba prepare AUDIO_DIR OUT_DIR [--labels labels.csv] [--validation 0.05] [--workers N]
    torchrun --nnodes=4 ... -m audio_mamba.data.prepare AUDIO_DIR OUT_DIR    # or srun: machines that share both folders

Files are dealt out to shards before the work begins, so the bytes of a shard do not depend on who makes it. Stopped at
any moment, the same command resumes with the shards that are not finished. OUT_DIR/manifest.json is written last, by
the process that ends last: where it is, the archive is complete.
"""

import argparse
import logging
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from audio_mamba.data.audio import CHANNELS_OR_EACH, StorageError
from audio_mamba.data.features import mel_filter_bank
from audio_mamba.data.manifest import MANIFEST_NAME
from audio_mamba.data.prepare_inputs import Listed, held_out, list_inputs
from audio_mamba.data.prepare_job import (
    CLIP_SECONDS,
    DTYPES,
    FORMATS,
    SHARD_SIZE,
    AudioFile,
    PrepareError,
    Settings,
    describe,
    finished_archive,
    remove_scaffold,
    start_or_resume,
)
from audio_mamba.data.prepare_shards import make_shards
from audio_mamba.front_end import FrontEnd, parse_settings
from audio_mamba.system.folder_lock import FolderInUseError, lock_folder
from audio_mamba.system.machine import usable_cores
from audio_mamba.system.shares import Share
from audio_mamba.system.terminal import given_path, quiet_exit

logger = logging.getLogger(__name__)


def prepare(
    audio_dir: str | Path,
    out_dir: str | Path,
    labels_csv: str | Path | None = None,
    workers: int = 1,
    settings: Settings = Settings(),
    classes_csv: str | Path | None = None,
    share: Share = Share(),
    hidden: bool = False,
    fold_column: str | None = None,
    group_column: str | None = None,
) -> dict | None:
    """Make an archive (see the module) with a progress bar on stderr.

    Args:
        audio_dir: folder of audio files (`data.audio.AUDIO_SUFFIXES`), of any depth, or a HEAR task.
        out_dir: folder for the shards; made where it does not exist.
        labels_csv, classes_csv: tables of labels and of their order (see `data.labels.find_labelled`).
        workers: number of processes; the result is the same for any.
        share: the part of this process among several that share both folders. One alone keeps all others out; those
            that share let each other in, so that a second start of the same share is not noticed.
        hidden: take hidden, trash and system files and folders too.
        fold_column, group_column: where the fold of each file is, and the group (speaker, recording) that it shares
            with others (see `data.labels.column_of`). The manifest keeps them as "folds" and "groups".

    Returns:
        the manifest; None where other processes still have shards to make. Where out_dir already holds this very
        archive, nothing is done.

    Raises:
        ValueError: no audio, no usable file, bad labels or settings, or an out_dir that holds something else.
    """
    _check_place(Path(out_dir), workers)
    listed = list_inputs(audio_dir, labels_csv, settings, classes_csv, hidden, fold_column, group_column)
    return _make_archive(listed, Path(out_dir), workers, settings, share)


def _check_place(out_dir: Path, workers: int) -> None:
    if workers < 1:
        raise PrepareError(f"workers must be at least 1, got {workers}")
    for folder in (out_dir, *out_dir.parents):
        if folder.exists() and not folder.is_dir():
            raise PrepareError(f"{folder} is a file; name a folder for the archive")


def _make_archive(listed: Listed, out_dir: Path, workers: int, settings: Settings, share: Share) -> dict | None:
    audio_dir, paths, labels, vocabulary, columns = listed
    id_of = {label: i for i, label in enumerate(vocabulary)}
    files = [AudioFile(i, path, tuple(id_of[label] for label in labels[i])) for i, path in enumerate(paths)]
    described = describe(settings, files, labels, vocabulary, audio_dir, columns)

    finished = finished_archive(out_dir, described)
    if finished is not None:
        remove_scaffold(out_dir)  # left there if the last attempt was killed at its very end
        return finished
    out_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(out_dir, shared=share.count > 1):
        job = start_or_resume(out_dir, described, files, settings)
        if job is None:
            return finished_archive(out_dir, described)
        shards = job.unfinished(share)
        if shards:
            make_shards(job, shards, settings, audio_dir, workers)
        manifest = job.merge(vocabulary, columns)
    if manifest is not None and not manifest["samples"]:
        skipped = manifest["skipped"][0]
        raise PrepareError(
            f"none of the {len(files)} audio files below {audio_dir} could be used; "
            f"the first: {skipped['file']}: {skipped['reason']}"
        )
    return manifest


# ---------------------------------------------------------------- the command


def _parse(arguments: list[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "audio_dir",
        metavar="AUDIO_DIR",
        type=given_path,
        help="folder of audio files (wav, flac, ogg, mp3, m4a, webm and more), any depth; or a HEAR task",
    )
    add("out_dir", metavar="OUT_DIR", type=given_path, help="folder for the shards and manifest.json")
    add(
        "--labels",
        metavar="CSV",
        type=given_path,
        help="table with the columns file,label (several labels of a file between , or ; in quotes), or as AudioSet, "
        "FSD50K, ESC-50, UrbanSound8K or audio-mamba predict have it. Without it the first folder level below "
        "AUDIO_DIR is the label",
    )
    add(
        "--classes",
        metavar="CSV",
        type=given_path,
        help="table of all labels in the order of their ids, such as AudioSet's class_labels_indices.csv; "
        "without it the labels found, sorted",
    )
    add(
        "--validation",
        type=float,
        metavar="SHARE",
        help="share of the files to hold out for validation, such as 0.05; the archives are then OUT_DIR/train and "
        "OUT_DIR/validation",
    )
    add(
        "--fold-column",
        metavar="NAME",
        help="column of --labels with the fold or split of each file, such as fold (ESC-50, UrbanSound8K); or folder; "
        "or split, for HEAR tasks and Speech Commands. finetune and probe use it",
    )
    add(
        "--group-column",
        metavar="NAME",
        help="column of --labels with what files share, such as a speaker or a recording; or folder. The files of a "
        "group stay on one side of --validation, finetune and probe",
    )
    add(
        "--workers",
        type=int,
        help="number of processes, any with the same result (default: as many as cores, shared by torchrun processes)",
    )
    add(
        "--dtype",
        choices=DTYPES,
        default="float16",
        help="float16 takes half the disk and rounds each value by at most 0.004",
    )
    add(
        "--format",
        choices=FORMATS,
        default="npy",
        help="format of the members: npy, or pickle as in published archives (together with --dtype float32)",
    )
    add(
        "--front-end",
        metavar="KEY=VALUE",
        nargs="+",
        default=[],
        help="settings of the log-mel front end other than the published ones, such as sample_rate=32000 n_mels=128 "
        "mel_max_hz=16000; the config that trains on the archive must have the same",
    )
    add(
        "--channel",
        choices=CHANNELS_OR_EACH,
        default="mix",
        help="mix: the mean of all channels; left, right: the first and the second one, or the only one; each: clips "
        "of every channel, whose number is in their keys (ch0, ch1)",
    )
    add("--hidden", action="store_true", help="also take hidden, trash and system files and folders")
    add("--clip-seconds", type=float, default=CLIP_SECONDS, help="longer files are cut into clips")
    add("--shard-size", type=int, default=SHARD_SIZE, help="approximate number of clips per shard")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.data.prepare") -> None:
    args = _parse(arguments, prog)
    logging.basicConfig(level=logging.INFO, format="prepare: %(message)s")
    try:
        share = Share.of_process()
        front_end = parse_settings(args.front_end)
        settings = Settings(args.dtype, args.clip_seconds, args.shard_size, args.format, front_end, args.channel)
        _warn_of_empty_bands(front_end)
        workers = max(1, usable_cores() // share.local_count) if args.workers is None else args.workers
        folders = _folders(args.out_dir, args.validation)
        for folder in folders:
            _check_place(folder, workers)
        listed = list_inputs(  # once, so that no file is in both archives
            args.audio_dir, args.labels, settings, args.classes, args.hidden, args.fold_column, args.group_column
        )
        parts = [listed] if args.validation is None else _divided(listed, args.validation)
        for out_dir, part in zip(folders, parts):
            existed = (out_dir / MANIFEST_NAME).exists()
            manifest = _make_archive(part, out_dir, workers, settings, share)
            _print_result(out_dir, manifest, existed, share)
    except KeyboardInterrupt:
        print("prepare: interrupted; rerun the same command to resume", file=sys.stderr)
        sys.exit(130)
    except BrokenProcessPool:
        raise SystemExit(
            "prepare: a worker process was killed, probably for lack of memory; rerun the same command with fewer "
            "--workers to resume"
        )
    except BrokenPipeError:  # the reader of the output went away; quiet_exit ends the command
        raise
    except (OSError, StorageError) as error:
        advice = f"; once its cause is removed, the same command resumes {args.out_dir}"
        raise SystemExit(f"prepare: {error}{'' if isinstance(error, FolderInUseError) else advice}")
    except ValueError as error:
        raise SystemExit(f"prepare: {error}")


def _warn_of_empty_bands(front_end: FrontEnd) -> None:
    """Warn of mel bands narrower than the bins of the transform, which are the same constant in every frame."""
    if empty := int((~mel_filter_bank(front_end).any(axis=0)).sum()):
        logger.warning(
            "%d of %d mel bands contain no frequency of a transform of %d samples: raise n_fft, or lower n_mels",
            empty,
            front_end.n_mels,
            front_end.n_fft,
        )


def _folders(out_dir: Path, validation: float | None) -> list[Path]:
    """The folders of the archives to make.

    Raises:
        ValueError: out_dir holds an archive made with the other choice; one would lie inside the other.
    """
    whole, parts = [out_dir], [out_dir / "train", out_dir / "validation"]
    others, how = (parts, "with") if validation is None else (whole, "without")
    for other in others:
        if any(other.glob("*.tar")):
            raise ValueError(f"{other} holds an archive made {how} --validation; choose another OUT_DIR")
    return whole if validation is None else parts


def _divided(listed: Listed, validation: float) -> list[Listed]:
    """The files to train on, and those held out."""
    held = _held_out_with_warning(listed.names, validation)
    return [listed.part(set(range(len(listed.paths))) - held), listed.part(held)]


def _held_out_with_warning(names: list[str], validation: float) -> set[int]:
    """The files held out, with a warning if they are over twice or under half of the share."""
    chosen = held_out(names, validation)
    reached = len(chosen) / len(names)
    if not validation / 2 <= reached <= 2 * validation:
        held = f"{len(chosen)} of {len(names)} files ({reached:.2g})"
        logger.warning("--validation %g holds out %s, since files and groups are not divided", validation, held)
    return chosen


def _print_result(out_dir: Path, manifest: dict | None, existed: bool, share: Share) -> None:
    if manifest is None:
        print(
            f"{out_dir}: process {share} has made its shards; others have not yet. The last one completes the archive"
        )
        return
    print(
        f"{out_dir}{' was complete already' if existed else ''}: {manifest['samples']} clips, "
        f"{manifest['hours']:.2f} hours, {len(manifest['labels'])} labels, {len(manifest['shards'])} shards"
    )
    if manifest["skipped"]:
        print(
            f"{manifest['files_skipped']} of {manifest['files']} files could not be used in full (manifest.json "
            f"lists them); the first: {manifest['skipped'][0]['file']}: {manifest['skipped'][0]['reason']}"
        )


if __name__ == "__main__":
    with quiet_exit():
        main()
