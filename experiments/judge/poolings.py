"""From the steps of a clip to one embedding, without training: what the judge compares."""

from collections.abc import Callable

import torch
from torch import Tensor

from audio_mamba.models.pooling import pool


def _differences(steps: Tensor) -> Tensor:
    """Root mean square of the change from step to step, [t, width] -> [width]; 0 for a single step."""
    changes = steps[1:] - steps[:-1]
    return changes.square().mean(dim=0).sqrt() if len(changes) else torch.zeros_like(steps[0])


def _halves(steps: Tensor) -> Tensor:
    """The means of the first and of the second half of a clip, [t, width] -> [2 * width]."""
    middle = max(1, len(steps) // 2)
    return torch.cat([steps[:middle].mean(dim=0), steps[-middle:].mean(dim=0)])


def _quantiles(steps: Tensor, shares: tuple[float, ...]) -> Tensor:
    return torch.quantile(steps, torch.tensor(shares), dim=0).flatten()


def _joined(*parts: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda steps: torch.cat([part(steps) for part in parts])


def _mean(steps: Tensor) -> Tensor:
    return steps.mean(dim=0)


def _deviation(steps: Tensor) -> Tensor:
    return steps.std(dim=0, correction=0)


def _mean_std(steps: Tensor) -> Tensor:
    return pool(steps, "mean_std")


def _skewness(steps: Tensor) -> Tensor:
    """The cube root of the third central moment, in the unit of the steps."""
    moment = (steps - steps.mean(dim=0)).pow(3).mean(dim=0)
    return moment.sign() * moment.abs().pow(1 / 3)


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {  # float32 [t, width] -> [a multiple of width]
    "mean": _mean,
    "mean_std": _mean_std,
    "std": _deviation,
    "max": lambda steps: steps.amax(dim=0),
    "mean_max": _joined(_mean, lambda steps: steps.amax(dim=0)),
    "mean_change": _joined(_mean, _differences),
    "mean_std_change": _joined(_mean_std, _differences),
    "mean_std_skew": _joined(_mean_std, _skewness),
    "mean_std_max": _joined(_mean_std, lambda steps: steps.amax(dim=0)),
    "halves_std": _joined(_halves, _deviation),
    "quantiles": lambda steps: _quantiles(steps, (0.1, 0.5, 0.9)),
    "quartiles_5": lambda steps: _quantiles(steps, (0.0, 0.25, 0.5, 0.75, 1.0)),
}
