"""What a run shows while it trains: printed lines or a progress bar, log.txt, steps.csv, curves and trackers."""

import itertools
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from audio_mamba.system.machine import peak_memory
from audio_mamba.training import distributed, figures
from audio_mamba.training.records import LOG_NAME, STEPS_NAME, TAKEN_NAMES, StepTable, read_log, write_log
from audio_mamba.training.totals import Totals, sum_by_name, with_prefix
from audio_mamba.training.trackers import Tracker, Trackers

BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
# Prefixes in a state dict: of the sums in this epoch's lines and since the previous line, and of the latest values.
WRITTEN, SINCE, MEASURE = "written ", "since ", "measure "

logger = logging.getLogger(__name__)


class Monitor:
    """Reports on a run. Every process calls it, and the main process writes.

    Lines, steps.csv and trackers show means over all processes and over the steps since the previous line. NaN and Inf
    losses are counted but left out of the means. On a terminal a progress bar replaces the lines. Entries of log.txt
    and steps.csv after the first step come from an attempt that was killed before its next checkpoint; they are
    dropped, and those steps are trained again.

    Args:
        workdir: folder of log.txt, steps.csv and curves.png.
        first_epoch: epoch at which the run starts or resumes, counted from 0.
        first_step: step of that epoch at which it starts or resumes.
        global_step: completed steps of the whole run; by default, as many as epochs of `steps_per_epoch` make.
        num_epochs: epochs of the whole run.
        steps_per_epoch: batches of each process per epoch.
        samples_per_step: samples of a step, all processes together.
        print_freq: steps between two lines.
        trackers: get the values of every line; used only on the main process.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        first_epoch: int,
        first_step: int = 0,
        global_step: int | None = None,
        num_epochs: int,
        steps_per_epoch: int,
        samples_per_step: int,
        print_freq: int,
        trackers: Sequence[Tracker] = (),
    ):
        self._log_path, self._curves_path = workdir / LOG_NAME, workdir / "curves.png"
        self._num_epochs, self._steps, self._samples_per_step = num_epochs, steps_per_epoch, samples_per_step
        self._print_freq = print_freq
        self._epoch, self._step = first_epoch, first_step
        # The number of steps per epoch may have changed in the course of the run, so this is not a product of it.
        self.global_step = first_epoch * steps_per_epoch + first_step if global_step is None else global_step
        self._start: float | None = None  # seconds on the clock, when this attempt began its first step
        self._start_step = self.global_step
        self._since, self._written = Totals(), Totals()  # since the previous line; in this epoch's lines
        self._rate = 0.0
        self._latest: dict[str, torch.Tensor | float] = {}
        self._clock: float | None = None  # None between epochs
        self._main = distributed.is_main()
        if self._main:
            self._trackers = Trackers(trackers)
            self._history = [line for line in read_log(self._log_path) if line["epoch"] < first_epoch]
            self._table = StepTable(workdir / STEPS_NAME, last_step=self.global_step, first_epoch=first_epoch)
        self._shows_bar = self._main and sys.stderr.isatty()
        self._shows_lines = self._main and not (self._shows_bar and sys.stdout.isatty())

    def epoch(self, epoch: int, batches: Iterable, first_step: int = 0) -> Iterator[tuple[int, Any]]:
        """Yield (step, batch), counting from `first_step`. Call `end_epoch` after the last one."""
        self._epoch, self._step = epoch, first_step
        self._clock = time.perf_counter()
        self._start = self._clock if self._start is None else self._start
        self._bar = tqdm(
            desc=f"epoch {epoch + 1}/{self._num_epochs}",
            total=self._steps,
            initial=first_step,
            bar_format=BAR_FORMAT,
            leave=False,
            dynamic_ncols=True,
            disable=not self._shows_bar,
        )
        with self._bar, logging_redirect_tqdm() if self._shows_bar else nullcontext():
            asked = time.perf_counter()
            arriving = iter(batches)  # may start processes, which counts as waiting
            for step in itertools.count(first_step):
                try:
                    batch = next(arriving)
                except StopIteration:
                    return
                self._since.waited += time.perf_counter() - asked
                yield step, batch
                asked = time.perf_counter()

    def line_due(self, step: int) -> bool:
        """Whether a line is written after this step, so that costly measures are worth computing."""
        return (step + 1) % self._print_freq == 0 or step + 1 == self._steps

    def step(
        self,
        loss: torch.Tensor,
        rate: float,
        averaged: Mapping[str, torch.Tensor | float] | None = None,
        **latest: torch.Tensor | float,
    ) -> None:
        """Record a step.

        Args:
            loss: of this process, a scalar on its device.
            rate: the learning rate.
            averaged: what an objective gives beside its loss, by name, scalars of this process, on its device or as
                floats. Lines and epochs show their means, as for the loss; steps.csv gets columns for them.
            latest: other numbers by name, the same in all processes, such as the gradient norm before clipping,
                "grad_norm". A line shows the latest value of each since the previous line.
        """
        loss = loss.detach().double()
        finite = loss.isfinite()
        self._since.loss = self._since.loss + torch.where(finite, loss, 0.0)
        self._since.finite = self._since.finite + finite
        averaged = averaged or {}
        if wrong := [name for name in averaged if name in TAKEN_NAMES or not name.isidentifier()]:
            raise ValueError(
                f"an objective cannot give a number called {wrong[0]!r}: steps.csv and log.txt need a new name that is "
                "one word"
            )
        scalars = {
            name: value.detach().double() if isinstance(value, torch.Tensor) else torch.full_like(loss, value)
            for name, value in averaged.items()
        }
        counted = {name: torch.where(finite, scalar, 0.0) for name, scalar in scalars.items()}
        self._since.numbers = sum_by_name(self._since.numbers, counted)
        self._since.steps += 1
        self._rate = rate
        self._latest |= latest
        self._step += 1
        self.global_step += 1
        if self.line_due(self._step - 1):
            self._end_line()
        self._bar.update()

    def _end_line(self) -> None:
        loss, non_finite, waited, numbers = self._since.over_processes()
        self._tick()  # only now has the device finished the steps
        part, self._since = self._since, Totals()
        self._written += part
        latest, self._latest = self._latest, {}
        if not self._main:
            return
        steps_per_second, data_wait = part.steps / part.seconds, waited / part.seconds
        values = {
            "epoch": self._epoch,
            "train_loss": loss,
            "lr": self._rate,
            **numbers,
            **{name: float(value) for name, value in latest.items()},
            "non_finite": non_finite,
            "steps_per_second": steps_per_second,
            "samples_per_second": steps_per_second * self._samples_per_step,
            "data_wait": data_wait,
        }
        peak_mib = round(_peak_memory(part.loss.device) / 2**20)
        row = {"step": self.global_step, **values, "seconds": part.seconds, "peak_memory_mib": peak_mib}
        self._table.add(row, more_columns=numbers)
        self._trackers.log(values, self.global_step)
        speed = f"{values['samples_per_second']:.1f} samples/s  data wait {data_wait:.0%}  {self._time_left()} left"
        self._bar.set_postfix_str(f"loss {loss:.4f}  {speed}")
        if self._shows_lines:
            shown = "".join(
                f"  {name.replace('_', ' ')} {float(value):.3g}" for name, value in {**numbers, **latest}.items()
            )
            shown += f"  NaN or Inf losses {non_finite}" if non_finite else ""
            logger.info(
                "epoch %d/%d  step %d/%d  loss %.4f  lr %.3g%s  %s",
                self._epoch + 1,
                self._num_epochs,
                self._step,
                self._steps,
                loss,
                self._rate,
                shown,
                speed,
            )

    def image(self, name: str, path: Path) -> None:
        """Give a picture, a PNG file, to the trackers."""
        if self._main:
            self._trackers.image(name, path, self.global_step)

    def end_epoch(self, val_loss: float | None = None, metrics: Mapping[str, float] | None = None) -> None:
        """Write the epoch to log.txt, with its validation loss and metrics if there are any, and draw the curves."""
        if self._since.steps:  # there were fewer batches than steps_per_epoch
            self._end_line()
        means = self._written.over_processes()
        train_loss, numbers = means.loss, {f"train_{name}": value for name, value in means.numbers.items()}
        seconds, rate = self._written.seconds, self._rate
        self._since, self._written = Totals(), Totals()
        self._rate, self._latest, self._clock = 0.0, {}, None
        if not self._main:
            return
        validation = {} if val_loss is None else {"val_loss": val_loss}
        validation |= {f"val_{name}": value for name, value in (metrics or {}).items()}
        self._history.append(
            {
                "epoch": self._epoch,
                "train_loss": train_loss,
                "train_lr": rate,
                **numbers,
                **validation,
                "seconds": round(seconds, 3),
            }
        )
        write_log(self._log_path, self._history)
        figures.save_curves(self._curves_path, self._history)
        self._trackers.log({"epoch": self._epoch, "epoch_train_loss": train_loss, **validation}, self.global_step)
        logger.info(
            "epoch %d/%d  train loss %.4f%s  %.1f s",
            self._epoch + 1,
            self._num_epochs,
            train_loss,
            "".join(f"  {name.replace('_', ' ')} {value:.4f}" for name, value in validation.items()),
            seconds,
        )

    def close(self) -> None:
        """Close the trackers and steps.csv."""
        if self._main:
            self._trackers.close()
            self._table.close()

    def state_dict(self) -> dict[str, float | int]:
        """The sums of this process in the current epoch, so that a resumed run writes the same means."""
        self._tick()
        return {
            **{WRITTEN + key: value for key, value in self._written.state_dict().items()},
            **{SINCE + key: value for key, value in self._since.state_dict().items()},
            "rate": self._rate,
            **{MEASURE + name: float(value) for name, value in self._latest.items()},
        }

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Restore a `state_dict`. Call it before `epoch`."""
        self._written = Totals.from_state(with_prefix(state, WRITTEN))
        self._since = Totals.from_state(with_prefix(state, SINCE))
        self._rate = state["rate"]
        self._latest = with_prefix(state, MEASURE)

    def _tick(self) -> None:
        """Add the time since the previous call, within an epoch."""
        if self._clock is not None:
            now = time.perf_counter()
            self._since.seconds += now - self._clock
            self._clock = now

    def _time_left(self) -> str:
        """Time to the end of the run at the mean speed of this attempt."""
        now, steps_left = time.perf_counter(), (self._num_epochs - self._epoch) * self._steps - self._step
        done = self.global_step - self._start_step
        per_step = (now - (now if self._start is None else self._start)) / max(1, done)
        return format_duration(steps_left * per_step)


def _peak_memory(device: torch.device) -> int:
    """In bytes: the most that tensors on a GPU have taken so far, or else that this process has."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def format_duration(seconds: float) -> str:
    """The two largest units of a duration, in words: "2 d 3 h", "3 h 12 min", "5 min", "<1 min"."""
    minutes = round(seconds / 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else "<1 min"
