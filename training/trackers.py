"""Where the numbers and pictures of a run are shown besides its folder: TensorBoard and Weights & Biases."""

import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib.image

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What the monitor asks of a tracker. `step` counts the steps of the whole run and never decreases."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Takes numbers by name."""

    def image(self, name: str, path: Path, step: int) -> None:
        """Takes a picture, a PNG file."""

    def close(self) -> None:
        """Called once, at the end of the run."""


class TensorBoard:
    """Writes event files to `workdir`/tensorboard, for `tensorboard --logdir`.

    Args:
        first_step: step at which the run goes on; what an earlier attempt wrote beyond it is hidden.
    """

    def __init__(self, workdir: Path, first_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter  # seconds of import time that others save

        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def image(self, name: str, path: Path, step: int) -> None:
        pixels = matplotlib.image.imread(path)[..., :3]  # [height, width, 3], in [0, 1]
        self._writer.add_image(name, pixels, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A wandb run named after `workdir`: online where an account is set up, else offline in `workdir`/wandb.

    `$WANDB_MODE` goes first. A run that goes on online stays the same run there, by its id in `workdir`/wandb-id.

    Args:
        goes_on: whether training goes on from a checkpoint.
    """

    def __init__(self, project: str, workdir: Path, config: dict[str, Any], goes_on: bool = False):
        import wandb  # a second of import time that --no_wandb saves

        def start(mode: str) -> Any:
            same_run = {"id": _run_id(workdir / "wandb-id", goes_on), "resume": "allow", "allow_val_change": True}
            return wandb.init(
                project=project,
                name=workdir.name,
                dir=workdir,
                config=config,
                mode=mode,
                **(same_run if mode == "online" else {}),
            )

        mode = os.environ.get("WANDB_MODE")
        try:
            mode = mode or ("online" if wandb.login(prompt=False) else "offline")
            self._run = start(mode)
        except wandb.errors.Error as error:  # a key, but no way to the server
            logger.warning("wandb cannot be reached: %s", error)
            mode = "offline"
            self._run = start(mode)
        self._make_image = wandb.Image
        self._run.define_metric("*", step_metric="step")
        if mode == "offline":
            logger.info(
                "wandb logs offline in %s; `wandb sync` with this folder uploads it", Path(self._run.dir).parent
            )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def image(self, name: str, path: Path, step: int) -> None:
        self._run.log({name: self._make_image(str(path)), "step": step})

    def close(self) -> None:
        self._run.finish()


def _run_id(path: Path, goes_on: bool) -> str:
    """The id of the run in a file, which is written anew where a run begins."""
    if not (goes_on and path.is_file()):
        path.write_text(secrets.token_hex(8))
    return path.read_text()


class Trackers:
    """Several trackers as one. A tracker that fails gets one warning and is dropped: training goes on without it."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = list(trackers)

    def log(self, values: dict[str, float], step: int) -> None:
        self._call("log", values, step)

    def image(self, name: str, path: Path, step: int) -> None:
        self._call("image", name, path, step)

    def close(self) -> None:
        self._call("close")
        self._trackers.clear()

    def _call(self, method: str, *arguments: Any) -> None:
        for tracker in self._trackers[:]:
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # nobody can list what libraries raise when a network or a disk fails them
                self._trackers.remove(tracker)
                logger.warning(
                    "%s failed and gets nothing more of this run: %s: %s",
                    type(tracker).__name__,
                    type(error).__name__,
                    error,
                )
