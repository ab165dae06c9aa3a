"""The formats of the embed command's result: .npz, .parquet, or a folder of .npy files; written atomically.

Embeddings are float32, `start` and `duration` are in seconds. With `--channel each` there is a result per channel, and
`channel` is its number, counted from 0. `settings` is a JSON object of what the embeddings depend
on; its `model` and `layout` are also stored separately. The same embeddings and settings give the same bytes.
"""

import csv
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from audio_mamba.data.array_bytes import NPZ_ERRORS
from audio_mamba.hear_api.journal import READ_ROWS, RESULT, Entry, JoinedJournal, Journal
from audio_mamba.system.atomic_files import atomic_write, naming_full_disk

NAME_BYTES = 200
SETTINGS_NAME, INDEX_NAME = "settings.json", "index.csv"  # in a folder of .npy files or labels


class Format(NamedTuple):
    """How a result is written and how its settings are read back."""

    write: Callable[
        [Path, Journal | JoinedJournal, float], None
    ]  # result, journal, seconds from one embedding of a file to the next
    settings: Callable[[Path], str | bytes | None]  # JSON; None for results of earlier versions


def format_of(out: Path) -> Format:
    """The format of a result, by its suffix. ValueError for an unknown one, and for .parquet without pyarrow."""
    formats = {
        ".npz": Format(write_npz, _settings_of_npz),
        ".parquet": Format(write_parquet, _settings_of_parquet),
        "": Format(write_npy_folder, _settings_of_npy_folder),
    }
    if out.suffix.lower() not in formats:
        raise ValueError(f"--out {out}: write it as .npz, .parquet, or without a suffix for a folder of .npy files")
    if out.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError(f'--out {out}: .parquet needs pyarrow, which the extra [export] has: pip install ".[export]"')
    return formats[out.suffix.lower()]


def read_settings(out: Path, format: Format | None = None) -> dict | None:
    """The settings of a result in a format (default: that of its suffix); None for a result of earlier versions, which
    did not store them.

    ValueError if `out` is not a result.
    """
    try:
        text = (format or format_of(out)).settings(out)
        settings = None if text is None else json.loads(text)
        if not isinstance(settings, dict | None):
            raise ValueError("its settings are not a JSON object")
        return settings
    except NPZ_ERRORS as error:
        raise ValueError(
            f"{out} exists already and cannot be read as a result of this command ({error}); remove it "
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
    return (out / SETTINGS_NAME).read_text(encoding="utf-8") if (out / SETTINGS_NAME).exists() else None


def has_channels(journal: Journal | JoinedJournal) -> bool:
    """Whether each entry is one channel of a file."""
    return journal.settings["channel"] == "each"


def write_npz(out: Path, journal: Journal | JoinedJournal, step_seconds: float) -> None:
    """Arrays path [files], channel [files] (with `--channel each`), duration [files], offset [files + 1], embedding
    [rows, width] and start [rows], and the strings model, layout and settings (JSON). File i has the rows offset[i] to
    offset[i + 1]."""
    entries = _good(journal)
    offset = np.cumsum([0, *(entry.rows for entry in entries)], dtype=np.int64)
    arrays: dict[str, np.ndarray | None] = {
        "path": np.array([entry.path for entry in entries], dtype=str),
        **({"channel": np.array([entry.channel for entry in entries], np.int64)} if has_channels(journal) else {}),
        "duration": np.array([entry.seconds for entry in entries], np.float64),
        "offset": offset,
        "start": None,  # written block by block, as it is as long as the embeddings
        **{name: np.array(journal.settings[name]) for name in ("model", "layout")},
        "settings": np.array(json.dumps(journal.settings)),
    }
    with atomic_write(out) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                if array is None:
                    _write_npy(member, _starts(offset, step_seconds), (journal.count,), "<f8")
                else:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open(zipfile.ZipInfo("embedding.npy"), "w", force_zip64=True) as member:
            _write_npy(member, journal.read_rows(), (journal.count, journal.width))


def write_parquet(out: Path, journal: Journal | JoinedJournal, step_seconds: float) -> None:
    """Columns path, channel (with `--channel each`), start, embedding (a list of fixed size), duration, model, layout;
    one line per embedding. The metadata of the schema holds `settings` (JSON)."""
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.dictionary(pa.int32(), pa.string())
    with_channels = has_channels(journal)
    schema = pa.schema(
        [
            ("path", text),
            *([("channel", pa.int32())] if with_channels else []),
            ("start", pa.float64()),
            ("embedding", pa.list_(pa.float32(), journal.width)),
            ("duration", pa.float64()),
            ("model", text),
            ("layout", text),
        ],
        metadata={"settings": json.dumps(journal.settings)},
    )
    with atomic_write(out) as file, parquet.ParquetWriter(file, schema) as writer:
        lines = _lines(journal, step_seconds)
        for rows in journal.read_rows():
            entries, starts = zip(*(next(lines) for _ in rows))
            columns = [
                pa.array([entry.path for entry in entries]).dictionary_encode(),
                *([pa.array([entry.channel for entry in entries], pa.int32())] if with_channels else []),
                pa.array(starts),
                pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), journal.width),
                pa.array([entry.seconds for entry in entries]),
                *(pa.array([journal.settings[name]] * len(rows)).dictionary_encode() for name in ("model", "layout")),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def write_npy_folder(out: Path, journal: Journal | JoinedJournal, step_seconds: float) -> None:
    """One `<number>_<name>.npy` [rows, width] per file, index.csv (npy, path, rows, step, duration, model, layout), and
    settings.json. With `--channel each`, `<number>_ch<channel>_<name>.npy` and a column channel after path."""
    rows, model, layout = _RowReader(journal), journal.settings["model"], journal.settings["layout"]
    with whole_folder(out, journal) as folder, open(folder / INDEX_NAME, "w", newline="", encoding="utf-8") as table:
        (folder / SETTINGS_NAME).write_text(json.dumps(journal.settings))
        index = csv.writer(table)
        channel_column = ["channel"] if has_channels(journal) else []
        index.writerow(["npy", "path", *channel_column, "rows", "step", "duration", "model", "layout"])
        for number, entry in enumerate(_good(journal)):
            channel = [] if entry.channel is None else [entry.channel]
            name = name_in_folder(number, entry, ".npy")
            with open(folder / name, "wb") as file:
                _write_npy(file, rows.take(entry.rows), (entry.rows, journal.width))
            index.writerow([name, entry.path, *channel, entry.rows, step_seconds, entry.seconds, model, layout])


