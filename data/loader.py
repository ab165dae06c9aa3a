"""Training batches from archives: one fixed crop, and where asked one mask, for each sample and epoch.

The order of an epoch depends on (seed, epoch) alone, and what is drawn for a sample on (seed, epoch, sample index)
alone; never on rank, worker or place in a batch. So any number of processes and workers sees the same samples, crops
and masks, and a run can go on from any step of any epoch.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from data.archives import ArchiveError, ShardFiles, decode_spectrogram, read_index, shard_indices
from data.features import N_MELS, normalise

DrawMask = Callable[[np.random.Generator], np.ndarray]


class LogMelDataset(Dataset):
    """Random access to the samples of one or more archive folders, numbered in the order of folders and shards.

    An item is asked for as (epoch, index). Holds 16 bytes per sample, so millions fit every worker.

    Args:
        directories: archive folders, ours or published.
        num_frames: length of a crop; shorter clips are repeated to fill it.
        n_mels: the number of mel bands each sample must have.
        seed: seed of crops and masks.
        draw_mask: called with a generator, returns the mask of one sample; None for no masks.

    Raises:
        ArchiveError: at once for missing or damaged shards, at an item for a bad sample.
    """

    def __init__(self, directories: Sequence[str | Path], num_frames: int, n_mels: int = N_MELS, seed: int = 0,
                 draw_mask: DrawMask | None = None):
        shards = [shard for directory in directories for shard in shard_indices(directory)]
        if not shards:
            raise ArchiveError("no archive folder was given")
        self.num_frames, self.n_mels, self.seed, self.draw_mask = num_frames, n_mels, seed, draw_mask
        self._paths = [path for path, _ in shards]
        self._first = np.cumsum([0] + [len(index) for _, index in shards])       # first sample of each shard, and end
        self._offset = np.concatenate([index.data_offset for _, index in shards])
        self._size = np.concatenate([index.data_size for _, index in shards])
        self._files = ShardFiles()

    def __len__(self) -> int:
        return len(self._offset)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor | np.ndarray | int]:
        """Sample `index` as drawn in `epoch`: spectrogram float32 [1, num_frames, n_mels], index, perhaps mask."""
        epoch, index = item
        rng = np.random.default_rng((self.seed, epoch, index))
        sample = {"index": index}
        if self.draw_mask is not None:
            sample["mask"] = self.draw_mask(rng)
        # Over the whole stored clip, before the crop, with ddof 0, as the published loader does.
        clip = normalise(torch.from_numpy(self._read(index)), ddof=0)            # [frames, mels]
        if not torch.isfinite(clip[0, 0]):                                       # one NaN or Inf spoils them all
            raise ArchiveError(f"{self._place(index)}: the spectrogram holds NaN or Inf")
        sample["spectrogram"] = _crop(clip, self.num_frames, rng)[None]          # [1, num_frames, mels]
        return sample

    def _read(self, index: int) -> np.ndarray:
        shard = self._shard(index)
        try:
            data = self._files.read(self._paths[shard], self._offset[index], self._size[index])
            spectrogram = decode_spectrogram(data)
        except (OSError, ValueError) as error:
            raise ArchiveError(f"{self._place(index)}: {error}") from error
        if spectrogram.shape[1] != self.n_mels:
            raise ArchiveError(f"{self._place(index)}: has {spectrogram.shape[1]} mel bands, "
                               f"but {self.n_mels} are expected")
        return spectrogram

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def _place(self, index: int) -> str:
        """The name of a sample for messages. Keys are not kept in memory."""
        shard = self._shard(index)
        key = read_index(self._paths[shard]).keys[index - self._first[shard]]
        return f"{self._paths[shard]}, sample {key.decode()}"


def _crop(clip: torch.Tensor, num_frames: int, rng: np.random.Generator) -> torch.Tensor:
    """num_frames successive frames of [frames, mels] from a random place; a shorter clip is repeated from its start."""
    frames = len(clip)
    if frames < num_frames:
        repeats = -(-num_frames // frames)
        return clip.repeat(repeats, 1)[:num_frames]
    start = rng.integers(frames - num_frames + 1)
    return clip[start:start + num_frames].clone()       # a copy, so that the batch does not keep the whole clip


class EpochBatches(Sampler):
    """Batches of (epoch, index) for one rank; every epoch has another order, which all ranks share.

    Step s of rank r takes order[(s * world_size + r) * batch_size:][:batch_size], so that together the ranks see in a
    step what one process with the whole batch would. The remainder of the order is dropped.
    """

    def __init__(self, n_samples: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} does not exist among {world_size} processes")
        if n_samples < batch_size * world_size:
            raise ValueError(f"{n_samples} samples do not fill one batch: batch size {batch_size} on {world_size} "
                             f"process(es) needs at least {batch_size * world_size}")
        self.n_samples, self.batch_size, self.rank, self.world_size = n_samples, batch_size, rank, world_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.n_samples // (self.batch_size * self.world_size)

    def __iter__(self) -> "_EpochIterator":
        return _EpochIterator(self)

    def batches(self, epoch: int) -> np.ndarray:
        """The sample indices of all steps of an epoch for this rank, int64 [steps, batch_size]."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.n_samples)
        used = order[:len(self) * self.world_size * self.batch_size]
        return used.reshape(len(self), self.world_size, self.batch_size)[:, self.rank]


