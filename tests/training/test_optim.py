import json

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from audio_mamba import models
from audio_mamba.models import objectives
from audio_mamba.schema import DEFAULTS
from audio_mamba.training import optim
from tests.golden_weights import assert_rounds_alike, fill_by_rule, golden_input, golden_mask

ARGS = {"img_size": (200, 80), "patch_size": (4, 16), "frequency_first": False}
TINY = {
    "ssam_tiny_200_16x4": lambda: models.mamba_ssast_tiny(**ARGS, rms_norm=False, fused_add_norm=False),
    "ssast_tiny_200_16x4": lambda: models.ssast_tiny(**ARGS),
    "axlstm_tiny_200_16x4": lambda: models.xlstm_ssast_tiny(**ARGS),
}


def names_of(parameters, model):
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for parameter in parameters]


def test_the_schedule_equals_the_published_one_exactly(golden):
    numbers = np.load(golden / "runtime.npz")
    rates = [
        optim.learning_rate_at(epoch, peak=6e-4, num_epochs=100, warmup_epochs=10) for epoch in numbers["lr_epochs"]
    ]
    np.testing.assert_array_equal(rates, numbers["lr_values"])


def test_the_schedule_ends_at_min_lr_and_may_start_at_the_peak():
    schedule = {"peak": 1.0, "num_epochs": 4, "warmup_epochs": 0, "min_lr": 0.25}
    assert optim.learning_rate_at(0, **schedule) == 1.0
    assert optim.learning_rate_at(2, **schedule) == pytest.approx(0.625)
    assert optim.learning_rate_at(4, **schedule) == 0.25


def test_a_staged_rate_holds_its_peak_and_falls_at_the_end_alone():
    opt = ConfigDict({"schedule": "WarmupStableDecay", "decay_epochs": 2.0})
    schedule = {"peak": 1.0, "num_epochs": 10, "warmup_epochs": 1, "min_lr": 0.5}
    epochs, fall = (0.5, 1, 4.2, 8, 9, 9.5, 10), optim.decay_epochs(opt)
    rates = [optim.learning_rate_at(epoch, **schedule, decay_epochs=fall) for epoch in epochs]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.75, 0.625, 0.5])
    assert optim.decay_epochs(ConfigDict({"schedule": "warmupcosine", "decay_epochs": 2.0})) is None


def test_stages_must_fit_into_the_run():
    """Else the rate would never fall, or jump down from the middle of the warm-up."""
    opt = ConfigDict({"schedule": "warmupstabledecay", "warmup_epochs": 10.0, "decay_epochs": 2.0})
    optim.check_stages(opt, 12)
    with pytest.raises(ValueError, match="opt.warmup_epochs 10 and opt.decay_epochs 2 do not fit into num_epochs 11: "):
        optim.check_stages(opt, 11)
    opt.schedule = "warmupcosine"
    optim.check_stages(opt, 1)


def test_the_peak_rate_grows_with_the_global_batch():
    assert optim.peak_learning_rate(1.5e-4, 256) == 1.5e-4
    assert optim.peak_learning_rate(1.5e-4, 2 * 256 * 4) == pytest.approx(1.2e-3)


@pytest.mark.parametrize("config", TINY)
def test_the_groups_are_the_published_ones_in_their_order(golden, config):
    numbers = json.loads((golden / f"{config}_training.json").read_text())
    model = TINY[config]()
    optimizer = optim.make_optimizer(model, weight_decay=0.05)
    no_decay, decay = optimizer.param_groups
    assert names_of(no_decay["params"], model) == numbers["no_decay"]
    assert names_of(decay["params"], model) == numbers["decay"]
    assert (no_decay["weight_decay"], decay["weight_decay"]) == (0.0, 0.05)
    assert no_decay["betas"] == decay["betas"] == (0.9, 0.95)


def test_scalars_have_no_weight_decay():
    model = torch.nn.ParameterDict({"scale": torch.tensor(1.0), "vector": torch.ones(2), "matrix": torch.ones(2, 2)})
    no_decay, decay = optim.make_optimizer(model, weight_decay=0.05).param_groups
    assert names_of(no_decay["params"], model) == ["scale", "vector"] and names_of(decay["params"], model) == ["matrix"]


def test_bias_decay_makes_one_group_of_all_trainable_parameters():
    model = models.ssast_tiny(depth=1)
    optimizer = optim.make_optimizer(model, weight_decay=0.05, bias_decay=True)
    (group,) = optimizer.param_groups
    assert names_of(group["params"], model) == [name for name, _ in model.named_parameters() if name != "pos_embed"]
    assert (group["weight_decay"], group["betas"]) == (0.05, (0.9, 0.999))


def published_loss(model):
    batch = {"spectrogram": golden_input().to(model.pos_embed.dtype), "mask": golden_mask()}
    return objectives.build(ConfigDict(DEFAULTS).opt, model).loss(model, batch)[0]


def gradient_norms(model):
    return {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}


def four_steps(model, optimizer):
    """Losses, total gradient norms, and every parameter's gradient norm at the first step."""
    optim.set_learning_rate(optimizer, 6e-4)
    losses, totals, first = [], [], None
    for _ in range(4):
        loss = published_loss(model)
        optimizer.zero_grad()
        loss.backward()
        first = first or gradient_norms(model)
        totals.append(torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, totals, first


@pytest.mark.parametrize("config", ["ssam_tiny_200_16x4", "ssast_tiny_200_16x4"])
def test_four_steps_equal_the_published_ones(golden, config):
    numbers = json.loads((golden / f"{config}_training.json").read_text())
    model = fill_by_rule(TINY[config]()).train()
    losses, totals, first = four_steps(model, optim.make_optimizer(model, weight_decay=0.05))
    assert first == pytest.approx(numbers["grad_norms_step0"], rel=1e-3, abs=1e-5)
    assert losses == pytest.approx(numbers["losses"], abs=1e-3)
    assert totals == pytest.approx(numbers["grad_norms_total"], abs=1e-3)


@pytest.mark.slow
def test_four_steps_of_axlstm_are_as_near_to_exact_ones_as_the_published_ones(golden):
    """Its gradients, in the thousands, amplify rounding, which differs by processor."""
    numbers = json.loads((golden / "axlstm_tiny_200_16x4_training.json").read_text())
    runs = []
    for dtype in (torch.float32, torch.float64):
        model = fill_by_rule(TINY["axlstm_tiny_200_16x4"]()).to(dtype).train()
        groups = optim.parameter_groups(model, 0.05, bias_decay=False)
        runs.append(four_steps(model, torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))))
    (losses, _, first), (exact_losses, _, exact_first) = runs
    published = numbers["grad_norms_step0"]
    assert first.keys() == published.keys()
    ours, theirs = (np.array([norms[name] / exact_first[name] for name in first]) for norms in (first, published))
    assert_rounds_alike(ours, theirs, np.ones(len(first)), most=3e-3)
    assert_rounds_alike(*map(np.array, (losses, numbers["losses"], exact_losses)), most=1e-2)


def test_other_optimizers_and_schedules_are_refused():
    optim.check_names("Adamw", "warmupcosine")
    optim.check_names("adamw", "warmupstabledecay")
    with pytest.raises(ValueError, match="opt.optimizer 'lion'"):
        optim.check_names("lion", "warmupcosine")
    with pytest.raises(ValueError, match="opt.schedule 'step'"):
        optim.check_names("adamw", "step")
