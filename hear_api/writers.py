"""The result of `hear_api.embed` as .npz, as a folder of .npy files, or as .parquet; whole or not at all.

Embeddings are float32, `start` and `duration` seconds. `settings` is a JSON object of what the embeddings follow from;
its `model` and `layout` are also named by themselves. The same embeddings of the same settings give the same bytes.
"""

import csv
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from audio_mamba.hear_api.journal import Entry, Journal
from audio_mamba.system.atomic_files import atomic_write

NAME_BYTES = 200
SETTINGS_NAME, INDEX_NAME = "settings.json", "index.csv"  # in a folder of .npy files


def writer_for(out: Path):
    """The function that writes `out`, by its suffix. ValueError for one that stands for no format."""
    writers = {".npz": write_npz, ".parquet": write_parquet, "": write_npy_folder}
    if out.suffix.lower() not in writers:
        raise ValueError(f"--out {out}: write it as .npz, .parquet, or without a suffix for a folder of .npy files")
    return writers[out.suffix.lower()]


def failures_path(out: Path) -> Path:
    """The table of the files that are not in `out`, beside it; it is there if there are any."""
    return out.with_name(f"{out.name}.failed.csv")


def write_failures(out: Path, failed: list[Entry]) -> None:
    """Columns path and error."""
    if not failed:
        failures_path(out).unlink(missing_ok=True)  # of an earlier result of the same name
        return
    with atomic_write(failures_path(out)) as file:
        table = csv.writer(text := io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True))
        table.writerows([("path", "error"), *((entry.path, entry.error) for entry in failed)])
        text.detach()


def read_failures(out: Path) -> list[Entry]:
    """What `write_failures` wrote beside `out`."""
    if not failures_path(out).exists():
        return []
    with open(failures_path(out), newline="", encoding="utf-8") as file:
        return [Entry(row["path"], error=row["error"]) for row in csv.DictReader(file)]


def read_settings(out: Path) -> dict | None:
    """The settings that `out` was written with; None for a result of earlier versions, which hold none.

    ValueError for what is no result.
    """
    read = {".npz": _settings_of_npz, ".parquet": _settings_of_parquet, "": _settings_of_npy_folder}
    try:
        text = read[out.suffix.lower()](out)
        return None if text is None else json.loads(text)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{out} exists already, and cannot be read as a result of this command ({error}); remove it "
            "or choose another name"
        ) from error


def _settings_of_npz(out: Path) -> str | None:
    with zipfile.ZipFile(out) as archive:
        if "settings.npy" not in archive.namelist():
            return None
        with archive.open("settings.npy") as member:
            return str(np.lib.format.read_array(member, allow_pickle=False))


def _settings_of_parquet(out: Path) -> bytes | None:
    from pyarrow import parquet

    return (parquet.read_schema(out).metadata or {}).get(b"settings")


def _settings_of_npy_folder(out: Path) -> str | None:
    if not (out / INDEX_NAME).is_file():
        raise ValueError(f"it has no {INDEX_NAME}")
    return (out / SETTINGS_NAME).read_text() if (out / SETTINGS_NAME).exists() else None


def write_npz(out: Path, journal: Journal, step_seconds: float, settings: dict) -> None:
    """Arrays path [files], duration [files], offset [files + 1] (rows offset[i] to offset[i + 1] are those of file i),
    embedding [rows, width], start [rows], and the strings model, layout and settings (JSON)."""
    entries = _good(journal)
    counts = np.array([entry.rows for entry in entries], np.int64)
    small = {
        "path": np.array([entry.path for entry in entries], dtype=str),
        "duration": np.array([entry.seconds for entry in entries], np.float64),
        "offset": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "start": _starts(counts, step_seconds),
        **{name: np.array(settings[name]) for name in ("model", "layout")},
        "settings": np.array(json.dumps(settings)),
    }
    with atomic_write(out) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in small.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open(zipfile.ZipInfo("embedding.npy"), "w", force_zip64=True) as member:
            _write_npy(member, journal.read_rows(), (journal.count, journal.width))


def write_parquet(out: Path, journal: Journal, step_seconds: float, settings: dict) -> None:
    """Columns path, start, embedding (a list of fixed size), duration, model, layout; one line per embedding. The
    schema's metadata has `settings` (JSON)."""
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema(
        [
            ("path", text),
            ("start", pa.float64()),
            ("embedding", pa.list_(pa.float32(), journal.width)),
            ("duration", pa.float64()),
            ("model", text),
            ("layout", text),
        ],
        metadata={"settings": json.dumps(settings)},
    )
    with atomic_write(out) as file, parquet.ParquetWriter(file, schema) as writer:
        lines = _lines(journal, step_seconds)
        for rows in journal.read_rows():
            paths, starts, durations = zip(*(next(lines) for _ in rows))
            columns = [
                pa.array(paths).dictionary_encode(),
                pa.array(starts),
                pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), journal.width),
                pa.array(durations),
                *(pa.array([settings[name]] * len(rows)).dictionary_encode() for name in ("model", "layout")),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def write_npy_folder(out: Path, journal: Journal, step_seconds: float, settings: dict) -> None:
    """`<number>_<name>.npy` per file, [rows, width], index.csv: npy, path, rows, step, duration, model, layout, and
    settings.json."""
    unfinished = journal.folder / "npy"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed while it wrote
    unfinished.mkdir()
    (unfinished / SETTINGS_NAME).write_text(json.dumps(settings))
    rows = _RowReader(journal)
    with open(unfinished / INDEX_NAME, "w", newline="", encoding="utf-8") as table:
        index = csv.writer(table)
        index.writerow(["npy", "path", "rows", "step", "duration", "model", "layout"])
        for number, entry in enumerate(_good(journal)):
            name = f"{number:06d}_{_short(Path(entry.path).stem)}.npy"
            with open(unfinished / name, "wb") as file:
                _write_npy(file, rows.take(entry.rows), (entry.rows, journal.width))
            index.writerow(
                [name, entry.path, entry.rows, step_seconds, entry.seconds, settings["model"], settings["layout"]]
            )
    os.sync()  # once: a call for each of many small files takes longer than all else
    unfinished.rename(out)


def _short(stem: str) -> str:
    """Its first NAME_BYTES bytes: a file system allows 255 in a name."""
    return stem.encode()[:NAME_BYTES].decode(errors="ignore")


class _RowReader:
    """Hands out a journal's rows in portions that need not match those in which they are read."""

    def __init__(self, journal: Journal):
        self._blocks, self._held = journal.read_rows(), np.zeros((0, journal.width), np.float32)

    def take(self, count: int) -> Iterator[np.ndarray]:
        while count:
            if not len(self._held):
                self._held = next(self._blocks)
            part, self._held = self._held[:count], self._held[count:]
            count -= len(part)
            yield part


def _good(journal: Journal) -> list[Entry]:
    return [entry for entry in journal.entries if entry.error is None]


def _starts(counts: np.ndarray, step_seconds: float) -> np.ndarray:
    """Seconds at which each row begins, [rows]."""
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    return np.round((np.arange(counts.sum()) - firsts) * step_seconds, 6)


def _lines(journal: Journal, step_seconds: float) -> Iterator[tuple[str, float, float]]:
    """Path, start and duration of every row."""
    for entry in _good(journal):
        for row in range(entry.rows):
            yield entry.path, round(row * step_seconds, 6), entry.seconds


def _write_npy(file, blocks: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for block in blocks:
        file.write(np.ascontiguousarray(block).data)
