"""The losses of masked spectrogram modelling.

Symbols: B batch, L patches, P values per patch.
"""

import torch
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
        ValueError: shapes that differ, or `masked_only` without a mask.
    """
    _check_same_shape("prediction", pred, "target", target)
    if normalise_patches:
        target = normalise_per_patch(target)
    error = (pred.float() - target.float()).square().mean(dim=-1)  # [B, L]
    if not masked_only:
        return error.mean()
    if mask is None:
        raise ValueError("a loss over the masked patches only needs the mask")
    return mean_over_masked(error, mask)


def mean_over_masked(error: Tensor, mask: Tensor) -> Tensor:
    """The mean of error [B, L] where mask [B, L] is 1; 0 if it is 1 nowhere. ValueError for shapes that differ."""
    _check_same_shape("error", error, "mask", mask)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def _check_same_shape(name: str, ours: Tensor, other: str, theirs: Tensor) -> None:
    """Raise ValueError for tensors that torch would broadcast, or cannot."""
    if ours.shape != theirs.shape:
        raise ValueError(f"the {name} is {list(ours.shape)}, but the {other} is {list(theirs.shape)}")


def normalise_per_patch(target: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-6) over each patch of [B, L, P], var with ddof 1."""
    mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
    return (target - mean) / (var + 1e-6).sqrt()


def restore_patches(pred: Tensor, target: Tensor) -> Tensor:
    """The inverse of `normalise_per_patch`: predictions [B, L, P] with mean and variance of the target's patches."""
    variance, mean = torch.var_mean(target.float(), dim=-1, keepdim=True)
    return pred.float() * (variance + 1e-6).sqrt() + mean


def info_nce(pred: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How well predictions tell their own patch from the other masked patches of the clip (Gong et al. 2022, eq. 1).

    The loss is the mean over masked patches i of -log(exp(c_i . x_i) / sum_j exp(c_i . x_j)), where c_i is the
    prediction, x_i the true patch, and j runs over the masked patches of the same clip.

    Args:
        pred: [B, L, P].
        target: [B, L, P].
        mask: [B, L], 1 where masked; at least one patch of each clip.

    Returns:
        The loss, and the share of masked patches whose own patch has the highest product, both float32 scalars.
    """
    masked = mask.bool()
    with torch.autocast(pred.device.type, enabled=False):
        products = pred.float() @ target.float().mT  # [B, L, L], c_i . x_j
    products = products.masked_fill(~masked[:, None], -torch.inf)
    log_share = products.diagonal(dim1=1, dim2=2) - products.logsumexp(dim=2)  # [B, L]
    own = torch.arange(products.shape[1], device=products.device)
    accuracy = (masked & (products.argmax(dim=2) == own)).sum() / masked.sum()
    return -torch.where(masked, log_share, 0.0).sum() / masked.sum(), accuracy
