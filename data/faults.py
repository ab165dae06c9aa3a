"""Shards and samples that cannot be used: a counted warning for each, and an error when there are too many."""

import logging
from collections import Counter
from pathlib import Path

from audio_mamba.data.samples import ArchiveError

MAX_SHARE = 0.01  # of the samples of an epoch
WARNINGS_IN_FULL = 100  # after so many, only every hundredth is logged

# Shard, what is wrong with it or with one of its samples, number of samples lost (0: a partner of mixup).
Fault = tuple[str | Path, str, int]

logger = logging.getLogger(__name__)


class Faults:
    """Counts the bad samples of each pass over `total` samples. A problem is logged once, not in every pass.

    More than 1% of a pass, and more than `allowed` samples, raise ArchiveError with a summary.
    """

    def __init__(self, total: int, allowed: int = 0):
        self.total, self._allowed = total, allowed
        self._warned: set[str] = set()
        self.begin_pass()

    def begin_pass(self) -> None:
        self._lost: Counter[str] = Counter()  # shard -> samples
        self._first: str | None = None

    def report(self, shard: str | Path, problem: str, count: int = 1) -> None:
        """Count a problem, which names its shard and key, and the number of samples lost by it.

        Raises:
            ArchiveError: too many samples are lost.
        """
        if count:
            self._lost[str(shard)] += count
            self._first = self._first or problem
        if problem not in self._warned:
            self._warned.add(problem)
            if len(self._warned) <= WARNINGS_IN_FULL or len(self._warned) % 100 == 0:
                logger.warning("skipped, bad sample or shard %d: %s", len(self._warned), problem)
        lost = self._lost.total()
        if lost > max(MAX_SHARE * self.total, self._allowed):
            shards = ", ".join(f"{lost} in {shard}" for shard, lost in self._lost.most_common(5))
            raise ArchiveError(
                f"{lost} of {self.total} samples cannot be used, more than {MAX_SHARE:.0%}: {shards}; "
                f"the first: {self._first} (audio-mamba verify lists all)"
            )
