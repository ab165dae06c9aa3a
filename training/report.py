"""Compare training runs in one self-contained HTML page:

    audio-mamba report WORKDIR... [--out report.html]
    audio-mamba report RUNS                              # all runs of a sweep

The page shows the current state of the work folders. Runs may still be in progress, and files may be missing.
"""

import argparse
import base64
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from audio_mamba.config_names import stored_name
from audio_mamba.schema import flattened
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.system.terminal import not_empty, quiet_exit
from audio_mamba.training.charts import Chart, Curve, draw
from audio_mamba.training.records import LOG_NAME, STEP_COLUMNS, STEPS_NAME, read_log, read_steps

CONFIG_NAME, PICTURE_NAME = "config.json", "reconstructions.png"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEMPLATE = "report.html"
SWEEP_TABLES = ("sweep.csv", "sweep.md")  # which RUNS/* names, too

logger = logging.getLogger(__name__)


class ReportError(ValueError):
    """A folder is not the work folder of a run."""


@dataclass
class Run:
    """The content of a work folder; `notes` list what is missing."""

    folder: Path
    name: str
    config: dict[str, Any]
    log: list[dict[str, Any]]
    steps: list[dict[str, float]]
    picture: bytes | None
    written: datetime | None
    notes: list[str] = field(default_factory=list)

    @property
    def config_name(self) -> str:
        """The experiment without its `configs.`, or the architecture if an old run did not store the experiment."""
        model = self.config.get("model")
        name = self.config.get("name")
        if isinstance(name, str) and name:
            return stored_name(name).removeprefix("configs.")
        return str((model.get("arch") if isinstance(model, dict) else None) or "")

    def by_epoch(self, key: str) -> np.ndarray:
        """The values of a key of log.txt by line; NaN where it is missing."""
        values = (entry.get(key) for entry in self.log)
        return np.array([_number(value) for value in values])

    def by_line(self, key: str) -> np.ndarray:
        """The values of a column of steps.csv by row; NaN where it is empty or missing."""
        return np.array([row.get(key, math.nan) for row in self.steps], dtype=float)

    def last(self, key: str) -> float | None:
        return _finite(self.by_epoch(key)[-1:])

    def best(self, key: str) -> float | None:
        return _finite(np.fmin.reduce(self.by_epoch(key), initial=np.nan, keepdims=True))

    def typical(self, key: str) -> float | None:
        """The median of a column of steps.csv."""
        values = self.by_line(key)
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else None

    @property
    def share_waited(self) -> float | None:
        """The median percentage of the time spent waiting for data."""
        share = self.typical("data_wait")
        return None if share is None else 100 * share

    @property
    def hours(self) -> float | None:
        """Hours of training, including the current epoch."""
        running = self.by_line("seconds")[self.by_line("epoch") >= (self.log[-1]["epoch"] + 1 if self.log else 0)]
        seconds = np.append(self.by_epoch("seconds"), running)
        return float(np.nansum(seconds)) / 3600 if np.isfinite(seconds).any() else None


def _number(value: Any) -> float:
    """NaN for what is not a number; json reads whole numbers of any length."""
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return math.nan


def is_work_folder(folder: Path) -> bool:
    """Whether a folder has records of a run."""
    return any((folder / name).is_file() for name in (CONFIG_NAME, LOG_NAME, STEPS_NAME))


def work_folders(paths: Sequence[Path]) -> list[Path]:
    """The work folders among `paths` and, by name, those in folders of them, such as RUNS of a sweep.

    Tables of sweeps are passed over; so are other folders, with a warning unless nothing else is left. What is then no
    work folder is for `read_run` to refuse.
    """
    found: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if path.name in SWEEP_TABLES and path.is_file():
            continue
        if is_work_folder(path) or not path.is_dir():
            found.append(path)
        elif inside := sorted(filter(is_work_folder, path.iterdir())):
            found += inside
        else:
            others.append(path)
    if not found:
        return others or list(paths)
    for folder in others:
        logger.warning("%s is left out: it has no %s, %s or %s", folder, CONFIG_NAME, LOG_NAME, STEPS_NAME)
    return found