@contextmanager
def whole_folder(out: Path, journal: Journal | JoinedJournal) -> Iterator[Path]:
    """An empty folder to fill, which becomes the result `out` at the end."""
    unfinished = journal.folder / RESULT
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a run that was killed while writing
    unfinished.mkdir()
    with naming_full_disk(out):
        yield unfinished
    os.sync()  # once, since a call for each of many small files would take longer than everything else
    unfinished.rename(out)


def name_in_folder(number: int, entry: Entry, suffix: str) -> str:
    """`<number>_<name>` with a suffix, or of one channel `<number>_ch<channel>_<name>`. Of the name the first
    NAME_BYTES bytes, since file systems allow 255."""
    channel = "" if entry.channel is None else f"ch{entry.channel}_"
    stem = Path(entry.path).stem.encode()[:NAME_BYTES].decode(errors="ignore")
    return f"{number:06d}_{channel}{stem}{suffix}"


class _RowReader:
    """Reads the rows of a journal in any portions."""

    def __init__(self, journal: Journal | JoinedJournal):
        self._blocks, self._held = journal.read_rows(), np.zeros((0, journal.width), np.float32)

    def take(self, count: int) -> Iterator[np.ndarray]:
        while count:
            if not len(self._held):
                self._held = next(self._blocks)
            part, self._held = self._held[:count], self._held[count:]
            count -= len(part)
            yield part


def _good(journal: Journal | JoinedJournal) -> list[Entry]:
    return [entry for entry in journal.entries if entry.error is None]


def _starts(offset: np.ndarray, step_seconds: float) -> Iterator[np.ndarray]:
    """Start of each row in seconds, in blocks [READ_ROWS] and a smaller one at the end.

    offset: the first row of each file, and at the end the number of all rows.
    """
    for first in range(0, int(offset[-1]), READ_ROWS):
        rows = np.arange(first, min(first + READ_ROWS, int(offset[-1])))
        files = np.searchsorted(offset, rows, side="right") - 1
        yield np.round((rows - offset[files]) * step_seconds, 6)


def _lines(journal: Journal | JoinedJournal, step_seconds: float) -> Iterator[tuple[Entry, float]]:
    """The file and the start of every row."""
    for entry in _good(journal):
        for row in range(entry.rows):
            yield entry, round(row * step_seconds, 6)


def _write_npy(file: IO[bytes], blocks: Iterator[np.ndarray], shape: tuple[int, ...], descr: str = "<f4") -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    for block in blocks:
        file.write(np.ascontiguousarray(block).data)
