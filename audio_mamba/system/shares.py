"""The share of a list that one of several processes works on, without any connection between them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

# Variables with the process's number, the number of processes, and both within its machine. SLURM_NTASKS would not do:
# it is what a job asks for, and a batch script, which is one process with SLURM_PROCID=0, has it too.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),  # srun
)


@dataclass(frozen=True)
class Share:
    """One of `count` shares. Attributes count from 0; texts for users count from 1.

    Attributes:
        number: of the share.
        count: of all shares.
        local_number: of the process on its machine.
        local_count: processes on its machine.
    """

    number: int = 0
    count: int = 1
    local_number: int = 0
    local_count: int = 1

    @classmethod
    def of_process(cls, text: str | None = None) -> "Share":
        """The share of this process: `text`, such as "2/4", or what torchrun or srun say, or all.

        Raises:
            ValueError: `text` is not a share, or the variables of a launcher do not give one.
        """
        if text is not None:
            match = re.fullmatch(r"(\d+)/(\d+)", text)
            if not match or not 1 <= int(match[1]) <= int(match[2]):
                raise ValueError(f"a share is written as NUMBER/COUNT, such as 1/4 and 4/4, got {text!r}")
            return cls(int(match[1]) - 1, int(match[2]))
        for names in LAUNCHERS:
            number, count, local_number, local_count = (os.environ.get(name, "") for name in names)
            if not (number and count):
                continue
            if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
                raise ValueError(f"${names[0]} is {number!r} and ${names[1]} is {count!r}: there is no such share")
            if int(count) > 1:
                here = int(local_count) if local_count.isdigit() else 1
                return cls(int(number), int(count), int(local_number or 0), here)
        return cls()

    def gpu(self, count: int) -> int:
        """Which of the `count` GPUs that it sees is this process's own, counted from 0."""
        return self.local_number % count

    def __str__(self) -> str:
        return f"{self.number + 1} of {self.count}"

    def all(self) -> list["Share"]:
        """All shares of the list, in order."""
        return [Share(number, self.count) for number in range(self.count)]

    def every(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this share, each `count`-th one, for items whose cost grows along the list."""
        return items[self.number :: self.count]

    def part(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this share, neighbours in the list; the sizes of two shares differ by one at most."""
        first, end = (len(items) * number // self.count for number in (self.number, self.number + 1))
        return items[first:end]
