"""Sequential reading of shards without random access: `pipe:`, http, s3 and everything else that webdataset opens.

The shards of an epoch, in an order of (seed, epoch), are dealt out to readers, which are the workers of all ranks. Each
reads its own from front to back through a shuffle buffer. Every rank makes the same number of batches: a reader whose
shards run out early begins them again, and one with more leaves the rest, a different rest in each epoch.
"""

import contextlib
import copy
import os
import re
import shlex
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.gopen import gopen, gopen_schemes, set_options
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from audio_mamba.data.contents import Contents, ShardContents
from audio_mamba.data.crops import DrawMask, crop_member
from audio_mamba.data.faults import MAX_SHARE, Fault
from audio_mamba.data.samples import DATA_MEMBERS, ArchiveError
from audio_mamba.data.subset import position
from audio_mamba.data.tar_members import ForwardFile, tar_members
from audio_mamba.front_end import FrontEnd

SHUFFLE_BUFFER = 1000  # clips, 160 to 320 MB of log-mels of ten seconds
BAD_IN_A_ROW = 20  # after so many, and more than may be lost, the search for a good sample ends

RawSample = tuple[str, str, bytes]  # shard, key, data member


def is_remote(address: str) -> bool:
    """Whether data are at a URL or command such as `http://...` or `pipe:...`, rather than in a folder."""
    return not os.path.isdir(address) and _scheme(address) is not None  # a folder may be named run:1


def _scheme(address: str) -> str | None:
    """What an address begins with, up to the colon. One letter and a colon is a Windows drive."""
    match = re.match(r"([a-z0-9]{2,}):", str(address))
    return match[1] if match else None


class RemoteShards(IterableDataset):
    """Batches of one rank, each with the faults found; the arguments are those of `make_remote_loader`.

    A `shuffle_buffer` of 0 leaves shards and samples in stored order.
    """

    def __init__(
        self,
        urls: Sequence[str],
        samples: int,
        num_frames: int,
        batch_size: int,
        front_end: FrontEnd,
        rank: int,
        world_size: int,
        seed: int,
        num_workers: int,
        draw_mask: DrawMask | None,
        strict: bool,
        fraction: float = 1.0,
    ):
        self.urls = [url for pattern in urls for url in expand_urls(pattern)]
        for url in self.urls:
            if _scheme(url) not in (None, "file", "s3", *gopen_schemes):
                raise ValueError(f"{url} is not a folder, and the URL scheme {_scheme(url)}: is not supported")
        workers = max(1, num_workers)
        if len(self.urls) < world_size * workers:
            raise ValueError(
                f"{len(self.urls)} shards are too few for {world_size * workers} readers ({world_size} "
                f"process(es) with {workers} worker(s) each); use fewer workers or smaller shards"
            )
        self.samples, self._fraction = round(fraction * samples), fraction
        self.num_frames, self.batch_size, self.front_end = num_frames, batch_size, front_end
        self.rank, self.world_size, self.seed, self.strict = rank, world_size, seed, strict
        self.draw_mask, self.shuffle_buffer = draw_mask, SHUFFLE_BUFFER
        self.epoch, self.first_step = 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return self.samples // (self.batch_size * self.world_size)

    def __iter__(self) -> "_Reader":
        return _Reader(self)

    def members(self, url: str, report: Callable[[str], None]) -> Iterator[RawSample]:
        """The samples of a shard that are used; see `read_members`."""
        for sample in read_members(url, report):
            if self._fraction >= 1 or position(sample[1].encode(errors="surrogateescape")) < self._fraction:
                yield sample

    def name(self, index: int) -> str:
        """What is known of the sample with this number in a batch."""
        return f"the sample whose 'URL KEY' has the CRC-32 {index}"

    def contents(self) -> Contents:
        """The names of the shards and the stated number of samples; nothing is read for it."""
        return Contents(self.samples, [ShardContents(url.rsplit("/", 1)[-1], None, "", "") for url in self.urls])

    def first(self, count: int) -> dict[str, torch.Tensor]:
        """A batch of the first good samples in stored order, to look at; repeated if there are fewer than `count`.
        ArchiveError if there are none or, with strict, if a bad sample or shard comes first."""
        few = copy.copy(self)
        few.batch_size, few.shuffle_buffer, few.rank, few.world_size = count, 0, 0, 1
        few.samples = max(count, self.samples)
        with contextlib.closing(_Reader(few)) as reader:
            return next(reader)[0]


