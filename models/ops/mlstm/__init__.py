"""The mLSTM cell (Beck et al. 2024, arXiv 2405.04517, section 2.3): a matrix memory with exponential gates.

For each head, with queries q, keys k and values v of width d, and pre-activations i and f of the two gates:

    F_ij = sum over l = j + 1 .. i of log sigmoid(f_l)      how much of step j is left at step i, as a logarithm
    D_ij = F_ij + i_j  for j <= i, else -inf
    m_i  = max over j of D_ij                               keeps the exponentials in range
    C_ij = (q_i . k_j / sqrt(d)) exp(D_ij - m_i)
    h_i  = sum_j C_ij / (max(|sum_j C_ij|, exp(-m_i)) + 1e-6) v_j

`parallel` reads like these lines and takes memory L^2; `chunked` is linear in L.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from audio_mamba.models.ops.mlstm import chunked, parallel

# Up to here the equation itself is as fast. A deep encoder amplifies rounding, and the order of operations in
# `parallel` is the published one, so that published weights give published numbers.
LONGEST_PARALLEL = 1024


def mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """q, k, v [B, H, L, d], i, f [B, H, L] -> h [B, H, L, d] in the dtype of v.

    Gates, exponents and sums are float32 (float64 for float64 inputs), also under autocast. Gradients of everything.

    Raises:
        ValueError: shapes that do not fit.
    """
    if q.dim() != 4:
        raise ValueError(f"mlstm: q must be [B, H, L, d], got {list(q.shape)}")
    for name, tensor, shape in (("k", k, q.shape), ("v", v, q.shape), ("i", i, q.shape[:3]), ("f", f, q.shape[:3])):
        if tensor.shape != shape:
            raise ValueError(f"mlstm: {name} must be {list(shape)} to fit q, got {list(tensor.shape)}")
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    inputs = tuple(tensor.to(exact) for tensor in (q, k, v, i, f))
    watched = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    with torch.autocast(q.device.type, enabled=False):
        if q.shape[-2] > LONGEST_PARALLEL:
            h = chunked.mlstm(*inputs)
        elif watched:  # the matrices [L, L] are computed again on the way back
            h = checkpoint(parallel.mlstm, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:  # head by head, to hold few of them at a time
            heads = zip(*(tensor.split(1, dim=1) for tensor in inputs), strict=True)
            h = torch.cat([parallel.mlstm(*head) for head in heads], dim=1)
    return h.to(v.dtype)
