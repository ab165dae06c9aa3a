"""Labelled clips and how they are split, from an audio folder, a HEAR task or a labelled archive."""

import hashlib
import json
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audio_mamba.data.archives import archive_front_end, read_shard, shard_indices
from audio_mamba.data.audio import printable
from audio_mamba.data.folds import FoldError, Split, deal, file_numbers, fold_names, split_by_fold, split_by_name
from audio_mamba.data.labels import HEAR_METADATA, find_labelled, folds_and_groups, hear_metadata
from audio_mamba.data.manifest import MANIFEST_NAME, read_manifest, values_by_file
from audio_mamba.front_end import PUBLISHED, FrontEnd

logger = logging.getLogger(__name__)


class ProbeError(ValueError):
    """Clips, labels or a model that cannot be probed; the message says what is wrong."""


@dataclass(frozen=True)
class Clips:
    """Clips with labels.

    Attributes:
        names: of each clip, relative to the source.
        paths: audio files; None for clips of an archive, which are read by `spectrograms`.
        labels: of each clip.
        vocabulary: all labels in the order of their ids.
        splits: for each clip the split or fold it belongs to.
        channel: of audio files, see `data.audio.stream_audio`.
        groups: what clips share (speaker, recording); None if each is on its own.
    """

    source: Path
    names: list[str]
    paths: list[Path] | None
    labels: list[tuple[str, ...]]
    vocabulary: list[str]
    splits: list[str]
    channel: str = "mix"
    groups: list[str] | None = None

    @property
    def multi_label(self) -> bool:
        """Whether some clip has several labels."""
        return any(len(labels) > 1 for labels in self.labels)

    def targets(self) -> np.ndarray:
        """bool [n, classes]."""
        number = {label: i for i, label in enumerate(self.vocabulary)}
        targets = np.zeros((len(self.labels), len(self.vocabulary)), bool)
        for row, labels in zip(targets, self.labels):
            row[[number[label] for label in labels]] = True
        return targets

    def rounds(self) -> list[Split]:
        """Train, valid and test as they are named; or of folds in order, each tested once, validated by the next.

        Raises:
            ProbeError: a split is missing, names of splits and others are mixed, there are fewer than three folds, or a
                round trains on one label alone.
        """
        try:
            folds = fold_names(self.splits)
        except FoldError as error:
            raise ProbeError(f"{self.source}: {error}") from error
        if 0 < len(folds) < 3:
            raise ProbeError(f"{self.source}: {len(folds)} folds; at least 3 are needed, to train, validate and test")
        rounds = [split_by_fold(self.splits, fold) for fold in folds] or [split_by_name(self.splits)]
        if not all(map(len, (rounds[0].train, rounds[0].valid, rounds[0].test))):
            names = ", ".join(sorted(set(self.splits)))
            raise ProbeError(f"{self.source}: the splits are {names}; train, valid and test are needed")
        for part in rounds if not self.multi_label else ():
            if len(labels := {self.labels[clip] for clip in part.train}) < 2:
                raise ProbeError(
                    f"{self.source}: to test {self.splits[part.test[0]]!r}, all training clips have the label "
                    f"{labels.pop()[0]!r}; each fold needs clips of several labels"
                )
        return rounds

    def fingerprint(self) -> str:
        """Of names and contents (folder, size and time of files, channel), in hex: embeddings belong to it."""
        digest = hashlib.sha256(b"" if self.channel == "mix" else self.channel.encode())
        if self.paths is not None:
            digest.update(os.fsencode(self.source.resolve()))
        for number, name in enumerate(self.names):
            stat = self.paths[number].stat() if self.paths else None
            digest.update(repr((name, stat and (stat.st_size, stat.st_mtime_ns))).encode())
        if self.paths is None:
            digest.update(json.dumps(read_manifest(self.source), sort_keys=True).encode())
        return digest.hexdigest()

    def front_end(self) -> FrontEnd | None:
        """That of an archive; audio files have none."""
        return archive_front_end(self.source) if self.paths is None else None

    def spectrograms(self) -> list[Tensor]:
        """Log-mels float32 [frames, mels] of the clips of an archive, in order, not normalised."""
        samples = (sample for path, _ in shard_indices(self.source) for sample in read_shard(path))
        return [torch.from_numpy(sample.spectrogram).float() for sample in samples]


