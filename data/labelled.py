"""Labelled clips of archives as batches: random augmented crops for training, whole clips for validation and test.

What a clip becomes in training depends on (seed, epoch, clip) alone, never on rank, worker or place in a batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from audio_mamba.data import augment
from audio_mamba.data.archives import check_front_end, shard_indices
from audio_mamba.data.augment import Augmentation
from audio_mamba.data.contents import Contents, LocalContents
from audio_mamba.data.crops import crop_place, normalised_clip, refuse_constant, repeat_to_fill
from audio_mamba.data.dataset import MAX_SUBSTITUTES, STAND_IN
from audio_mamba.data.faults import Fault
from audio_mamba.data.folds import file_numbers
from audio_mamba.data.loader import ArchiveLoader, EpochBatches, FixedBatches
from audio_mamba.data.manifest import read_manifest, values_by_file
from audio_mamba.data.samples import ArchiveError, decode_labels, decode_spectrogram
from audio_mamba.data.shard_files import ShardFiles
from audio_mamba.front_end import FrontEnd

NO_AUGMENTATION = Augmentation()

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class LabelledClips:
    """All clips of one or more archives with the same class list, in the order of folders and shards.

    Attributes:
        classes: names in the order of their ids.
        labels: ids of each clip.
        keys: of each clip in its shard.
        folds: of each clip; "" if its archive does not say.
        groups: of each clip; the clips of one audio file share one at least.
        directories: for each clip, the number of its archive.
    """

    front_end: FrontEnd
    classes: list[str]
    labels: list[np.ndarray]
    keys: list[str]
    folds: list[str]
    groups: list[str]
    directories: np.ndarray
    shards: list[Path]
    places: np.ndarray  # shard, offset and size of the data member of each clip, int64 [n, 3]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, clip: int) -> str:
        """Shard and key of a clip, for messages."""
        return f"{self.shards[self.places[clip, 0]]}, sample {self.keys[clip]}"

    @property
    def multi_label(self) -> bool:
        """Whether some clip has several labels."""
        return any(len(labels) > 1 for labels in self.labels)

    def counts(self, chosen: np.ndarray) -> np.ndarray:
        """Number of the chosen clips with each label, int64 [classes]."""
        return np.bincount(_joined(self.labels[clip] for clip in chosen), minlength=len(self.classes))


def _joined(labels: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *labels])


def read_labelled(directories: Sequence[str | Path], front_end: FrontEnd) -> LabelledClips:
    """The labelled clips of archive folders.

    Args:
        directories: made by data.prepare, since only its manifest has the names of the classes.
        front_end: of the encoder; archives made with another one are refused.

    Raises:
        FrontEndError: an archive was made with another front end.
        ArchiveError: an archive without labels, archives of different classes, a bad shard, or damaged labels.
    """
    classes: list[str] | None = None
    labels: list[np.ndarray] = []
    keys: list[str] = []
    places: list[tuple[int, int, int]] = []
    groups: list[str] = []
    sizes: list[int] = []
    folds: list[str] = []
    shards: list[Path] = []
    files = ShardFiles()
    for directory in map(Path, directories):
        check_front_end(directory, front_end)
        manifest = read_manifest(directory) or {}
        named = manifest.get("labels")
        if not named:
            raise ArchiveError(f"{directory} has no labels: prepare it with --labels, or with a folder for each class")
        classes = classes or named
        if named != classes:
            raise ArchiveError(
                f"{directory} has another class list than {directories[0]}: {_difference(named, classes)}"
            )
        first = len(keys)
        for path, index in shard_indices(directory):
            shards.append(path)
            for key, place in zip(index.keys, index.places):
                keys.append(key.decode())
                places.append((len(shards) - 1, place["data_offset"], place["data_size"]))
                labels.append(_read_labels(files, path, keys[-1], place, len(classes)))
        sizes.append(len(keys) - first)
        numbers = file_numbers(keys[first:])
        own_groups = [f"{directory}/{number}" for number in numbers]
        folds += values_by_file(directory, manifest, "folds", numbers) or [""] * len(numbers)
        groups += values_by_file(directory, manifest, "groups", numbers) or own_groups
    return LabelledClips(
        front_end=front_end,
        classes=classes or [],
        labels=labels,
        keys=keys,
        folds=folds,
        groups=groups,
        directories=np.repeat(np.arange(len(sizes)), sizes),
        shards=shards,
        places=np.array(places, np.int64).reshape(-1, 3),
    )


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    if extra := [name for name in theirs if name not in ours]:
        return f"{extra[0]!r} is only there"
    if lacking := [name for name in ours if name not in theirs]:
        return f"{lacking[0]!r} is not there"
    return "the order differs"


def _read_labels(files: ShardFiles, path: Path, key: str, place: np.void, classes: int) -> np.ndarray:
    labels = np.zeros(0, np.int64)
    try:
        if place["labels_size"]:
            labels = np.unique(decode_labels(files.read(path, place["labels_offset"], place["labels_size"])))
    except (OSError, ValueError) as error:
        raise ArchiveError(f"{path}, sample {key}: {error}") from error
    if len(labels) and not 0 <= labels[0] <= labels[-1] < classes:
        raise ArchiveError(f"{path}, sample {key}: its labels are {labels.tolist()}, but there are {classes} classes")
    return labels


class LabelledDataset(Dataset):
    """Some of the clips, by (epoch, number).

    A number is an index into `chosen`; adding a multiple of len(chosen) asks for another crop of the same clip, which
    sampling with replacement needs.

    Args:
        clips: all clips.
        chosen: numbers of those in use, int64 [n].
        crop_frames: length of a crop; shorter clips are taken as they are. None takes whole clips as they are, without
            augmentation, and raises at the first bad one.
        augmentation: of the crops.
        seed: of crops and augmentation.
        strict: raise at the first bad clip; else another clip of `chosen` takes its place, which depends on (seed,
            epoch, number) alone. So it is for the other clip of a mixture, and then no sample counts as lost.
    """

    def __init__(
        self,
        clips: LabelledClips,
        chosen: np.ndarray,
        crop_frames: int | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
        seed: int = 0,
        strict: bool = False,
    ):
        self.clips, self.chosen, self.crop_frames, self.augmentation = clips, chosen, crop_frames, augmentation
        self.seed, self.strict = seed, strict
        self._files = ShardFiles()
        self._contents = LocalContents(
            clips.shards, np.bincount(clips.places[:, 0], minlength=len(clips.shards)).tolist()
        )

    def __len__(self) -> int:
        return len(self.chosen)

    def contents(self) -> Contents:
        """What all shards hold now, to compare with other processes and with an earlier start."""
        return self._contents.now()

    def name(self, clip: int) -> str:
        return self.clips.name(clip)

    def __getitems__(self, items: list[tuple[int, int]]) -> tuple[Batch, list[Fault]]:
        """A batch of clips and the faults found.

        Returns:
            spectrogram float32 [B, 1, T, mels], T the length of the longest clip and others padded with zeros; frames
            int64 [B], their lengths; target float32 [B, classes]; index int64 [B], numbers of the clips. Then the
            faults.

        Raises:
            ArchiveError: strict, and a clip is bad; or all 20 substitutes for it are bad as well.
        """
        faults: list[Fault] = []
        drawn = [self._draw(epoch, number, faults) for epoch, number in items]
        frames = torch.tensor([len(crop) for crop, _, _ in drawn])
        spectrogram = torch.zeros(len(drawn), 1, int(frames.max()), self.clips.front_end.n_mels)
        for out, (crop, _, _) in zip(spectrogram[:, 0], drawn):
            out[: len(crop)] = torch.from_numpy(crop)
        target = torch.from_numpy(np.stack([target for _, target, _ in drawn]))
        return {
            "spectrogram": spectrogram,
            "frames": frames,
            "target": target,
            "index": torch.tensor([clip for _, _, clip in drawn]),
        }, faults

    def _draw(self, epoch: int, number: int, faults: list[Fault]) -> tuple[np.ndarray, np.ndarray, int]:
        """Clip or substitute: [frames, mels], target [classes], and the clip's number among all."""
        clip_index = number % len(self)
        if self.crop_frames is None:
            return self._whole(self.chosen[clip_index]), self._target(clip_index), int(self.chosen[clip_index])
        rng, augmentation = np.random.default_rng((self.seed, epoch, number)), self.augmentation
        substitutes = np.random.default_rng((self.seed, epoch, number, STAND_IN))
        crop, clip_index = self._good_crop(clip_index, rng, substitutes, faults)
        target = self._target(clip_index)
        share = augment.draw_share(rng, augmentation.mixup)
        if share < 1:  # the target becomes soft
            tried: list[Fault] = []
            second, other = self._good_crop(int(rng.integers(len(self))), rng, substitutes, tried)
            faults += [(shard, problem, 0) for shard, problem, _ in tried]  # this sample is not lost
            second = second[: len(crop)]
            filled = np.empty_like(crop)
            filled[: len(second)] = second
            repeat_to_fill(filled, len(second))
            crop = augment.mix(crop, filled, share)
            target = np.float32(share) * target + np.float32(1 - share) * self._target(other)
        crop = augment.shift(crop, rng, augmentation.time_shift)
        if augmentation.freq_shift:
            crop = augment.shift_bands(crop, rng, augmentation.freq_shift)
        augment.mask(crop, rng, augmentation.time_mask, augmentation.freq_mask)
        return crop, target, int(self.chosen[clip_index])

    def _good_crop(
        self, clip_index: int, rng: np.random.Generator, substitutes: np.random.Generator, faults: list[Fault]
    ) -> tuple[np.ndarray, int]:
        """The crop [frames, mels] of a clip or, if that is bad, of a substitute; and the index of the one taken."""
        errors = []
        for _ in range(1 + MAX_SUBSTITUTES):
            try:
                return self._crop(clip_index, rng), clip_index
            except ArchiveError as error:
                if self.strict:
                    raise
                errors.append(error)
                faults.append((self.clips.shards[self.clips.places[self.chosen[clip_index], 0]], str(error), 1))
                clip_index = int(substitutes.integers(len(self)))
        raise errors[0]

    def _target(self, clip_index: int) -> np.ndarray:
        target = np.zeros(len(self.clips.classes), np.float32)
        target[self.clips.labels[self.chosen[clip_index]]] = 1
        return target

    def _crop(self, clip_index: int, rng: np.random.Generator) -> np.ndarray:
        assert self.crop_frames is not None
        louder: float | np.ndarray = augment.draw_gain(rng, self.augmentation.gain)
        if self.augmentation.filter:
            louder = louder + augment.draw_filter(rng, self.augmentation.filter, self.clips.front_end.n_mels)
        clip = self._whole(self.chosen[clip_index], louder)
        start, length = crop_place(len(clip), self.crop_frames, rng)
        return clip[start : start + length]

    def _whole(self, clip: int, decibels: float | np.ndarray = 0.0) -> np.ndarray:
        """A clip's log-mel [frames, mels], normalised as the runtime does."""
        shard, offset, size = self.clips.places[clip]
        try:
            member = self._files.read(self.clips.shards[shard], offset, size)
            stored = decode_spectrogram(member, self.clips.front_end.n_mels)
            refuse_constant(stored, self.clips.front_end)
            log_mel = stored.astype(np.float32)
            if np.any(decibels):
                log_mel = augment.apply_gain(log_mel, decibels, self.clips.front_end.log_offset)
            normal = normalised_clip(torch.from_numpy(log_mel), self.clips.front_end, ddof=1)
        except (OSError, ValueError) as error:
            raise ArchiveError(f"{self.clips.name(clip)}: {error}") from error
        return normal.numpy()


