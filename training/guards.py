"""Steps with a NaN or Inf in the loss or gradient: they are skipped, counted, and reported with their samples."""

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

logger = logging.getLogger(__name__)

STEPS_IN_A_ROW = 10
STEPS_IN_A_ROW_SCALED = 40  # the loss scale of float16 starts at 2^16 and halves at each overflow: far below 1 by then
SAMPLES_NAMED = 8


class NonFiniteError(ArithmeticError):
    """Too many steps in a row had a NaN or Inf in the loss or gradient, or the weights have one."""


class _Step(NamedTuple):
    epoch: int
    step: int
    loss: torch.Tensor
    bad: torch.Tensor
    samples: torch.Tensor


def spread_to_gradient(loss: torch.Tensor) -> torch.Tensor:
    """The same loss, whose gradient is NaN if the loss itself is NaN or Inf.

    The gradient is averaged over the processes, so all of them then skip the step, as does a GradScaler.
    """
    return loss * (1 + 0 * loss.detach())


class StepGuard:
    """Watches the steps of one process. The values stay on the device until `review`.

    Args:
        scaled: whether a GradScaler is enabled. It skips steps that overflow, which is normal and gets no warning
            unless the loss itself is NaN or Inf.
        name_sample: returns the name of a sample for its index.
        skipped: steps of the run that were skipped before.
    """

    def __init__(self, scaled: bool, name_sample: Callable[[int], str], skipped: int = 0):
        self._scaled, self._name_sample = scaled, name_sample
        self._unread: list[_Step] = []
        self._in_a_row, self._skipped = 0, skipped

    @property
    def skipped(self) -> torch.Tensor | int:
        """Skipped steps of the run. With those that were not reviewed yet, it is a scalar on the device."""
        unread = [step.bad for step in self._unread]
        return self._skipped + (torch.stack(unread).sum() if unread else 0)

    def watch(
        self, epoch: int, step: int, loss: torch.Tensor, grad_norm: torch.Tensor, samples: torch.Tensor
    ) -> torch.Tensor:
        """Record a step before the optimizer applies it.

        Args:
            epoch, step: both counted from 0.
            loss: the loss of this process, a scalar on its device.
            grad_norm: the norm of the gradient, averaged over the processes, so that all of them decide alike.
            samples: indices of the samples of the step in this process.

        Returns:
            A float scalar on the device: 1.0 if the step must be skipped, else 0.0.
        """
        bad = ~torch.isfinite(grad_norm)
        self._unread.append(_Step(epoch, step, loss.detach(), bad, samples))
        return bad.float()

    def review(self) -> None:
        """Read what was recorded since the last review. On CUDA this waits for the device.

        Raises:
            NonFiniteError: 10 bad steps in a row, or 40 with a GradScaler; in every process at the same step.
        """
        if not self._unread:
            return
        steps, self._unread = self._unread, []
        values = torch.stack([torch.stack([s.loss.float(), s.bad.float()]) for s in steps]).tolist()
        for step, (loss, bad) in zip(steps, values, strict=True):
            self._in_a_row = self._in_a_row + 1 if bad else 0
            self._skipped += bool(bad)
            loss_is_finite = math.isfinite(loss)
            if bad and not (self._scaled and loss_is_finite):
                logger.warning(
                    "epoch %d, step %d skipped: %s; its samples in this process: %s",
                    step.epoch + 1,
                    step.step + 1,
                    "the gradient is NaN or Inf" if loss_is_finite else f"the loss is {loss}",
                    self._names(step.samples),
                )
            if self._in_a_row >= (STEPS_IN_A_ROW_SCALED if self._scaled else STEPS_IN_A_ROW):
                raise NonFiniteError(
                    f"{self._in_a_row} steps in a row, up to step {step.step + 1} of epoch {step.epoch + 1}, had a "
                    "NaN or Inf in the loss or gradient; none was applied. Try a lower opt.learning_rate, "
                    "opt.clip_grad_value or --precision float32; --detect-anomaly shows the operation"
                )

    def _names(self, samples: torch.Tensor) -> str:
        names = [self._name_sample(index) for index in samples[:SAMPLES_NAMED].tolist()]
        more = len(samples) - len(names)
        return "; ".join(names) + (f"; and {more} more" if more else "")


@torch.no_grad()
def update_ratio(before: list[torch.Tensor], parameters: list[torch.Tensor]) -> torch.Tensor:
    """The norm of the change that a step made to the parameters, divided by their norm before the step."""
    change = torch._foreach_norm(torch._foreach_sub(parameters, before))
    return torch.stack(change).norm() / torch.stack(torch._foreach_norm(before)).norm()
