"""Random access to the samples of archives: one fixed crop, and where asked one mask, for each sample and epoch."""

import logging
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from audio_mamba.data.archives import check_front_end, shard_indices
from audio_mamba.data.contents import Contents, LocalContents
from audio_mamba.data.crops import DrawMask, crop_member, crop_place, refuse_constant, repeat_to_fill
from audio_mamba.data.faults import Fault, Faults
from audio_mamba.data.normalisation import STD_OFFSET, Statistics, fixed_statistics, normalise
from audio_mamba.data.samples import ArchiveError
from audio_mamba.data.shard_files import ShardFiles
from audio_mamba.data.shard_index import ShardIndex, fitting_index, index_from_headers
from audio_mamba.data.subset import in_subset
from audio_mamba.front_end import PUBLISHED, FrontEnd

MAX_SUBSTITUTES = 20
MANY_WITHOUT_INDEX = 20_000  # their headers take seconds at every start of every process
STAND_IN = 1  # makes the generator of substitutes differ from that of crop and mask

# What is kept of each sample: 21 bytes. If its values can be read in place, `value_bytes` is the width of one, `offset`
# where they begin and `extent` the number of frames. Else `value_bytes` is 0, and the member, `extent` bytes at
# `offset`, is read whole.
RECORD = np.dtype([("offset", "<i8"), ("extent", "<u4"), ("mean", "<f4"), ("std", "<f4"), ("value_bytes", "u1")])
VALUE_TYPES = {size: np.dtype(f"<f{size}") for size in (2, 4, 8)}

logger = logging.getLogger(__name__)