def read_run(folder: Path) -> Run:
    """Read a work folder. Raises ReportError if `folder` is not one."""
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a folder; expected work folders of train.py")
    if not is_work_folder(folder):
        raise ReportError(
            f"{folder} is not a work folder of train.py: it has no {CONFIG_NAME}, {LOG_NAME} or {STEPS_NAME}"
        )
    notes: list[str] = []

    def read(name: str, reader: Callable[[Path], Any], missing: Any) -> Any:
        if not (folder / name).is_file():
            notes.append(f"no {name} yet")
            return missing
        try:
            return reader(folder / name)
        except (ValueError, OSError, RecursionError) as error:
            notes.append(f"cannot read {name}: {error}")
            return missing

    def read_config(path: Path) -> dict[str, Any]:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("expected a JSON object")
        return config

    def read_picture(path: Path) -> bytes:
        data = path.read_bytes()
        if not data.startswith(PNG_SIGNATURE):
            raise ValueError("not a PNG file")
        return data

    written = [(folder / name).stat().st_mtime for name in (LOG_NAME, STEPS_NAME) if (folder / name).is_file()]
    return Run(
        folder,
        folder.resolve().name,
        read(CONFIG_NAME, read_config, {}),
        read(LOG_NAME, lambda path: read_log(path, lambda bad: notes.append(f"cannot read {LOG_NAME}: {bad}")), []),
        read(STEPS_NAME, read_steps, []),
        read(PICTURE_NAME, read_picture, None) if (folder / PICTURE_NAME).exists() else None,  # many runs draw none
        datetime.fromtimestamp(max(written), UTC) if written else None,
        notes,
    )


def differing_keys(configs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The config keys, such as opt.learning_rate, that differ between runs, with each run's value as JSON.

    The value is empty if a config lacks the key. A run without a config is not compared.
    """
    flat = [{key: json.dumps(value) for key, value in flattened(config).items() if key != "name"} for config in configs]
    keys = sorted({key for config in flat for key in config})
    rows = {key: [config.get(key, "") for config in flat] for key in keys}
    return {
        key: values
        for key, values in rows.items()
        if len({value for value, config in zip(values, flat, strict=True) if config}) > 1
    }


def make_charts(runs: Sequence[Run]) -> list[Chart]:
    """Charts of losses by epoch and by step, learning rate and gradient norm, and of validation metrics and numbers of
    objectives if there are any."""
    losses = [
        Curve(number, label, run.by_epoch("epoch") + 1, run.by_epoch(key), dashed=key == "val_loss")
        for number, run in enumerate(runs)
        for key, label in (("train_loss", f"{run.name} training"), ("val_loss", f"{run.name} validation"))
    ]

    def by_step(key: str) -> list[Curve]:
        return [Curve(number, run.name, run.by_line("step"), run.by_line(key)) for number, run in enumerate(runs)]

    if any(run.steps for run in runs):
        rate = draw("Learning rate", "step", by_step("lr"), from_zero=True)
    else:
        rate = draw(
            "Learning rate",
            "epoch",
            [
                Curve(number, run.name, run.by_epoch("epoch") + 1, run.by_epoch("train_lr"))
                for number, run in enumerate(runs)
            ],
            from_zero=True,
        )
    metrics = [
        Curve(number, f"{run.name} {label}", run.by_epoch("epoch") + 1, run.by_epoch(key))
        for number, run in enumerate(runs)
        for label in dict.fromkeys(("accuracy", "mAP", str(run.config.get("metric"))))  # by default the first or second
        if np.isfinite(run.by_epoch(key := f"val_{label}")).any()
    ]
    numbers = sorted({name for run in runs for row in run.steps[:1] for name in row} - {*STEP_COLUMNS})
    return [
        draw("Loss", "epoch", losses),
        *([draw("Validation metrics", "epoch", metrics)] if metrics else []),  # of fine-tuning
        draw("Training loss", "step", by_step("train_loss")),
        *(draw(name.replace("_", " ").capitalize(), "step", by_step(name)) for name in numbers),  # of objectives
        rate,
        draw("Gradient norm", "step", by_step("grad_norm"), log_scale=True),
    ]


def render(runs: Sequence[Run]) -> str:
    """The HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template(TEMPLATE).render(
        runs=runs,
        charts=make_charts(runs),
        differences=differing_keys([run.config for run in runs]),
        now=datetime.now(UTC),
    )


def write_report(folders: Sequence[str | Path], path: str | Path) -> int:
    """Write the page about the runs in `folders` (see `work_folders`); return their number.

    Raises:
        ReportError: a path is not a folder, or no run is left.
    """
    runs = [read_run(folder) for folder in work_folders([Path(folder) for folder in folders])]
    if len({run.name for run in runs}) < len(runs):
        for run in runs:
            run.name = str(run.folder)
    page = render(runs)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(page.encode(errors="replace"))
    return len(runs)


def _finite(values: np.ndarray) -> float | None:
    return float(values[0]) if len(values) and np.isfinite(values[0]) else None


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.training.report") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="WORKDIR",
        type=not_empty,
        help="work folders of train.py, or folders that hold some",
    )
    parser.add_argument(
        "--out", default="report.html", metavar="FILE", type=not_empty, help="page to write (default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(format="report: %(message)s")
    if Path(args.out).is_dir():
        raise SystemExit(f"report: --out {args.out} is a folder; name a file for the page")
    try:
        count = write_report(args.workdirs, args.out)
    except (ReportError, OSError) as error:
        raise SystemExit(f"report: {error}")
    print(f"{args.out}: {count} run(s)")


if __name__ == "__main__":
    with quiet_exit():
        main()