class BalancedBatches(EpochBatches):
    """As many clips as there are, drawn with replacement by their weights."""

    def __init__(self, weights: np.ndarray, *args, **options):
        super().__init__(len(weights), *args, **options)
        self._shares = weights / weights.sum()

    def order(self, epoch: int) -> np.ndarray:
        """The k-th draw of a clip has the number clip + k n, so that its crop and augmentation differ."""
        drawn = np.random.default_rng((self.seed, epoch)).choice(self.n_samples, self.n_samples, p=self._shares)
        by_clip = np.argsort(drawn, kind="stable")
        ordered = drawn[by_clip]
        repeats = np.empty_like(drawn)
        repeats[by_clip] = np.arange(self.n_samples) - np.searchsorted(ordered, ordered)
        return drawn + self.n_samples * repeats


def balanced_weights(labels: Sequence[np.ndarray]) -> np.ndarray:
    """AudioSet's rule: the weight of a clip is the sum over its labels of 1 / (number of clips with the label), float64
    [n]. A clip without labels is never drawn. (Gong et al. 2021, AST; Kong et al. 2020, PANNs.)

    labels: ids of each clip.
    """
    counts = np.bincount(_joined(labels))
    return np.array([(1 / counts[ids]).sum() for ids in labels])


def training_loader(
    dataset: LabelledDataset,
    batch_size: int,
    balanced: bool,
    rank: int = 0,
    world_size: int = 1,
    **options,
) -> ArchiveLoader:
    """The batches of one rank, for `data.loader.set_epoch`; `options` are those of a DataLoader."""
    sampler_options = batch_size, rank, world_size, dataset.seed
    batches = EpochBatches(len(dataset), *sampler_options)
    if balanced:
        weights = balanced_weights([dataset.clips.labels[clip] for clip in dataset.chosen])
        batches = BalancedBatches(weights, *sampler_options)
    return ArchiveLoader(
        dataset,
        len(batches) * batch_size,
        batch_sampler=batches,
        persistent_workers=options.get("num_workers", 0) > 0,
        **options,
    )


def whole_clip_loader(
    dataset: LabelledDataset, batch_size: int, rank: int = 0, world_size: int = 1, **options
) -> ArchiveLoader:
    """All clips once, each `world_size`-th on this rank."""
    batches = FixedBatches(len(dataset), batch_size, rank, world_size)
    return ArchiveLoader(dataset, len(batches.indices), batch_sampler=batches, **options)
