"""The classification head: pooling over segments and time, losses, layer-wise rates, calibration, longer inputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from audio_mamba import models
from audio_mamba.models.classifier import Classifier, classification_loss, fit_temperature, probabilities

SIZE = {"depth": 2, "embed_dim": 48, "patch_size": (4, 16), "frequency_first": False}


def encoder_of(arch, frames=40, **arguments):
    torch.manual_seed(0)
    return models.build(arch, {**SIZE, "img_size": (frames, 80), **arguments}).eval()


def clips_of(*lengths, seed=1):
    return [torch.randn(length, 80, generator=torch.Generator().manual_seed(seed + length)) for length in lengths]


def padded(clips):
    longest = max(map(len, clips))
    return torch.stack([F.pad(clip, (0, 0, 0, longest - len(clip))) for clip in clips])[:, None]


@pytest.mark.parametrize("arch", ["mamba_ssast_tiny", "ssast_tiny"])
@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
@pytest.mark.parametrize("frequency_first", [False, True])
def test_clips_of_several_lengths_are_pooled_over_their_own_steps(arch, pooling, frequency_first):
    """Against features of each segment alone, padded to the encoder's input, as the runtime computes them."""
    layout = {"frequency_first": True, "img_size": (80, 40), "patch_size": (16, 4)} if frequency_first else {}
    encoder = encoder_of(arch, **layout)
    classifier = Classifier(encoder, 3, pooling).eval()
    clips = clips_of(97, 40, 3, 41)
    with torch.no_grad():
        found = classifier.embed(padded(clips), torch.tensor([len(clip) for clip in clips]))
        for row, clip in zip(found, clips):
            steps = []
            for part in clip.split(40):
                x = F.pad(part, (0, 0, 0, 40 - len(part)))[None, None]
                features = encoder.forward_features(x.mT if frequency_first else x, "bands")
                steps.append(features[0, : -(-len(part) // 4)])
            steps = torch.cat(steps)
            expected = torch.cat([steps.mean(0), steps.std(0, correction=0)][: 2 if pooling == "mean_std" else 1])
            torch.testing.assert_close(row, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
def test_padding_far_beyond_the_longest_clip_changes_nothing(pooling):
    classifier = Classifier(encoder_of("mamba_ssast_tiny"), 3, pooling).eval()
    batch, frames = padded(clips_of(45, 23)), torch.tensor([45, 23])
    with torch.no_grad():
        expected = classifier.embed(batch, frames)
        for more in (30, 35, 36, 200):  # the third segment begins after 35
            assert torch.equal(classifier.embed(F.pad(batch, (0, 0, 0, more)), frames), expected)


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
@pytest.mark.parametrize("frames", [40, 41, 100])
def test_full_clips_need_no_lengths(pooling, frames):
    classifier = Classifier(encoder_of("mamba_ssast_tiny"), 3, pooling).eval()
    batch = torch.stack([*clips_of(frames), *clips_of(frames, seed=5)])[:, None]
    with torch.no_grad():
        with_lengths = classifier.embed(batch, torch.tensor([frames, frames]))
        torch.testing.assert_close(classifier.embed(batch), with_lengths, rtol=0, atol=2e-6)


def test_a_fitted_head_maps_standardised_features():
    classifier = Classifier(encoder_of("mamba_ssast_tiny"), 3, "mean_std").eval()
    batch = torch.stack(clips_of(40, 40))[:, None]
    width = classifier.head[1].in_features
    mean, deviation, *rows = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    deviation, weight, bias = deviation.abs() + 0.5, torch.stack(rows), torch.tensor([1.0, 2.0, 3.0])
    classifier.set_head(mean, deviation, weight, bias)
    with torch.no_grad():
        pooled = classifier.embed(batch).double().numpy()
        normal = (pooled - pooled.mean(axis=1, keepdims=True)) / pooled.std(axis=1, keepdims=True)
        expected = (normal - mean.numpy()) / deviation.numpy() @ weight.double().numpy().T + bias.numpy()
        np.testing.assert_allclose(classifier(batch).numpy(), expected, atol=1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            logits, features = classifier(batch), classifier.embed(batch)
        assert torch.equal(logits, classifier.head(features)), "the head is computed in float32"


def test_one_step_has_a_finite_gradient_with_deviation():
    classifier = Classifier(encoder_of("mamba_ssast_tiny"), 3, "mean_std")
    torch.nn.init.normal_(classifier.head[1].weight)
    classifier(padded(clips_of(3)), torch.tensor([3])).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in classifier.parameters())


def test_frozen_trains_the_head_alone():
    classifier = Classifier(encoder_of("mamba_ssast_tiny"), 3, frozen=True)
    trained = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert trained == {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"}


def test_every_trained_parameter_gets_a_gradient():
    """A parameter without one would stop training in several processes."""
    for arch in ("mamba_ssast_tiny", "ssast_tiny", "xlstm_ssast_tiny"):
        classifier = Classifier(encoder_of(arch), 3)
        torch.nn.init.normal_(classifier.head[1].weight)
        classifier(padded(clips_of(40)), torch.tensor([40])).square().sum().backward()
        assert not [name for name, p in classifier.named_parameters() if p.requires_grad and p.grad is None]


def test_rates_fall_by_a_factor_per_layer():
    classifier = Classifier(encoder_of("mamba_ssast_tiny"), 3)
    scale_of = {
        id(parameter): (group["scale"], group["weight_decay"])
        for group in classifier.parameter_groups(0.1, 0.5, head_rate=3.0)
        for parameter in group["params"]
    }
    named = {name: scale_of[id(p)] for name, p in classifier.named_parameters() if p.requires_grad}
    assert named["head.1.weight"] == (3.0, 0.1) and named["head.1.bias"] == (3.0, 0.0)
    assert named["encoder.encoder_norm.weight"] == (1.0, 0.0)
    assert named["encoder.blocks.1.mixer.in_proj.weight"] == (0.5, 0.1)
    assert named["encoder.blocks.0.mixer.in_proj.weight"] == (0.25, 0.1)
    assert named["encoder.patch_embed.proj.weight"] == (0.125, 0.1)
    assert len(scale_of) == len(named) == sum(p.requires_grad for p in classifier.parameters())


def test_blocks_side_by_side_are_one_layer():
    classifier = Classifier(encoder_of("ssamba_tiny", depth=4), 3)
    rates = {id(p): group["scale"] for group in classifier.parameter_groups(0.1, 0.5) for p in group["params"]}
    assert [rates[id(block.mixer.out_proj.weight)] for block in classifier.encoder.blocks] == [0.25, 0.25, 0.5, 0.5]
    assert rates[id(classifier.encoder.patch_embed.proj.weight)] == 0.125
    assert rates[id(classifier.encoder.encoder_norm.weight)] == rates[id(classifier.head[1].weight)] == 1


def test_losses_by_their_formulas():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    labels = torch.tensor([0, 2, 4, 2])
    one_hot = F.one_hot(labels, 5).float()
    single = classification_loss(logits, one_hot, "single")
    torch.testing.assert_close(single, -logits.log_softmax(1)[range(4), labels].mean())
    mixed = 0.3 * one_hot + 0.7 * one_hot.flip(0)
    torch.testing.assert_close(
        classification_loss(logits, mixed, "single", 0.1),
        -((0.9 * mixed + 0.1 / 5) * logits.log_softmax(1)).sum(1).mean(),
    )
    p = logits.sigmoid()
    smooth = 0.9 * mixed + 0.05
    torch.testing.assert_close(
        classification_loss(logits, mixed, "multi", 0.1), -(smooth * p.log() + (1 - smooth) * (1 - p).log()).mean()
    )


@pytest.mark.parametrize("loss", ["single", "multi"])
@pytest.mark.parametrize("true_temperature", [0.5, 3.0])
def test_the_temperature_of_overconfident_logits_is_found(loss, true_temperature):
    rng = np.random.default_rng(0)
    honest = torch.from_numpy(rng.normal(0, 2, (20_000, 4)))
    likely = probabilities(honest, loss).numpy()
    drawn = rng.random((20_000, 4)) < likely
    if loss == "single":
        drawn = np.eye(4)[[rng.choice(4, p=row / row.sum()) for row in likely.astype(np.float64)]]
    found = fit_temperature(honest * true_temperature, torch.from_numpy(drawn.astype(np.float32)), loss)
    assert found == pytest.approx(true_temperature, rel=0.05)


@pytest.mark.parametrize("loss", ["single", "multi"])
@pytest.mark.parametrize("clips, chance", [(7, 0.92), (700, 0.999)])
def test_a_few_clips_that_are_all_right_make_nothing_certain(loss, clips, chance):
    """All logits are alike, so the mean target is the probability: (n + 1 / K) / (n + 1), for several labels 1 / 2."""
    target = torch.eye(3).repeat(clips // 3 + 1, 1)[:clips]
    logits = 4 * target if loss == "single" else 4 * target - 2
    temperature = fit_temperature(logits, target, loss)
    found = float(probabilities(logits, loss, temperature)[target == 1].mean())
    assert found == pytest.approx((clips + (1 / 3 if loss == "single" else 1 / 2)) / (clips + 1), abs=1e-4)
    assert found == pytest.approx(chance, abs=0.02)


@pytest.mark.parametrize("loss", ["single", "multi"])
def test_temperatures_have_limits(loss):
    """Logits that are right but tiny would get almost 0, those that are always wrong infinity."""
    targets = torch.eye(4)
    assert fit_temperature(0.001 * (targets - 0.5), targets, loss) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(0.5 - targets, targets, loss) == pytest.approx(20.0, rel=1e-3)


@pytest.mark.parametrize("frequency_first", [False, True])
def test_a_causal_encoder_of_longer_inputs_begins_with_the_same_features(frequency_first):
    layouts = {False: ((40, 80), (200, 80), (4, 16)), True: ((80, 40), (80, 200), (16, 4))}
    short_size, long_size, patch = layouts[frequency_first]
    options = {"frequency_first": frequency_first, "patch_size": patch}
    short = encoder_of("mamba_ssast_tiny", img_size=short_size, **options)
    long = encoder_of("mamba_ssast_tiny", img_size=long_size, **options)
    long.load_state_dict(long.with_own_positions(short.state_dict()))
    assert long.pos_embed.shape[1] == 1 + 250
    clip = clips_of(200)[0]
    with torch.no_grad():
        first = short.forward_features(short.from_time_first(clip[None, None, :40]), "bands")
        whole = long.forward_features(long.from_time_first(clip[None, None]), "bands")
    torch.testing.assert_close(whole[:, :10], first, rtol=0, atol=2e-6)


def test_positions_of_another_rule_are_not_continued():
    state = encoder_of("ssast_tiny").state_dict()
    longer = encoder_of("ssast_tiny", frames=80)
    state["pos_embed"] = state["pos_embed"] + 0.1
    with pytest.raises(ValueError, match="sine-cosine rule"):
        longer.with_own_positions(state)
    for shape in ((51 * 48,), (51, 48), (1, 51, 24), (1, 53, 48)):  # other sizes, and no whole number of steps
        with pytest.raises(ValueError, match="sine-cosine rule"):
            longer.with_own_positions({**state, "pos_embed": torch.zeros(shape)})
    half = {key: value.half() for key, value in encoder_of("ssast_tiny").state_dict().items()}
    assert longer.with_own_positions(half)["pos_embed"].shape == longer.pos_embed.shape


def test_the_memory_of_ssam_is_linear_in_the_length_of_its_input():
    """Bytes that are kept for the backward pass."""
    kept = []
    for frames in (80, 160, 320):
        classifier, sizes = Classifier(encoder_of("mamba_ssast_tiny", frames=frames), 3), []
        pack = lambda tensor, sizes=sizes: sizes.append(tensor.numel() * tensor.element_size()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            classifier(torch.randn(1, 1, frames, 80), torch.tensor([frames]))
        kept.append(sum(sizes))
    assert kept[2] - kept[1] == pytest.approx(2 * (kept[1] - kept[0]), rel=0.02)