def read_clips(
    source: Path,
    table: Path | None = None,
    channel: str = "mix",
    hidden: bool = False,
    fold_column: str | None = None,
    group_column: str | None = None,
    sample_rate: int = PUBLISHED.sample_rate,
) -> Clips:
    """The labelled clips of an audio folder (labels from a table, or the first folder level), a HEAR task of scenes, or
    an archive made by `data.prepare`.

    Args:
        source: the folder.
        table: of labels, see `data.labels.labels_of`.
        channel: of audio files with several, see `data.audio.stream_audio`.
        hidden: take hidden, trash and system files and folders too.
        fold_column, group_column: of the table, for an audio folder (see `data.labels.column_of`). An archive has its
            own.
        sample_rate: in Hz; of the rates that a HEAR task may have, the nearest is taken.

    Raises:
        ProbeError: no labels, or too few clips of them. LabelError, AudioError, ArchiveError: the source is faulty.
    """
    if (source / MANIFEST_NAME).is_file():
        given = {"channel": channel != "mix", "labels": table, "fold-column": fold_column, "group-column": group_column}
        if ignored := [option for option, value in given.items() if value]:
            raise ProbeError(
                f"{source} is an archive, whose channels, labels, folds and groups were chosen by audio-mamba prepare; "
                f"leave out --{ignored[0]}"
            )
        clips = _of_archive(source)
    else:
        if (source / HEAR_METADATA).is_file() and table is None:
            kind = hear_metadata(source).get("embedding_type")
            if kind != "scene":
                raise ProbeError(f"{source} is a task of {kind} embeddings; the probe judges whole clips (scene tasks)")
        paths, labels, vocabulary = find_labelled(source, table, sample_rate=sample_rate, hidden=hidden)
        names = [printable(path.relative_to(source)) for path in paths]
        columns = folds_and_groups(paths, source, table, fold_column, group_column)
        if "folds" in columns:
            splits = columns["folds"]
        elif (source / HEAR_METADATA).is_file() and table is None:
            splits = [path.parent.name for path in paths]
        else:
            splits = deal(names, labels, columns.get("groups"))
        clips = Clips(source, names, paths, labels, vocabulary, splits, channel, columns.get("groups"))
    return _labelled_only(clips)


def _of_archive(source: Path) -> Clips:
    manifest = read_manifest(source) or {}
    vocabulary = manifest.get("labels") or []
    names, labels, keys = [], [], []
    for path, _ in shard_indices(source):
        for sample in read_shard(path):
            names.append(f"{path.name}/{sample.key}")
            labels.append(tuple(vocabulary[label] for label in sample.labels.tolist()))
            keys.append(sample.key)
    numbers = file_numbers(keys)
    groups = values_by_file(source, manifest, "groups", numbers) or list(map(str, numbers))
    splits = values_by_file(source, manifest, "folds", numbers) or deal(names, labels, groups)
    alone = len(set(groups)) == len(names)
    return Clips(source, names, None, labels, vocabulary, splits, groups=None if alone else groups)


def _labelled_only(clips: Clips) -> Clips:
    """Refuse what cannot be judged."""
    unlabelled = [name for name, labels in zip(clips.names, clips.labels) if not labels]
    if unlabelled and not clips.multi_label:
        raise ProbeError(
            f"{clips.source}: {len(unlabelled)} of {len(clips.names)} clips have no label, the first {unlabelled[0]}; "
            "give each a label, or leave them out"
        )
    if unlabelled:
        logger.warning(
            "%s: %d of %d clips have no label, the first %s; they count as clips without any of the labels, so leave "
            "them out if nobody has labelled them",
            clips.source,
            len(unlabelled),
            len(clips.names),
            unlabelled[0],
        )
    counts = Counter(label for labels in clips.labels for label in labels)
    if len(counts) < 2:
        raise ProbeError(f"{clips.source}: {len(counts)} label(s) in use; at least 2 are needed")
    return clips
