"""Exact resume: step checkpoints, random states, and the newest readable checkpoint of a run.

W/checkpoints/checkpoint-<epoch>.pth is the state after an epoch, in the published layout; these files are kept.
W/resume/checkpoint-<epoch>-<step>.pth is the state in the middle of an epoch; only the last few are kept.
Beside the published entries, both have `step` and a list `processes` with one entry per rank.
"""

import logging
import random
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from audio_mamba.system.atomic_files import remove_all_partials
from audio_mamba.training import distributed
from audio_mamba.training.checkpoint import CheckpointError, epoch_checkpoints, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

STEP_CHECKPOINTS_KEPT = 2


class Progress(NamedTuple):
    """How far a run is: the epoch it is in, counted from 0, and the completed steps of that epoch."""

    epoch: int
    step: int


class Start(NamedTuple):
    """Where a run starts or resumes."""

    progress: Progress = Progress(0, 0)
    global_step: int = 0  # completed steps of the whole run
    monitor: dict[str, Any] | None = None  # state of this process's monitor in the middle of an epoch
    skipped_steps: int = 0  # of the whole run, for a NaN or Inf

    def at_the_epoch(self) -> "Start":
        """Start the epoch again; its completed steps remain part of the run."""
        return self._replace(progress=Progress(self.progress.epoch, 0), monitor=None)


def step_checkpoint_path(workdir: str | Path, progress: Progress) -> Path:
    """The file of a step checkpoint."""
    return Path(workdir) / "resume" / f"checkpoint-{progress.epoch}-{progress.step}.pth"


def checkpoints(workdir: str | Path) -> list[tuple[Progress, Path]]:
    """All checkpoints of a run, the newest first."""
    workdir = Path(workdir)
    found = [(Progress(epoch + 1, 0), path) for epoch, path in epoch_checkpoints(workdir / "checkpoints")]
    for path in (workdir / "resume").glob("checkpoint-*.pth"):
        if match := re.fullmatch(r"checkpoint-(\d+)-(\d+)\.pth", path.name):
            found.append((Progress(int(match[1]), int(match[2])), path))
    return sorted(found, reverse=True)


def load_newest(workdir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint of a run and its content; None if the run has no checkpoints.

    A damaged checkpoint is reported in a warning, and the previous one is used.

    Raises:
        CheckpointError: all checkpoints are damaged. The run is not silently started over.
    """
    problems = []
    for _, path in checkpoints(workdir):
        try:
            return path, load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s; using the previous one", error)
            problems.append(error)
    if problems:
        raise CheckpointError(f"cannot read any checkpoint in {workdir}: move them away to start over ({problems[0]})")
    return None


def progress_of(state: dict[str, Any]) -> Progress:
    """Where training resumes after a checkpoint. Published ones, written after an epoch, have no `step`."""
    if state.get("step") is None:
        return Progress(state["epoch"] + 1, 0)
    return Progress(state["epoch"], state["step"])


def restore_process(state: dict[str, Any], samples_per_step: int, accumulation: int, steps_per_epoch: int) -> Start:
    """Restore the random states of this process; return where it resumes.

    If the number of samples per step (of all processes) has changed in the middle of an epoch, training resumes at
    the last step in the same order of samples that is a multiple of `accumulation` and skips no sample. A few samples
    may be trained twice. An epoch whose steps are all complete stays so, also if it ends within a window.

    Args:
        state: the content of a checkpoint.
        samples_per_step: of all processes together, from now on.
        accumulation: steps of an accumulation window, from now on.
        steps_per_epoch: from now on. It gives the completed steps of the run for checkpoints of earlier versions, which
            lack them.
    """
    progress, processes = progress_of(state), state.get("processes")
    global_step, skipped = state.get("global_step"), state.get("skipped_steps", 0)
    if global_step is None:
        global_step = progress.epoch * steps_per_epoch + progress.step
    if processes is None:
        return Start(progress, global_step)
    same_processes = len(processes) == distributed.world_size()
    if same_processes:
        set_random_states(processes[distributed.rank()]["random"])
    if progress.step == 0:
        return Start(progress, global_step, skipped_steps=skipped)
    before = state["samples_per_step"]
    samples = progress.step * before
    step = samples // samples_per_step
    if step != steps_per_epoch:
        step = step // accumulation * accumulation
    again = samples - step * samples_per_step
    if again and distributed.is_main():
        why = f"opt.grad_accum_steps is now {accumulation}, and step {progress.step} is not at the end of a window"
        if samples_per_step != before:
            why = f"a step now has {samples_per_step} samples, before it had {before}"
        logger.warning("%d samples of epoch %d are trained again: %s", again, progress.epoch + 1, why)
    monitors = [process["monitor"] for process in processes]
    monitor = monitors[distributed.rank()] if same_processes else _mean_of(monitors)
    return Start(Progress(progress.epoch, step), global_step, monitor, skipped)


def _mean_of(states: list[dict[str, float]]) -> dict[str, float]:
    """The mean of the monitors' sums, for each process of a run that now has another number of processes."""
    return {key: sum(state[key] for state in states) / len(states) for key in states[0]}


def save_step_checkpoint(workdir: str | Path, progress: Progress, **state: Any) -> None:
    """Write `state` as a step checkpoint and delete all but the last few step checkpoints.

    Those with a later place are older, too: of the same epoch in smaller steps, or before it was started again. They
    would be taken for the newest, so none of them is kept.
    """
    path = step_checkpoint_path(workdir, progress)
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(path, epoch=progress.epoch, step=progress.step, **state)
    found = [(place, path) for place, path in checkpoints(workdir) if path.parent.name == "resume"]
    kept = [place for place, _ in found if place <= progress][:STEP_CHECKPOINTS_KEPT]
    for place, path in found:
        if place not in kept:
            path.unlink()


def remove_stale(workdir: str | Path, finished: bool = False) -> None:
    """Remove files that nothing will read again. No other process may be training in `workdir`.

    Args:
        workdir: the work folder of the run.
        finished: also remove the step checkpoints, except those beyond the last epoch checkpoint, as a run has that
            was continued with a smaller num_epochs. Without it, only the partial files of killed processes go.
    """
    workdir = Path(workdir)
    for folder in (workdir, workdir / "checkpoints", workdir / "resume"):
        remove_all_partials(folder)
    if finished and (workdir / "resume").is_dir():
        found = checkpoints(workdir)
        after_epochs = (progress for progress, path in found if path.parent.name == "checkpoints")
        last_epoch = max(after_epochs, default=Progress(0, 0))
        later = [path for progress, path in found if progress > last_epoch]
        for path in (workdir / "resume").iterdir():
            if path not in later:
                path.unlink()
        if not later:
            (workdir / "resume").rmdir()


def random_states() -> dict[str, Any]:
    """The states of all global random generators of this process, as tensors and builtins."""
    numpy = np.random.get_state(legacy=False)
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (
            numpy["bit_generator"],
            torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            numpy["state"]["pos"],
            numpy["has_gauss"],
            numpy["gauss"],
        ),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])


def check_space(workdir: str | Path, parameters: int, more_values: int = 0) -> None:
    """Raise OSError if the disk has no space for two checkpoints of a model with this many float32 parameters.

    A checkpoint holds each parameter and its two AdamW moments, and `more_values` of an objective's state. A new one is
    written before an old one is deleted.
    """
    needed = 2 * 4 * (3 * parameters + more_values)
    available = shutil.disk_usage(workdir).free
    if available < needed:
        raise OSError(
            f"{workdir}: two checkpoints need {needed / 2**20:.0f} MiB, but only {available / 2**20:.0f} MiB are free"
        )
