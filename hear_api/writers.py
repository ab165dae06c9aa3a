"""The result of `hear_api.embed` as .npz, as a folder of .npy files, or as .parquet; whole or not at all.

Embeddings are float32, `start` and `duration` seconds. The same embeddings give the same bytes.
"""
import csv
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from atomic_files import atomic_write
from hear_api.journal import Entry, Journal

NAME_BYTES = 200


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


def write_npz(out: Path, journal: Journal, step_seconds: float, model: str, layout: str) -> None:
    """Arrays path [files], duration [files], offset [files + 1] (rows offset[i] to offset[i + 1] are those of file i),
    embedding [rows, width], start [rows], and the strings model and layout."""
    entries = _good(journal)
    counts = np.array([entry.rows for entry in entries], np.int64)
    small = {"path": np.array([entry.path for entry in entries], dtype=str),
             "duration": np.array([entry.seconds for entry in entries], np.float64),
             "offset": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
             "start": _starts(counts, step_seconds), "model": np.array(model), "layout": np.array(layout)}
    with atomic_write(out) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in small.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open(zipfile.ZipInfo("embedding.npy"), "w", force_zip64=True) as member:
            _write_npy(member, journal.read_rows(), (journal.count, journal.width))


def write_parquet(out: Path, journal: Journal, step_seconds: float, model: str, layout: str) -> None:
    """Columns path, start, embedding (a list of fixed size), duration, model, layout; one line per embedding."""
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([("path", text), ("start", pa.float64()), ("embedding", pa.list_(pa.float32(), journal.width)),
                        ("duration", pa.float64()), ("model", text), ("layout", text)])
    with atomic_write(out) as file, parquet.ParquetWriter(file, schema) as writer:
        lines = _lines(journal, step_seconds)
        for rows in journal.read_rows():
            paths, starts, durations = zip(*(next(lines) for _ in rows))
            columns = [pa.array(paths).dictionary_encode(), pa.array(starts),
                       pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), journal.width), pa.array(durations),
                       *(pa.array([word] * len(rows)).dictionary_encode() for word in (model, layout))]
            writer.write_table(pa.table(columns, schema=schema))


def write_npy_folder(out: Path, journal: Journal, step_seconds: float, model: str, layout: str) -> None:
    """`<number>_<name>.npy` per file, [rows, width], and index.csv: npy, path, rows, step, duration, model, layout."""
    unfinished = journal.folder / "npy"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed while it wrote
    unfinished.mkdir()
    rows = _RowReader(journal)
    with open(unfinished / "index.csv", "w", newline="", encoding="utf-8") as table:
        index = csv.writer(table)
        index.writerow(["npy", "path", "rows", "step", "duration", "model", "layout"])
        for number, entry in enumerate(_good(journal)):
            name = f"{number:06d}_{_short(Path(entry.path).stem)}.npy"
            with open(unfinished / name, "wb") as file:
                _write_npy(file, rows.take(entry.rows), (entry.rows, journal.width))
            index.writerow([name, entry.path, entry.rows, step_seconds, entry.seconds, model, layout])
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