class _Reader(Iterator):
    """The batches of one reader in one epoch. Its state is its position; to resume there, it reads up to it."""

    def __init__(self, shards: RemoteShards):
        worker = get_worker_info()
        worker_id, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        self._shards = shards
        self._faults: list[Fault]
        turn = (worker_id + shards.first_step) % workers  # batches are taken from workers in turn
        self._number, self._readers = shards.rank * workers + turn, shards.world_size * workers
        self._batches = len(range(turn, len(shards), workers))
        self._begin(shards.epoch)
        if shards.first_step >= len(shards):  # the epoch has been read, and reading it again may take hours
            self._done = self._batches
            return
        faults: list[Fault] = []
        while self._done < len(range(turn, shards.first_step, workers)):
            faults += next(self)[1]
        self._faults = faults  # of the whole epoch, as if it had not been interrupted

    def _begin(self, epoch: int) -> None:
        self._epoch, self._done, self._drawn = epoch, 0, 0
        self._faults = []
        self._noted: set[str] = set()  # shards and samples with a fault in this epoch
        self._last_problem = "they hold no samples"
        order = np.arange(len(self._shards.urls))
        if self._shards.shuffle_buffer:
            np.random.default_rng((self._shards.seed, epoch)).shuffle(order)
        self._urls = [self._shards.urls[i] for i in order[self._number :: self._readers]]
        self._members = self._shuffled(np.random.default_rng((self._shards.seed, epoch, self._number)))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "done": self._done, "drawn": self._drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._begin(state["epoch"])
        self._done = state["done"]
        while self._drawn < state["drawn"]:
            self._draw()

    def __next__(self) -> tuple[dict[str, torch.Tensor], list[Fault]]:
        if self._done == self._batches:
            self.close()
            raise StopIteration
        shards, indices, masks = self._shards, [], []
        spectrogram = torch.empty(shards.batch_size, 1, shards.num_frames, shards.front_end.n_mels)
        for out in spectrogram[:, 0].numpy():
            index, mask = self._fill(out)
            indices.append(index)
            masks.append(mask)
        batch = {"spectrogram": spectrogram, "index": torch.tensor(indices)}
        if shards.draw_mask is not None:
            batch["mask"] = torch.from_numpy(np.stack([mask for mask in masks if mask is not None]))
        self._done += 1
        faults, self._faults = self._faults, []
        return batch, faults

    def close(self) -> None:
        """Close the shard that is being read, and end the command that it comes from."""
        self._members.close()

    def _fill(self, out: np.ndarray) -> tuple[int, np.ndarray | None]:
        """Fill `out` [num_frames, n_mels] with a crop of the next good sample; returns its number and mask."""
        shards, bad = self._shards, 0
        while bad <= max(BAD_IN_A_ROW, MAX_SHARE * shards.samples):
            url, key, member = self._draw()
            index = zlib.crc32(f"{url} {key}".encode())
            rng = np.random.default_rng((shards.seed, self._epoch, index))
            mask = None if shards.draw_mask is None else shards.draw_mask(rng)
            try:
                crop_member(out, member, shards.front_end, rng)
                return index, mask
            except ValueError as error:
                self._note(url, f"{url}, sample {key}", str(error), 1)
                bad += 1
        raise ArchiveError(f"{bad} remote samples in a row cannot be used; the last problem: {self._last_problem}")

    def _draw(self) -> RawSample:
        """The next sample from the shuffle buffer."""
        self._drawn += 1
        return next(self._members)

    def _shuffled(self, rng: np.random.Generator) -> Generator[RawSample, None, None]:
        """Endless samples: each new one takes the place of a random one of the buffer, which is given out."""
        buffer: list[RawSample] = []
        while True:
            found = 0
            for sample in self._one_pass():
                found += 1
                buffer.append(sample)
                if len(buffer) > self._shards.shuffle_buffer:
                    yield _pop(buffer, rng)
            while buffer:  # so that no sample is seen twice before all were seen once
                yield _pop(buffer, rng)
            if not found:
                raise ArchiveError(
                    f"none of {len(self._urls)} remote shards can be read; the last problem: {self._last_problem}"
                )

    def _one_pass(self) -> Iterator[RawSample]:
        expected = self._shards.samples // len(self._shards.urls)  # in each shard, about
        for url in self._urls:
            read, problems = 0, list[str]()
            try:
                for read, sample in enumerate(self._shards.members(url, problems.append), start=1):  # noqa: B007
                    yield sample
            except (OSError, ValueError, EOFError) as error:
                problems.append(str(error))
            if problems:
                reason = f"cannot be read in full as a tar file ({'; '.join(problems)})"
                self._note(url, url, reason, max(1, expected - read))

    def _note(self, url: str, bad: str, reason: str, lost: int) -> None:
        """Note that `bad`, a shard or a sample of it, cannot be used; once only, though its epoch may read it again."""
        self._last_problem = f"{bad}: {reason}"
        if self._shards.strict:
            raise ArchiveError(self._last_problem)
        if bad not in self._noted:
            self._noted.add(bad)
            self._faults.append((url, self._last_problem, lost))


def _pop(buffer: list[RawSample], rng: np.random.Generator) -> RawSample:
    """Take a random entry out and put the last one in its place."""
    number = rng.integers(len(buffer))
    buffer[number], buffer[-1] = buffer[-1], buffer[number]
    return buffer.pop()


def read_members(url: str, report: Callable[[str], None]) -> Iterator[RawSample]:
    """Shard, key and data member of each sample, as they arrive. Raises what the opener raises.

    `report` is called with each damage of the tar file; the samples after it are read all the same.
    """
    if url.startswith("s3:"):  # webdataset has no opener of its own for it, but takes any command
        url = f"pipe:aws s3 cp {shlex.quote(url)} -"
    with gopen(url) as opened:
        try:
            for key, data in _data_members(ForwardFile(opened), report):
                yield url, key, data
        except GeneratorExit:
            set_options(opened, ignore_errors=True)  # a command whose output nobody reads may well fail
            raise


def _data_members(file: ForwardFile, report: Callable[[str], None]) -> Iterator[tuple[str, bytes]]:
    for member in tar_members(file, report):
        key, extension = base_plus_ext(member.name)
        if member.isreg() and extension in DATA_MEMBERS:
            file.seek(member.offset_data)
            data = file.read(member.size)
            if len(data) == member.size:  # else the walk reports the end of the file
                yield key, data
