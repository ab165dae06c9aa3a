"""The tasks for X-ARES: its own, whose archives are in a folder, and HEAR tasks, which become such archives."""

import functools
import importlib.metadata
import importlib.util
import json
import math
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import webdataset
from torch import Tensor

from audio_mamba.data.label_tables import composed, read_classes
from audio_mamba.external_sources import layout, task_files
from audio_mamba.external_sources.task_check import check_task
from audio_mamba.external_sources.task_files import VOCABULARY, TaskError, read_json
from audio_mamba.system.atomic_files import atomic_write

AUDIO = ("flac", "mp3", "sox", "wav", "m4a", "ogg", "wma")  # suffixes that xares reads
MakeConfig = Callable[[Any], Any]  # a function of xares: encoder -> TaskConfig


def kits_tasks() -> list[MakeConfig]:
    """The functions of the installed package that make the configs of its own tasks."""
    functions = []
    for file in importlib.metadata.files("xares") or []:
        if file.parent.name == "tasks" and file.name.endswith("_task.py"):
            spec = importlib.util.spec_from_file_location(f"xares_tasks_{file.stem}", str(file.locate()))
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            functions += [value for name, value in vars(module).items() if name.endswith("_config")]
    return functions


def find_tasks(directory: Path, encoder: Any) -> dict[str, Callable[[], Any]]:
    """What makes the config of each task in a folder, by the names of their folders, sorted.

    Args:
        directory: its folders are HEAR tasks, or have a task's name in xares and the archives of its release.
        encoder: `xares_kit.HearEncoder`.
    """
    found = {}
    for make in kits_tasks():
        name = make(encoder).name
        if (directory / name).is_dir():
            found[name] = functools.partial(make, encoder)
    found |= {task.name: functools.partial(hear_config, task, encoder) for task in layout.task_folders(directory)}
    return dict(sorted(found.items()))


def archives(config: Any, directory: Path) -> dict[str, list[Path]]:
    """The archives of each split of a task, sorted.

    Raises:
        TaskError: a split has no archive.
    """
    found = {}
    for split, pattern in config.audio_tar_name_of_split.items():
        found[str(split)] = sorted(directory.glob(pattern))
        if not found[str(split)]:
            raise TaskError(f"{directory} has no archive of split {split} ({pattern})")
    return found


def count_samples(archive: Path, suffixes: tuple[str, ...]) -> int:
    """The number of samples in a webdataset archive: its members with one of these suffixes.

    Raises:
        TaskError: it is damaged, or a sample has no labels.
    """
    try:
        with tarfile.open(archive) as file:
            names = [member.name for member in file if member.isfile()]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise TaskError(f"{archive} is damaged or cut off ({error})") from None
    keys = {name.rpartition(".")[0] for name in names if name.rpartition(".")[2] in suffixes}
    labelled = {name.removesuffix(".json") for name in names if name.endswith(".json")}
    if missing := sorted(keys - labelled):
        raise TaskError(f"{archive}: {missing[0]} has no labels (.json)")
    return len(keys)


def hear_config(task: Path, encoder: Any) -> Any:
    """The config of a HEAR task in X-ARES, with the settings of the kit's own tasks of this kind.

    Scenes with one label are a "clip" task, scored by accuracy. Events are a "frame" task with the settings of MAESTRO,
    scored by the micro F1 of segments of 100 ms.

    Raises:
        TaskError: the task is damaged, or of another kind.
    """
    from xares.task import TaskConfig

    metadata = read_json(task / layout.METADATA, dict)
    check_task(task, task_files.source_rate(task, encoder.sampling_rate))
    labels = read_classes(task / VOCABULARY)
    index = {label: number for number, label in enumerate(labels)}
    splits = metadata["splits"]
    settings: dict[str, Any] = {"encoder": encoder, "name": task.name, "output_dim": len(labels)}
    if {"train", "valid", "test"} <= set(splits):
        settings |= {f"{split}_split": f"wds-audio-{split}" for split in ("train", "valid", "test")}
        settings["eval_weight"] = len(read_json(task / "test.json", dict))
    else:
        sizes = [len(read_json(task / f"{split}.json", dict)) for split in splits]
        settings |= {"k_fold_splits": list(range(len(splits))), "eval_weight": sum(sizes) // len(sizes)}
    if metadata["embedding_type"] == "event":
        hop = encoder.hop_size_in_ms
        settings |= {
            "task_type": "frame",
            "do_knn": False,
            "batch_size_train": 1,
            "epochs": 50,
            "criterion": torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(10)),
            "metric": "segmentf1_micro",
            "metric_args": {"hop_size_in_ms": hop, "segment_length_in_s": 0.1},
            "label_processor": lambda events: frame_targets(events, index, hop),
        }
    elif metadata["prediction_type"] == "multiclass":
        settings["label_processor"] = lambda sample: index[composed(sample["label"])]
    else:
        raise TaskError(f"{task} has clips with several labels; of HEAR tasks, X-ARES is run on those with one label")
    return TaskConfig(**settings)


def frame_targets(events: list[dict], index: dict[str, int], hop_ms: float) -> Tensor:
    """Events with label, start and end in ms -> float32 [labels, T], 1 where an event is, as in xares' MAESTRO."""
    frames = [
        (index[composed(str(event["label"]))], math.ceil(event["start"] / hop_ms), math.ceil(event["end"] / hop_ms))
        for event in events
    ]
    targets = torch.zeros(len(index), max((end for _, _, end in frames), default=1))
    for label, start, end in frames:
        targets[label, start:end] = 1.0
    return targets


def write_archives(task: Path, config: Any, directory: Path) -> None:
    """Write a HEAR task as X-ARES archives, one for each split: audio files as they are, and their labels as JSON.

    Args:
        task: folder of the HEAR task.
        config: of `hear_config`.
        directory: existing folder.
    """
    rate = task_files.source_rate(task, config.encoder.sampling_rate)
    for pattern, split in zip(config.audio_tar_name_of_split.values(), _splits_in_order(task, config)):
        name = pattern.replace("-*", "*").replace("*", "-0000000")
        with atomic_write(directory / name) as file, webdataset.TarWriter(file) as writer:
            for number, (clip, labels) in enumerate(read_json(task / f"{split}.json", dict).items()):
                audio = task / str(rate) / split / clip
                target = labels if config.task_type == "frame" else {"label": str(labels[0])}
                writer.write(
                    {
                        "__key__": f"{number:06d}",
                        audio.suffix.removeprefix("."): audio.read_bytes(),
                        "json": json.dumps(target).encode(),
                    }
                )


def _splits_in_order(task: Path, config: Any) -> list[str]:
    """The splits of a HEAR task in the order of those of its config."""
    return ["train", "valid", "test"] if config.k_fold_splits is None else task_files.split_names(task)
