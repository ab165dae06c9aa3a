"""What AuM and SSAMBA have beside the directions: one convolution for two scans, tokens by bands, blocks in pairs."""

import copy

import pytest
import torch

from audio_mamba import models
from audio_mamba.models.mamba import SharedMamba
from tests.models.ops.scan_cases import CPU_BACKENDS
from tests.models.test_directions import SMALL, output_and_gradients, small


def shared_mixer():
    torch.manual_seed(0)
    block = SharedMamba(12, d_state=5)
    block.init_weights(depth=2)
    torch.nn.init.normal_(block.D)
    torch.nn.init.normal_(block.A_b_log)
    return block


def shared_by_hand(block, hidden):
    """The mixer "v1" of Vision Mamba, step by step, with its own names of the parameters."""
    p = dict(block.named_parameters())
    x, z = (hidden @ p["in_proj.weight"].T).chunk(2, dim=-1)  # [B, L, E]
    taps = p["conv1d.weight"].shape[-1]
    padded = torch.nn.functional.pad(x, (0, 0, taps - 1, 0))
    x = sum(p["conv1d.weight"][:, 0, k] * padded[:, k : k + x.shape[1]] for k in range(taps)) + p["conv1d.bias"]
    x = x * torch.sigmoid(x)
    dt, B, C = (x @ p["x_proj.weight"].T).split([block.dt_rank, block.d_state, block.d_state], dim=-1)
    dt = torch.log1p(torch.exp(dt @ p["dt_proj.weight"].T + p["dt_proj.bias"]))
    total = 0
    for A_log, steps in ((p["A_log"], range(x.shape[1])), (p["A_b_log"], reversed(range(x.shape[1])))):
        state, rows = 0, {}
        for t in steps:
            state = torch.exp(dt[:, t, :, None] * -A_log.exp()) * state + (dt * x)[:, t, :, None] * B[:, t, None]
            rows[t] = (state * C[:, t, None]).sum(-1) + p["D"] * x[:, t]
        total = total + torch.stack([rows[t] for t in sorted(rows)], dim=1) * z * torch.sigmoid(z)
    return total @ p["out_proj.weight"].T


class TestSharedMixer:
    @pytest.mark.parametrize("backend", ["auto", *CPU_BACKENDS])
    def test_by_the_published_formulas(self, backend):
        """Output and gradients, step by step in float64."""
        block, hidden = shared_mixer(), torch.randn(2, 13, 12)
        double = copy.deepcopy(block).double()
        block.backend = backend
        expected = output_and_gradients(lambda x: shared_by_hand(double, x), double, hidden.double())
        for ours, true in zip(output_and_gradients(block, block, hidden), expected, strict=True):
            torch.testing.assert_close(ours.double(), true, rtol=1e-4, atol=1e-5 * true.abs().max().item())
        with torch.no_grad():
            torch.testing.assert_close(block(hidden).double(), expected[0], rtol=1e-4, atol=1e-5)

    def test_it_has_one_tensor_more_than_a_forward_mixer(self):
        shared = SharedMamba(12).state_dict().keys()
        forward = models.MambaSSAST(12, 1, ssm_kwargs={}).blocks[0].mixer.state_dict().keys()
        assert shared - forward == {"A_b_log"} and forward < shared

    def test_it_carries_no_state(self):
        with pytest.raises(ValueError, match="needs all tokens at once"):
            shared_mixer().step(torch.zeros(1, 3, 12))


@pytest.mark.parametrize("direction", ["forward", "both", "both_scans"])
@pytest.mark.parametrize("args", [{}, {"use_cls_token": False}, {"cls_position": "middle"}])
def test_tokens_by_bands_are_those_of_a_reordered_sequence(direction, args):
    by_time, by_band = (small(direction=direction, token_order=order, **args) for order in ("time", "frequency"))
    assert not by_band.causal and not by_band.carries_state
    by_band.load_state_dict(by_time.state_dict())
    tokens = torch.randn(2, 20, 32)  # 10 steps of 2 bands
    order = [step * 2 + band for band in range(2) for step in range(10)]
    expected = torch.empty_like(tokens)
    expected[:, order] = by_time.encode(tokens[:, order])
    torch.testing.assert_close(by_band.encode(tokens), expected)
    x = torch.randn(2, 1, 40, 32)
    features = by_band.forward_features(x, "bands", steps=4)
    expected[:, order] = by_time.encode(by_time.embed(x)[:, order])
    torch.testing.assert_close(features, expected.unflatten(1, (10, 2)).flatten(2)[:, :4])


@pytest.mark.parametrize("rms_norm, norm", [(True, torch.nn.RMSNorm), (False, torch.nn.LayerNorm)])
def test_the_final_norm_may_be_as_the_blocks(rms_norm, norm):
    model = small(rms_norm=rms_norm, norm_epsilon=0.5, same_final_norm=True)
    assert type(model.encoder_norm) is type(model.blocks[0].norm) is norm
    tokens = torch.randn(1, 20, 32)
    hidden = small(rms_norm=rms_norm, norm_epsilon=0.5)
    raw = copy.deepcopy(hidden)
    raw.encoder_norm = torch.nn.Identity()
    raw.encoder_norm.weight = torch.ones(())
    x = raw.forward_blocks(tokens)
    x = x - (0 if rms_norm else x.mean(-1, keepdim=True))
    torch.testing.assert_close(model.forward_blocks(tokens), x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt())
    assert hidden.encoder_norm.eps == 1e-6 and type(hidden.encoder_norm) is torch.nn.LayerNorm


def test_blocks_in_pairs():
    torch.manual_seed(0)
    model = models.SSAMBA(**SMALL | {"depth": 4, "rms_norm": False})
    assert not model.causal and not model.carries_state
    tokens = torch.randn(2, 20, 32)
    stream, hidden = torch.zeros_like(tokens), tokens
    for number in (0, 2):
        stream = stream + hidden
        hidden = sum(block.mixer(block.norm(stream)) for block in model.blocks[number : number + 2])
        stream = 2 * stream
    expected = model.encoder_norm(model.encoder_norm(stream + hidden))
    torch.testing.assert_close(model.forward_blocks(tokens), expected)
    with pytest.raises(ValueError, match="depth must be even, got 3"):
        models.SSAMBA(**SMALL | {"depth": 3})
    with pytest.raises(ValueError, match="unknown token_order 'bands'; choose from time, frequency"):
        small(token_order="bands")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_they_train(checkpointing):
    for model in (small(direction="both_scans", token_order="frequency"), models.SSAMBA(**SMALL)):
        model.gradient_checkpointing = checkpointing
        prediction, target, _ = model(torch.randn(2, 1, 40, 32))
        (prediction - target).square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


def test_aum_base_has_the_published_number_of_parameters():
    """92.1 M, with its head of 527 classes; our pretraining's head and mask token are not in it."""
    args = {"depth": 24, "img_size": (128, 1024), "patch_size": (16, 16), "ssm_kwargs": {}, "same_final_norm": True}
    with torch.device("meta"):
        model = models.build("mamba_ssast_base", {"direction": "both_scans", "token_order": "frequency", **args})
    ours = [p.numel() for name, p in model.named_parameters() if not name.startswith(("pred.", "mask_token"))]
    assert f"{(sum(ours) + 527 * (768 + 1)) / 1e6:.1f}" == "92.1"
