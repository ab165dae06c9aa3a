"""The clips of a fine-tuning run: archives or a HEAR task, and what makes them unusable."""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from audio_mamba.data.contents import ShardContents, stated_checksums
from audio_mamba.data.folds import Split
from audio_mamba.data.labelled import LabelledClips, read_labelled
from audio_mamba.data.labels import HEAR_METADATA, hear_metadata
from audio_mamba.data.manifest import MANIFEST_NAME
from audio_mamba.data.prepare import prepare
from audio_mamba.data.prepare_job import CLIP_SECONDS, Settings
from audio_mamba.front_end import FrontEnd
from audio_mamba.system.machine import usable_cores
from audio_mamba.training import distributed

FEW = 10  # clips of a class; fewer are worth a warning
NAMED = 5  # classes in a message
LONGEST_CLIP = 600.0  # seconds, of a HEAR task that does not say how long its clips are

logger = logging.getLogger("finetune")


def read_clips(config: ConfigDict, front_end: FrontEnd, cache: Path) -> LabelledClips:
    """All clips of data.train_dirs, data.val_dir and data.test_dir, in this order. Every process must call this.

    Raises:
        ValueError: a folder has no labelled clips, or another class list or front end; or a validation or test
            archive shares shards with an archive listed before it.
    """
    folders = [*config.data.train_dirs, *filter(None, (config.data.val_dir, config.data.test_dir))]
    if not config.data.train_dirs:
        raise ValueError("no training data: name a labelled archive or a HEAR task with --data")
    archives = [_archive_of(Path(folder), cache) for folder in folders]
    places = [archive.resolve() for archive in archives]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ValueError(
                "--data, --val-data and --test-data must be different folders, and HEAR tasks need different names: "
                f"{folders[places.index(place)]} and {folders[number]} are both read from {archives[number]}"
            )
    for folder, archive in zip(folders, archives):
        _make(Path(folder), archive, front_end)
    _refuse_copies(folders, archives, len(config.data.train_dirs))
    clips = read_labelled(archives, front_end)
    if not len(clips):
        raise ValueError(f"{folders[0]} has no clips")
    return clips


def _archive_of(folder: Path, cache: Path) -> Path:
    """The folder itself, or for a HEAR task the folder in `cache` for its archive. ValueError if it is no folder."""
    if not (folder / MANIFEST_NAME).exists() and (folder / HEAR_METADATA).exists():
        return cache / folder.resolve().name
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected a labelled archive or a HEAR task")
    return folder


def _make(folder: Path, archive: Path, front_end: FrontEnd) -> None:
    """Prepare the archive of a HEAR task, which the main process does; any other folder is its own."""
    if archive == folder:
        return
    problem = ""
    if distributed.is_main():
        try:
            seconds = hear_metadata(folder).get("sample_duration") or LONGEST_CLIP
            if not isinstance(seconds, int | float):
                raise ValueError(
                    f"{folder / HEAR_METADATA}: sample_duration must be a number of seconds, got {seconds!r:.80}"
                )
            settings = Settings(clip_seconds=max(CLIP_SECONDS, float(seconds)), front_end=front_end)
            prepare(folder, archive, workers=usable_cores(), settings=settings, fold_column="split")
        except (ValueError, OSError) as error:
            problem = str(error)
        except BrokenProcessPool:
            problem = (
                f"a process that prepared {folder} was killed, probably for lack of memory; finish its archive with "
                f"audio-mamba prepare {folder} ARCHIVE --fold-column split and fewer --workers, and give --data ARCHIVE"
            )
    if problem := distributed.gather(problem)[0]:
        raise ValueError(problem)


def _refuse_copies(folders: Sequence[str], archives: Sequence[Path], trained: int) -> None:
    """ValueError if a validation or test archive (number `trained` or later) has shards of one before it."""
    holder: dict[str, str] = {}  # of each checksum
    for number, (folder, archive) in enumerate(zip(folders, archives)):
        checksums = set(filter(None, stated_checksums(archive).values()))
        if number >= trained and (copies := sorted(checksums & holder.keys())):
            raise ValueError(
                f"{folder} shares {len(copies)} shard(s) with {holder[copies[0]]}: --val-data and --test-data must "
                "have clips of their own"
            )
        holder |= dict.fromkeys(checksums, folder)


def check_clips(clips: LabelledClips, split: Split, label_mode: str, source: str, metric: str | None = None) -> None:
    """Refuse clips that cannot be trained on or judged, and warn of few.

    Raises:
        ValueError: no training or validation clips; several labels, or none, for a clip under a single-label loss;
            labels in validation or test that training lacks, or a class of one clip, under a single-label loss; a
            metric that validation clips of one kind do not have.
    """
    for part, chosen in zip(("training", "validation"), split):
        if not len(chosen):
            raise ValueError(f"{source}: there are no {part} clips")
    counts, in_valid, in_test = map(clips.counts, split)
    if not in_valid.any():
        raise ValueError(f"{source}: no validation clip has a label")
    if metric in ("AUC", "d_prime") and not ((in_valid > 0) & (in_valid < len(split.valid))).any():
        raise ValueError(
            f"{source}: metric {metric} needs a class that some validation clips have and others lack; choose another "
            "metric or other validation clips"
        )
    if (counts > 0).sum() < (2 if label_mode == "single" else 1):
        raise ValueError(f"{source}: the training clips have {int((counts > 0).sum())} label(s); at least 2 are needed")
    if label_mode == "single":
        for clip in np.concatenate(split):
            if (number := len(clips.labels[clip])) != 1:
                advice = "use --loss multi" if number else "label it, or leave it out"
                raise ValueError(f"{clips.name(clip)} has {number} labels, but --loss single needs one; {advice}")
    if single := [clips.classes[k] for k in np.flatnonzero(counts + in_valid + in_test == 1)]:
        message = f"{source}: one clip each for {_listed(single)}; training and validation need one each"
        if label_mode == "single":
            raise ValueError(f"{message}; add clips, or leave the class out")
        _log(logging.WARNING, "%s", message)
    for part, found in (("validation", in_valid), ("test", in_test)):
        unseen = (found > 0) & (counts == 0)
        if unseen.any():
            names = _listed([clips.classes[k] for k in np.flatnonzero(unseen)])
            message = f"{source}: {part} clips have labels that no training clip has: {names}"
            if label_mode == "single":
                raise ValueError(f"{message}; give training some of these clips, or leave them out")
            _log(logging.WARNING, "%s", message)
    few = [clips.classes[k] for k in np.flatnonzero((counts > 0) & (counts < FEW))]
    if few:
        _log(logging.WARNING, "fewer than %d training clips each for %s", FEW, _listed(few))


def _log(level: int, message: str, *values: object) -> None:
    """Once for all processes."""
    if distributed.is_main():
        logger.log(level, message, *values)


def judged_clips(clips: LabelledClips, split: Split, shards: Sequence[ShardContents] | None = None) -> dict[str, str]:
    """A digest of the validation clips and one of the test clips, for a checkpoint.

    While both are the same, no training clip has become a validation or test clip, whatever else changes.

    Args:
        clips: all clips.
        split: which of them validate and test.
        shards: the contents of all shards, to tell clips of one name in two archives apart; None compares names alone.
    """

    def identity(clip: int) -> str:
        content = "" if shards is None else f"{shards[clips.places[clip, 0]].digest} "
        return content + clips.keys[clip]

    return {
        part: hashlib.sha256("\n".join(sorted(map(identity, chosen))).encode()).hexdigest()
        for part, chosen in (("validation", split.valid), ("test", split.test))
    }


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
