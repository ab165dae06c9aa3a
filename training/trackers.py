"""Trackers that show the numbers and pictures of a run: TensorBoard and Weights & Biases."""

import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import matplotlib.image

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What the monitor expects of a tracker. `step` counts the steps of the whole run and never decreases."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Record numbers by name."""

    def image(self, name: str, path: Path, step: int) -> None:
        """Record a picture, a PNG file."""

    def close(self) -> None:
        """Finish; called once, at the end of the run."""


class TensorBoard:
    """Writes event files to `workdir`/tensorboard, for `tensorboard --logdir`.

    Args:
        workdir: the work folder of the run.
        first_step: the step at which the run resumes; what an earlier attempt wrote after it is hidden.
    """

    def __init__(self, workdir: Path, first_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

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
    """A wandb run named after `workdir`: online if an account is set up, else offline in `workdir`/wandb.

    `$WANDB_MODE` overrides this. An online run that is resumed stays the same run, by its id in `workdir`/wandb-id.

    Args:
        project: name of the wandb project.
        workdir: the work folder of the run.
        config: the run's config, which wandb shows.
        resumed: whether training resumes from a checkpoint.
    """

    def __init__(self, project: str, workdir: Path, config: dict[str, Any], resumed: bool = False):
        import wandb  # takes a second to import

        def start(mode: str) -> Any:
            run_id = _run_id(workdir / "wandb-id", resumed)
            same_run: dict[str, Any] = {"id": run_id, "resume": "allow", "allow_val_change": True}
            return wandb.init(
                project=project,
                name=workdir.name,
                dir=workdir,
                config=config,
                mode=cast(Literal["online", "offline", "disabled", "shared"], mode),
                **(same_run if mode == "online" else {}),
            )

        mode = os.environ.get("WANDB_MODE")
        try:
            mode = mode or ("online" if wandb.login(prompt=False) else "offline")
            self._run = start(mode)
        except wandb.errors.Error as error:  # there is a key, but the server cannot be reached
            logger.warning("cannot reach wandb: %s", error)
            mode = "offline"
            self._run = start(mode)
        self._make_image = wandb.Image
        self._run.define_metric("*", step_metric="step")
        if mode == "offline":
            logger.info(
                "wandb logs offline to %s; upload it with `wandb sync` and this folder", Path(self._run.dir).parent
            )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def image(self, name: str, path: Path, step: int) -> None:
        self._run.log({name: self._make_image(str(path)), "step": step})

    def close(self) -> None:
        self._run.finish()


def _run_id(path: Path, resumed: bool) -> str:
    """The wandb id of the run. It is kept in a file, which a new run overwrites."""
    if not (resumed and path.is_file()):
        path.write_text(secrets.token_hex(8))
    return path.read_text()


class Trackers:
    """Several trackers as one. If a tracker fails, it is disabled with a warning, and training continues."""

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
            except Exception as error:  # the libraries raise anything when a network or disk fails
                self._trackers.remove(tracker)
                logger.warning(
                    "%s failed; disabled for the rest of this run: %s: %s",
                    type(tracker).__name__,
                    type(error).__name__,
                    error,
                )
