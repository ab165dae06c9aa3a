"""Going on exactly where a run stopped: step checkpoints, random states, and the newest checkpoint that can be read.

W/checkpoints/checkpoint-<epoch>.pth holds the state after an epoch, in the published layout, and is kept;
W/resume/checkpoint-<epoch>-<step>.pth the state after some steps of an epoch, of which the last few are kept.
Both have, beside the published entries, `step` and one entry in `processes` for each rank.
"""

import logging
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from audio_mamba.training import distributed
from audio_mamba.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

STEP_CHECKPOINTS_KEPT = 2


class Place(NamedTuple):
    """How far a run is: the epoch that it is in, and the steps of it that are done."""

    epoch: int
    step: int


def step_checkpoint_path(workdir: str | Path, place: Place) -> Path:
    """Where the state in mid-epoch is kept."""
    return Path(workdir) / "resume" / f"checkpoint-{place.epoch}-{place.step}.pth"


def checkpoints(workdir: str | Path) -> list[tuple[Place, Path]]:
    """All checkpoints of a run, the newest first."""
    workdir = Path(workdir)
    found = []
    for path in (workdir / "checkpoints").glob("checkpoint-*.pth"):
        if match := re.fullmatch(r"checkpoint-(\d+)\.pth", path.name):
            found.append((Place(int(match[1]) + 1, 0), path))
    for path in (workdir / "resume").glob("checkpoint-*.pth"):
        if match := re.fullmatch(r"checkpoint-(\d+)-(\d+)\.pth", path.name):
            found.append((Place(int(match[1]), int(match[2])), path))
    return sorted(found, reverse=True)


def load_newest(workdir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that can be read, and its contents; None if the run has no checkpoint.

    Damaged ones are named in a warning. CheckpointError if there are only such: a run is not begun anew over them.
    """
    problems = []
    for _, path in checkpoints(workdir):
        try:
            return path, load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s; taking the one before", error)
            problems.append(error)
    if problems:
        raise CheckpointError(f"no checkpoint of {workdir} can be read: move them away to begin anew ({problems[0]})")
    return None


def place_of(state: dict[str, Any]) -> Place:
    """Where a checkpoint goes on. Published ones have no `step`, since they are written after an epoch."""
    if state.get("step") is None:
        return Place(state["epoch"] + 1, 0)
    return Place(state["epoch"], state["step"])


def restore_process(
    state: dict[str, Any], samples_per_step: int, accumulation: int
) -> tuple[Place, dict[str, Any] | None]:
    """Sets this process's random states as they were; returns its place and the state of its monitor.

    In mid-epoch and with another number of samples per step (of all processes together), the place is the last step
    of the same order of samples, a multiple of `accumulation`, that repeats few samples and leaves out none.
    """
    place, processes = place_of(state), state.get("processes")
    if processes is None:
        return place, None
    if len(processes) == distributed.world_size():
        mine = processes[distributed.rank()]
        set_random_states(mine["random"])
    if place.step == 0:
        return place, None
    samples = place.step * state["samples_per_step"]
    step = samples // samples_per_step // accumulation * accumulation
    if step * samples_per_step != samples:
        logger.warning(
            "%d samples of epoch %d are trained again, since a step has %d samples now and had %d",
            samples - step * samples_per_step,
            place.epoch + 1,
            samples_per_step,
            state["samples_per_step"],
        )
    if len(processes) != distributed.world_size():
        mine = {"monitor": _mean_of([process["monitor"] for process in processes])}
    return Place(place.epoch, step), mine["monitor"]


def _mean_of(states: list[dict[str, float]]) -> dict[str, float]:
    """Sums over some processes' steps as sums over those of a process among another number of them."""
    return {key: sum(state[key] for state in states) / len(states) for key in states[0]}


def save_step_checkpoint(workdir: str | Path, place: Place, **state: Any) -> None:
    """Writes `state` as the checkpoint of a place in mid-epoch and drops all but the last few of these."""
    path = step_checkpoint_path(workdir, place)
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(path, epoch=place.epoch, step=place.step, **state)
    older = [path for _, path in checkpoints(workdir) if path.parent.name == "resume"]
    for path in older[STEP_CHECKPOINTS_KEPT:]:
        path.unlink()


def tidy(workdir: str | Path, finished: bool = False) -> None:
    """Removes what killed processes left half-written and, from a finished run, the step checkpoints that later
    epochs have made useless: not those of an epoch beyond a shortened run's end."""
    workdir = Path(workdir)
    for folder in ("checkpoints", "resume"):
        for partial in (workdir / folder).glob("*.partial"):
            partial.unlink()
    if finished and (workdir / "resume").is_dir():
        found = checkpoints(workdir)
        last_epoch = max((place for place, path in found if path.parent.name == "checkpoints"), default=Place(0, 0))
        later = [path for place, path in found if place > last_epoch]
        for path in (workdir / "resume").iterdir():
            if path not in later:
                path.unlink()
        if not later:
            (workdir / "resume").rmdir()


def random_states() -> dict[str, Any]:
    """The states of all global random generators of this process, as tensors and builtins."""
    name, keys, place, has_gauss, gauss = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), place, has_gauss, gauss),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Sets what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])


def check_space(workdir: str | Path, parameters: int, free: Callable[[Path], int] | None = None) -> None:
    """Raises OSError where a disk lacks room for two checkpoints of a model with that many float32 parameters.

    A checkpoint holds each parameter and its two moments of AdamW; a new one is written before an old one goes.
    """
    needed = 2 * 3 * 4 * parameters
    available = free(Path(workdir)) if free else shutil.disk_usage(workdir).free
    if available < needed:
        raise OSError(
            f"{workdir}: two checkpoints need {needed / 2**20:.0f} MiB, but only {available / 2**20:.0f} MiB are free"
        )