class _EpochIterator(Iterator):
    """One epoch's batches. Its state, which StatefulDataLoader saves and restores, is the epoch and the next step."""

    def __init__(self, sampler: EpochBatches):
        self._sampler = sampler
        self._begin(sampler.epoch, step=0)

    def _begin(self, epoch: int, step: int) -> None:
        self._epoch, self._step = epoch, step
        self._batches = self._sampler.batches(epoch)

    def __next__(self) -> list[tuple[int, int]]:
        if self._step == len(self._batches):
            raise StopIteration
        batch = [(self._epoch, int(index)) for index in self._batches[self._step]]
        self._step += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._begin(state["epoch"], state["step"])


def make_loader(directories: Sequence[str | Path], *, num_frames: int, batch_size: int, n_mels: int = N_MELS,
                rank: int = 0, world_size: int = 1, seed: int = 0, num_workers: int = 0,
                draw_mask: DrawMask | None = None, pin_memory: bool = False,
                multiprocessing_context: str | None = None) -> StatefulDataLoader:
    """The batches of one rank; call `set_epoch` before each epoch.

    Args:
        directories: archive folders, ours or published; all their samples are used.
        num_frames: frames of a crop.
        batch_size: samples per batch on this rank.
        n_mels: the number of mel bands each sample must have.
        rank, world_size: this process among those that train together.
        seed: seed of order, crops and masks; the same on all ranks.
        num_workers: worker processes; 0 reads in this one. The batches are the same for any number.
        draw_mask: called with a numpy generator, returns one sample's mask, float32 [L]; runs in the workers.
        pin_memory: put batches into page-locked memory, for fast copies to a GPU.
        multiprocessing_context: how workers start ("fork", "spawn", ...); None is the platform's own way.

    Returns:
        a loader of samples // (batch_size * world_size) batches, each a dict of spectrogram float32
        [B, 1, num_frames, n_mels], index int64 [B] and, with draw_mask, mask float32 [B, L]. Its `state_dict` and
        `load_state_dict` resume in mid-epoch with exactly the batches that were left.

    Raises:
        ArchiveError: bad shards (here) or samples (while iterating), named.
        ValueError: fewer samples than one batch on all ranks.
    """
    dataset = LogMelDataset(directories, num_frames, n_mels, seed, draw_mask)
    batches = EpochBatches(len(dataset), batch_size, rank, world_size, seed)
    return StatefulDataLoader(dataset, batch_sampler=batches, num_workers=num_workers, pin_memory=pin_memory,
                              persistent_workers=num_workers > 0,
                              multiprocessing_context=multiprocessing_context if num_workers else None)


def set_epoch(loader: StatefulDataLoader, epoch: int) -> None:
    """The epoch that the next iteration over the loader begins; one resumed in mid-epoch finishes its own first."""
    loader.batch_sampler.epoch = epoch
