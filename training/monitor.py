"""What a run shows while it trains: lines or a progress bar, log.txt, curves and, where asked for, wandb."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from atomic_files import atomic_write
from training import distributed, figures

logger = logging.getLogger(__name__)


class Monitor:
    """Follows the losses of a run. Every process calls it; the main one writes.

    Lines and wandb show means over all processes and over the steps since the line before. On a terminal there is a
    progress bar as well. `log.txt` has one JSON object per epoch, of which those from `first_epoch` on are dropped at
    the start: they belong to an attempt that was killed before its checkpoint, and are trained again.

    Args:
        workdir: folder of log.txt and curves.png.
        steps_per_epoch: batches of each process per epoch.
        samples_per_step: samples of a step, all processes together.
        print_freq: steps between two lines.
        wandb_run: a run of `start_wandb`, or None.
    """

    def __init__(self, workdir: Path, *, first_epoch: int, num_epochs: int, steps_per_epoch: int,
                 samples_per_step: int, print_freq: int, wandb_run: Any = None):
        self._log_path, self._curves_path = workdir / "log.txt", workdir / "curves.png"
        self._num_epochs, self._steps, self._samples_per_step = num_epochs, steps_per_epoch, samples_per_step
        self._print_freq, self._wandb_run = print_freq, wandb_run
        self._terminal = distributed.is_main() and sys.stderr.isatty()
        self._history = [line for line in read_log(self._log_path) if line["epoch"] < first_epoch]

    def epoch(self, epoch: int, batches: Iterable) -> Iterator[tuple[int, Any]]:
        """The batches with their numbers; when they are through, the epoch is written to log.txt."""
        self._epoch, self._step, self._line_step, self._rate = epoch, 0, 0, 0.0
        self._epoch_loss = self._line_loss = 0.0
        self._epoch_start = self._line_start = time.perf_counter()
        self._bar = tqdm(batches, desc=f"epoch {epoch + 1}/{self._num_epochs}", total=self._steps, unit="step",
                         leave=False, dynamic_ncols=True, disable=not self._terminal)
        with logging_redirect_tqdm() if self._terminal else nullcontext():
            yield from enumerate(self._bar)
        self._end_epoch()

    def step(self, loss: torch.Tensor, rate: float, grad_norm: torch.Tensor | None) -> None:
        """Notes a step: this process's loss, the learning rate, and the latest gradient norm before clipping."""
        # Losses stay on the device until a line is due, so that the GPU need not wait for the CPU at every step.
        self._line_loss = self._line_loss + loss.detach().double()
        self._step, self._rate = self._step + 1, rate
        if self._step % self._print_freq == 0 or self._step == self._steps:
            self._line(grad_norm)

    def _line(self, grad_norm: torch.Tensor | None) -> None:
        steps, self._line_step = self._step - self._line_step, self._step
        self._epoch_loss = self._epoch_loss + self._line_loss
        loss = distributed.mean(self._line_loss / steps).item()
        self._line_loss = 0.0
        now = time.perf_counter()
        rate_of_steps, self._line_start = steps / (now - self._line_start), now
        if not distributed.is_main():
            return
        values = {
            "train_loss": loss,
            "step": self._epoch * self._steps + self._step,
            "lr": self._rate,
            "steps_per_second": rate_of_steps,
            "samples_per_second": rate_of_steps * self._samples_per_step,
        }
        if grad_norm is not None:
            values["grad_norm"] = grad_norm.item()
        self._bar.set_postfix(loss=f"{loss:.4f}", samples_per_s=f"{values['samples_per_second']:.0f}")
        logger.info("epoch %d/%d  step %d/%d  loss %.4f  lr %.3g  grad norm %.3g  %.1f samples/s",
                    self._epoch + 1, self._num_epochs, self._step, self._steps, loss, self._rate,
                    values.get("grad_norm", float("nan")), values["samples_per_second"])
        if self._wandb_run is not None:
            self._wandb_run.log(values)

    def _end_epoch(self) -> None:
        train_loss = distributed.mean(self._epoch_loss / self._steps).item()
        if not distributed.is_main():
            return
        seconds = time.perf_counter() - self._epoch_start
        self._history.append({"epoch": self._epoch, "train_loss": train_loss, "train_lr": self._rate,
                              "seconds": round(seconds, 3)})
        with atomic_write(self._log_path) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in self._history)
        figures.save_curves(self._curves_path, self._history)
        logger.info("epoch %d/%d  train loss %.4f  %.1f s", self._epoch + 1, self._num_epochs, train_loss, seconds)


def read_log(path: str | Path) -> list[dict[str, float]]:
    """The lines of a log.txt, one dict per epoch; none if there is no such file."""
    path = Path(path)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start_wandb(project: str, workdir: Path, config: dict[str, Any]) -> Any:
    """A wandb run named after `workdir`: online where an account is set up, else offline in `workdir`/wandb.

    `$WANDB_MODE` goes first. The run has `log(values)` and `finish()`.
    """
    import wandb  # a second of import time that --no_wandb saves

    mode = os.environ.get("WANDB_MODE")
    if mode is None:
        try:
            mode = "online" if wandb.login(prompt=False) else "offline"
        except wandb.errors.Error as error:  # a key, but no way to check it
            logger.warning("wandb cannot be reached: %s", error)
            mode = "offline"
    run = wandb.init(project=project, name=workdir.name, dir=workdir, config=config, mode=mode)
    if mode == "offline":
        logger.info("wandb logs offline in %s; `wandb sync` with this folder uploads it", Path(run.dir).parent)
    return run
