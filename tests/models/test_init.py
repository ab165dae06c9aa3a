"""Initialisation of every key: mean, spread and bounds of the published distributions."""

import math

import numpy as np
import pytest
import torch

from audio_mamba import models
from audio_mamba.models.mamba import Mamba

DIM, INNER, RANK, DEPTH = 192, 576, 12, 12


def linear_bound(fan_in):  # torch's default for Linear and Conv: uniform in +-1/sqrt(fan_in)
    return 1 / math.sqrt(fan_in)


def xavier_bound(fan_in, fan_out):
    return math.sqrt(6 / (fan_in + fan_out))


def uniform(bound):
    def check(values):
        assert values.abs().max() <= bound * (1 + 1e-6)
        assert values.abs().max() > 0.9 * bound
        spread = bound / math.sqrt(3)
        assert values.std().item() == pytest.approx(spread, rel=4 / math.sqrt(values.numel()))
        assert abs(values.mean()) < 5 * spread / math.sqrt(values.numel())

    return check


def normal(std):
    def check(values):
        assert values.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * values.numel()))
        assert abs(values.mean()) < 5 * std / math.sqrt(values.numel())
        assert values.abs().max() < 6 * std

    return check


def constant(value):
    def check(values):
        assert (values == value).all()

    return check


def step_bias(values):
    """softplus of it is log-uniform in [1e-3, 0.1]"""
    dt = torch.nn.functional.softplus(values.double())
    assert dt.min() > 0.999e-3 and dt.max() < 0.1001
    log_dt = dt.log()
    low, high = math.log(1e-3), math.log(0.1)
    assert log_dt.mean().item() == pytest.approx((low + high) / 2, abs=0.3)
    assert log_dt.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.1)


def a_log(values):
    np.testing.assert_allclose(values, np.tile(np.log(np.arange(1, 25)), (INNER, 1)), rtol=1e-6)


SHARED = {
    "cls_token": normal(0.02),
    "mask_token": normal(0.02),
    "patch_embed.proj.weight": uniform(xavier_bound(64, 64 * DIM)),
    "patch_embed.proj.bias": constant(0),
    "encoder_norm.weight": constant(1),
    "encoder_norm.bias": constant(0),
    "pred.0.weight": uniform(linear_bound(DIM)),
    "pred.2.weight": uniform(linear_bound(DIM)),
}
SSAM = SHARED | {
    "pred.0.bias": constant(0),
    "pred.2.bias": constant(0),
    "mixer.A_log": a_log,
    "mixer.D": constant(1),
    "mixer.in_proj.weight": uniform(linear_bound(DIM)),
    "mixer.conv1d.weight": uniform(linear_bound(4)),
    "mixer.conv1d.bias": uniform(linear_bound(4)),
    "mixer.x_proj.weight": uniform(linear_bound(INNER)),
    "mixer.dt_proj.weight": uniform(RANK**-0.5),
    "mixer.dt_proj.bias": step_bias,
    "mixer.out_proj.weight": uniform(linear_bound(INNER) / math.sqrt(DEPTH)),
    "norm.weight": constant(1),
    "norm.bias": constant(0),
}
SSAST = SHARED | {
    "pred.0.bias": uniform(linear_bound(DIM)),
    "pred.2.bias": uniform(linear_bound(DIM)),
    "attn.qkv_layer.weight": uniform(xavier_bound(DIM, 3 * DIM)),
    "attn.qkv_layer.bias": constant(0),
    "attn.proj_layer.weight": uniform(xavier_bound(DIM, DIM)),
    "attn.proj_layer.bias": constant(0),
    "mlp.layer1.weight": uniform(xavier_bound(DIM, 4 * DIM)),
    "mlp.layer1.bias": constant(0),
    "mlp.layer2.weight": uniform(xavier_bound(DIM, 4 * DIM)),
    "mlp.layer2.bias": constant(0),
    "norm1.weight": constant(1),
    "norm1.bias": constant(0),
    "norm2.weight": constant(1),
    "norm2.bias": constant(0),
}


AXLSTM_STD = math.sqrt(2 / (5 * DIM))
AXLSTM = SHARED | {
    "pred.0.bias": uniform(linear_bound(DIM)),
    "pred.2.bias": uniform(linear_bound(DIM)),
    "layer.proj_up.weight": normal(AXLSTM_STD),
    "layer.q_proj.weight": normal(AXLSTM_STD),
    "layer.k_proj.weight": normal(AXLSTM_STD),
    "layer.v_proj.weight": normal(AXLSTM_STD),
    "layer.proj_down.weight": normal(2 / math.sqrt(DIM)),
    "layer.learnable_skip": constant(1),
    "layer.mlstm_cell.fgate.weight": constant(0),
    "layer.mlstm_cell.fgate.bias": lambda values: np.testing.assert_allclose(values, [3, 4, 5, 6]),
    "layer.mlstm_cell.igate.weight": constant(0),
    "layer.mlstm_cell.igate.bias": lambda values: np.testing.assert_array_less(np.abs(values), 0.6),
    "layer.conv1d.conv.weight": uniform(linear_bound(4)),
    "layer.conv1d.conv.bias": uniform(linear_bound(4)),
    "layer.mlstm_cell.outnorm.weight": constant(0),
    "norm.weight": constant(0),
}


@pytest.mark.parametrize(
    "arch, rules, args",
    [
        ("mamba_ssast_tiny", SSAM, {"rms_norm": False}),
        ("mamba_ssast_tiny", SSAM, {"rms_norm": False, "direction": "both"}),
        ("ssast_tiny", SSAST, {}),
        ("xlstm_ssast_tiny", AXLSTM, {}),
    ],
)
def test_every_key_follows_its_published_distribution(arch, rules, args):
    """The layers of a second direction, with the suffix _b, follow the rules of the first."""
    torch.manual_seed(0)
    state = getattr(models, arch)(**args).state_dict()
    state.pop("pos_embed")
    assert any("_b." in key for key in state) == ("direction" in args)
    for key, values in state.items():
        name = key.split(".", 2)[2] if key.startswith("blocks.") else key
        name = name.replace("A_b_log", "A_log").replace("_b.", ".").removesuffix("_b")
        try:
            rules[name](values)
        except AssertionError as error:
            raise AssertionError(f"{key}: {error}") from error


def test_the_biases_of_input_gates_follow_theirs():
    """A block has only four."""
    torch.manual_seed(0)
    blocks = models.xlstm_ssast_tiny(embed_dim=48, depth=50).blocks
    normal(0.1)(torch.cat([block.layer.mlstm_cell.igate.bias for block in blocks]))


def test_both_scans_of_a_shared_mixer_begin_alike():
    state = models.mamba_ssast_tiny(depth=1, direction="both_scans").state_dict()
    for name in ("A_log", "A_b_log"):
        a_log(state[f"blocks.0.mixer.{name}"])


@pytest.mark.parametrize("low, high, floor, least, most", [(1e-6, 1.0, 0.01, 0.01, 1.0), (0.05, 0.05, 0.0, 0.05, 0.05)])
def test_steps_begin_between_floor_and_maximum(low, high, floor, least, most):
    torch.manual_seed(0)
    mixer = Mamba(64, dt_min=low, dt_max=high, dt_init_floor=floor)
    mixer.init_weights(depth=1)
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias.double())
    assert steps.min().item() == pytest.approx(least, rel=1e-4) and most / 2 < steps.max() < 1.0001 * most
