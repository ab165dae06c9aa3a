"""The encoder as an embedding model for audio of any length, after the HEAR common API (hearbenchmark.com)."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from audio_mamba import models
from audio_mamba.data.features import LogMelStream, log_mel
from audio_mamba.data.normalisation import clip_statistics, normalise
from audio_mamba.front_end import PUBLISHED, FrontEnd
from audio_mamba.hear_api.ahead import run_ahead
from audio_mamba.hear_api.inputs import Clip, as_batch, as_clips, check_sample_rate, load_clip
from audio_mamba.hear_api.resolve import ModelSource
from audio_mamba.hear_api.units import batch_units, plan_units, stack_units
from audio_mamba.hear_api.weights import load_weights
from audio_mamba.models.encoder import LAYOUTS
from audio_mamba.models.precision import PRECISIONS, autocast
from audio_mamba.system.machine import bound_threads

logger = logging.getLogger(__name__)

KINDS = ("scene", "timestamps")
FRAMES_PER_GROUP = 24_000  # spectrograms that `embed` holds at once: 4 minutes, 8 MB
READ_AHEAD = 4  # files, by a thread each; an hour of audio is 230 MB
BLOCK_SAMPLES = (
    60 * PUBLISHED.sample_rate
)  # log-mels of long clips are made block by block: a spectrum is 10 x the samples


class RuntimeSSAST(nn.Module):
    """A pretrained SSAM or SSAST as an embedding model; `.cuda()` and `.to()` move it as any module.

    Args:
        config: of the experiment, e.g. `configs.ssam_tiny_200_16x4.get_config()`. Its `scene_layout` is "published"
            (scene embeddings as the paper's code makes them) or "bands" (one average per mel band).
        weights_dir: checkpoint file, or folder with `checkpoints/checkpoint-<epoch>.pth`, of which the highest epoch is
            taken. None leaves the weights untrained, the same ones each time.
        precision: "float32", "float16", "bfloat16", or "auto": float16 on CUDA as published, float32 elsewhere,
            decided at each call by where the module is.

    Embeddings are float32, of width `mel bands of the patch grid * embed_dim` (5 * D). All units of all clips of a call
    pass the encoder together, and units that are only partly needed are cut where the encoder is causal. Any number of
    threads may call at once.
    ValueError for an unknown arch, precision or layout; FileNotFoundError and
    `training.checkpoint.CheckpointError` for weights that are absent or do not fit.
    """

    sample_rate = PUBLISHED.sample_rate

    def __init__(self, config: ConfigDict, weights_dir: str | Path | None, precision: str = "auto"):
        super().__init__()
        check_precision(precision, "auto")
        self.config, self.precision = config, precision
        self.scene_layout = config.get("scene_layout", "published")
        _check_layout(self.scene_layout)
        self.front_end = FrontEnd.from_settings(config.get("front_end", {}))
        self.sample_rate = self.front_end.sample_rate
        self.model = build_model(config)
        self._check_mel_bands()
        if weights_dir is not None:
            logger.info("weights from %s", load_weights(self.model, weights_dir))
        self.model.eval()
        self.steps_per_unit, bands = self.model.grid_size()
        self.scene_embedding_size = self.timestamp_embedding_size = bands * self.model.embed_dim
        self._unit_frames = self.model.num_frames
        self.frames_per_step = self._unit_frames // self.steps_per_unit
        self.step_ms = 1000 * self.frames_per_step / self.front_end.frames_per_second

    def _check_mel_bands(self) -> None:
        bands = self.model.img_size[0 if self.model.frequency_first else 1]
        if bands != self.front_end.n_mels:
            raise ValueError(f"the model reads {bands} mel bands, but front_end.n_mels is {self.front_end.n_mels}")

    @property
    def working_precision(self) -> str:
        """`precision`, where "auto" is what it means on the module's device."""
        on_cuda = self.model.pos_embed.device.type == "cuda"
        return ("float16" if on_cuda else "float32") if self.precision == "auto" else self.precision

    def get_scene_embeddings(self, audio: Tensor) -> Tensor:
        """One embedding per clip: the mean over time of its features in the config's `scene_layout`.

        audio: float32 [n, samples] (or [samples], one clip) at 16 kHz, more than 200 samples. Returns float32
        [n, scene_embedding_size] on the module's device. `hear_api.inputs.InputError` for audio that does not fit.
        """
        return self.features(audio, self.scene_layout)[0].mean(dim=1)

    def get_timestamp_embeddings(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings in true time order, one each 40 ms.

        audio: as in `get_scene_embeddings`. Returns float32 embeddings [n, t, timestamp_embedding_size] and their
        timestamps in ms [n, t]: embedding i reads the patches that start at 40 i ms.
        """
        return self.features(audio, "bands")

    @torch.no_grad()
    def features(self, audio: Tensor, layout: str = "bands") -> tuple[Tensor, Tensor]:
        """Embeddings [n, t, width] and timestamps in ms [n, t] of t = ceil(frames / 4) steps, in either layout.

        "bands" is true time order with timestamps 40 i. "published" is the order of the paper's code, whose step i of a
        2 s unit mixes five moments of one band, with that code's timestamps i * duration / t.
        """
        _check_layout(layout)
        embeddings = torch.stack(self.encode(list(self.spectrogram(audio)), layout))
        count, kept, _ = embeddings.shape
        step_ms = self.step_ms if layout == "bands" else audio.shape[-1] / self.sample_rate * 1000 / kept
        timestamps = torch.arange(kept, device=embeddings.device, dtype=torch.float32) * step_ms
        return embeddings, timestamps.expand(count, -1)

    def embed(
        self,
        clips: Clip | Sequence[Clip],
        kind: str = "scene",
        sample_rate: int = PUBLISHED.sample_rate,
        output: str = "numpy",
    ) -> np.ndarray | Tensor | list[tuple]:
        """Embeddings of clips of unequal lengths, any number of them.

        clips: a list of arrays or tensors [n] and paths of audio files; or one of them; or an array [c, n] of c clips.
        kind: "scene" -> [clips, width]; "timestamps" -> a list with, for each clip, embeddings [t, width] and their
            times in ms [t].
        sample_rate: of the arrays, which are resampled if it is not 16000; files are read at their own.
        output: "numpy", or "torch" for tensors on the CPU.
        `hear_api.inputs.InputError` and `data.audio.AudioError`, both ValueErrors, name the clip and the fault.
        """
        for name, value, known in (("kind", kind, KINDS), ("output", output, ("numpy", "torch"))):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
        check_sample_rate(sample_rate)
        layout = self.scene_layout if kind == "scene" else "bands"
        results = []
        for group in self._spectrogram_groups(as_clips(clips), sample_rate):
            for rows in self.encode(group, layout):
                results.append((rows.mean(dim=0) if kind == "scene" else rows).cpu())
        convert = Tensor.numpy if output == "numpy" else Tensor.contiguous
        if kind == "scene":
            return convert(torch.stack(results) if results else torch.zeros(0, self.scene_embedding_size))
        return [(convert(rows), convert(torch.arange(len(rows)) * self.step_ms)) for rows in results]

    @torch.no_grad()
    def encode(self, spectrograms: list[Tensor], layout: str) -> list[Tensor]:
        """Normalised log-mels [frames, 80] of any lengths -> features [ceil(frames / 4), width] of each, float32."""
        steps = [-(-len(spectrogram) // self.frames_per_step) for spectrogram in spectrograms]
        units = plan_units(steps, self.steps_per_unit, lambda kept: self.model.tokens_read(layout, kept))
        device = self.model.pos_embed.device
        results = [torch.empty(count, self.scene_embedding_size, device=device) for count in steps]
        for batch in batch_units(units, device.type):
            x = stack_units(batch, spectrograms, self.frames_per_step, self._unit_frames).to(device)
            x = self.model.from_time_first(x.unsqueeze(1))  # [B, T, M] -> [B, 1, T, M], or [B, 1, M, T]
            with self.autocast():
                rows = self.model.forward_features(x, layout, steps=max(unit.steps for unit in batch))
            for unit, row in zip(batch, rows):
                results[unit.clip][unit.first : unit.first + unit.steps] = row[: unit.steps]
        return results

    def spectrogram(self, audio: Tensor) -> Tensor:
        """The normalised log-mel that the encoder reads: [n, samples] -> float32 [n, 1 + samples // 160, 80]."""
        return self._spectrogram(as_batch(audio))

    @torch.no_grad()
    def _spectrogram(self, audio: Tensor) -> Tensor:
        audio = audio.to(self.model.pos_embed.device)
        if audio.shape[1] > BLOCK_SAMPLES:
            spectrograms = torch.stack([_log_mel_by_blocks(clip, self.front_end) for clip in audio])
        else:
            spectrograms = log_mel(audio, self.front_end)
        return normalise(spectrograms, clip_statistics(spectrograms, ddof=1))

    def _spectrogram_groups(self, clips: list, sample_rate: int) -> Iterator[list[Tensor]]:
        """The clips' log-mels, a bounded number of them at a time, files being read ahead by threads."""
        group, frames = [], 0
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            calls = ((clip, f"clip {number} of {len(clips)}", sample_rate) for number, clip in enumerate(clips))
            for samples in run_ahead(pool, load_clip, calls, READ_AHEAD):
                group.append(self._spectrogram(samples[None])[0])
                frames += len(group[-1])
                if frames >= FRAMES_PER_GROUP:
                    yield group
                    group, frames = [], 0
        if group:
            yield group

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision in which the encoder runs."""
        return autocast(self.model.pos_embed.device, self.working_precision)


def build_runtime(
    source: ModelSource, precision: str = "auto", device: str | torch.device | None = None
) -> RuntimeSSAST:
    """The runtime of a resolved model on a device (default: a GPU if there is one). Keeps torch from using more threads
    than this process has cores. ValueError for a device that is not there."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ValueError(f"device {device}: {str(error).splitlines()[0]}") from error
    bound_threads()
    return RuntimeSSAST(source.config, source.weights, precision).to(device)


def build_model(config: ConfigDict) -> nn.Module:
    """The untrained encoder of a config, with the same weights each time. ValueError for one that cannot be built."""
    with torch.random.fork_rng(devices=[]):  # the caller's generator stays as it is
        torch.default_generator.manual_seed(0)  # torch.manual_seed would set those of all GPUs, too
        return models.build(config.model.arch, config.model.model_args.to_dict(), config.model.get("backend", "auto"))


def _log_mel_by_blocks(audio: Tensor, front_end: FrontEnd) -> Tensor:
    stream = LogMelStream(front_end)
    return torch.cat([*(stream.feed(block) for block in audio.split(BLOCK_SAMPLES)), stream.finish()])


def check_precision(precision: str, *others: str) -> None:
    """ValueError for what is neither a key of PRECISIONS nor one of the `others`."""
    if precision not in (*others, *PRECISIONS):
        raise ValueError(f"unknown precision {precision!r}; choose from {', '.join((*others, *PRECISIONS))}")


def _check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; choose from {', '.join(LAYOUTS)}")
