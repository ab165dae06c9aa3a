from types import SimpleNamespace

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn

from audio_mamba import models
from audio_mamba.models.loss import normalise_per_patch
from audio_mamba.models.objectives.reconstruction import Reconstruction
from audio_mamba.training import figures


class Oracle(nn.Module):
    """Predicts the target exactly, normalised if asked, with the patches of the real model."""

    def __init__(self, frequency_first: bool, normalise_patches: bool = False):
        super().__init__()
        size, patch = ((80, 200), (16, 4)) if frequency_first else ((200, 80), (4, 16))
        self.encoder = models.ssast_tiny(depth=1, img_size=size, patch_size=patch, frequency_first=frequency_first)
        self.normalise_patches = normalise_patches
        self.unpatchify, self.to_time_first = self.encoder.unpatchify, self.encoder.to_time_first

    def forward(self, x, mask):
        target = self.encoder.patchify(x)
        return normalise_per_patch(target) if self.normalise_patches else target, target, mask


def clips(frequency_first):
    """Two clips [2, 1, 200, 80] (or transposed), each with one hidden time-major patch: step 3, band 1 and 2."""
    spectrogram = torch.randn(2, 1, 200, 80, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 250)
    mask[0, 3 * 5 + 1] = mask[1, 3 * 5 + 2] = 1
    return spectrogram.mT if frequency_first else spectrogram, mask


def reconstruct(model, spectrogram, mask, normalise_patches=False):
    """The pictures of the published objective, as train.py draws them."""
    objective = Reconstruction(model, SimpleNamespace(norm_pix_loss=normalise_patches, masked_only_loss=False))
    return figures.reconstructions(model, *objective.picture({"spectrogram": spectrogram, "mask": mask}))


@pytest.mark.parametrize("frequency_first", [False, True])
@pytest.mark.parametrize("normalise_patches", [False, True])
def test_images_are_time_by_mel_in_the_units_of_the_input(frequency_first, normalise_patches):
    spectrogram, mask = clips(frequency_first)
    seen = reconstruct(Oracle(frequency_first, normalise_patches), spectrogram, mask, normalise_patches)
    expected = (spectrogram.mT if frequency_first else spectrogram)[:, 0].numpy()
    np.testing.assert_array_equal(seen.original, expected)
    np.testing.assert_allclose(seen.predicted, expected, atol=1e-5)
    np.testing.assert_allclose(seen.losses, 0, atol=1e-9)
    hidden = np.zeros((2, 200, 80), bool)
    hidden[0, 12:16, 16:32] = hidden[1, 12:16, 32:48] = True
    np.testing.assert_array_equal(seen.masked, hidden)


def test_masked_patches_are_grey_in_the_picture(tmp_path):
    spectrogram, _ = clips(False)
    grey = {}
    for name, share in (("half", 0.5), ("none", 0.0)):
        mask = (torch.arange(250) < 250 * share).float().expand(2, -1)
        seen = reconstruct(Oracle(False), spectrogram, mask)
        figures.save_reconstructions(tmp_path / f"{name}.png", seen, "$title_^$")  # no formula
        pixels = matplotlib.image.imread(tmp_path / f"{name}.png")[..., :3]
        grey[name] = (np.abs(pixels - 0.8) < 0.01).all(-1).mean()
    assert grey["half"] > 0.05 > 0.01 > grey["none"]  # the masked panels are about a fifth of the picture


def pixels_of(path, colour):
    """The share of pixels of a PNG that have a Matplotlib colour."""
    pixels = matplotlib.image.imread(path)[..., :3]
    return (np.abs(pixels - matplotlib.colors.to_rgb(colour)) < 0.01).all(-1).sum()


def test_curves_are_drawn_from_published_logs_too(tmp_path):
    figures.save_curves(tmp_path / "curves.png", [{"epoch": 0, "train_loss": 1.0}, {"epoch": 1, "train_loss": 0.5}])
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[:2] == (600, 960)
    assert pixels_of(tmp_path / "curves.png", "tab:blue") > 300
    assert pixels_of(tmp_path / "curves.png", "tab:red") == pixels_of(tmp_path / "curves.png", "tab:green") == 0


def test_curves_show_the_log_and_leave_out_nan_and_inf_losses(tmp_path):
    log = [
        {"epoch": epoch, "train_loss": loss, "val_loss": 2.0, "train_lr": 1e-4}
        for epoch, loss in enumerate([1.0, None, 0.5])
    ]
    figures.save_curves(tmp_path / "curves.png", log)
    for colour in ("tab:blue", "tab:red", "tab:green"):
        assert pixels_of(tmp_path / "curves.png", colour) > 300
    figures.save_curves(tmp_path / "curves.png", [log[1] | {"val_loss": None}])  # no values at all
