"""The linear layer, on CPUs by whichever of torch's two libraries of matrix products is faster on this machine."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_mamba.models.ops.linear_choice import linear_choice, weight_gradient
from audio_mamba.models.ops.private_torch import onednn_linear, untraced


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: x [..., I], weight [O, I], bias [O] -> [..., O].

    PyTorch multiplies float32 matrices on a CPU by MKL, forward and backward. Where `linear_choice` is "onednn", oneDNN
    does it here. Below float32, and so under autocast, PyTorch uses oneDNN anyway; torch.compile and torch.export see
    the plain function.
    """
    if not _may_use_onednn(x, weight, bias) or linear_choice() == "torch":
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _OneDNN.apply(x, weight, bias)
    return onednn_linear(x, weight, bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` with the products of `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """input [..., I] -> [..., O]."""
        return linear(input, self.weight, self.bias)


class _OneDNN(torch.autograd.Function):
    """The same product, by oneDNN on the way back too."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            linear(dy, weight.t()) if needs_x else None,
            _weight_gradient(dy, x) if needs_weight else None,
            dy.reshape(-1, dy.shape[-1]).sum(0) if needs_bias else None,
        )


def product_gradients(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x [..., I] and weight [O, I] in y = `linear(x, weight)` [..., O], in their dtype."""
    return linear(dy, weight.t()), _weight_gradient(dy, x)


def _weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """dy [..., O], x [..., I] -> [O, I]."""
    dy, x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    return weight_gradient(dy, x, linear) if dy.dtype == torch.float32 else dy.t() @ x


def _may_use_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Plain float32 CPU tensors whose shapes fit; if they do not, `F.linear` says so."""
    return bool(
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and weight.numel() > 0
        and x.shape[-1:] == weight.shape[1:]
        and (bias is None or bias.shape == weight.shape[:1])
        and untraced(x, weight, bias)
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
    )
