"""The HEAR tasks in TASKS_DIR: folders, and the archives in which tasks are released."""

import os
import sys
from pathlib import Path
from typing import TypeVar

from audio_mamba.data.audio_files import is_hidden
from audio_mamba.external_sources import layout, unpack
from audio_mamba.external_sources.task_files import TaskError
from audio_mamba.system.shares import Share

Task = TypeVar("Task")  # whatever stands for one


def default_cache(tasks_dir: Path) -> Path:
    """The folder beside TASKS_DIR for what is unpacked and resampled from it: `<TASKS_DIR>.16k`."""
    path = os.path.normpath(tasks_dir.absolute())
    return Path(f"{path}.16k")


def find_sources(tasks_dir: Path, hidden: bool = False) -> dict[str, Path]:
    """Folder or archive of each task by the task's name, sorted. A folder is preferred to an archive of the same task.

    hidden: take those of hidden, trash or system names too.

    Raises:
        task_files.TaskError: an archive is damaged.
    """
    sources: dict[str, Path] = {}
    for archive in unpack.archives(tasks_dir):
        if is_hidden(archive.name) and not hidden:
            continue
        if name := unpack.task_name(archive):
            sources.setdefault(name, archive)
    sources |= {task.name: task for task in layout.task_folders(tasks_dir, hidden=hidden)}
    return dict(sorted(sources.items()))


def choose(tasks: dict[str, Task], patterns: str) -> dict[str, Task]:
    """The tasks whose names match one of the patterns, which are separated by spaces."""
    return {name: task for name, task in tasks.items() if layout.matches(name, patterns)}


def find_tasks(tasks_dir: Path, patterns: str, cache: Path, hidden: bool = False, share: Share = Share()) -> list[Path]:
    """The folders of the chosen tasks; archives are unpacked into `cache`, unless that has been done already.

    Args:
        hidden: take tasks of hidden, trash or system names too; otherwise a line on stderr counts them.
        share: of the chosen tasks.

    Raises:
        SystemExit: there is no task, none matches, or an archive cannot be unpacked.
    """
    try:
        note = None if hidden else layout.hidden_note([tasks_dir])
        if note:
            print(note, file=sys.stderr)
        found = find_sources(tasks_dir, hidden)
        if not found:
            raise TaskError(
                f"{tasks_dir} contains no HEAR task (a folder with {layout.METADATA}, or the tar.gz file of one)"
            )
        chosen = choose(found, patterns)
        if not chosen:
            raise SystemExit(f"TASKS: {patterns} matches none of {', '.join(found)}")
        for entry in sorted(set(tasks_dir.iterdir()) - set(found.values())):
            if hidden or not is_hidden(entry.name):
                print(
                    f"skipped {entry}: not a folder with {layout.METADATA}, nor needed as an archive", file=sys.stderr
                )
        tasks = []
        for source in share.every(list(chosen.values())):
            if source.is_dir():
                tasks.append(source)
            else:
                print(f"unpacking {source} into {cache}, if it is new")
                tasks.append(unpack.unpack(source, cache))
        return tasks
    except TaskError as error:
        raise SystemExit(f"TASKS_DIR: {error}") from None
