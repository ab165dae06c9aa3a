"""The numbers that a run leaves in its folder: `log.txt`, a JSON object per epoch, and `steps.csv`, a row per line."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audio_mamba.system.atomic_files import atomic_write

LOG_NAME, STEPS_NAME = "log.txt", "steps.csv"
STEP_COLUMNS = (
    "step",
    "epoch",
    "train_loss",
    "lr",
    "grad_norm",
    "update_ratio",
    "loss_scale",
    "skipped",
    "non_finite",
    "samples_per_second",
    "data_wait",
    "seconds",
)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log.txt, one dict per epoch; none if there is no such file.

    A loss that was not finite is None. A last line without its end, as a killed process leaves it, is left out. Raises
    ValueError naming the file and the line that is no such object.
    """
    path = Path(path)
    log = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("epoch"), int):
            raise ValueError(f"{path}, line {number}: expected a JSON object with an integer epoch")
        log.append(entry)
    return log


def write_log(path: str | Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Writes a log.txt as a whole. Numbers that are not finite become null, since JSON has none."""
    with atomic_write(path) as file:
        for entry in log:
            entry = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in entry.items()
            }
            file.write(json.dumps(entry).encode() + b"\n")


def read_steps(path: str | Path) -> list[dict[str, float]]:
    """The rows of a steps.csv, in which what was not measured is NaN; none if there is no such file.

    Rows that a killed process or machine left torn are left out.
    """
    return [values for _, values in _parse_steps(Path(path))]


class StepTable:
    """A steps.csv to which rows are added, each handed to the system at once.

    Rows beyond `last_step` are dropped at the start: the run goes on there and writes them again.
    """

    def __init__(self, path: Path, last_step: int):
        kept = [row for row, values in _parse_steps(path) if values["step"] <= last_step]
        with atomic_write(path) as file:
            file.writelines(",".join(row).encode() + b"\n" for row in [STEP_COLUMNS, *kept])
        self._file = open(path, "a")

    def add(self, values: Mapping[str, float]) -> None:
        """Writes a row; values that have no column are left out, and columns that have no value stay empty."""
        self._file.write(",".join(str(values.get(column, "")) for column in STEP_COLUMNS) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _parse_steps(path: Path) -> list[tuple[list[str], dict[str, float]]]:
    """The whole rows of a steps.csv, in the order of STEP_COLUMNS: as they are written, and as numbers."""
    lines = _whole_lines(path)
    header = lines[0].split(",") if lines else []
    rows = []
    for line in lines[1:]:
        cells = line.split(",")
        found = dict(zip(header, cells))
        row = [found.get(column, "") for column in STEP_COLUMNS]
        try:
            values = {column: float(cell) if cell else math.nan for column, cell in zip(STEP_COLUMNS, row)}
        except ValueError:
            continue
        if len(cells) == len(header) and not math.isnan(values["step"]):
            rows.append((row, values))
    return rows


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(errors="replace") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
