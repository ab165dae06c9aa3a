"""How tensors lie in memory, as the kernels of several back ends read them."""

from torch import Tensor


def channels_adjacent(tensor: Tensor) -> Tensor:
    """[batch, time, channels] with neighbouring channels adjacent in memory, copied only if necessary."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
