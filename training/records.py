"""The numbers of a run in its folder: `log.txt`, a JSON object per epoch, and `steps.csv`, a row per printed line."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from audio_mamba.system.atomic_files import atomic_write

LOG_NAME, STEPS_NAME = "log.txt", "steps.csv"
LOG_NUMBERS = ("train_loss", "val_loss", "train_lr", "seconds")
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
    "peak_memory_mib",  # of the main process: of tensors on its GPU, or else of the whole process
)
# Names that a number of an objective cannot have: log.txt puts "train_" before it, trackers have the last one.
TAKEN_NAMES = (*STEP_COLUMNS, "loss", "steps_per_second")

logger = logging.getLogger(__name__)


def read_log(path: str | Path, report: Callable[[str], None] = logger.warning) -> list[dict[str, Any]]:
    """The lines of a log.txt, one dict per epoch; an empty list if the file does not exist.

    A loss that was NaN or Inf is None. An incomplete last line, as left by a killed process, is dropped. Other lines
    that are not an epoch's JSON object are left out, and `report` is called with a sentence that names the first.
    """
    entries = [_parse_epoch(line) for line in _whole_lines(Path(path))]
    if bad := [number for number, entry in enumerate(entries, start=1) if entry is None]:
        report(
            f"{path}, line {bad[0]}: expected a JSON object with an integer epoch and numbers; {len(bad)} such line(s) "
            "are left out"
        )
    return [entry for entry in entries if entry is not None]


def _parse_epoch(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or type(entry.get("epoch")) is not int:
        return None
    return entry if all(entry.get(key) is None or type(entry[key]) in (int, float) for key in LOG_NUMBERS) else None


def write_log(path: str | Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Write a complete log.txt. NaN and Inf, which JSON lacks, become null."""
    with atomic_write(path) as file:
        for entry in log:
            entry = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in entry.items()
            }
            file.write(json.dumps(entry).encode() + b"\n")


def read_steps(path: str | Path) -> list[dict[str, float]]:
    """The rows of a steps.csv, with NaN for empty cells; an empty list if the file does not exist.

    Incomplete rows, as left by a killed process or machine, are dropped.
    """
    return [values for _, values in _parse_steps(Path(path))[1]]


class StepTable:
    """A steps.csv to append rows to. Each row is flushed at once.

    Rows after the step where the run resumes are dropped at the start; they will be written again.

    Args:
        path: of the table.
        last_step: completed steps of the whole run.
        first_epoch: rows of earlier epochs are kept in any case.
    """

    def __init__(self, path: Path, last_step: int, first_epoch: int = 0):
        self._path = path
        self._columns, rows = _parse_steps(path)
        self._begin(row for row, values in rows if values["epoch"] < first_epoch or values["step"] <= last_step)

    def _begin(self, rows: Iterable[list[str]]) -> None:
        """Write the header and these rows, and open the file for more."""
        with atomic_write(self._path) as file:
            file.writelines(",".join(row).encode() + b"\n" for row in [self._columns, *rows])
        self._file = open(self._path, "a")

    def add(self, values: Mapping[str, float], more_columns: Iterable[str] = ()) -> None:
        """Write a row. Values without a column are ignored, columns without a value stay empty.

        Args:
            values: by column.
            more_columns: beside STEP_COLUMNS. If the table lacks one, it is written again with it, empty so far.
        """
        if new := [name for name in more_columns if name not in self._columns]:
            self._file.close()
            rows = [[*row, *("" for _ in new)] for row, _ in _parse_steps(self._path)[1]]
            self._columns = [*self._columns, *new]
            self._begin(rows)
        self._file.write(",".join(str(values.get(column, "")) for column in self._columns) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _parse_steps(path: Path) -> tuple[list[str], list[tuple[list[str], dict[str, float]]]]:
    """The columns of a steps.csv (STEP_COLUMNS, then its others), and its complete rows: cells in order, and values."""
    lines = _whole_lines(path)
    header = lines[0].split(",") if lines else []
    columns = list(dict.fromkeys([*STEP_COLUMNS, *filter(str.isidentifier, header)]))
    rows = []
    for line in lines[1:]:
        cells = line.split(",")
        found = dict(zip(header, cells))
        row = [found.get(column, "") for column in columns]
        try:
            values = {column: float(cell) if cell else math.nan for column, cell in zip(columns, row)}
        except ValueError:
            continue
        if len(cells) == len(header) and not math.isnan(values["step"]):
            rows.append((row, values))
    return columns, rows


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(errors="replace") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
