"""Training batches from archives.

The order of an epoch depends on (seed, epoch) alone, and crop and mask of a sample on (seed, epoch, sample index)
alone; never on rank, worker or place in a batch. So any number of processes and workers sees the same samples, crops
and masks, and a run can resume at any step of any epoch.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from audio_mamba.data.crops import DrawMask
from audio_mamba.data.dataset import LogMelDataset
from audio_mamba.data.faults import MAX_SHARE, Fault, Faults
from audio_mamba.data.remote import RemoteShards
from audio_mamba.front_end import PUBLISHED, FrontEnd


def check_enough(samples: int, batch_size: int, world_size: int) -> None:
    """ValueError unless there is one whole batch for every rank."""
    if samples < batch_size * world_size:
        raise ValueError(
            f"{samples} samples do not fill one batch: batch size {batch_size} on {world_size} "
            f"process(es) needs at least {batch_size * world_size}"
        )


class EpochBatches(Sampler):
    """Batches of (epoch, index) for one rank; every epoch has its own order, which all ranks share.

    Step s of rank r takes order[(s * world_size + r) * batch_size:][:batch_size], so that in each step the ranks
    together see what one process with the whole batch would. The remainder of the order is dropped.
    """

    def __init__(self, n_samples: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} does not exist among {world_size} processes")
        check_enough(n_samples, batch_size, world_size)
        self.n_samples, self.batch_size, self.rank, self.world_size = n_samples, batch_size, rank, world_size
        self.seed = seed
        self.epoch, self.first_step = 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.n_samples // (self.batch_size * self.world_size)

    def __iter__(self) -> "_EpochIterator":
        return _EpochIterator(self)

    def order(self, epoch: int) -> np.ndarray:
        """All samples in the order of an epoch, int64 [n_samples]."""
        return np.random.default_rng((self.seed, epoch)).permutation(self.n_samples)

    def batches(self, epoch: int) -> np.ndarray:
        """The sample indices of all steps of an epoch for this rank, int64 [steps, batch_size]."""
        used = self.order(epoch)[: len(self) * self.world_size * self.batch_size]
        return used.reshape(len(self), self.world_size, self.batch_size)[:, self.rank]


class _EpochIterator(Iterator):
    """One epoch's batches. Its state, which StatefulDataLoader saves and restores, is the epoch and the next step."""

    def __init__(self, sampler: EpochBatches):
        self._sampler = sampler
        self._begin(sampler.epoch, sampler.first_step)

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


class FixedBatches(Sampler):
    """All samples in stored order as batches of (epoch 0, index), so with the same crops and masks each time; each rank
    takes every world_size-th sample."""

    def __init__(self, n_samples: int, batch_size: int, rank: int, world_size: int):
        self.indices, self._batch_size = range(rank, n_samples, world_size), batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for begin in range(0, len(self.indices), self._batch_size):
            yield [(0, index) for index in self.indices[begin : begin + self._batch_size]]


class ArchiveLoader(StatefulDataLoader):
    """Batches from a data set that yields (batch, faults). The faults of all workers are counted and reported here.

    `samples` is the number of samples per pass on this rank; `allowed` of them may be lost in any case.
    """

    def __init__(self, dataset: Dataset, samples: int, allowed: int = 0, num_workers: int = 0, **options):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata's own call
            options = common_options(num_workers) | options
            super().__init__(dataset, collate_fn=_as_it_is, num_workers=num_workers, **options)
        self.faults = Faults(samples, allowed)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.faults.begin_pass()
        return map(self._without_faults, super().__iter__())

    def _without_faults(self, fetched: tuple[dict[str, torch.Tensor], list[Fault]]) -> dict[str, torch.Tensor]:
        batch, faults = fetched
        for fault in faults:
            self.faults.report(*fault)
        return batch


def common_options(num_workers: int) -> dict[str, Any]:
    """Options of every loader.

    A loader draws a number at the start of each pass. A resumed run starts one pass more, so from torch's own generator
    the model would then draw other numbers. Workers are forked on Linux, as by default before Python 3.14: others get
    their data set pickled, and with its `draw_mask` the encoder, GPU and all.
    """
    return {
        "generator": torch.Generator(),
        "multiprocessing_context": "fork" if num_workers and sys.platform == "linux" else None,
    }


def _as_it_is(fetched: tuple) -> tuple:
    """The data set makes whole batches itself."""
    return fetched


