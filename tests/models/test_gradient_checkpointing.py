"""Gradient checkpointing changes only the memory of a training step."""

import pytest
import torch
import torch.distributed as dist
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from audio_mamba import models
from audio_mamba.models.loss import reconstruction_loss
from audio_mamba.training import distributed

ARCHS = ["mamba_ssast_tiny", "ssast_tiny"]
BATCH, TOKENS, WIDTH = 2, 251, 192


def build(arch, gradient_checkpointing, **args):
    torch.manual_seed(0)
    model = getattr(models, arch)(
        **{"img_size": (200, 80), "patch_size": (4, 16), "frequency_first": False, "depth": 3} | args
    )
    model.gradient_checkpointing = gradient_checkpointing
    return model


def loss_of(model):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 1, 200, 80, generator=generator)
    mask = (torch.rand(BATCH, 250, generator=generator) < 0.5).float()
    return reconstruction_loss(*model(x, mask)[:2])


def loss_and_gradients(model):
    loss = loss_of(model)
    loss.backward()
    named = getattr(model, "module", getattr(model, "_orig_mod", model)).named_parameters()
    return loss.detach(), {name: p.grad for name, p in named if p.requires_grad}


def assert_same(ours, expected):
    assert torch.equal(ours[0], expected[0])
    assert ours[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.abs().sum() > 0
        assert torch.equal(ours[1][name], gradient), name


def forwards_per_block(model, action):
    """How many times `action` runs each block of the model forward."""
    counts = [0] * len(model.blocks)
    handles = [
        block.register_forward_pre_hook(lambda *_, number=number: counts.__setitem__(number, counts[number] + 1))
        for number, block in enumerate(model.blocks)
    ]
    action()
    for handle in handles:
        handle.remove()
    return counts


def saved_bytes(model):
    """Bytes that autograd keeps from the forward to the backward pass, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of(model)
    total = sum(storages.values())
    del loss
    return total


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ARCHS)
def test_losses_and_gradients_are_bitwise_equal(arch, precision):
    results = []
    for gradient_checkpointing in (False, True):
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            model = build(arch, gradient_checkpointing)
            loss = loss_of(model)
        loss.backward()  # as train.py does, outside the autocast region
        results.append((loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    assert_same(*reversed(results))


def test_the_second_run_of_a_block_drops_out_what_the_first_did():
    results = []
    for gradient_checkpointing in (False, True):
        model = build("ssast_tiny", gradient_checkpointing)
        for block in model.blocks:
            block.mlp = torch.nn.Sequential(block.mlp, torch.nn.Dropout(0.5))
        results.append(loss_and_gradients(model))
    assert_same(*reversed(results))


@pytest.mark.parametrize("arch", ARCHS)
def test_every_block_runs_twice_in_a_training_step_and_once_otherwise(arch):
    model = build(arch, True)
    assert forwards_per_block(model, lambda: loss_of(model).backward()) == [2, 2, 2]
    with torch.no_grad():
        assert forwards_per_block(model, lambda: loss_of(model)) == [1, 1, 1]
    model.eval()
    assert forwards_per_block(model, lambda: loss_of(model).backward()) == [1, 1, 1]
    model.train().gradient_checkpointing = False
    assert forwards_per_block(model, lambda: loss_of(model).backward()) == [1, 1, 1]


@pytest.mark.parametrize("arch, streams", [("mamba_ssast_tiny", 2), ("ssast_tiny", 1)])
def test_each_block_keeps_only_its_input(arch, streams):
    """The input is two tensors for SSAM, hidden and residual, and one for SSAST."""
    token_bytes = BATCH * TOKENS * WIDTH * 4
    growth = [saved_bytes(build(arch, True, depth=depth)) for depth in (4, 5)]
    assert growth[1] - growth[0] == streams * token_bytes
    plain = [saved_bytes(build(arch, False, depth=depth)) for depth in (4, 5)]
    assert plain[1] - plain[0] > 8 * streams * token_bytes


@pytest.mark.parametrize("arch", ARCHS)
def test_state_dict_and_features_stay_the_same(arch):
    plain, checkpointed = (build(arch, on).eval() for on in (False, True))
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()
    assert not models.MambaSSAST(depth=1).gradient_checkpointing
    x = torch.randn(1, 1, 200, 80)
    with torch.no_grad():
        assert torch.equal(plain.forward_features(x), checkpointed.forward_features(x))


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # see training.distributed.parallel
@pytest.mark.parametrize("arch", ARCHS)
def test_under_the_parallel_wrapper(arch, tmp_path):
    expected = loss_and_gradients(build(arch, False))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        # Not kept in a variable: a wrapper that outlives the group joins gloo's thread with the interpreter lock held.
        assert_same(loss_and_gradients(DistributedDataParallel(build(arch, True))), expected)
    finally:
        distributed.cleanup()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.slow
def test_under_torch_compile(arch):
    """One graph, and less memory kept for the backward graph."""
    expected = loss_and_gradients(build(arch, False, depth=2))
    saved = {}
    for gradient_checkpointing in (False, True):
        torch._dynamo.reset()
        model = torch.compile(build(arch, gradient_checkpointing, depth=2), backend="aot_eager", fullgraph=True)
        saved[gradient_checkpointing] = saved_bytes(model)
        loss, gradients = loss_and_gradients(model)
        torch.testing.assert_close(loss, expected[0])
        for name, gradient in expected[1].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)
    assert saved[True] < 0.7 * saved[False]