class LogMelDataset(Dataset):
    """Samples of one or more archive folders, numbered in the order of folders and shards.

    An item is requested as (epoch, index). The data set holds 21 bytes per sample, so millions of samples fit into
    every worker.

    Args:
        directories: archive folders, ours or published.
        num_frames: length of a crop; shorter clips are repeated to fill it.
        front_end: of the spectrograms; archives that say otherwise are refused.
        seed: seed of crops and masks.
        draw_mask: called with a generator, returns the mask of one sample; None for no masks.
        strict: raise at the first bad shard or sample. Otherwise the good samples of a bad shard are used, and a bad
            sample is replaced by another one, which depends on (seed, epoch, index) alone.
        fraction: share of the samples to use, in (0, 1], chosen by their keys, see `data.subset`.

    Raises:
        FrontEndError: an archive was made with another front end.
        ArchiveError: no shards; a bad manifest; with strict, a bad shard; else more than 1% of the samples lost.
    """

    def __init__(
        self,
        directories: Sequence[str | Path],
        num_frames: int,
        front_end: FrontEnd = PUBLISHED,
        seed: int = 0,
        draw_mask: DrawMask | None = None,
        strict: bool = False,
        fraction: float = 1.0,
    ):
        self.num_frames, self.front_end, self.n_mels = num_frames, front_end, front_end.n_mels
        self.seed, self.draw_mask, self.strict, self._fraction = seed, draw_mask, strict, fraction
        faults: list[Fault] = []
        records: list[np.ndarray] = []  # of each shard
        self._paths: list[Path] = []
        without_index = whole = 0
        for directory in directories:
            check_front_end(directory, front_end)
            for path, index in shard_indices(directory, None if strict else lambda *fault: faults.append(fault)):
                self._paths.append(path)
                records.append(self._records(index)[in_subset(index.keys, fraction)])
                whole += len(index)
                without_index += int((index.places["frames"] == 0).sum())
        if without_index > MANY_WITHOUT_INDEX:
            logger.info(
                "%d samples have no index, so each start reads all their tar headers, and each crop its whole "
                "clip; audio-mamba index %s, run once, avoids both",
                without_index,
                shlex.join(map(str, directories)),
            )
        lengths = [len(shard) for shard in records]
        at_start = Faults(whole + sum(lost for _, _, lost in faults))
        for shard, problem, lost in faults:
            at_start.report(shard, problem, lost)
        if not records:
            raise ArchiveError("no archive folder was given")
        if fraction < 1:
            logger.info("data.fraction %g: %d of %d samples", fraction, sum(lengths), whole)
        self._first = np.cumsum([0] + lengths)  # first sample of each shard, and end
        self._samples = np.concatenate(records)
        self._files = ShardFiles()
        self._contents = LocalContents(self._paths, lengths)

    def _records(self, index: ShardIndex) -> np.ndarray:
        places, records = index.places, np.zeros(len(index), RECORD)
        in_place = (places["values_offset"] >= 0) & (places["mels"] == self.n_mels)
        records["offset"] = np.where(in_place, places["values_offset"], places["data_offset"])
        records["extent"] = np.where(in_place, places["frames"], places["data_size"])
        records["value_bytes"] = np.where(in_place, places["value_bytes"], 0)
        records["mean"], records["std"] = places["mean"], places["std"]
        return records

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def index_bytes(self) -> int:
        """Memory of the records of all samples."""
        return self._samples.nbytes

    def contents(self) -> Contents:
        """What the shards hold now, to compare with other processes and with an earlier start."""
        return self._contents.now()

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Sample `index` as drawn in `epoch`: spectrogram float32 [1, num_frames, n_mels], index and any mask."""
        batch, _faults = self.__getitems__([item])
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, items: list[tuple[int, int]]) -> tuple[dict[str, torch.Tensor], list[Fault]]:
        """A batch of samples and the faults found. (Data loaders know this method by its name.)

        Returns:
            spectrogram float32 [B, 1, num_frames, n_mels], index int64 [B] and, with draw_mask, mask [B, L]; and the
            faults.

        Raises:
            ArchiveError: strict, and a sample is bad; or all 20 substitutes for it are bad as well.
        """
        spectrogram = _empty_to_hand_over(len(items), 1, self.num_frames, self.n_mels)
        indices: list[int] = []
        masks: list[np.ndarray | None] = []
        faults: list[Fault] = []
        with np.errstate(over="ignore", invalid="ignore"):  # damaged values, which are then refused
            for out, (epoch, index) in zip(spectrogram[:, 0].numpy(), items):
                index, mask = self._fill_with_good(out, epoch, index, faults)
                indices.append(index)
                masks.append(mask)
        batch = {"spectrogram": spectrogram, "index": torch.tensor(indices)}
        if self.draw_mask is not None:
            batch["mask"] = torch.from_numpy(np.stack([mask for mask in masks if mask is not None]))
        return batch, faults

    def _fill_with_good(
        self, out: np.ndarray, epoch: int, index: int, faults: list[Fault]
    ) -> tuple[int, np.ndarray | None]:
        """Fill `out` with sample `index` or a substitute; returns which, and its mask."""
        substitutes, errors = None, []
        for _ in range(1 + MAX_SUBSTITUTES):
            try:
                return index, self._fill(out, epoch, index)
            except ArchiveError as error:
                if self.strict:
                    raise
                errors.append(error)
                faults.append((self._paths[self._shard(index)], str(error), 1))
                substitutes = substitutes or np.random.default_rng((self.seed, epoch, index, STAND_IN))
                index = int(substitutes.integers(len(self)))
        raise errors[0]

    def _fill(self, out: np.ndarray, epoch: int, index: int) -> np.ndarray | None:
        """Fill `out` [num_frames, n_mels] with the crop of a sample, and return its mask."""
        rng = np.random.default_rng((self.seed, epoch, index))
        mask = None if self.draw_mask is None else self.draw_mask(rng)
        try:
            if self._samples["value_bytes"][index]:
                self._crop_in_place(out, index, rng)
            else:
                crop_member(out, self._read_member(index), self.front_end, rng)
        except (OSError, ValueError) as error:
            raise ArchiveError(f"{self.name(index)}: {error}") from error
        return mask

    def _crop_in_place(self, out: np.ndarray, index: int, rng: np.random.Generator) -> None:
        """Read the frames of the crop and nothing else."""
        sample, path = self._samples[index], self._paths[self._shard(index)]
        frames, mean, std = int(sample["extent"]), sample["mean"], sample["std"]
        start, length = crop_place(frames, self.num_frames, rng)
        crop, dtype = out[:length], VALUE_TYPES[int(sample["value_bytes"])]
        stored = crop if dtype == crop.dtype else np.empty_like(crop, dtype)
        row_bytes = self.n_mels * dtype.itemsize
        offset = int(sample["offset"]) + start * row_bytes
        if self._files.read_into(path, offset, stored.data.cast("B")) != stored.nbytes:
            raise ValueError(f"the shard ends before byte {offset + stored.nbytes}")
        refuse_constant(stored, self.front_end)
        if stored is not crop:
            torch.from_numpy(crop).copy_(torch.from_numpy(stored))  # many times faster than numpy with float16
        values, fixed = torch.from_numpy(crop), fixed_statistics(self.front_end)
        own = normalise(values, Statistics(float(mean), float(std)), out=None if fixed else values)
        # The squares of all normalised values of the clip add up to their number, so those of the crop cannot exceed
        # it: this shows damage, NaN and Inf without reading the rest. The slack is for rounding.
        slack = crop.size * (1e-5 / (float(std) + STD_OFFSET)) ** 2
        flat = own.numpy().reshape(-1)
        if not np.dot(flat, flat) <= 1.001 * frames * self.n_mels + slack:
            raise ValueError("the values do not fit their stored mean and deviation, or are NaN or Inf")
        if fixed:
            normalise(values, fixed, out=values)
        repeat_to_fill(out, length)

    def _read_member(self, index: int) -> bytes:
        sample = self._samples[index]
        return self._files.read(self._paths[self._shard(index)], int(sample["offset"]), int(sample["extent"]))

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def name(self, index: int) -> str:
        """Shard and key of a sample, for messages; keys are not kept in memory but read again."""
        shard = self._shard(index)
        path, number = self._paths[shard], index - self._first[shard]
        try:
            keys = (fitting_index(path) or index_from_headers(path, report=lambda problem: None)).keys
            key = keys[in_subset(keys, self._fraction)][number]
            return f"{path}, sample {key.decode(errors='replace')}"
        except (ArchiveError, IndexError):  # the index, or a shard without one, is gone as well
            return f"{path}, sample number {number}"


def _empty_to_hand_over(*shape: int) -> torch.Tensor:
    """A float32 tensor to fill. In a worker it is in shared memory, where the batch would else be copied to."""
    if get_worker_info() is None or not hasattr(torch.UntypedStorage, "_new_shared"):
        return torch.empty(*shape)
    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))
    return torch.empty(0).set_(storage).view(shape)
