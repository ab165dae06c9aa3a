"""Windows of a clip, each of which is classified as a clip of its own: how many there are, and where."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SHORTEST = 0.1  # of a window, at the end of a clip; so does data.prepare cut clips


@dataclass(frozen=True)
class Windows:
    """Windows of one length, one hop after the other.

    Attributes:
        length, hop: in frames of the log-mel.
        rate: frames per second.
    """

    length: int
    hop: int
    rate: float

    @classmethod
    def of_seconds(cls, window: float, hop: float | None, rate: float, prefix: str = "") -> "Windows":
        """From lengths in seconds; without a hop, windows touch. ValueError, which names the argument with the prefix,
        for less than a frame."""
        for name, value in (("window", window), ("hop", hop)):
            if value is not None and not 1 <= value * rate < math.inf:
                raise ValueError(f"{prefix}{name} must be at least {1 / rate:g} seconds, got {value:g}")
        length = round(window * rate)
        return cls(length, length if hop is None else round(hop * rate), rate)

    def count(self, frames: int) -> int:
        """Windows of a clip: as many as it takes to reach its end, but at least one.

        The last one may be shorter, down to a tenth of a window. The last frame of a clip is centred on its end, so it
        does not count.
        """
        left = frames - 1
        last = max(0, -(-(left - self.length) // self.hop))
        if last and left - last * self.hop < SHORTEST * self.length:
            last -= 1
        return last + 1

    def cut(self, chunks: Iterable[Tensor], frames: int) -> Iterator[Tensor]:
        """The windows, [length, mels] but for the last, of a clip of `frames` frames that arrives in parts."""
        arriving, held, first = iter(chunks), None, 0  # the held frames begin with frame number `first`
        for number in range(self.count(frames)):
            begin = number * self.hop
            end = min(begin + self.length, frames)
            while held is None or first + len(held) < end:
                chunk = next(arriving)
                held = chunk if held is None else torch.cat([held, chunk])
            held, first = held[begin - first :], begin
            yield held[: end - begin]

    def span(self, number: int, seconds: float) -> tuple[float, float]:
        """Where a window begins and ends, in seconds, in a clip of `seconds`."""
        start = number * self.hop / self.rate
        return start, min(start + self.length / self.rate, seconds)
