"""The reconstruction loss of masked spectrogram modelling."""

from torch import Tensor


def reconstruction_loss(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, normalise_patches: bool = False, masked_only: bool = False
) -> Tensor:
    """Mean squared error between predicted and true patches.

    Args:
        pred: [B, L, P].
        target: [B, L, P].
        mask: [B, L], 1 where masked.
        normalise_patches: first normalise each target patch to zero mean and unit variance (MAE, He et al. 2022,
            section 4.1, "norm pix").
        masked_only: average over the masked patches only, as MAE does, instead of over all patches, as published. If
            nothing is masked, the loss is 0.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: `masked_only` without a mask.
    """
    if normalise_patches:
        target = normalise_per_patch(target)
    error = (pred.float() - target.float()).square().mean(dim=-1)  # [B, L]
    if not masked_only:
        return error.mean()
    if mask is None:
        raise ValueError("a loss over the masked patches only needs the mask")
    return (error * mask).sum() / mask.sum().clamp(min=1)


def normalise_per_patch(target: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-6) over each patch of [B, L, P], var with ddof 1."""
    mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
    return (target - mean) / (var + 1e-6).sqrt()
