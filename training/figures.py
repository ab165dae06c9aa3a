"""Pictures of a run: reconstructions of masked spectrograms, and curves of loss and learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from audio_mamba.system.atomic_files import atomic_write

MASKED_COLOUR, NOTE_COLOUR = "0.8", "0.35"


@dataclass
class Reconstructions:
    """N clips as a model sees and predicts them, as normalised log-mels; arrays are [N, frames, mels]."""

    original: np.ndarray
    masked: np.ndarray  # bool
    predicted: np.ndarray
    losses: np.ndarray  # [N], mean squared error over all patches
    frames_per_second: float


def reconstructions(
    model: Any, predicted: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, frames_per_second: float = 100.0
) -> Reconstructions:
    """Patches as spectrograms.

    Args:
        model: an encoder of `audio_mamba.models`.
        predicted, target: [N, L, P], as normalised log-mels, without gradients.
        mask: [N, L], 1 for masked patches.
        frames_per_second: of the front end.
    """
    predicted, target = predicted.float(), target.float()
    losses = (predicted - target).square().mean(dim=(1, 2))

    def as_images(patches: torch.Tensor) -> np.ndarray:
        return model.to_time_first(model.unpatchify(patches))[:, 0].float().cpu().numpy()  # [N, T, M]

    hidden = mask[..., None].float().expand_as(target)
    return Reconstructions(
        as_images(target), as_images(hidden) > 0.5, as_images(predicted), losses.cpu().numpy(), frames_per_second
    )


def save_reconstructions(path: str | Path, clips: Reconstructions, title: str) -> None:
    """Write a PNG with a row per clip, original | masked | reconstructed, in one colour scale."""
    n, frames, mels = clips.original.shape
    figure = Figure(figsize=(12, 1 + 2 * n), layout="constrained")
    axes = figure.subplots(n, 3, sharex=True, sharey=True, squeeze=False)
    low, high = np.percentile(clips.original, [1, 99])
    colours = matplotlib.colormaps["magma"].with_extremes(bad=MASKED_COLOUR)
    for row, original, masked, predicted, loss in zip(
        axes, clips.original, clips.masked, clips.predicted, clips.losses, strict=True
    ):
        panels = [original, np.ma.array(original, mask=masked), predicted]
        notes = ["", f"{masked.mean():.0%} hidden", f"loss {loss:.3f}"]
        for axis, panel, note in zip(row, panels, notes, strict=True):
            image = axis.imshow(
                panel.T,
                origin="lower",
                aspect="auto",
                interpolation="nearest",
                cmap=colours,
                vmin=low,
                vmax=high,
                extent=(0, frames / clips.frames_per_second, 0, mels),
            )
            axis.set_title(note, loc="right", fontsize=9, color=NOTE_COLOUR, pad=4)
            axis.locator_params(nbins=5)
            axis.tick_params(length=2, labelsize=8, colors=NOTE_COLOUR)
            axis.spines[:].set_visible(False)
        row[0].set_ylabel("mel band", fontsize=9)
    for axis, heading in zip(axes[0], ("original", "masked", "reconstructed"), strict=True):
        axis.set_title(heading, loc="left", fontsize=11, fontweight="bold", pad=4)
    for axis in axes[-1]:
        axis.set_xlabel("time (s)", fontsize=9)
    bar = figure.colorbar(image, ax=axes, extend="both", pad=0.01, aspect=30)
    bar.set_label("normalised log-mel", fontsize=9)
    bar.ax.tick_params(length=2, labelsize=8, colors=NOTE_COLOUR)
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=12, parse_math=False)  # $ begins no formula
    _save(figure, path)


def save_curves(path: str | Path, log: Sequence[dict[str, float | None]]) -> None:
    """Write a PNG of losses and learning rate by epoch, from the lines of a log.txt; None values are left out."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    loss_axis, rate_axis = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    epochs = np.array([line["epoch"] for line in log], dtype=float) + 1
    marker = "." if len(log) < 50 else None

    def plot(axis: Axes, key: str, label: str, **style: Any) -> None:
        values = np.array([line.get(key) for line in log], dtype=float)  # None becomes NaN
        seen = np.flatnonzero(np.isfinite(values))
        if len(seen):
            axis.plot(epochs[seen], values[seen], label=f"{label} {values[seen[-1]]:.4g}", marker=marker, **style)

    plot(loss_axis, "train_loss", "training", color="tab:blue")
    plot(loss_axis, "val_loss", "validation", color="tab:red", linestyle="--")
    plot(rate_axis, "train_lr", "learning rate", color="tab:green")
    if loss_axis.lines:
        loss_axis.legend(frameon=False)
    loss_axis.set_ylabel("loss")
    rate_axis.set_ylabel("learning rate")
    rate_axis.set_ylim(bottom=0)
    rate_axis.set_xlabel("epochs")
    rate_axis.xaxis.get_major_locator().set_params(integer=True)
    rate_axis.ticklabel_format(axis="y", scilimits=(0, 0))
    for axis in (loss_axis, rate_axis):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
