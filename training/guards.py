"""Steps whose loss or gradient is not finite: never applied, counted, and named with their samples."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch

logger = logging.getLogger(__name__)

STEPS_IN_A_ROW = 10
STEPS_IN_A_ROW_SCALED = 40  # float16's loss scale begins at 2^16 and halves at each overflow; this is far below 1
SAMPLES_NAMED = 8


class NonFiniteError(ArithmeticError):
    """Too many steps in a row had a loss or a gradient that is not finite, or the weights are not."""


class _Step(NamedTuple):
    epoch: int
    step: int
    loss: torch.Tensor
    bad: torch.Tensor
    samples: torch.Tensor


class StepGuard:
    """Keeps an eye on the steps of one process. What it sees stays on the device until `review`.

    Args:
        scaled: whether a GradScaler is at work: it skips overflowing steps by itself, as a matter of course, which is
            not worth a warning unless the loss itself is not finite.
        name_sample: the name of a sample by its index.
    """

    def __init__(self, scaled: bool, name_sample: Callable[[int], str]):
        self._scaled, self._name_sample = scaled, name_sample
        self._unread: list[_Step] = []
        self._in_a_row = 0
        self.skipped = 0  # steps so far

    def watch(
        self, epoch: int, step: int, loss: torch.Tensor, grad_norm: torch.Tensor, samples: torch.Tensor
    ) -> torch.Tensor:
        """Notes a step before the optimizer makes it. Returns 1.0 where it must not, else 0.0, on the device.

        With several processes grad_norm, the norm of the averaged gradient, is the same on each, and so is the answer.
        """
        bad = ~torch.isfinite(grad_norm)
        self._unread.append(_Step(epoch, step, loss.detach(), bad, samples))
        return bad.float()

    def review(self) -> None:
        """Reads what was noted since the last review, which on CUDA waits for the device.

        Raises NonFiniteError after 10 bad steps in a row (40 with float16), in every process at the same step.
        """
        if not self._unread:
            return
        steps, self._unread = self._unread, []
        values = torch.stack([torch.stack([s.loss.float(), s.bad.float()]) for s in steps]).tolist()
        for step, (loss, bad) in zip(steps, values, strict=True):
            self._in_a_row = self._in_a_row + 1 if bad else 0
            self.skipped += bool(bad)
            loss_is_finite = torch.isfinite(torch.tensor(loss)).item()
            if bad and not (self._scaled and loss_is_finite):
                logger.warning(
                    "epoch %d, step %d skipped: %s; its samples here: %s",
                    step.epoch + 1,
                    step.step + 1,
                    "the gradient is not finite" if loss_is_finite else f"the loss is {loss}",
                    self._names(step.samples),
                )
            if self._in_a_row >= (STEPS_IN_A_ROW_SCALED if self._scaled else STEPS_IN_A_ROW):
                raise NonFiniteError(
                    f"{self._in_a_row} steps in a row, up to step {step.step + 1} of epoch {step.epoch + 1}, had a "
                    "loss or gradient that is not finite; none was applied. A lower opt.learning_rate, "
                    "opt.clip_grad_value or --precision float32 may help, --detect-anomaly shows the operation"
                )

    def _names(self, samples: torch.Tensor) -> str:
        names = [self._name_sample(index) for index in samples[:SAMPLES_NAMED].tolist()]
        more = len(samples) - len(names)
        return "; ".join(names) + (f"; and {more} more" if more else "")


@torch.no_grad()
def update_ratio(before: list[torch.Tensor], parameters: list[torch.Tensor]) -> torch.Tensor:
    """The norm of a step's change of the parameters, divided by their norm before it."""
    change = torch._foreach_norm(torch._foreach_sub(parameters, before))
    return torch.stack(change).norm() / torch.stack(torch._foreach_norm(before)).norm()
