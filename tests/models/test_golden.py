"""The encoders reproduce the published model's numbers (tests/golden/README.md)."""

import copy
import json

import numpy as np
import pytest
import torch

from audio_mamba import models
from audio_mamba.models.loss import reconstruction_loss
from tests.golden_weights import assert_rounds_alike, fill_by_rule, golden_input, golden_mask

CONFIGS = {
    f"{name}_{size}_200_16x4": arch + size
    for size in ("tiny", "small", "base")
    for name, arch in (("ssam", "mamba_ssast_"), ("ssast", "ssast_"), ("axlstm", "xlstm_ssast_"))
}


def build(config, **changes):
    arch = CONFIGS[config]
    args = {"img_size": (200, 80), "patch_size": (4, 16), "mask_ratio": 0.5, "frequency_first": False}
    if arch.startswith("mamba"):
        args |= {"rms_norm": False, "fused_add_norm": False}
    return getattr(models, arch)(**args | changes)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("ssast_base_200_16x4", "axlstm_base_200_16x4")))
        for name in CONFIGS
    ],
)
def config(request):
    return request.param


@pytest.fixture(scope="module")
def model(config):
    return fill_by_rule(build(config)).eval()


@pytest.fixture(scope="module")
def numbers(config, golden):
    return np.load(golden / f"{config}.npz")


@pytest.fixture(scope="module")
def exact(model, config):
    """The same model in float64 where float32 is rough: mLSTM blocks amplify rounding, which differs by processor."""
    return copy.deepcopy(model).double() if config.startswith("axlstm") else None


def assert_close(ours, published, tolerance=2e-4):
    np.testing.assert_allclose(ours.detach().numpy(), published, rtol=0, atol=tolerance)


def assert_all_close(ours, numbers, exact=None):
    """By name: near the published numbers or, where float32 is rough, about as near to the exact ones as those are."""
    for name in ours.keys() & set(numbers.files):
        if exact is None:
            assert_close(ours[name], numbers[name])
        else:
            assert_rounds_alike(ours[name].numpy(), numbers[name], exact[name].numpy(), most=7e-4)


def test_state_dict_has_the_published_keys_shapes_and_dtypes(model, config, golden):
    published = json.loads((golden / f"{config}.json").read_text())
    ours = {key: [list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in model.state_dict().items()}
    assert list(ours.items()) == list(published["state_dict"].items())
    assert sum(p.numel() for p in model.parameters()) == published["parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == published["trainable"]


@torch.no_grad()
def features_of(model, x):
    tokens = model.encode(model.embed(x))
    published, bands = model.forward_features(x), model.forward_features(x, layout="bands")
    assert published.shape == bands.shape == (2, 50, 5 * model.embed_dim)
    return {
        "tokens_rows": tokens[:, ::25, ::4],
        "features_head": published[:, ::7, ::16],
        "features_mean": published.mean((1, 2)),
        "scene_head": published.mean(1)[:, ::5],
        "features_time_head": bands[:, ::7, ::16],
        "scene_time_head": bands.mean(1)[:, ::5],
    }


def test_tokens_and_features_in_both_layouts(model, numbers, exact):
    x = golden_input()
    assert_all_close(features_of(model, x), numbers, exact and features_of(exact, x.double()))


@torch.no_grad()
def test_masked_prediction_and_losses(model, numbers, exact):
    pred, target, mask = model(golden_input(), golden_mask())
    np.testing.assert_array_equal(mask, golden_mask())
    assert_close(target[:, ::25], numbers["target_rows"], tolerance=0)
    assert target.shape == pred.shape == (2, 250, 64)
    rows = exact and {"pred_rows": exact(golden_input().double(), golden_mask())[0][:, ::25]}
    assert_all_close({"pred_rows": pred[:, ::25]}, numbers, rows)
    losses = [
        reconstruction_loss(pred, target, mask, normalise_patches, masked_only)
        for masked_only in (False, True)
        for normalise_patches in (False, True)
    ]
    assert_close(torch.stack(losses), numbers["losses"])


def test_positions(model, numbers):
    assert_close(model.pos_embed[0, ::25, ::8], numbers["pos_embed_rows"], tolerance=5e-6)


@pytest.mark.parametrize("name", [name for name in CONFIGS if "_tiny_" in name])
@torch.no_grad()
def test_frequency_first_equals_time_first_on_transposed_input_and_kernel(name):
    model = fill_by_rule(build(name)).eval()
    twin = build(name, img_size=(80, 200), patch_size=(16, 4), frequency_first=True).eval()
    state = dict(model.state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].transpose(-1, -2)
    twin.load_state_dict(state)
    assert twin.grid_size() == model.grid_size() == (50, 5)
    x, mask = golden_input(), golden_mask()
    for ours, theirs in zip(twin(x.transpose(-1, -2), mask), model(x, mask)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for layout in ("published", "bands"):
        torch.testing.assert_close(
            twin.forward_features(x.transpose(-1, -2), layout), model.forward_features(x, layout), rtol=0, atol=1e-5
        )
