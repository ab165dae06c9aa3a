"""The published objective: predict the patches from the visible ones (Yadav and Tan 2024, section 2)."""

from typing import Any

from torch import Tensor, nn

from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.loss import reconstruction_loss, restore_patches
from audio_mamba.models.objectives.base import Batch, Losses, Objective


class Reconstruction(Objective):
    """Mean squared error of the predicted patches, see `models.loss.reconstruction_loss`.

    It reads `opt.norm_pix_loss` and `opt.masked_only_loss`.
    """

    def __init__(self, encoder: MaskedSpectrogramEncoder, opt: Any):
        super().__init__(encoder, opt)
        self.normalise_patches, self.masked_only = opt.norm_pix_loss, opt.masked_only_loss

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        return self.error(*model(batch["spectrogram"], batch["mask"])), {}

    def error(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The loss of predicted patches; arguments as for `reconstruction_loss`."""
        return reconstruction_loss(pred, target, mask, self.normalise_patches, self.masked_only)

    def picture(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        pred, target, mask = self.encoder(batch["spectrogram"], batch["mask"])
        return restore_patches(pred, target) if self.normalise_patches else pred, target, mask
