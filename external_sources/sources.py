"""The HEAR tasks in TASKS_DIR: folders, and the archives in which tasks are released."""

import fnmatch
import os
from pathlib import Path

from audio_mamba.external_sources import layout, unpack


def default_cache(tasks_dir: Path) -> Path:
    """The folder beside TASKS_DIR for what is unpacked and resampled from it: `<TASKS_DIR>.16k`."""
    path = os.path.normpath(tasks_dir.absolute())
    return Path(f"{path}.16k")


def find_sources(tasks_dir: Path) -> dict[str, Path]:
    """Folder or archive of each task by the task's name, sorted. A folder is preferred to an archive of the same task.

    Raises:
        task_files.TaskError: an archive is damaged, or has no task in it.
    """
    sources: dict[str, Path] = {}
    for archive in unpack.archives(tasks_dir):
        sources.setdefault(unpack.task_name(archive), archive)
    sources |= {task.name: task for task in layout.task_folders(tasks_dir)}
    return dict(sorted(sources.items()))


def chosen(sources: dict[str, Path], patterns: str) -> dict[str, Path]:
    """The tasks whose names match one of the patterns, which are separated by spaces."""
    return {
        name: source
        for name, source in sources.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split())
    }
