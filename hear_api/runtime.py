"""The encoder as an embedding model for audio of any length, with the HEAR common API (hearbenchmark.com)."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from audio_mamba import models
from audio_mamba.data.features import LogMelStream, log_mel
from audio_mamba.data.normalisation import normalise, statistics_of
from audio_mamba.front_end import PUBLISHED, FrontEnd
from audio_mamba.hear_api.batches import run_batches
from audio_mamba.hear_api.clips import (
    Clip,
    Failure,
    LongFile,
    ShortClip,
    group_clips,
    load_clip,
    prefetch,
    prefetch_chunks,
)
from audio_mamba.hear_api.inputs import ClipInput, as_batch, as_clips, check_sample_rate
from audio_mamba.hear_api.resolve import ModelSource
from audio_mamba.hear_api.segments import Cut, Segment, batch_segments, plan_segments, stack_segments
from audio_mamba.hear_api.weights import load_weights
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.pooling import RunningPool, pool, pooled_width
from audio_mamba.models.precision import autocast, check_precision, usable_precision
from audio_mamba.schema import LAYOUTS
from audio_mamba.system.machine import bound_threads

logger = logging.getLogger(__name__)

KINDS = ("scene", "timestamps")
READING_THREADS = 4
BLOCK_SAMPLES = 1_000_000  # of a long array at once, since a spectrum takes 10 times the memory of its samples


class Part(NamedTuple):
    """What the encoder gives for a clip, or for a chunk of a long file."""

    number: int  # of the clip in its group
    rows: Tensor  # embeddings, float32 [n, width], on the CPU; parts of one clip follow each other
    fraction: float  # of the clip that was encoded for this part; those of a clip add up to 1


class RuntimeSSAST(nn.Module):
    """A pretrained encoder as an embedding model; `.cuda()` and `.to(device)` move it as any module.

    Args:
        config: of the experiment, e.g. `configs.ssam_tiny_200_16x4.get_config()`. Its `scene_layout` is "published"
            (scene embeddings as in the paper's code) or "bands" (one average per mel band); its `scene_pooling` is
            "mean" (as published) or "mean_std" (mean, then standard deviation over time: twice the width); its
            `overlap` is the part of a segment that it shares with the one before (published: 0).
        weights_dir: checkpoint file, or folder with `checkpoints/checkpoint-<epoch>.pth`, of which the highest epoch is
            loaded. None leaves the weights untrained, with the same values each time.
        precision: "float32", "float16", "bfloat16", or "auto": float16 on CUDA as published, float32 elsewhere,
            according to the module's device at each call.

    Attributes:
        sample_rate: of the audio in Hz, 16000 with the published front end.
        timestamp_embedding_size: width of the embedding of a time step, the number of mel bands of the patch grid
            times `embed_dim` (5 * D with the paper's configs).
        scene_embedding_size: the same, or twice as much with scene_pooling "mean_std".
        step_ms: from one timestamp embedding to the next (40 with the paper's configs).
        front_end: the log-mel settings, from the config. Its `mean` and `std`, if they are there, normalise all clips.

    A clip is encoded in segments (2 s with the paper's configs). All segments of a call are batched by length, and
    causal encoders skip the padding at the end. With an overlap, the steps at the start of a segment (at both ends if
    the encoder is not causal) are read as context only, and the work is 1 / (1 - overlap) times as much. All methods
    may be called from several threads at once.

    Raises:
        ValueError: unknown arch, precision, layout or pooling; an overlap out of range, or with scene_layout
            "published"; a front end that does not fit the model.
        FileNotFoundError: no weights there.
        training.checkpoint.CheckpointError: damaged weights, or those of another architecture.
    """

    sample_rate = PUBLISHED.sample_rate

    def __init__(self, config: ConfigDict, weights_dir: str | Path | None, precision: str = "auto"):
        super().__init__()
        check_precision(precision, "auto")
        self.config, self.precision = config, precision
        self.front_end = FrontEnd.from_settings(config.get("front_end", {}))
        self.sample_rate = self.front_end.sample_rate
        self.model = build_model(config)
        self._check_mel_bands()
        if weights_dir is not None:
            logger.info("weights from %s", load_weights(self.model, weights_dir))
        self.model.eval()
        self.steps_per_segment, bands = self.model.grid_size()
        self.timestamp_embedding_size = bands * self.model.embed_dim
        self.choose_features(
            config.get("scene_layout", "published"), config.get("scene_pooling", "mean"), config.get("overlap", 0.0)
        )
        self._segment_frames = self.model.num_frames
        self.frames_per_step = self._segment_frames // self.steps_per_segment
        self.step_ms = 1000 * self.frames_per_step / self.front_end.frames_per_second

    def choose_features(self, scene_layout: str, scene_pooling: str, overlap: float) -> None:
        """Change how features become embeddings; the arguments are the config's keys.

        Raises:
            ValueError: an unknown layout or pooling, an overlap out of range or with scene_layout "published".
        """
        _check_layout(scene_layout, overlap)
        self.scene_embedding_size = pooled_width(scene_pooling, self.timestamp_embedding_size)
        self.cut = Cut.with_overlap(self.steps_per_segment, overlap, self.model.causal)
        self.scene_layout, self.scene_pooling, self.overlap = scene_layout, scene_pooling, overlap

    def _check_mel_bands(self) -> None:
        bands = self.model.n_mels
        if bands != self.front_end.n_mels:
            raise ValueError(f"the model reads {bands} mel bands, but front_end.n_mels is {self.front_end.n_mels}")

    @property
    def working_precision(self) -> str:
        """The precision in use: `precision`, where "auto" depends on the module's device, and float32 on a CPU that is
        many times slower in a lower one."""
        device = self.model.pos_embed.device
        if self.precision == "auto":
            return "float16" if device.type == "cuda" else "float32"
        return usable_precision(device, self.precision)

    def get_scene_embeddings(self, audio: Tensor) -> Tensor:
        """One embedding per clip: its features in the config's `scene_layout`, pooled over time by `scene_pooling`.

        Args:
            audio: float32 [n, samples], or [samples] for one clip, at `sample_rate`; at least
                `front_end.min_samples` (201 at 16 kHz).

        Returns:
            float32 [n, scene_embedding_size] on the module's device.

        Raises:
            hear_api.inputs.InputError: invalid audio.
        """
        return pool(self.features(audio, self.scene_layout)[0], self.scene_pooling)

    def get_timestamp_embeddings(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings in true time order, one per patch step (40 ms with the paper's configs).

        Args:
            audio: as in `get_scene_embeddings`.

        Returns:
            float32 embeddings [n, t, timestamp_embedding_size] and their timestamps in ms [n, t]. Embedding i is that
            of the patches that start at `i * step_ms`.
        """
        return self.features(audio, "bands")

    @torch.no_grad()
    def features(self, audio: Tensor, layout: str = "bands") -> tuple[Tensor, Tensor]:
        """Embeddings [n, t, width] and timestamps in ms [n, t] in either layout, t = ceil(frames / frames_per_step).

        "bands" is true time order with timestamps `i * step_ms`. "published" is the order of the paper's code, in which
        one step of a segment holds patches of several moments of one band, with that code's timestamps
        `i * duration / t`. ValueError for an unknown layout, and for "published" with an overlap.
        """
        _check_layout(layout, self.overlap)
        embeddings = torch.stack(self.encode(list(self.spectrogram(audio)), layout))
        count, kept, _ = embeddings.shape
        step_ms = self.step_ms if layout == "bands" else audio.shape[-1] / self.sample_rate * 1000 / kept
        timestamps = torch.arange(kept, device=embeddings.device, dtype=torch.float32) * step_ms
        return embeddings, timestamps.expand(count, -1)

    def embed(
        self,
        clips: ClipInput | Sequence[ClipInput],
        kind: str = "scene",
        sample_rate: int | None = None,
        output: str = "numpy",
        channel: str | int = "mix",
    ) -> np.ndarray | Tensor | list[tuple]:
        """Embeddings of any number of clips of any lengths.

        Args:
            clips: a list of arrays or tensors [n] and paths of audio files; or one of them; or an array [c, n] of c
                clips. Long files are read chunk by chunk, in bounded memory.
            kind: "scene" or "timestamps".
            sample_rate: of the arrays, which are resampled if it is not the model's. Files know their own.
            output: "numpy", or "torch" for tensors on the CPU.
            channel: of files: "mix", the mean of all channels; "left" or "right", or the only channel; or a number
                counted from 0. `data.audio.channel_count` says how many a file has.

        Returns:
            For scenes float32 [clips, width]. For timestamps a list with, for each clip, embeddings [t, width] and
            their times in ms [t].

        Raises:
            hear_api.inputs.InputError: an invalid array; the message names the clip.
            data.audio.AudioFileError: an invalid file.
        """
        for name, value, known in (("kind", kind, KINDS), ("output", output, ("numpy", "torch"))):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
        sample_rate = self.sample_rate if sample_rate is None else sample_rate
        check_sample_rate(sample_rate)
        results: list[Tensor] = []
        for group in group_clips(self.read_clips(as_clips(clips), sample_rate, channel)):
            rows: list[list[Tensor]] = [[] for _ in group]
            for part in self.embed_group(group, kind):
                rows[part.number].append(part.rows)
            results += map(torch.cat, rows)
        convert = Tensor.numpy if output == "numpy" else Tensor.contiguous
        if kind == "scene":
            return convert(torch.cat(results) if results else torch.zeros(0, self.scene_embedding_size))
        return [(convert(rows), convert(torch.arange(len(rows)) * self.step_ms)) for rows in results]

    def read_clips(self, clips: list[ClipInput], sample_rate: int, channel: str | int = "mix") -> Iterator[Clip]:
        """The clips that `embed` takes, read in threads; arguments and errors as for `embed`."""
        calls = (
            (clip, f"clip {number} of {len(clips)}", sample_rate, self.front_end, channel)
            for number, clip in enumerate(clips)
        )
        with ThreadPoolExecutor(READING_THREADS) as pool:
            for audio in prefetch(pool, load_clip, calls, READING_THREADS):
                if isinstance(audio, LongFile):
                    yield audio
                else:
                    yield ShortClip(self._spectrogram(audio[None])[0], len(audio) / self.sample_rate)

    def embed_group(self, group: Sequence[Clip | Failure], kind: str) -> Iterator[Part]:
        """Embeddings of a group of `clips.group_clips`, clip by clip; failures have none.

        For scenes there is one row per clip, with the last part of a long file; for timestamps, one row per step.
        Raises `data.audio.AudioFileError` if a long file cannot be read a second time.
        """
        layout = self.layout_of(kind)
        if isinstance(group[0], LongFile):
            yield from self._embed_long(group[0], kind, layout)
            return
        short = [(number, clip) for number, clip in enumerate(group) if isinstance(clip, ShortClip)]
        features = self.encode([torch.as_tensor(clip.spectrogram) for _, clip in short], layout)
        for (number, _), rows in zip(short, features, strict=True):
            yield Part(number, (pool(rows, self.scene_pooling)[None] if kind == "scene" else rows).cpu(), 1.0)

    def _embed_long(self, file: LongFile, kind: str, layout: str) -> Iterator[Part]:
        pooled = RunningPool(self.scene_pooling, self.timestamp_embedding_size)
        chunks = file.chunks(self.cut.length * self.frames_per_step, self.cut.stride * self.frames_per_step)
        for chunk, is_first, is_last in prefetch_chunks(chunks):
            rows = self.encode([chunk], layout)[0].cpu()
            # Context of the chunk, kept from the neighbouring one.
            rows = rows[0 if is_first else self.cut.before : len(rows) - (0 if is_last else self.cut.after)]
            fraction = len(rows) / -(-file.frames // self.frames_per_step)
            if kind == "scene":
                pooled.add(rows)
                rows = rows.new_zeros(0, self.scene_embedding_size)
            yield Part(0, rows, fraction)
        if kind == "scene":
            yield Part(0, pooled.result(), 0.0)

    def layout_of(self, kind: str) -> str:
        """The layout of an embedding of a kind: `scene_layout`, or true time order for timestamps."""
        return self.scene_layout if kind == "scene" else "bands"

    def width_of(self, kind: str) -> int:
        """The width of an embedding of a kind."""
        return self.scene_embedding_size if kind == "scene" else self.timestamp_embedding_size

    @torch.no_grad()
    def encode(self, spectrograms: list[Tensor], layout: str) -> list[Tensor]:
        """Normalised log-mels [frames, mels] of any lengths -> float32 features of each, [t, width] with
        t = ceil(frames / frames_per_step), on the module's device."""
        if (dtype := self.model.pos_embed.dtype) != torch.float32:
            raise ValueError(f"the weights are {dtype}; keep them float32 and load the model with precision= instead")
        steps = [-(-len(spectrogram) // self.frames_per_step) for spectrogram in spectrograms]
        segments = plan_segments(steps, self.cut, lambda read: self.model.tokens_read(layout, read))
        device = self.model.pos_embed.device
        results = [torch.empty(count, self.timestamp_embedding_size, device=device) for count in steps]

        def encode_batch(batch: list[Segment]) -> None:
            x = stack_segments(batch, spectrograms, self.frames_per_step, self._segment_frames).to(device)
            x = self.model.from_time_first(x.unsqueeze(1))  # [B, T, M] -> [B, 1, T, M], or [B, 1, M, T]
            rows = self.model.forward_features(x, layout, steps=max(segment.needed for segment in batch))
            for segment, row in zip(batch, rows):
                results[segment.clip][segment.first : segment.end] = row[segment.first - segment.start : segment.needed]

        precision = self.working_precision  # may be measured, so not in several threads at once
        batches = list(batch_segments(segments, device.type))
        run_batches(encode_batch, batches, device, lambda: autocast(device, precision))
        return results

    def spectrogram(self, audio: Tensor) -> Tensor:
        """The normalised log-mel that the encoder reads: [n, samples] -> float32 [n, frames, mels]."""
        return self._spectrogram(as_batch(audio, self.front_end))

    @torch.no_grad()
    def _spectrogram(self, audio: Tensor) -> Tensor:
        audio = audio.to(self.model.pos_embed.device)
        if audio.shape[1] > BLOCK_SAMPLES:
            spectrograms = torch.stack([_log_mel_by_blocks(clip, self.front_end) for clip in audio])
        else:
            spectrograms = log_mel(audio, self.front_end)
        return normalise(spectrograms, statistics_of(spectrograms, self.front_end, ddof=1))

    def autocast(self) -> contextlib.AbstractContextManager:
        """A context that runs the encoder in its precision."""
        return autocast(self.model.pos_embed.device, self.working_precision)


def build_runtime(
    source: ModelSource, precision: str = "auto", device: str | torch.device | None = None
) -> RuntimeSSAST:
    """The runtime of a resolved model on a device (default: a GPU if there is one). torch is limited to as many threads
    as this process has cores. ValueError for a device that is not available."""
    return RuntimeSSAST(source.config, source.weights, precision).to(pick_device(device))


def pick_device(device: str | torch.device | None = None) -> str | torch.device:
    """A device that is available (default: a GPU if there is one). torch is limited to as many threads as this process
    has cores. ValueError for a device that is not available."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ValueError(f"device {device}: {str(error).splitlines()[0]}") from error
    bound_threads()
    return device


def build_model(config: ConfigDict) -> MaskedSpectrogramEncoder:
    """The untrained encoder of a config, with the same weights each time. ValueError if it cannot be built.

    The config's `model.backend` does not count: training may have been on another device, which had those kernels.
    """
    with torch.random.fork_rng(devices=[]):  # leaves the caller's generator as it is
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed all GPUs, too
        return models.build(config.model.arch, config.model.model_args.to_dict())


def _log_mel_by_blocks(audio: Tensor, front_end: FrontEnd) -> Tensor:
    stream = LogMelStream(front_end)
    return torch.cat([*(stream.feed(block) for block in audio.split(BLOCK_SAMPLES)), stream.finish()])


def _check_layout(layout: str, overlap: float) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; choose from {', '.join(LAYOUTS)}")
    if overlap and layout == "published":
        raise ValueError('an overlap needs the layout "bands": a row of the published one has no single time')
