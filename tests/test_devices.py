"""Training and embedding leave no tensor on the CPU, and never wait for the device, when the model is on another one.

The device "meta" stands in for a GPU: its tensors have no values, so reading one fails.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from audio_mamba import models
from audio_mamba.data.features import log_mel
from audio_mamba.data.normalisation import clip_statistics, normalise
from audio_mamba.models import objectives
from audio_mamba.models.classifier import Classifier, classification_loss, probabilities
from audio_mamba.models.ops import triton_support
from audio_mamba.training.guards import StepGuard, spread_to_gradient, update_ratio

ENCODERS = {
    "SSAM": (models.MambaSSAST, {}),
    "both ways": (models.MambaSSAST, {"direction": "both", "cls_position": "middle", "rms_norm": False}),
    "both scans": (
        models.MambaSSAST,
        {"direction": "both_scans", "token_order": "frequency", "masked_positions": True},
    ),
    "SSAST": (models.SSAST, {"num_heads": 2}),
    "AxLSTM": (models.XLSTMSSAST, {}),
}


class OneDevice(TorchDispatchMode):
    """Fails where an operator gets tensors of two devices, which the meta device does not always notice. As on a GPU,
    scalars on the CPU go with any."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        assert len(devices) < 2, f"{function} gets tensors on {' and '.join(sorted(devices))}"
        return function(*arguments, **(options or {}))


@pytest.fixture(autouse=True)
def on_one_device(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())  # there is none for meta
    with OneDevice():
        yield


def encoder(name="SSAM", **more):
    kind, arguments = ENCODERS[name]
    size = {"embed_dim": 32, "depth": 1, "img_size": (16, 80), "patch_size": (4, 16), "frequency_first": False}
    return kind(**size | arguments | more).to("meta")


def zeros(*shape):
    return torch.zeros(*shape, device="meta")


def check_encoder(model):
    predicted, _, _ = model(zeros(2, 1, 16, 80), zeros(2, 20))
    predicted.square().mean().backward()
    assert all(p.grad.device.type == "meta" for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        assert model.forward_features(zeros(2, 1, 16, 80), "bands", steps=3).shape == (2, 3, 5 * 32)


def test_tensors_on_two_devices_are_noticed():
    with pytest.raises(AssertionError, match="aten.*gets tensors on cpu and meta"):
        zeros(2, 3) @ torch.zeros(3, 2)
    assert (zeros(2) * torch.tensor(2.0)).device.type == "meta"


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name):
    check_encoder(encoder(name))


@pytest.mark.parametrize("name", ["SSAM", "both ways", "both scans"])
def test_encoders_with_our_triton_operators(name, monkeypatch):
    """For tensors without values torch calls what stands for an operator under torch.compile."""
    monkeypatch.setattr(triton_support, "unsupported_reason", lambda *tensors: None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # there is none for meta
    model = encoder(name)
    model.use_backend("triton")
    model.gradient_checkpointing = True
    check_encoder(model)


def test_masks_drawn_by_the_encoder():
    assert encoder().random_masking(zeros(2, 20, 32))[1].device.type == "meta"


@pytest.mark.parametrize(
    "objective, options",
    [
        ("reconstruction", {}),
        ("reconstruction", {"decoder_layers": 1}),
        ("reconstruction", {"visible_weight": 1.0}),
        ("joint", {}),
        ("teacher", {"last_blocks": 1, "reconstruction_weight": 1.0}),
        ("teacher", {"last_blocks": 1, "target_norm": "instance", "beta": 1.0}),
    ],
)
def test_a_training_step_of_each_objective(objective, options):
    choices = {"norm_pix_loss": True, "masked_only_loss": True}
    if objective == "joint" or (objective == "teacher" and "reconstruction_weight" not in options):
        choices = dict.fromkeys(choices, False)
    opt = SimpleNamespace(objective=objective, objective_args=options, **choices)
    built = objectives.build(opt, encoder())
    built.start()
    batch = {"spectrogram": zeros(2, 1, 16, 80), "mask": zeros(2, 20)}
    loss, numbers = built.loss(built.module, batch)
    spread_to_gradient(loss).backward()
    guard = StepGuard(scaled=False, name_sample=str)
    norm = nn.utils.clip_grad_norm_(built.module.parameters(), 1.0)
    bad = guard.watch(0, 0, loss, norm, zeros(2))
    weights = [p for p in built.module.parameters() if p.requires_grad]
    ratio = update_ratio([p.detach().clone() for p in weights], weights)
    built.after_step(0.5)
    built.picture(batch)
    for tensor in (loss, norm, bad, guard.skipped, ratio, *numbers.values()):
        assert tensor.device.type == "meta"


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
@pytest.mark.parametrize("loss", ["single", "multi"])
def test_the_classifier(pooling, loss):
    model = Classifier(encoder(), 3, pooling).to("meta")
    logits = model(zeros(2, 1, 40, 80))
    classification_loss(logits, zeros(2, 3), loss, smoothing=0.1).backward()
    assert probabilities(logits, loss).device.type == "meta"


def test_the_front_end_and_carried_states():
    spectrogram = log_mel(zeros(2, 16000))
    spectrogram = normalise(spectrogram, clip_statistics(spectrogram, ddof=1))
    model, states = encoder(), None
    for first in range(3):
        tokens = model.embed_steps(spectrogram[:1, None, 4 * first : 4 * first + 4], first)
        tokens, states = model.step(tokens, states)
    assert tokens.shape == (1, 5, 32)
