"""What the back ends with kernels of our own do with the tensors of a call."""

from torch import Tensor

from audio_mamba.models.ops.memory_layout import channels_adjacent


def prepared(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """x [B, L, D], weight [D, K] and bias [D] as the kernels read them, copied only if necessary."""
    return channels_adjacent(x), weight.contiguous(), bias if bias is None else bias.contiguous()


def setup_context(ctx, inputs, output):
    """Keep what the backward pass needs; see `torch.library.register_autograd`."""
    *tensors, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)
