"""Embeddings of labelled clips by each model, kept in a folder and reused as long as model and clips are the same."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from audio_mamba.data.array_bytes import NPZ_ERRORS
from audio_mamba.data.audio import load_audio
from audio_mamba.data.features import log_mel
from audio_mamba.data.normalisation import normalise, statistics_of
from audio_mamba.front_end import PUBLISHED, FrontEnd
from audio_mamba.hear_api.probe.clips import Clips
from audio_mamba.hear_api.resolve import UNTRAINED, ModelSource, names_a_path, resolve
from audio_mamba.hear_api.runtime import RuntimeSSAST, build_runtime
from audio_mamba.models.pooling import pool
from audio_mamba.system.atomic_files import atomic_write, sha256

LOG_MEL = "logmel"
GROUP = 64  # clips per call of the model, between two steps of the progress bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model to probe: `logmel`, or an encoder. `name` is its row in the tables."""

    name: str
    source: ModelSource | None

    @property
    def sample_rate(self) -> int:
        """In Hz, of the audio that it reads."""
        return (PUBLISHED if self.source is None else FrontEnd.from_settings(self.source.config.front_end)).sample_rate

    def fingerprint(self) -> str:
        """What its embeddings follow from, in hex."""
        if self.source is None:
            return hashlib.sha256(b"mean and deviation of log-mels").hexdigest()
        weights = sha256(self.source.weights) if self.source.weights else UNTRAINED
        described = json.dumps([weights, self.source.config.to_dict()], sort_keys=True, default=str)
        return hashlib.sha256(described.encode()).hexdigest()


def find_model(name: str, **features: str | float | None) -> Model:
    """A model by name: "logmel", one that `load_model` knows, a path of weights, or "NAME:untrained", with
    the `features` of `resolve`.

    Raises:
        ValueError, FileNotFoundError: there is no such model.
    """
    if name == LOG_MEL:
        return Model(LOG_MEL, None)
    experiment, _, state = name.rpartition(":")
    if state == UNTRAINED:
        return Model(name, resolve(experiment, UNTRAINED, **features))
    if names_a_path(name):
        source = resolve(None, name, **features)
        return Model(Path(name).name if source.name == "unnamed" else f"{source.name} ({Path(name).name})", source)
    return Model(name, resolve(name, None, **features))


def find_models(names: Sequence[str], **features: str | float | None) -> list[Model]:
    """`find_model` of several, each once. Those that would have one name in the tables, as checkpoints of one epoch of
    two runs have, are named as they were given."""
    given = list(dict.fromkeys(names))
    models = [find_model(name, **features) for name in given]
    found = [model.name for model in models]
    return [Model(name, model.source) if found.count(model.name) > 1 else model for name, model in zip(given, models)]


def embeddings(model: Model, clips: Clips, folder: Path, device: str | None = None) -> np.ndarray:
    """float32 [n, width] of all clips; read from `folder` if they are there, else computed and written there.

    Raises:
        AudioError, ArchiveError: a clip cannot be read, named.
    """
    key = hashlib.sha256(f"{model.fingerprint()} {clips.fingerprint()}".encode()).hexdigest()[:16]
    path = folder / f"{as_file_name(model.name)}-{key}.npz"
    kept = _read(path, clips)
    if kept is not None:
        logger.info("%s: embeddings from %s", model.name, path)
        return kept
    runtime = None if model.source is None else build_runtime(model.source, device=device)
    rows = np.concatenate(list(tqdm(_rows(runtime, clips), desc=model.name, total=-(-len(clips.names) // GROUP))))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, embedding=rows, name=np.array(clips.names), model=np.array(model.name))
    return rows


def _rows(runtime: RuntimeSSAST | None, clips: Clips) -> Iterator[np.ndarray]:
    theirs = clips.front_end()
    if theirs is not None and runtime is not None:
        runtime.front_end.of_archives().check_same(theirs, f"the archive {clips.source}")
    spectrograms = [] if clips.paths else clips.spectrograms()
    for start in range(0, len(clips.names), GROUP):
        if clips.paths and runtime is not None:
            yield np.asarray(runtime.embed(clips.paths[start : start + GROUP], channel=clips.channel))
            continue
        if clips.paths:
            paths = clips.paths[start : start + GROUP]
            group = [log_mel(torch.from_numpy(load_audio(path, channel=clips.channel))) for path in paths]
        else:
            group = spectrograms[start : start + GROUP]
        if runtime is None:
            yield torch.stack([pool(spectrogram, "mean_std") for spectrogram in group]).numpy()
        else:
            normal = [normalise(log_mels, statistics_of(log_mels, runtime.front_end, ddof=1)) for log_mels in group]
            rows = runtime.encode(normal, runtime.scene_layout)
            yield torch.stack([pool(steps, runtime.scene_pooling).cpu() for steps in rows]).numpy()


def _read(path: Path, clips: Clips) -> np.ndarray | None:
    try:
        with np.load(path, allow_pickle=False) as saved:
            return saved["embedding"] if saved["name"].tolist() == clips.names else None
    except NPZ_ERRORS:
        return None  # absent, or damaged: they are computed again


def as_file_name(name: str) -> str:
    """The name of a model with _ in place of what is not a letter, a digit or one of ._-"""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
