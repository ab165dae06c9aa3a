"""The published objective: predict the patches from the visible ones (Yadav and Tan 2024, section 2)."""

from typing import Any

from torch import Tensor, nn

from audio_mamba.models.checks import check_whole
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

    Raises:
        ValueError: a number out of range, or `opt.masked_only_loss` with an encoder that masks nothing.
    """

    def __init__(self, encoder: MaskedSpectrogramEncoder, opt: Any, decoder_layers: int = 0):
        super().__init__(encoder, opt)
        check_whole("opt.objective_args.decoder_layers", decoder_layers, least=0)
        self.normalise_patches, self.masked_only = opt.norm_pix_loss, opt.masked_only_loss
        if self.masked_only:
            check_masking(encoder, "reconstruction", " with opt.masked_only_loss")
        if decoder_layers:
            decoder = ConvDecoder(encoder.grid_size(), encoder.embed_dim, encoder.patch_values, decoder_layers)
            self.module = EncoderWithHead(encoder, decoder)

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        return self.error(*self._predicted(model, batch)), {}

    def error(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The loss of predicted patches; arguments as for `reconstruction_loss`."""
        return reconstruction_loss(pred, target, mask, self.normalise_patches, self.masked_only)

    def picture(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        pred, target, mask = self._predicted(self.module, batch)
        return restore_patches(pred, target) if self.normalise_patches else pred, target, mask

    def _predicted(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted and true patches [B, L, P] and the mask [B, L]."""
        if self.module is self.encoder:
            return model(batch["spectrogram"], batch["mask"])
        _, predicted, _ = model(batch["spectrogram"], batch["mask"])
        return predicted, self.encoder.patchify(batch["spectrogram"]), batch["mask"]
