"""Make the judge's tasks, in the format of HEAR, from Debian packages, which are downloaded and unpacked only.

    apt-get update; apt-get install fluidsynth
    python -m experiments.judge.build PACKAGES_DIR OUT_DIR

Packages that are there already are not fetched, and tasks that are there already are not made, so run the same command
again to resume. `packages.csv` lists versions, licences, and how many clips a task has from each package.
"""

import argparse
import csv
import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile as sf
from tqdm import tqdm

from audio_mamba.data.labels import HEAR_METADATA
from experiments.free_audio.fetch import fetch
from experiments.judge.clips import Clip
from experiments.judge.instruments import SAMPLE_RATE
from experiments.judge.packages import SUFFIXES, read_sources, versions
from experiments.judge.tasks import EARLIER, TASKS, Task


def write_task(task: Task, packages: Path, out: Path, expected: dict[str, int] | None = None) -> Counter:
    """Make a task as the folder OUT/<name>-v1-full, which appears only when complete.

    Args:
        packages: folder of unpacked packages.
        expected: clips by package, to compare with; None for any.

    Returns:
        The task's clips by package.

    Raises:
        ValueError: two clips have the same name, a split is empty, or there are other clips than expected.
    """
    by_split: dict[str, dict[str, list[str]]] = {split: {} for split in task.splits}
    by_package: Counter = Counter()
    length = round(task.seconds * SAMPLE_RATE)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as temporary:
        folder = Path(temporary) / "task"
        for split in task.splits:
            (folder / str(SAMPLE_RATE) / split).mkdir(parents=True)
        for clip in tqdm(task.clips(packages), desc=task.name, unit="clip", leave=False):
            name = _file_name(clip)
            if name in by_split[clip.split]:
                raise ValueError(f"{task.name}: two clips are named {name}")
            by_split[clip.split][name] = [clip.label]
            by_package[clip.package] += 1
            audio = np.clip(np.pad(clip.audio[:length], (0, max(0, length - len(clip.audio)))), -1, 1)
            sf.write(folder / str(SAMPLE_RATE) / clip.split / name, audio, SAMPLE_RATE, subtype="PCM_16")
        if empty := [split for split, names in by_split.items() if not names]:
            raise ValueError(f"{task.name}: no clips in {', '.join(empty)}")
        if expected is not None:
            _check_counts(task.name, by_package, expected)
        _write_tables(task, by_split, folder)
        folder.rename(out / f"{task.name}-v1-full")
    return by_package


def _file_name(clip: Clip) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", clip.name) + ".wav"


def _write_tables(task: Task, by_split: dict[str, dict[str, list[str]]], folder: Path) -> None:
    labels = sorted({label for names in by_split.values() for (label,) in names.values()})
    with open(folder / "labelvocabulary.csv", "w", newline="") as file:
        csv.writer(file).writerows([("idx", "label"), *enumerate(labels)])
    for split, names in by_split.items():
        (folder / f"{split}.json").write_text(json.dumps(names, indent=1, sort_keys=True))
    metadata = {
        "task_name": task.name,
        "version": "v1",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "trainvaltest" if "train" in task.splits else "new_split_kfold",
        "sample_duration": task.seconds,
        "evaluation": ["top1_acc"],
        "evaluation_params": {},
        "mode": "full",
        "splits": list(task.splits),
        "notes": task.notes,
        "nlabels": len(labels),
        "counts": {split: len(names) for split, names in by_split.items()},
    }
    (folder / HEAR_METADATA).write_text(json.dumps(metadata, indent=1))


def _check_counts(task: str, found: Counter, expected: dict[str, int]) -> None:
    differences = [
        f"{name} {found[name]} instead of {expected.get(name, 0)}"
        for name in sorted(set(found) | set(expected))
        if found[name] != expected.get(name, 0)
    ]
    if differences:
        raise ValueError(f"{task}: clips differ from packages.csv: {', '.join(differences)}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.judge.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("packages", metavar="PACKAGES_DIR", type=Path, help="folder for unpacked packages")
    parser.add_argument("out", metavar="OUT_DIR", type=Path, help="folder for the tasks")
    names = [task.name for task in TASKS]
    earlier = [task.name for task in EARLIER]
    parser.add_argument(
        "--task",
        action="append",
        choices=[*names, *earlier],
        help="make only this; several times for several (default: all but the last four of the choices)",
    )
    args = parser.parse_args(arguments)
    chosen = [task for task in (*TASKS, *EARLIER) if task.name in (args.task or names)]
    for tool in ("apt-get", "fluidsynth"):
        if shutil.which(tool) is None:
            raise SystemExit(f"build: {tool} not found; this command needs Debian or Ubuntu, and fluidsynth")
    sources = read_sources()
    args.packages.mkdir(parents=True, exist_ok=True)
    try:
        for package, version in tqdm(versions(sources, args.task or names).items(), desc="fetching", unit="package"):
            if not (args.packages / package).exists():
                fetch(package, args.packages, version, SUFFIXES)
        for task in chosen:
            if not (args.out / f"{task.name}-v1-full").exists():
                expected = {source.package: source.clips for source in sources if source.task == task.name}
                print(f"{task.name}: {write_task(task, args.packages, args.out, expected).total()} clips", flush=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise SystemExit(f"build: {error}") from None


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
