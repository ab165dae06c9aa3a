"""Tell masked patches apart and reconstruct them: the objective of SSAST (Gong et al. 2022) and SSAMBA."""

from typing import Any

from torch import Tensor, nn

from audio_mamba.models.checks import check_not_negative
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.loss import info_nce, reconstruction_loss
from audio_mamba.models.objectives.base import (
    Batch,
    EncoderWithHead,
    Losses,
    Objective,
    check_masking,
    deviation_over_clips,
)
from audio_mamba.models.objectives.reconstruction import Reconstruction
from audio_mamba.models.ops.linear import Linear


class Joint(Objective):
    """The joint discriminative and generative objective (Gong et al. 2022, arXiv 2110.09784, sections 2.2 and 2.3).

    discriminative (eq. 1): InfoNCE between the output of a head at a masked patch and the true patches at all masked
    places of the same clip. generative (eq. 2): the squared error of the predicted patch, here as in the authors' code
    its mean over the values of a patch and over the masked patches. The loss is
    discriminative + generative_weight * generative.

    The discriminative head is Linear, ReLU, Linear, as theirs; the generative head is the encoder's own.

    Numbers to watch: `discriminative_loss`, `generative_loss`, `accuracy` (the share of masked patches that are told
    apart from the others) and `token_std` (see `deviation_over_clips`).

    Args:
        encoder, opt: see `Objective`.
        generative_weight: lambda.

    Raises:
        ValueError: a weight out of range, an encoder that masks nothing, or options that this objective does not read.
    """

    def __init__(self, encoder: MaskedSpectrogramEncoder, opt: Any, generative_weight: float = 10.0):
        super().__init__(encoder, opt)
        check_masking(encoder, "joint")
        check_not_negative("opt.objective_args.generative_weight", generative_weight)
        if opt.norm_pix_loss or opt.masked_only_loss:
            raise ValueError(
                "opt.norm_pix_loss and opt.masked_only_loss do not apply to opt.objective 'joint': it compares true "
                "patches, at masked places only"
            )
        self.generative_weight = generative_weight
        width, values = encoder.embed_dim, encoder.patch_values
        head = nn.Sequential(Linear(width, width), nn.ReLU(), Linear(width, values))
        self.module = EncoderWithHead(encoder, head, reconstructs=True)
        self.reconstruction = Reconstruction(encoder, opt)

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        x, mask = batch["spectrogram"], batch["mask"]
        tokens, contrastive, predicted = model(x, mask)  # [B, L, D], [B, L, P], [B, L, P]
        patches = self.encoder.patchify(x)
        discriminative, accuracy = info_nce(contrastive, patches, mask)
        generative = reconstruction_loss(predicted, patches, mask, masked_only=True)
        return discriminative + self.generative_weight * generative, {
            "discriminative_loss": discriminative.detach(),
            "generative_loss": generative.detach(),
            "accuracy": accuracy,
            "token_std": deviation_over_clips(tokens),
        }

    def picture(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        return self.reconstruction.picture(batch)
