"""Turns a tree of audio files into an archive of log-mel spectrograms.

    python -m data.prepare AUDIO_DIR OUT_DIR [--labels labels.csv] [--validation 0.05] [--workers N]
    torchrun --nnodes=4 ... -m data.prepare AUDIO_DIR OUT_DIR      # or srun: machines that share both folders

Files are dealt out to shards before the work begins, so the bytes of a shard do not depend on who makes it. Stopped at
any moment, the same command resumes with the shards that are not finished. OUT_DIR/manifest.json is written last, by
the process that ends last: where it is, the archive is complete.
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from audio_mamba.data.audio import CHANNELS_OR_EACH, printable
from audio_mamba.data.features import mel_filter_bank
from audio_mamba.data.labels import find_labelled, folds_and_groups
from audio_mamba.data.manifest import MANIFEST_NAME
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
    start_or_go_on,
)
from audio_mamba.data.prepare_shards import make_shards
from audio_mamba.front_end import FrontEnd, parse_settings
from audio_mamba.system.folder_lock import FolderInUseError, exclusive_lock
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
    keep: Callable[[list[str]], set[int]] | None = None,
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
        keep: which of the files, given by their paths below audio_dir (or by their groups, if there is a
            group_column), go into the archive; None takes all. The labels are those of all files.
        hidden: take hidden, trash and system files and folders too.
        fold_column, group_column: where the fold of each file is, and the group (speaker, recording) that it shares
            with others (see `data.labels.column_of`). The manifest keeps them as "folds" and "groups".

    Returns:
        the manifest; None where other processes still have shards to make. Where out_dir already holds this very
        archive, nothing is done.

    Raises:
        ValueError: no audio, no usable file, bad labels or settings, or an out_dir that holds something else.
    """
    if workers < 1:
        raise PrepareError(f"workers must be at least 1, got {workers}")
    audio_dir, out_dir = Path(audio_dir), Path(out_dir)
    for folder in (out_dir, *out_dir.parents):
        if folder.exists() and not folder.is_dir():
            raise PrepareError(f"{folder} is a file; name a folder for the archive")
    paths, labels, vocabulary = find_labelled(
        audio_dir, labels_csv, classes_csv, settings.front_end.sample_rate, hidden
    )
    table = None if labels_csv is None else Path(labels_csv)
    columns = folds_and_groups(paths, audio_dir, table, fold_column, group_column)
    if keep is not None:
        kept = sorted(keep(columns.get("groups") or [printable(path.relative_to(audio_dir)) for path in paths]))
        paths, labels = [paths[i] for i in kept], [labels[i] for i in kept]
        columns = {name: [values[i] for i in kept] for name, values in columns.items()}
    id_of = {label: i for i, label in enumerate(vocabulary)}
    files = [AudioFile(i, path, tuple(id_of[label] for label in labels[i])) for i, path in enumerate(paths)]
    described = describe(settings, files, labels, vocabulary, audio_dir, columns)

    finished = finished_archive(out_dir, described)
    if finished is not None:
        remove_scaffold(out_dir)  # left there if the last attempt was killed at its very end
        return finished
    out_dir.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(out_dir, shared=share.count > 1):
        job = start_or_go_on(out_dir, described, files, settings)
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


def held_out(names: list[str], fraction: float) -> set[int]:
    """The numbers of the files that `fraction` of them, at least one, leaves for validation.

    Args:
        names: of the files, or of their groups: files of one name stay together.
        fraction: of the files, above 0 and below 1.

    The hashes of the names choose, so that the same names give the same files anywhere. A group that would bring the
    number of files further from the share is passed over; where all would, the smallest is held out. PrepareError where
    nothing would be left on one side.
    """
    count = max(1, round(fraction * len(names))) if 0 < fraction < 1 else len(names)
    members: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        members.setdefault(name, []).append(number)
    if count >= len(names) or len(members) < 2:
        raise PrepareError(
            f"--validation {fraction:g} of {len(names)} files leaves nothing on one side; give a "
            "share between 0 and 1, and at least two files (or groups of files)"
        )
    chosen: set[int] = set()
    order = sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest())
    for name in order:
        reached = len(chosen) + len(members[name])
        if reached - count <= count - len(chosen) and reached < len(names):
            chosen.update(members[name])
    return chosen or set(members[min(order, key=lambda name: len(members[name]))])


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
        "FSD50K and ESC-50 have it. Without it the first folder level below AUDIO_DIR is the label",
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
        for out_dir, keep in _archives(args.out_dir, args.validation):
            existed = (out_dir / MANIFEST_NAME).exists()
            manifest = prepare(
                args.audio_dir,
                out_dir,
                labels_csv=args.labels,
                workers=max(1, usable_cores() // share.local_count) if args.workers is None else args.workers,
                settings=settings,
                classes_csv=args.classes,
                share=share,
                keep=keep,
                hidden=args.hidden,
                fold_column=args.fold_column,
                group_column=args.group_column,
            )
            _print_result(out_dir, manifest, existed, share)
    except KeyboardInterrupt:
        print("prepare: interrupted; rerun the same command to resume", file=sys.stderr)
        sys.exit(130)
    except BrokenProcessPool:
        raise SystemExit(
            "prepare: a worker process was killed, probably for lack of memory; rerun the same command with fewer "
            "--workers to resume"
        )
    except (ValueError, FolderInUseError) as error:
        raise SystemExit(f"prepare: {error}")
    except BrokenPipeError:  # the reader of the output went away; quiet_exit ends the command
        raise
    except OSError as error:
        raise SystemExit(f"prepare: {error}; once its cause is removed, the same command resumes {args.out_dir}")


def _warn_of_empty_bands(front_end: FrontEnd) -> None:
    """Warn of mel bands narrower than the bins of the transform, which are the same constant in every frame."""
    if empty := int((~mel_filter_bank(front_end).any(axis=0)).sum()):
        logger.warning(
            "%d of %d mel bands contain no frequency of a transform of %d samples: raise n_fft, or lower n_mels",
            empty,
            front_end.n_mels,
            front_end.n_fft,
        )


def _archives(out_dir: Path, validation: float | None) -> Iterator[tuple[Path, Callable | None]]:
    """The folders to make, and which files go into each.

    Raises:
        ValueError: an archive made without `validation` would stand around those made with it, or they inside it.
    """
    train, held = out_dir / "train", out_dir / "validation"
    others, how = ([train, held], "with") if validation is None else ([out_dir], "without")
    for other in others:
        if any(other.glob("*.tar")):
            raise ValueError(f"{other} holds an archive made {how} --validation; choose another OUT_DIR")
    if validation is None:
        yield out_dir, None
    else:
        yield train, lambda names: set(range(len(names))) - _held_out_with_warning(names, validation)
        yield held, lambda names: held_out(names, validation)


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
