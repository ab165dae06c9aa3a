"""From what users name on a command line to the list of audio files that they mean."""

import csv
import glob
from collections.abc import Iterable
from pathlib import Path

from audio_mamba.data.audio import AudioError, find_audio


def list_audio(inputs: Iterable[str]) -> list[Path]:
    """The files of some inputs, in the order given and each once.

    An input is a file, a folder (all audio below it, sorted), a glob ("takes/**/*.wav", sorted), or a `.csv` list: its
    column `path`, `file` or `filename`, or else its first one; paths in a list are relative to its folder.
    AudioError for an input that names nothing.
    """
    files = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files += find_audio(path)
        elif path.suffix.lower() == ".csv" and path.is_file():
            files += _read_list(path)
        elif path.exists():
            files.append(path)
        elif matches := sorted(Path(match) for match in glob.glob(text, recursive=True) if Path(match).is_file()):
            files += matches
        else:
            raise AudioError(f"{text}: no such file or folder, and as a pattern it matches no file")
    return list(dict.fromkeys(files))


def _read_list(path: Path) -> list[Path]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise AudioError(f"{path}: cannot be read as a csv list ({error})") from error
    if not rows:
        raise AudioError(f"{path}: the list is empty")
    header = [cell.strip().lower() for cell in rows[0]]
    column = next((header.index(name) for name in ("path", "file", "filename") if name in header), None)
    names = [row[0] for row in rows] if column is None else [row[column] for row in rows[1:] if len(row) > column]
    return [path.parent / name.strip() for name in names]
