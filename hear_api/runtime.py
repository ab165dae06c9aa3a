"""The encoder as an embedding model for audio of any length, after the HEAR common API (hearbenchmark.com)."""
import contextlib
import logging
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

import models
from data.features import HOP_LENGTH, MIN_SAMPLES, SAMPLE_RATE, log_mel, normalise
from hear_api.units import run_units, split_units
from hear_api.weights import load_weights

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = ("published", "bands")


class RuntimeSSAST(nn.Module):
    """A pretrained SSAM or SSAST as an embedding model; `.cuda()` and `.to()` move it as any module.

    Args:
        config: of the experiment, e.g. `configs.ssam_tiny_200_16x4.get_config()`. Its `scene_layout` is "published"
            (scene embeddings as the paper's code makes them) or "bands" (one average per mel band).
        weights_dir: checkpoint file, or folder with `checkpoints/checkpoint-<epoch>.pth`, of which the highest epoch is
            taken. None leaves the weights untrained, the same ones each time.
        precision: "float32", "float16", "bfloat16", or "auto": float16 on CUDA as published, float32 elsewhere,
            decided at each call by where the module is.

    Embeddings are float32, of width `mel bands of the patch grid * embed_dim` (5 * D).
    ValueError for an unknown arch, precision or layout; FileNotFoundError and
    `training.checkpoint.CheckpointError` for weights that are absent or do not fit.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, config: ConfigDict, weights_dir: str | Path | None, precision: str = "auto"):
        super().__init__()
        if precision != "auto" and precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}; choose from auto, {', '.join(PRECISIONS)}")
        self.precision = precision
        self.scene_layout = config.get("scene_layout", "published")
        _check_layout(self.scene_layout)
        self.model = _build(config, weights_dir).eval()
        steps, bands = self.model.grid_size()
        self.scene_embedding_size = self.timestamp_embedding_size = bands * self.model.embed_dim
        self._unit_frames = self.model.img_size[1 if self.model.frequency_first else 0]
        self._frames_per_step = self._unit_frames // steps

    def get_scene_embeddings(self, audio: Tensor) -> Tensor:
        """One embedding per clip: the mean over time of its features in the config's `scene_layout`.

        audio: float32 [n, samples] at 16 kHz, more than 200 samples. Returns float32 [n, scene_embedding_size] on the
        module's device. ValueError for audio that does not fit.
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
        spectrogram = self.spectrogram(audio)  # [n, frames, mels]
        frames = spectrogram.shape[1]
        kept = -(-frames // self._frames_per_step)

        def encode(units: Tensor) -> Tensor:
            x = units.unsqueeze(1)  # [B, 1, T, M]
            x = x.transpose(-1, -2) if self.model.frequency_first else x
            with self._autocast():
                return self.model.forward_features(x, layout).float()

        embeddings = run_units(encode, split_units(spectrogram, self._unit_frames))[:, :kept]
        if layout == "published":
            step_ms = audio.shape[-1] / SAMPLE_RATE * 1000 / kept
        else:
            step_ms = self._frames_per_step * HOP_LENGTH / SAMPLE_RATE * 1000
        timestamps = torch.arange(kept, device=embeddings.device, dtype=torch.float32) * step_ms
        return embeddings, timestamps.expand(len(embeddings), -1)

    @torch.no_grad()
    def spectrogram(self, audio: Tensor) -> Tensor:
        """The normalised log-mel that the encoder reads: [n, samples] -> float32 [n, 1 + samples // 160, 80]."""
        _check_audio(audio)
        return normalise(log_mel(audio.to(self._device(), torch.float32)), ddof=1)

    def _device(self) -> torch.device:
        return self.model.pos_embed.device

    def _autocast(self) -> contextlib.AbstractContextManager:
        device = self._device().type
        name = self.precision
        if name == "auto":
            name = "float16" if device == "cuda" else "float32"
        return torch.autocast(device, PRECISIONS[name]) if name != "float32" else contextlib.nullcontext()


def _build(config: ConfigDict, weights_dir: str | Path | None) -> nn.Module:
    arch = config.model.arch
    if arch not in models.ARCHS:
        raise ValueError(f"unknown arch {arch!r}; choose from {', '.join(models.ARCHS)}")
    with torch.random.fork_rng(devices=[]):  # untrained weights are reproducible; the caller's generator stays
        torch.manual_seed(0)
        model = models.ARCHS[arch](**config.model.model_args.to_dict())
    if weights_dir is not None:
        logger.info("weights from %s", load_weights(model, weights_dir))
    return model


def _check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; choose from {', '.join(LAYOUTS)}")


def _check_audio(audio: Tensor) -> None:
    if not isinstance(audio, Tensor) or not audio.is_floating_point():
        found = audio.dtype if isinstance(audio, Tensor) else type(audio).__name__
        raise ValueError(f"audio must be a floating-point tensor of samples in [-1, 1], got {found}")
    if audio.dim() != 2 or len(audio) == 0:
        raise ValueError(f"audio must be [n_sounds, n_samples] with at least one sound, got {list(audio.shape)}")
    if audio.shape[1] < MIN_SAMPLES:
        raise ValueError(f"audio must have at least {MIN_SAMPLES} samples ({MIN_SAMPLES / SAMPLE_RATE * 1000:.1f} ms), "
                         f"got {audio.shape[1]}")
    finite = audio.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(f"audio holds NaN or Inf in clip {finite.logical_not().nonzero()[0].item()} of {len(audio)}")
