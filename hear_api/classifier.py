"""A fine-tuned classifier for use: a folder with `model.safetensors` and `config.json`, and the labels of audio.

The folder holds all that is needed: weights, front end, names of the classes, and the temperature that calibrates the
probabilities.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from audio_mamba.data.normalisation import clip_statistics, fixed_statistics, normalise
from audio_mamba.hear_api.clips import Clip, Failure, LongFile, ShortClip, group_clips, prefetch_chunks
from audio_mamba.hear_api.inputs import ClipInput, as_clips, check_sample_rate
from audio_mamba.hear_api.runtime import RuntimeSSAST, pick_device
from audio_mamba.hear_api.trained_config import classifier_experiment
from audio_mamba.hear_api.weights import (
    CLASSIFIER_FOLDER,
    CLASSIFIER_FORMAT,
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_folder,
    read_safetensors,
    to_safetensors,
    write_saved,
)
from audio_mamba.hear_api.windows import Windows
from audio_mamba.models.classifier import Classifier, probabilities
from audio_mamba.models.pooling import RunningPool, pool
from audio_mamba.training.checkpoint import CheckpointError, load_model_state

WINDOWS_AT_ONCE = 32


def save_classifier(
    folder: Path,
    state: dict[str, Tensor],
    config: ConfigDict,
    *,
    classes: list[str],
    loss: str,
    temperature: float,
    notes: dict[str, Any],
) -> None:
    """Write a classifier; see `weights.write_saved`.

    Args:
        folder: created if absent; a classifier there is replaced.
        state: of a `models.classifier.Classifier`.
        config: with model.arch, model.model_args, front_end and head.pooling.
        classes: names in the order of the logits.
        loss: "single" or "multi" label.
        temperature: by which the logits are divided.
        notes: on the training, for people.
    """
    entries = {
        "format": CLASSIFIER_FORMAT,
        "classes": classes,
        "loss": loss,
        "temperature": temperature,
        "pooling": config.head.pooling,
        "arch": config.model.arch,
        "model_args": config.model.model_args.to_dict(),
        "front_end": config.front_end.to_dict(),
        "trained": notes,
    }
    write_saved(folder, to_safetensors(state), json.dumps(entries, indent=1, ensure_ascii=False).encode())


def find_classifier(path: str | Path) -> Path:
    """The folder of a classifier: the one named, or `classifier` in a work folder of finetune.py.

    Raises:
        FileNotFoundError: there is no classifier.
    """
    path = Path(path)
    for folder in (path, path / CLASSIFIER_FOLDER):
        if (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file():
            return folder
    if folds := sorted(path.glob("fold-*/classifier")):
        raise FileNotFoundError(f"{path} has a classifier for each fold; name one, such as {folds[0]}")
    raise FileNotFoundError(f"no classifier ({CONFIG_NAME} and {WEIGHTS_NAME}) in {path} or {path / CLASSIFIER_FOLDER}")


def is_classifier(path: str | Path) -> bool:
    """Whether `find_classifier` finds a classifier of finetune.py."""
    try:
        _read_entries(find_classifier(path) / CONFIG_NAME)
    except (FileNotFoundError, CheckpointError):
        return False
    return True


def copy_classifier(folder: Path, out: Path) -> None:
    """Copy a classifier to another folder. ValueError if something else is there, or this one."""
    if out.exists() and out.samefile(folder):
        raise ValueError(f"{out} is the classifier itself; choose another folder for the copy")
    check_folder(out, is_classifier)
    write_saved(out, (folder / WEIGHTS_NAME).read_bytes(), (folder / CONFIG_NAME).read_bytes())


class AudioClassifier(nn.Module):
    """A fine-tuned classifier; `.cuda()` and `.to()` move it as any module.

    Args:
        path: folder of a classifier, or work folder of finetune.py.
        precision: as for `RuntimeSSAST`.

    Attributes:
        classes: names in the order of the columns of `probabilities`.
        loss: "single": the probabilities of a clip add up to 1; "multi": each class has its own.
        temperature: fitted on the validation clips of the training, so that a probability of 0.8 is right in about
            eight of ten cases on audio like those clips.

    Raises:
        FileNotFoundError: no classifier there. CheckpointError: damaged. ValueError: unknown precision.
    """

    def __init__(self, path: str | Path, precision: str = "auto"):
        super().__init__()
        self.folder = find_classifier(path)
        entries = _read_entries(self.folder / CONFIG_NAME)
        try:
            self.classes, self.loss = list(entries["classes"]), str(entries["loss"])
            self.temperature, self.pooling = float(entries["temperature"]), str(entries["pooling"])
            self.runtime = RuntimeSSAST(ConfigDict(classifier_experiment(entries)), None, precision)
            self.model = Classifier(self.runtime.model, len(self.classes), self.pooling)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.folder / CONFIG_NAME}: does not describe a classifier ({error})") from error
        weights = self.folder / WEIGHTS_NAME
        load_model_state(self.model, read_safetensors(weights), source=weights)
        self.eval()

    @property
    def front_end(self):
        """The log-mel settings of the encoder."""
        return self.runtime.front_end

    def predict(
        self,
        clips: ClipInput | Sequence[ClipInput],
        top: int | None = None,
        sample_rate: int | None = None,
        channel: str | int = "mix",
    ) -> list[dict[str, float]]:
        """For each clip its classes with their probabilities, the most likely first.

        Args:
            clips, sample_rate, channel: as for `probabilities`.
            top: the number of classes to return, at least 1; None for all.
        """
        if top is not None and (not isinstance(top, Integral) or top < 1):
            raise ValueError(f"top must be a whole number of classes, at least 1, or None; got {top!r}")
        rows = self.probabilities(clips, sample_rate, channel)
        return [{self.classes[k]: float(row[k]) for k in np.argsort(-row, kind="stable")[:top]} for row in rows]

    def probabilities(
        self, clips: ClipInput | Sequence[ClipInput], sample_rate: int | None = None, channel: str | int = "mix"
    ) -> np.ndarray:
        """Calibrated probabilities of whole clips, float32 [clips, classes].

        Args:
            clips: a list of arrays or tensors [n] and paths of audio files; or one of them; or an array [c, n].
            sample_rate: of the arrays, which are resampled if it is not the model's.
            channel: of files, as for `RuntimeSSAST.embed`.

        Raises:
            hear_api.inputs.InputError: an invalid array. data.audio.AudioFileError: an invalid file.
        """
        groups = group_clips(self._read(clips, sample_rate, channel))
        rows = [row for group in groups for row in self.of_group(group)]
        return torch.cat(rows).numpy() if rows else np.zeros((0, len(self.classes)), np.float32)

    def window_probabilities(
        self,
        clips: ClipInput | Sequence[ClipInput],
        window: float,
        hop: float | None = None,
        sample_rate: int | None = None,
        channel: str | int = "mix",
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Calibrated probabilities of windows, each classified as a clip of its own.

        Args:
            clips, sample_rate, channel: as for `probabilities`.
            window: length in seconds. The last window of a clip may be shorter, down to a tenth.
            hop: seconds from one window to the next; by default the window.

        Returns:
            For each clip probabilities float32 [windows, classes], and where the windows begin and end in it, in
            seconds, float64 [windows, 2].

        Raises:
            ValueError: a window or hop shorter than a frame of the log-mel. Invalid clips: as for `probabilities`.
        """
        windows = Windows.of_seconds(window, hop, self.front_end.frames_per_second)
        found = []
        for clip in self._read(clips, sample_rate, channel):
            rows = self.of_windows(clip, windows).numpy()
            found.append((rows, np.array([windows.span(number, clip.seconds) for number in range(len(rows))])))
        return found

    def _read(
        self, clips: ClipInput | Sequence[ClipInput], sample_rate: int | None, channel: str | int
    ) -> Iterator[Clip]:
        sample_rate = self.runtime.sample_rate if sample_rate is None else sample_rate
        check_sample_rate(sample_rate)
        return self.runtime.read_clips(as_clips(clips), sample_rate, channel)

    @torch.no_grad()
    def of_group(self, group: Sequence[Clip | Failure]) -> Iterator[Tensor]:
        """Probabilities of the whole clips of a group of `clips.group_clips`, float32 [1, classes] each, on the CPU;
        failures have none.

        Raises:
            data.audio.AudioFileError: a long file cannot be read a second time.
        """
        if isinstance(group[0], LongFile):
            yield self._of_long(group[0])
            return
        spectrograms = [torch.as_tensor(clip.spectrogram) for clip in group if isinstance(clip, ShortClip)]
        for steps in self.runtime.encode(spectrograms, "bands"):
            yield self._of_features(pool(steps, self.pooling)[None])

    def _of_long(self, file: LongFile) -> Tensor:
        running = RunningPool(self.pooling, self.runtime.timestamp_embedding_size)
        for chunk in self._chunks(file):
            running.add(self.runtime.encode([chunk], "bands")[0].cpu())  # [t, W]
        return self._of_features(running.result())

    @torch.no_grad()
    def of_windows(self, clip: Clip, windows: Windows) -> Tensor:
        """Probabilities of the windows of a clip, float32 [windows, classes] on the CPU, in bounded memory.

        Each window is classified as a clip of its own: normalised by itself, unless the front end has constants for
        that, and with nothing of its surroundings.
        """
        total = clip.frames if isinstance(clip, LongFile) else len(clip.spectrogram)
        cut = windows.cut(self._chunks(clip), total)
        rows = []
        while batch := list(islice(cut, WINDOWS_AT_ONCE)):
            if fixed_statistics(self.runtime.front_end) is None:  # else they are normalised already
                batch = [normalise(window, clip_statistics(window, ddof=1)) for window in batch]
            features = self.runtime.encode(batch, "bands")  # of each, [t, W]
            rows += [self._of_features(pool(steps, self.pooling)[None]) for steps in features]
        return torch.cat(rows)

    def _chunks(self, clip: Clip) -> Iterator[Tensor]:
        """The normalised log-mel of a clip, [frames, mels] in parts of whole segments; a short clip is one part."""
        if isinstance(clip, LongFile):
            length = self.model.encoder.num_frames
            yield from (chunk for chunk, _, _ in prefetch_chunks(clip.chunks(length, stride=length)))
        else:
            yield torch.as_tensor(clip.spectrogram).cpu()

    def _of_features(self, pooled: Tensor) -> Tensor:
        logits = self.model.head(pooled.to(self.model.encoder.pos_embed.device))
        return probabilities(logits, self.loss, self.temperature).cpu()


def _read_entries(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    if not isinstance(entries, dict) or entries.get("format") != CLASSIFIER_FORMAT:
        raise CheckpointError(f"{path}: its format is not {CLASSIFIER_FORMAT!r}; finetune.py writes classifiers")
    return entries


def load_classifier(
    path: str | Path, device: str | torch.device | None = None, *, precision: str = "auto"
) -> AudioClassifier:
    """A fine-tuned classifier.

    Args:
        path: folder of a classifier, or work folder of finetune.py.
        device: torch device; default: a GPU if there is one, else the CPU.
        precision: "float32", "float16", "bfloat16", or "auto": float16 on CUDA, float32 elsewhere.

    Raises:
        FileNotFoundError: no classifier there.
        ValueError: damaged files, unknown precision, or a device that is not available.
    """
    return AudioClassifier(path, precision).to(pick_device(device))
