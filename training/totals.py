"""Sums of losses and times over the steps of an epoch, and their means over the processes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from audio_mamba.training import distributed

NUMBER = "number "  # prefix in a state dict: of the sums of the objective's numbers


def _scalar(value: float) -> torch.Tensor:
    """A float64 scalar on the CPU, which may be added to one on another device."""
    return torch.tensor(value, dtype=torch.float64)


@dataclass
class Totals:
    """Sums of this process over some steps of an epoch.

    Losses and numbers stay on the device until a line is due, so that the GPU does not wait for the CPU at every step.
    """

    loss: torch.Tensor = field(default_factory=lambda: _scalar(0.0))  # sum of the finite losses
    finite: torch.Tensor = field(default_factory=lambda: _scalar(0.0))  # number of finite losses
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0  # seconds spent waiting for data
    numbers: dict[str, torch.Tensor] = field(default_factory=dict)  # sums over the steps with finite losses, by name

    def __add__(self, other: "Totals") -> "Totals":
        sums = {name: value + vars(other)[name] for name, value in vars(self).items() if name != "numbers"}
        return Totals(**sums, numbers=sum_by_name(self.numbers, other.numbers))

    def over_processes(self) -> "Means":
        """The means over the processes and over the steps with finite losses. All processes must call this."""
        numbers = sorted(self.numbers.items())
        values = [self.loss, self.finite, _scalar(self.waited), *(value for _, value in numbers)]
        sums = distributed.mean(torch.stack([value.to(self.loss.device) for value in values]))
        loss, finite, waited, *rest = sums.tolist()
        return Means(
            loss / finite if finite else math.nan,
            round((self.steps - finite) * distributed.world_size()),
            waited,
            {name: value / finite if finite else math.nan for (name, _), value in zip(numbers, rest, strict=True)},
        )

    def state_dict(self) -> dict[str, float | int]:
        """The sums by name, those of the objective's numbers with a prefix."""
        return {
            "loss": self.loss.item(),
            "finite": self.finite.item(),
            "steps": self.steps,
            "seconds": self.seconds,
            "waited": self.waited,
            **{NUMBER + name: value.item() for name, value in self.numbers.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, float | int]) -> "Totals":
        """The inverse of `state_dict`."""
        return cls(
            loss=_scalar(state["loss"]),
            finite=_scalar(state["finite"]),
            steps=int(state["steps"]),
            seconds=state["seconds"],
            waited=state["waited"],
            numbers={key: _scalar(value) for key, value in with_prefix(state, NUMBER).items()},
        )


class Means(NamedTuple):
    """`Totals` over all processes."""

    loss: float  # NaN if none was finite
    non_finite: int  # losses that were NaN or Inf
    waited: float  # seconds of waiting for data
    numbers: dict[str, float]


def sum_by_name(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sums of equal names; what one side lacks counts as 0."""
    return {name: one.get(name, _scalar(0.0)) + other.get(name, _scalar(0.0)) for name in {**one, **other}}


def with_prefix(state: Mapping[str, float | int], prefix: str) -> dict[str, Any]:
    """The entries whose keys begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
