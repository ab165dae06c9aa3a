"""Add + norm: the Triton kernel (interpreted, or on a CUDA device if there is one) against the reference."""

import pytest
import torch
from torch import nn

from audio_mamba.models import MambaSSAST
from audio_mamba.models.ops.add_norm import BACKENDS, add_norm, reference, triton
from tests.conftest import DEVICE, runs_on_device

pytestmark = runs_on_device
KINDS = [(nn.LayerNorm, 33), (nn.RMSNorm, 33), (nn.LayerNorm, 192), (nn.RMSNorm, 1)]


@pytest.fixture
def kernel():
    pytest.importorskip("triton")
    return triton.add_norm


def make(kind, width, hidden_dtype, residual_dtype, weight_dtype):
    torch.manual_seed(0)
    norm = kind(width, eps=1e-6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    hidden, residual = torch.randn(2, 2, 7, width).unbind()
    residual = None if residual_dtype is None else (residual + 1).to(residual_dtype)
    return norm.to(weight_dtype), hidden.to(hidden_dtype), residual


def results(function, norm, hidden, residual, in_fp32, device):
    norm = norm.to(device)
    leaves = [t.detach().to(device).requires_grad_() for t in (hidden, residual) if t is not None]
    normed, total = function(leaves[0], leaves[1] if residual is not None else None, norm, in_fp32)
    rng = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=rng).to(t) for t in (normed, total)]
    gradients = torch.autograd.grad([normed, total], [*leaves, *norm.parameters()], weights)
    return [t.detach().cpu() for t in (normed, total, *gradients)]


@pytest.mark.parametrize("kind, width", KINDS)
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float32, torch.float32, True),
        (torch.float32, None, torch.float32, False),
        (torch.bfloat16, torch.float32, torch.float32, True),
        (torch.float16, torch.float16, torch.float16, False),
        (torch.float16, None, torch.float32, True),
        (torch.float16, torch.float32, torch.float16, True),
    ],
)
def test_the_kernel_gives_the_same_as_the_reference(kernel, kind, width, dtypes):
    *dtypes, in_fp32 = dtypes
    norm, hidden, residual = make(kind, width, *dtypes)
    rounding = max({None: 0, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 2e-2}[t] for t in dtypes)
    ours = results(kernel, norm, hidden, residual, in_fp32, DEVICE)
    theirs = results(reference.add_norm, norm, hidden, residual, in_fp32, "cpu")
    for mine, true in zip(ours, theirs, strict=True):
        assert mine.dtype == true.dtype
        torch.testing.assert_close(mine, true, rtol=rounding, atol=rounding * max(1.0, true.abs().max().item()))


@pytest.mark.parametrize("missing", ["normed", "total"])
def test_a_gradient_of_only_one_output(kernel, missing):
    norm, hidden, residual = make(nn.LayerNorm, 9, torch.float32, torch.float32, torch.float32)
    gradients = []
    for function, device in ((kernel, DEVICE), (reference.add_norm, "cpu")):
        leaf = hidden.to(device).requires_grad_()
        normed, total = function(leaf, residual.to(device), norm.to(device), True)
        kept = total if missing == "normed" else normed
        gradients.append(torch.autograd.grad((kept * torch.arange(9.0, device=device)).sum(), leaf)[0].cpu())
    torch.testing.assert_close(*gradients)


def test_under_autocast_the_norm_has_the_dtype_that_a_linear_layer_reads(kernel):
    norm, hidden, residual = make(nn.LayerNorm, 33, torch.float16, torch.float32, torch.float32)
    with torch.autocast(DEVICE, torch.float16):
        mine = results(kernel, norm, hidden, residual, True, DEVICE)

    def rounded(*arguments):
        normed, total = reference.add_norm(*arguments)
        return normed.half(), total

    true = results(rounded, norm, hidden, residual, True, "cpu")
    assert mine[0].dtype == torch.float16 and mine[1].dtype == torch.float32
    for ours, theirs in zip(mine, true, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=4e-3, atol=4e-3 * max(1.0, theirs.abs().max().item()))


def test_inference_calls_the_kernel_without_the_dispatcher(kernel, monkeypatch):
    norm, hidden, residual = make(nn.LayerNorm, 33, torch.float32, torch.float32, torch.float32)
    arguments = hidden.to(DEVICE), residual.to(DEVICE), norm.to(DEVICE), True
    through_operator = kernel(*arguments)
    monkeypatch.setattr(torch.ops.audio_mamba, "add_norm_triton", None)
    with torch.no_grad():
        assert all(map(torch.equal, kernel(*arguments), through_operator))
    with pytest.raises(TypeError):
        kernel(*arguments)


def test_many_rows_per_program(kernel, monkeypatch):
    monkeypatch.setattr(triton, "PROGRAMS", 3)
    norm, hidden, residual = make(nn.LayerNorm, 5, torch.float32, torch.float32, torch.float32)
    for mine, true in zip(
        results(kernel, norm, hidden, residual, True, DEVICE),
        results(reference.add_norm, norm, hidden, residual, True, "cpu"),
        strict=True,
    ):
        torch.testing.assert_close(mine, true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rms", [True, False])
def test_opcheck(kernel, rms):
    hidden, residual = (torch.randn(3, 5, device=DEVICE, requires_grad=True) for _ in range(2))
    weight = torch.randn(5, device=DEVICE, requires_grad=True)
    bias = None if rms else torch.randn(5, device=DEVICE, requires_grad=True)
    torch.library.opcheck(
        torch.ops.audio_mamba.add_norm_triton,
        (hidden, residual, weight, bias, 1e-6, rms, torch.float32, torch.bfloat16),
    )


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(
    "residual, over, message",
    [
        ((3, 4), 4, r"residual must be \[2, 3, 4\] to fit hidden, got \[3, 4\]"),
        ((2, 3, 1), 4, r"residual must be .* got \[2, 3, 1\]"),
        (None, 5, r"norm must be over \[4\] to fit hidden, got one over \[5\]"),
        (None, (3, 4), r"norm must be over .* got one over \[3, 4\]"),
    ],
)
def test_shapes_that_do_not_fit(backend, residual, over, message):
    """The kernel would read beyond the tensors."""
    with pytest.raises(ValueError, match=f"^add_norm: {message}$"):
        add_norm(torch.ones(2, 3, 4), residual and torch.ones(residual), nn.LayerNorm(over), backend=backend)


def test_fused_add_norm_lets_the_model_use_the_kernel(kernel, monkeypatch):
    """As on a CUDA device. It changes no result."""
    calls = []
    monkeypatch.setattr(triton, "AUTO_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(triton, "add_norm", lambda *arguments: (calls.append(1), kernel(*arguments))[1])
    features = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = MambaSSAST(
            embed_dim=16,
            depth=2,
            img_size=(8, 16),
            patch_size=(4, 16),
            frequency_first=False,
            fused_add_norm=fused,
            rms_norm=False,
            ssm_kwargs={"d_conv": 20},
        ).to(DEVICE)
        model.use_backend("chunked")
        features.append(model.forward_features(torch.ones(1, 1, 8, 16, device=DEVICE)))
        assert len(calls) == 2
    torch.testing.assert_close(*features)
