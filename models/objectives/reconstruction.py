"""The published objective: predict the patches from the visible ones (Yadav and Tan 2024, section 2)."""

from typing import Any

import torch
from torch import Tensor, nn

from audio_mamba.models.checks import check_not_negative, check_whole
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.loss import reconstruction_loss, restore_patches
from audio_mamba.models.objectives.base import Batch, EncoderWithHead, Losses, Objective, check_masking
from audio_mamba.models.objectives.decoder import ConvDecoder


class Reconstruction(Objective):
    """Mean squared error of the predicted patches, see `models.loss.reconstruction_loss`.

    It reads `opt.norm_pix_loss` and `opt.masked_only_loss`.

    Args:
        encoder, opt: see `Objective`.
        decoder_layers: predict by a decoder of so many layers (see `ConvDecoder`) in place of the encoder's own head,
            which then stays as it is. 0, as published: none.
        visible_weight: with `opt.masked_only_loss`, how much the error at visible patches counts beside it. Their
            targets are never normalised: with `opt.norm_pix_loss` the encoder predicts the shape of a masked patch, and
            keeps a visible one with its level. 0: not at all.

    Raises:
        ValueError: a number out of range, `opt.masked_only_loss` with an encoder that masks nothing, or
            `visible_weight` without `opt.masked_only_loss`.
    """

    def __init__(
        self, encoder: MaskedSpectrogramEncoder, opt: Any, decoder_layers: int = 0, visible_weight: float = 0.0
    ):
        super().__init__(encoder, opt)
        check_whole("opt.objective_args.decoder_layers", decoder_layers, least=0)
        check_not_negative("opt.objective_args.visible_weight", visible_weight)
        self.normalise_patches, self.masked_only = opt.norm_pix_loss, opt.masked_only_loss
        self.visible_weight = visible_weight
        if self.masked_only:
            check_masking(encoder, "reconstruction", " with opt.masked_only_loss")
        elif visible_weight:
            raise ValueError("opt.objective_args.visible_weight needs opt.masked_only_loss=True")
        if decoder_layers:
            decoder = ConvDecoder(encoder.grid_size(), encoder.embed_dim, encoder.patch_values, decoder_layers)
            self.module = EncoderWithHead(encoder, decoder)

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        pred, target, mask = self._predicted(model, batch)
        error = self.error(pred, target, mask)
        if not self.visible_weight:
            return error, {}
        visible = reconstruction_loss(pred, target, 1 - mask, masked_only=True)
        return error + self.visible_weight * visible, {"masked_loss": error.detach(), "visible_loss": visible.detach()}

    def error(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The loss of predicted patches; arguments as for `reconstruction_loss`."""
        return reconstruction_loss(pred, target, mask, self.normalise_patches, self.masked_only)

    def picture(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        pred, target, mask = self._predicted(self.module, batch)
        if self.normalise_patches:
            restored = restore_patches(pred, target)
            pred = torch.where(mask[..., None] == 1, restored, pred) if self.visible_weight else restored
        return pred, target, mask

    def _predicted(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted and true patches [B, L, P] and the mask [B, L]."""
        if self.module is self.encoder:
            return model(batch["spectrogram"], batch["mask"])
        _, predicted, _ = model(batch["spectrogram"], batch["mask"])
        return predicted, self.encoder.patchify(batch["spectrogram"]), batch["mask"]
