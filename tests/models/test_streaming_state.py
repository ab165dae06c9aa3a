"""Carried states: the tokens in pieces of any size give the same outputs as all at once, with every back end."""

import pytest
import torch

from audio_mamba.models import MambaSSAST
from tests.models.ops.scan_cases import CPU_BACKENDS


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("sizes", [[60], [1] * 10 + [50], [5] * 12, [3, 2, 55]])
@pytest.mark.parametrize("d_conv", [1, 4])
def test_pieces_of_any_size_give_the_outputs_of_the_whole(backend, sizes, d_conv):
    torch.manual_seed(0)
    model = MambaSSAST(
        embed_dim=32,
        depth=2,
        img_size=(200, 80),
        patch_size=(4, 16),
        frequency_first=False,
        ssm_kwargs={"d_state": 5, "d_conv": d_conv},
    )
    model.use_backend(backend)
    for block in model.blocks:
        torch.nn.init.normal_(block.mixer.D)
    tokens = torch.randn(2, 60, 32)
    with torch.no_grad():
        states, parts = None, []
        for part in tokens.split(sizes, dim=1):
            out, states = model.step(part, states)
            parts.append(out)
        torch.testing.assert_close(torch.cat(parts, dim=1), model.encode(tokens), rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", ["mamba_ssm", "causal_conv1d"])
def test_steps_use_the_kernels_that_were_chosen(backend):
    """These do not support tensors on a CPU."""
    model = MambaSSAST(embed_dim=32, depth=1)
    model.use_backend(backend)
    for function in (model.encode, model.step):
        with torch.no_grad(), pytest.raises(RuntimeError, match=f"back end '{backend}' does not support this call"):
            function(torch.zeros(1, 2, 32))


def test_a_wrong_number_of_steps_is_refused():
    model = MambaSSAST(embed_dim=32, depth=1)
    for steps in (0, 51):
        with pytest.raises(ValueError, match="steps must be 1 to 50"):
            model.forward_features(torch.zeros(1, 1, 80, 200), steps=steps)
