"""Scores that are kept in a folder and read again as long as model, clips and features are the same."""

import hashlib
import json
from pathlib import Path

import numpy as np

from audio_mamba.data.array_bytes import NPZ_ERRORS
from audio_mamba.hear_api.probe.clips import Clips
from audio_mamba.hear_api.probe.features import Model
from audio_mamba.system.atomic_files import atomic_write
from experiments.judge.embed import Features
from experiments.judge.scores import Scored


class Kept:
    """A folder of scores, one file for each task, model and kind of features."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._models: dict[str, str] = {}  # fingerprints by name, since a large file takes a second

    def read(self, model: Model, clips: Clips, features: Features) -> Scored | None:
        """None if there are none, or the file is damaged."""
        try:
            with np.load(self._path(model, clips, features), allow_pickle=False) as saved:
                if saved["name"].tolist() != clips.names:
                    return None
                return Scored(int(saved["width"]), saved["valid"], saved["test"])
        except NPZ_ERRORS:
            return None

    def write(self, model: Model, clips: Clips, features: Features, scored: Scored) -> None:
        """Whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._path(model, clips, features)) as file:
            np.savez(file, width=scored.width, valid=scored.valid, test=scored.test, name=np.array(clips.names))

    def _path(self, model: Model, clips: Clips, features: Features) -> Path:
        if model.name not in self._models:
            self._models[model.name] = model.fingerprint()
        labels = [clips.labels, clips.splits, clips.vocabulary]
        described = json.dumps([self._models[model.name], clips.fingerprint(), labels, features])
        return self._folder / f"{clips.source.name}-{hashlib.sha256(described.encode()).hexdigest()[:16]}.npz"
