"""Where the evaluation stores its files, in the layout of the published scripts.

OUTPUT_DIR/audioset/<module>/<task>/                    embeddings, and .done.embeddings once they are complete
OUTPUT_DIR/todo_audioset/<module>_r1_<seed>/<task>/     links to them, and the results of one downstream run
"""

import contextlib
import fnmatch
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from audio_mamba.data.audio_files import is_hidden
from audio_mamba.data.labels import HEAR_METADATA

METADATA = HEAR_METADATA
EMBEDDINGS = "audioset"
RUNS = "todo_audioset"
DONE_EMBEDDINGS = ".done.embeddings"
DONE_PREDICTIONS = "prediction-done.json"
SCORES = "test.predicted-scores.json"
SEEDS = range(10)

_RUN = re.compile(r"(?P<module>.+)_r(?P<ssl_run>\d+)_(?P<seed>\d+)")


class Run(NamedTuple):
    """The parts of a folder name in todo_audioset: the model, its pretraining run, and the downstream seed."""

    module: str
    ssl_run: int
    seed: int


def run_name(module: str, seed: int) -> str:
    """Folder name of one downstream seed of a model, `<module>_r1_<seed>`."""
    return f"{module}_r1_{seed:02d}"


def parse_run_name(name: str) -> Run | None:
    """The parts of `<module>_r<pretraining>_<seed>`, or None for any other name."""
    match = _RUN.fullmatch(name)
    return Run(match["module"], int(match["ssl_run"]), int(match["seed"])) if match else None


def task_folders(directory: Path, patterns: str = "*", hidden: bool = False) -> list[Path]:
    """The HEAR tasks in a folder, sorted: its sub-folders with a task_metadata.json.

    Args:
        directory: the folder.
        patterns: only tasks whose names match one of these, which are separated by spaces ("*", "?", "[]" as in a
            shell).
        hidden: take tasks of hidden, trash or system names too (`data.audio.is_hidden`).
    """
    return sorted(
        entry
        for entry in directory.iterdir()
        if (entry / METADATA).is_file() and (hidden or not is_hidden(entry.name)) and matches(entry.name, patterns)
    )


def matches(name: str, patterns: str) -> bool:
    """Whether a name matches one of the patterns, which are separated by spaces."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split())


def hidden_note(directories: Iterable[Path]) -> str | None:
    """A line that counts the entries of folders which `task_folders` leaves out as hidden; None if there are none."""
    found = sorted(entry for directory in directories for entry in directory.iterdir() if is_hidden(entry.name))
    if not found:
        return None
    return f"left out hidden or system files and folders: {len(found)}, the first is {found[0]}; --hidden takes tasks"


def is_done(task: Path) -> bool:
    """Whether a folder has the complete results of a downstream run. The kit writes the marker last; after a crash it
    may be empty."""
    done = task / DONE_PREDICTIONS
    return (task / SCORES).is_file() and done.is_file() and done.stat().st_size > 0


def embeddings_of(run: Path) -> Path | None:
    """The folder of the embeddings of a task in a run, todo_audioset/<module>_r1_<seed>/<task>; None if it is gone."""
    parts = parse_run_name(run.parent.name)
    folder = run.absolute().parents[2] / EMBEDDINGS / parts.module / run.name if parts else None
    return folder if folder and folder.is_dir() else None


def incomplete_embeddings(runs: Iterable[Path]) -> Path | None:
    """The first folder of embeddings of these runs that an extraction left unfinished; None if there is none."""
    folders = dict.fromkeys(map(embeddings_of, runs))  # once for all seeds
    return next((folder for folder in folders if folder and not (folder / DONE_EMBEDDINGS).exists()), None)


def embedded_tasks(module_dir: Path, hidden: bool = False) -> list[Path]:
    """The tasks in OUTPUT_DIR/audioset/<module> whose embeddings are complete."""
    if not module_dir.is_dir():
        return []
    return [task for task in task_folders(module_dir, hidden=hidden) if (task / DONE_EMBEDDINGS).exists()]


def link_run(output_dir: Path, module: str, seed: int, hidden: bool = False) -> None:
    """Link every file of the complete embeddings of `module` into the folder of one downstream seed.

    Links are relative, so OUTPUT_DIR can be moved. Existing files are kept, links to files that are gone are removed.
    Folders of single clips are linked as a whole. Hidden files, except the mark of complete embeddings, are not linked.
    """
    for task in embedded_tasks(output_dir / EMBEDDINGS / module, hidden):
        folder = output_dir / RUNS / run_name(module, seed) / task.name
        folder.mkdir(parents=True, exist_ok=True)
        for link in folder.iterdir():
            if link.is_symlink() and not link.exists():  # of a split that the task had when it was embedded before
                link.unlink(missing_ok=True)
        for file in task.iterdir():
            if is_hidden(file.name) and file.name != DONE_EMBEDDINGS:
                continue
            link = folder / file.name
            with contextlib.suppress(FileExistsError):  # linked before, or by another process now
                link.symlink_to(os.path.relpath(file, folder))