def make_loader(
    directories: Sequence[str | Path],
    *,
    num_frames: int,
    batch_size: int,
    front_end: FrontEnd = PUBLISHED,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    num_workers: int = 0,
    draw_mask: DrawMask | None = None,
    pin_memory: bool = False,
    strict: bool = False,
    fraction: float = 1.0,
    worker_init_fn: Callable[[int], None] | None = None,
) -> ArchiveLoader:
    """The batches of one rank; call `set_epoch` before each epoch.

    Args:
        directories: archive folders, made by data.prepare or published.
        num_frames: frames of a crop.
        batch_size: samples per batch on this rank.
        front_end: of the spectrograms; archives made with another one are refused.
        rank, world_size: of this process among those that train together.
        seed: of order, crops and masks; the same on all ranks.
        num_workers: worker processes; 0 reads in this process. The batches are the same for any number.
        draw_mask: called with a numpy generator, returns one sample's mask, float32 [L]; runs in the workers.
        pin_memory: put batches into page-locked memory, for fast copies to a GPU.
        strict: raise at the first bad shard or sample, instead of skipping up to 1% of them with warnings.
        fraction: share of the samples to use, in (0, 1]; their keys decide which, see `data.subset`.
        worker_init_fn: called in each worker with its number, at its start.

    Returns:
        a loader of samples // (batch_size * world_size) batches, each a dict of spectrogram float32
        [B, 1, num_frames, n_mels], index int64 [B] and, with draw_mask, mask float32 [B, L]. Its `state_dict` and
        `load_state_dict` resume in mid-epoch with exactly the remaining batches.

    Raises:
        FrontEndError: an archive was made with another front end.
        ArchiveError: with strict, a bad shard (here) or sample (while iterating); else more than 1% of them.
        ValueError: fewer samples than one batch on all ranks.
    """
    dataset = LogMelDataset(directories, num_frames, front_end, seed, draw_mask, strict, fraction)
    batches = EpochBatches(len(dataset), batch_size, rank, world_size, seed)
    return ArchiveLoader(
        dataset,
        len(batches) * batch_size,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=worker_init_fn,
    )


def make_validation_loader(
    directory: str | Path,
    *,
    num_frames: int,
    batch_size: int,
    front_end: FrontEnd = PUBLISHED,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    num_workers: int = 0,
    draw_mask: DrawMask | None = None,
    pin_memory: bool = False,
    strict: bool = False,
    worker_init_fn: Callable[[int], None] | None = None,
) -> ArchiveLoader:
    """All samples of an archive folder, with the same crops and masks in each pass; arguments as for `make_loader`."""
    dataset = LogMelDataset([directory], num_frames, front_end, seed, draw_mask, strict)
    batches = FixedBatches(len(dataset), batch_size, rank, world_size)
    return ArchiveLoader(
        dataset,
        len(batches.indices),
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=worker_init_fn,
    )


def make_remote_loader(
    urls: Sequence[str],
    *,
    samples: int,
    num_frames: int,
    batch_size: int,
    front_end: FrontEnd = PUBLISHED,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    num_workers: int = 0,
    draw_mask: DrawMask | None = None,
    pin_memory: bool = False,
    strict: bool = False,
    fraction: float = 1.0,
    worker_init_fn: Callable[[int], None] | None = None,
) -> ArchiveLoader:
    """The batches of one rank from shards that can only be read from front to back (see `data.remote`).

    Args:
        urls: shards in the notation of webdataset: `pipe:`, `http:`, `s3:`, `file:` or paths; braces for many.
        samples: how many samples all shards hold; with `fraction`, it sets the number of steps.
        Others as for `make_loader`.

    Returns:
        as `make_loader`; `index` is a hash of shard and key.

    Raises:
        ValueError: fewer shards than readers, or fewer samples than one batch on all ranks.
    """
    dataset = RemoteShards(
        urls,
        samples=samples,
        num_frames=num_frames,
        batch_size=batch_size,
        front_end=front_end,
        rank=rank,
        world_size=world_size,
        seed=seed,
        num_workers=num_workers,
        draw_mask=draw_mask,
        strict=strict,
        fraction=fraction,
    )
    check_enough(dataset.samples, batch_size, world_size)
    # One shard may be less than 1% of the epoch but more than 1% of what one of several ranks reads.
    one_shard = min(dataset.samples // len(dataset.urls), int(MAX_SHARE * dataset.samples))
    return ArchiveLoader(
        dataset,
        len(dataset) * batch_size,
        one_shard,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=worker_init_fn,
    )


def set_epoch(loader: StatefulDataLoader, epoch: int, first_step: int = 0) -> None:
    """Set the epoch and step at which the next iteration over the loader begins.

    A loader resumed by `load_state_dict` finishes its own epoch first. The batches are those of the whole epoch from
    that step on; from remote shards, only if the number of processes and workers is the same.
    """
    source = loader.dataset if loader.batch_sampler is None else loader.batch_sampler
    source.epoch, source.first_step = epoch, first_step
