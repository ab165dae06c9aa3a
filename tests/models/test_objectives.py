"""The objectives against their formulas in float64, written out by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from scipy.special import erf
from torch import nn

from audio_mamba import models
from audio_mamba.models import objectives
from audio_mamba.models.loss import info_nce, reconstruction_loss
from audio_mamba.models.objectives import Objective, deviation_over_clips
from tests.golden_weights import fill_by_rule, golden_input, golden_mask

ARCHS = ["mamba_ssast_tiny", "ssast_tiny", "xlstm_ssast_tiny"]
DEPTH = 3


def encoder(arch="ssast_tiny", **args):
    torch.manual_seed(0)
    return getattr(models, arch)(
        **{"img_size": (40, 80), "patch_size": (4, 16), "frequency_first": False, "depth": DEPTH, "embed_dim": 48}
        | args
    )


def build(model, objective="reconstruction", norm_pix_loss=False, masked_only_loss=False, **args):
    return objectives.build(
        SimpleNamespace(
            objective=objective, objective_args=args, norm_pix_loss=norm_pix_loss, masked_only_loss=masked_only_loss
        ),
        model,
    )


def teacher(model, **args):
    return build(model, "teacher", **{"last_blocks": 2} | args)


def batch(size=3, seed=1):
    """Clips [size, 1, 40, 80] and masks [size, 50] with half of the patches hidden."""
    draw = torch.Generator().manual_seed(seed)
    rank = torch.rand(size, 50, generator=draw).argsort(dim=1)
    return {"spectrogram": torch.randn(size, 1, 40, 80, generator=draw), "mask": (rank < 25).float()}


def unlike(student, objective):
    """Move the student away from its teacher, so that a test that takes one for the other fails."""
    with torch.no_grad():
        for number, parameter in enumerate(student.parameters()):
            if parameter.requires_grad:
                draw = torch.Generator().manual_seed(number)
                parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return objective


def float64(tensor):
    return tensor.detach().double().numpy()


class TestReconstruction:
    @pytest.mark.parametrize("config, arch", [("ssam", "mamba_ssast_tiny"), ("ssast", "ssast_tiny")])
    def test_its_losses_are_the_published_ones(self, golden, config, arch):
        more = {"rms_norm": False, "fused_add_norm": False} if config == "ssam" else {}
        model = fill_by_rule(encoder(arch, img_size=(200, 80), depth=12, embed_dim=192, **more)).eval()
        published = np.load(golden / f"{config}_tiny_200_16x4.npz")["losses"]
        found = []
        for masked_only in (False, True):
            for normalise in (False, True):
                objective = build(model, norm_pix_loss=normalise, masked_only_loss=masked_only)
                loss, numbers = objective.loss(model, {"spectrogram": golden_input(), "mask": golden_mask()})
                found.append(loss.item())
                assert numbers == {}
        np.testing.assert_allclose(found, published, rtol=0, atol=2e-4)

    def test_it_trains_the_encoder_itself_and_keeps_nothing_else(self):
        model = encoder()
        objective = build(model)
        assert objective.module is model and objective.state_dict() == {}
        loss, _ = objective.loss(model, batch())
        assert torch.equal(loss, reconstruction_loss(*model(*batch().values())))

    @pytest.mark.parametrize("normalise", [False, True])
    def test_its_picture_is_in_the_units_of_the_input(self, normalise):
        model, clips = encoder(), batch()
        with torch.no_grad():
            predicted, target, mask = build(model, norm_pix_loss=normalise).picture(clips)
            raw, *_ = model(*clips.values())
        expected = float64(raw)
        if normalise:
            true = float64(target)
            expected = expected * np.sqrt(true.var(-1, ddof=1, keepdims=True) + 1e-6) + true.mean(-1, keepdims=True)
        np.testing.assert_allclose(predicted.numpy(), expected, rtol=0, atol=1e-5)
        assert torch.equal(model.unpatchify(target), clips["spectrogram"]) and torch.equal(mask, clips["mask"])

    def test_visible_patches_are_compared_with_their_own_values(self):
        model, clips = encoder(), batch()
        clips["mask"][0, :25] = 1.0  # not as many masked patches as visible ones
        objective = build(model, norm_pix_loss=True, masked_only_loss=True, visible_weight=0.3)
        loss, numbers = objective.loss(model, clips)
        with torch.no_grad():
            pictured, *_ = objective.picture(clips)
            raw, target, mask = map(float64, model(*clips.values()))
        mean, deviation = target.mean(-1, keepdims=True), np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
        masked = np.square(raw - (target - mean) / deviation)[mask == 1].mean()
        visible = np.square(raw - target)[mask == 0].mean()
        np.testing.assert_allclose(loss.item(), masked + 0.3 * visible, rtol=1e-6)
        assert not any(value.requires_grad for value in numbers.values())
        found = [numbers["masked_loss"].item(), numbers["visible_loss"].item()]
        np.testing.assert_allclose(found, [masked, visible], rtol=1e-6)
        expected = np.where(mask[..., None] == 1, raw * deviation + mean, raw)
        np.testing.assert_allclose(pictured.numpy(), expected, rtol=0, atol=1e-5)


class TestDecoder:
    @pytest.mark.parametrize("arch", ARCHS)
    def test_it_predicts_from_the_grid_of_tokens(self, arch):
        """By scipy's correlation in float64."""
        model, clips = encoder(arch).eval(), batch()
        objective = build(model, decoder_layers=2, masked_only_loss=True)
        with torch.no_grad():
            loss, numbers = objective.loss(objective.module, clips)
            tokens, mask = model.encode_masked(*clips.values())
        grid = float64(tokens).reshape(3, 10, 5, 48)
        decoder = objective.module.head
        for layer in decoder.layers:
            weight, bias = float64(layer.weight), float64(layer.bias)
            new = np.empty_like(grid)
            for clip, channel in np.ndindex(3, 48):
                first = channel // 3 * 3  # 16 groups of 3
                new[clip, :, :, channel] = bias[channel] + sum(
                    correlate(grid[clip, :, :, first + i], weight[channel, i], mode="constant") for i in range(3)
                )
            normal = (new - new.mean(-1, keepdims=True)) / np.sqrt(new.var(-1, keepdims=True) + 1e-5)
            grid = grid + 0.5 * normal * (1 + erf(normal / math.sqrt(2)))
        predicted = grid.reshape(3, 50, 48) @ float64(decoder.out.weight).T + float64(decoder.out.bias)
        error = np.square(predicted - float64(model.patchify(clips["spectrogram"]))).mean(-1)
        assert loss.item() == pytest.approx((error * float64(mask)).sum() / float64(mask).sum(), rel=1e-5)
        assert numbers == {}
        np.testing.assert_allclose(objective.picture(clips)[0].detach().numpy(), predicted, atol=1e-4)

    def test_its_groups_divide_any_width(self):
        for width, groups in ((48, 16), (24, 8), (12, 4)):
            decoder = build(encoder(embed_dim=width), decoder_layers=1).module.head
            assert {layer.groups for layer in decoder.layers} == {groups}

    def test_it_is_trained_and_kept_beside_the_encoder(self):
        model = encoder()
        objective = build(model, decoder_layers=1)
        objective.loss(objective.module, batch())[0].backward()
        trained = {name for name, parameter in objective.module.named_parameters() if parameter.grad is not None}
        assert {name for name, p in objective.module.named_parameters() if p.requires_grad} == trained
        assert "head.layers.0.weight" in trained and not any("pred" in name for name in trained)
        state = objective.state_dict()
        assert set(state["module"]) == {f"head.{key}" for key in objective.module.head.state_dict()}
        other = build(encoder(), decoder_layers=1)
        other.load_state_dict(state)
        assert torch.equal(other.module.head.out.weight, objective.module.head.out.weight)


def outputs_by_hand(model, x):
    """The output of each block [B, L, D] for the whole clip, without the class token."""
    tokens = model.embed(x)
    tokens = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1), tokens], dim=1)
    outputs, residual = [], None
    for block in model.blocks:
        if isinstance(model, models.MambaSSAST):
            residual = tokens if residual is None else residual + tokens
            tokens = block.mixer(block.norm(residual))
            outputs.append((residual + tokens)[:, 1:])
        else:
            tokens = block(tokens)
            outputs.append(tokens[:, 1:])
    return outputs


def targets_by_hand(model, x, last, axis=-1):
    """The mean of the last blocks' outputs, each normalised over its channels, or over an axis: float64 [B, L, D]."""
    normalised = []
    for output in map(float64, outputs_by_hand(model, x)[-last:]):
        mean, variance = output.mean(axis, keepdims=True), output.var(axis, keepdims=True)
        normalised.append((output - mean) / np.sqrt(variance + 1e-5))
    return np.mean(normalised, axis=0)


class TestTeacher:
    @pytest.mark.parametrize("arch", ARCHS)
    @pytest.mark.parametrize("last", [1, 2, 3])
    def test_the_targets_are_the_mean_of_normalised_block_outputs_of_the_whole_clip(self, arch, last):
        model = encoder(arch)
        objective = unlike(model, teacher(model, last_blocks=last))
        x = batch()["spectrogram"]
        exact = encoder(arch).double()
        exact.load_state_dict(objective.teacher.state_dict())
        with torch.no_grad():
            expected = targets_by_hand(exact, x.double(), last)
        np.testing.assert_allclose(objective.targets(x).numpy(), expected, rtol=0, atol=5e-4)

    def test_instance_norm_is_over_the_patches_of_a_clip(self):
        model = encoder()
        objective = unlike(model, teacher(model, target_norm="instance"))
        x = batch()["spectrogram"]
        exact = encoder().double()
        exact.load_state_dict(objective.teacher.state_dict())
        with torch.no_grad():
            expected = targets_by_hand(exact, x.double(), 2, axis=1)
        np.testing.assert_allclose(objective.targets(x).numpy(), expected, rtol=0, atol=5e-4)

    @pytest.mark.parametrize("norm", ["layer", "instance"])
    def test_the_deviation_of_the_targets_tells_a_collapse_under_either_norm(self, norm):
        model, clips = encoder(), batch()
        objective = teacher(model, target_norm=norm)
        target = float64(objective.targets(clips["spectrogram"]))
        expected = (target if norm == "instance" else target.mean(1)).std(axis=0).mean()
        healthy = objective.loss(objective.module, clips)[1]["target_std"].item()
        assert healthy == pytest.approx(expected, rel=1e-4) and healthy > 0.01
        with torch.no_grad():
            objective.teacher.patch_embed.proj.weight.zero_()  # positions are all that is left in its targets
        assert objective.targets(clips["spectrogram"]).std(dim=1).mean() > 0.1
        assert objective.loss(objective.module, clips)[1]["target_std"].item() < 1e-3 * healthy

    @pytest.mark.parametrize("beta", [None, 0.5])
    @pytest.mark.parametrize("reconstruction_weight", [0.0, 2.5])
    def test_the_loss_is_the_mean_error_at_masked_patches(self, beta, reconstruction_weight):
        model, clips = encoder(), batch()
        objective = teacher(model, beta=beta, reconstruction_weight=reconstruction_weight)
        unlike(model, objective)
        loss, numbers = objective.loss(objective.module, clips)
        with torch.no_grad():
            tokens, _ = model.encode_masked(*clips.values())
            predicted, target = float64(objective.module.head(tokens)), float64(objective.targets(clips["spectrogram"]))
            pred, true, _ = model(*clips.values())
        difference = np.abs(predicted - target)
        error = difference**2
        if beta:
            error = np.where(difference < beta, difference**2 / (2 * beta), difference - beta / 2)
        expected = error.mean(-1)[float64(clips["mask"]) == 1].mean()
        of_clips = np.std(target.mean(1), axis=0).mean()
        assert numbers["target_std"].item() == pytest.approx(of_clips, rel=1e-4)
        if reconstruction_weight:
            assert numbers["teacher_loss"].item() == pytest.approx(expected, rel=1e-5)
            reconstruction = np.square(float64(pred) - float64(true)).mean()
            assert numbers["reconstruction_loss"].item() == pytest.approx(reconstruction, rel=1e-5)
            expected += reconstruction_weight * reconstruction
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert (objective.picture(clips) is None) == (reconstruction_weight == 0)

    def test_the_published_options_apply_to_its_reconstruction(self):
        model, clips = encoder(), batch()
        objective = teacher(model, reconstruction_weight=1.0, norm_pix_loss=True, masked_only_loss=True)
        _, numbers = objective.loss(objective.module, clips)
        expected = reconstruction_loss(*model(*clips.values()), normalise_patches=True, masked_only=True)
        assert torch.equal(numbers["reconstruction_loss"], expected)

    def test_the_average_follows_the_student_as_its_decay_says(self):
        model = encoder()
        objective = teacher(model, decay=0.9, final_decay=0.99)
        expected = {key: float64(value) for key, value in model.state_dict().items()}
        steps = 6
        for step in range(1, steps + 1):
            unlike(model, objective)
            objective.after_step(step / steps)
            decay = 0.9 + 0.09 * step / steps
            expected = {
                key: decay * value + (1 - decay) * float64(model.state_dict()[key]) for key, value in expected.items()
            }
        for key, value in objective.teacher.state_dict().items():
            np.testing.assert_allclose(value.numpy(), expected[key], rtol=0, atol=1e-6, err_msg=key)
            assert key == "pos_embed" or key.startswith("pred.") or not torch.equal(value, model.state_dict()[key]), key

    def test_a_decay_of_0_takes_all_of_the_student_and_one_of_1_nothing(self):
        model = encoder()
        objective = unlike(model, teacher(model, decay=0.0, final_decay=1.0))
        before = objective.teacher.cls_token.clone()
        objective.after_step(1.0)
        assert torch.equal(objective.teacher.cls_token, before) and not torch.equal(model.cls_token, before)
        objective.after_step(0.0)
        assert torch.equal(objective.teacher.cls_token, model.cls_token)

    def test_the_published_decay_is_the_default(self):
        objective = teacher(encoder())
        assert (objective.decay, objective.final_decay) == (0.999, 0.9999)
        with torch.no_grad():
            objective.teacher.mask_token.zero_()
            objective.encoder.mask_token.fill_(1.0)
        objective.after_step(1.0)
        assert objective.teacher.mask_token.unique().tolist() == [pytest.approx(1e-4)]

    def test_no_gradient_reaches_the_teacher_and_no_optimizer_sees_it(self):
        model = encoder()
        objective = teacher(model, reconstruction_weight=1.0)
        before = {key: value.clone() for key, value in objective.teacher.state_dict().items()}
        trained = {id(parameter) for parameter in objective.module.parameters()}
        assert not trained & {id(parameter) for parameter in objective.teacher.parameters()}
        optimizer = torch.optim.AdamW(objective.module.parameters(), lr=1e-2)
        objective.module.train()
        objective.loss(objective.module, batch())[0].backward()
        assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
        optimizer.step()
        assert all(torch.equal(before[key], value) for key, value in objective.teacher.state_dict().items())
        assert not objective.teacher.training and objective.module.training

    def test_buffers_are_those_of_the_student(self):
        """Such as the statistics of a batch norm: they are averages already."""
        model = encoder()
        model.register_buffer("seen", torch.zeros(2))
        objective = teacher(model)
        model.seen += 3
        objective.after_step(0.5)
        model.seen += 1  # it is a copy
        assert objective.teacher.seen.tolist() == [3, 3]

    def test_its_targets_leave_no_hook_in_the_teacher(self):
        """One that stays would keep the outputs of all later batches."""
        objective = teacher(encoder())
        objective.targets(batch()["spectrogram"])
        with pytest.raises(RuntimeError):
            objective.teacher.block_outputs(torch.zeros(1, 2, 7), 2)  # another width
        assert not any(block._forward_hooks for block in objective.teacher.blocks)

    def test_a_new_run_starts_with_the_weights_of_the_student(self):
        model = encoder()
        objective = unlike(model, teacher(model))
        objective.start()
        assert all(torch.equal(model.state_dict()[key], value) for key, value in objective.teacher.state_dict().items())
        unlike(model, objective)  # it is a copy
        assert not torch.equal(model.cls_token, objective.teacher.cls_token)


def shares_by_hand(predicted, patches, mask):
    """Eq. 1 of Gong et al. (2022) patch by patch, and how many patches are closest to their own prediction."""
    losses, hits = [], []
    for clip in range(len(mask)):
        hidden = np.flatnonzero(mask[clip])
        for i in hidden:
            scores = [np.dot(predicted[clip, i], patches[clip, j]) for j in hidden]
            own = np.dot(predicted[clip, i], patches[clip, i])
            top = max(scores)
            losses.append(-(own - top) + math.log(sum(math.exp(score - top) for score in scores)))
            hits.append(own == top)
    return np.mean(losses), np.mean(hits)


class TestJoint:
    def test_infonce_compares_the_masked_patches_of_one_clip(self):
        draw = np.random.default_rng(0)
        predicted, patches = draw.normal(size=(2, 3, 9, 5))
        mask = np.array([[1, 0, 1, 1, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0, 1, 1, 0]], dtype=float)
        loss, accuracy = info_nce(*(torch.from_numpy(x[:2]).float() for x in (predicted, patches)), torch.tensor(mask))
        expected, hits = shares_by_hand(predicted, patches, mask)
        assert loss.item() == pytest.approx(expected, rel=1e-5) and accuracy.item() == pytest.approx(hits)

    def test_visible_patches_have_no_influence_on_infonce(self):
        draw = torch.Generator().manual_seed(0)
        predicted, patches = (torch.randn(2, 8, 4, generator=draw, requires_grad=True) for _ in range(2))
        mask = torch.tensor([[1.0, 1, 1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 1, 1, 0, 1]])
        info_nce(predicted, patches, mask)[0].backward()
        for gradient in (predicted.grad, patches.grad):
            assert gradient.isfinite().all()
            assert (gradient.abs().sum(-1) > 0).equal(mask.bool())

    def test_the_products_of_infonce_are_float32_under_autocast(self):
        """They are the logits of a softmax over all patches."""
        draw = torch.Generator().manual_seed(0)
        inputs = (*torch.randn(2, 3, 9, 5, generator=draw), torch.ones(3, 9))
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = info_nce(*inputs)
        assert all(map(torch.equal, under_autocast, info_nce(*inputs)))

    @pytest.mark.parametrize("weight", [10.0, 0.5])
    def test_the_loss_is_the_discriminative_plus_the_weighted_generative_one(self, weight):
        model, clips = encoder("mamba_ssast_tiny"), batch()
        objective = build(model, "joint", **({} if weight == 10.0 else {"generative_weight": weight}))
        loss, numbers = objective.loss(objective.module, clips)
        with torch.no_grad():
            tokens, _ = model.encode_masked(*clips.values())
            told, predicted = float64(objective.module.head(tokens)), float64(model.pred(tokens))
            patches, mask = float64(model.patchify(clips["spectrogram"])), float64(clips["mask"])
        discriminative, accuracy = shares_by_hand(told, patches, mask)
        generative = np.square(predicted - patches)[mask == 1].mean()
        assert numbers["discriminative_loss"].item() == pytest.approx(discriminative, rel=1e-5)
        assert numbers["generative_loss"].item() == pytest.approx(generative, rel=1e-5)
        assert numbers["accuracy"].item() == pytest.approx(accuracy)
        assert numbers["token_std"].item() == pytest.approx(np.std(float64(tokens).mean(1), axis=0).mean(), rel=1e-4)
        assert loss.item() == pytest.approx(discriminative + weight * generative, rel=1e-5)

    def test_its_heads_have_the_published_form(self):
        model = encoder()
        head = build(model, "joint").module.head
        assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Linear"]
        assert (head[0].weight.shape, head[2].weight.shape) == ((48, 48), (64, 48))


class Smallest(Objective):
    """An objective of one's own."""

    def __init__(self, encoder, opt, power: float = 2.0):
        super().__init__(encoder, opt)
        self.power = power

    def loss(self, model, batch):
        predicted, *_ = model(batch["spectrogram"], batch["mask"])
        return predicted.float().abs().pow(self.power).mean(), {}


CHOICES = {
    "reconstruction": {},
    "teacher": {"last_blocks": 2},
    "teacher with reconstruction": {"last_blocks": 2, "reconstruction_weight": 1.0},
    "joint": {},
    f"{__name__}:Smallest": {"power": 3.0},
}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", CHOICES)
class TestEach:
    def make(self, arch, name):
        model = encoder(arch)
        return build(model, name.removesuffix(" with reconstruction"), **CHOICES[name])

    def test_the_model_is_called_once_and_all_that_it_trains_gets_a_gradient(self, arch, name):
        """As DistributedDataParallel needs it."""
        objective, calls = self.make(arch, name), []
        objective.module.register_forward_hook(lambda *_: calls.append(0))
        loss, numbers = objective.loss(objective.module, batch())
        assert loss.shape == () and loss.dtype == torch.float32 and loss.requires_grad
        assert all(value.shape == () and not value.requires_grad for value in numbers.values())
        loss.backward()
        assert len(calls) == 1
        for key, parameter in objective.module.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, key

    def test_bfloat16_stays_close_to_float32(self, arch, name):
        objective = self.make(arch, name)
        loss, numbers = objective.loss(objective.module, batch())
        with torch.autocast("cpu", torch.bfloat16):
            rough, rough_numbers = objective.loss(objective.module, batch())
        assert rough.dtype == torch.float32 and rough.item() == pytest.approx(loss.item(), rel=0.05)
        assert rough.item() != loss.item() and rough_numbers.keys() == numbers.keys()
        rough.backward()
        assert all(p.grad.isfinite().all() for p in objective.module.parameters() if p.grad is not None)

    def test_its_state_restores_it(self, arch, name):
        objective = self.make(arch, name)
        unlike(objective.encoder, objective)
        objective.after_step(0.5)
        expected, _ = objective.loss(objective.module, batch())
        state, weights = objective.state_dict(), objective.encoder.state_dict()
        assert not any(key.startswith("encoder.") for key in state.get("module", {}))
        torch.manual_seed(7)
        other = self.make(arch, name)
        other.encoder.load_state_dict(weights)
        other.load_state_dict(state)
        assert torch.equal(other.loss(other.module, batch())[0], expected)


def test_the_deviation_over_clips_tells_a_collapse():
    draw = np.random.default_rng(0)
    tokens = draw.normal(size=(4, 6, 5))
    expected = tokens.mean(1).std(0, ddof=0).mean()
    assert deviation_over_clips(torch.from_numpy(tokens)).item() == pytest.approx(expected, rel=1e-6)
    same = torch.from_numpy(tokens[:1]).expand(4, -1, -1)
    assert deviation_over_clips(same).item() == pytest.approx(0.0, abs=1e-7)
    assert deviation_over_clips(same[:1]).item() == 0.0  # a batch of one clip says nothing


@pytest.mark.parametrize(
    "name, args, message",
    [
        ("reconstruction", {"decoder_layers": -1}, "decoder_layers must be a whole number of at least 0, got -1"),
        ("reconstruction", {"masked_only_loss": True, "visible_weight": -1}, "visible_weight must be a finite number"),
        ("reconstruction", {"visible_weight": 1.0}, "opt.objective_args.visible_weight needs opt.masked_only_loss=Tr"),
        ("teacher", {"last_blocks": 2, "target_norm": "batch"}, "target_norm must be one of layer, instance"),
        ("reconstruction", {"decoder_layers": 1.5}, "decoder_layers must be a whole number of at least 0, got 1.5"),
        ("teacher", {"last_blocks": 0}, "last_blocks must be a whole number from 1 to 3, the blocks .* encoder, got 0"),
        ("teacher", {"last_blocks": 4}, "last_blocks must be a whole number from 1 to 3"),
        ("teacher", {"last_blocks": 1.5}, "last_blocks must be a whole number from 1 to 3, .* got 1.5"),
        ("teacher", {"last_blocks": 2, "decay": "0.9"}, "decay and final_decay must be in .* got '0.9' and 0.9999"),
        ("teacher", {"last_blocks": 2, "beta": math.inf}, "beta must be a finite number above 0, or None .* got inf"),
        ("teacher", {"last_blocks": 2, "decay": 1.5}, "decay and final_decay must be in .* got 1.5 and 0.9999"),
        ("teacher", {"last_blocks": 2, "decay": -0.1}, "decay and final_decay must be in .* got -0.1 and 0.9999"),
        ("teacher", {"last_blocks": 2, "final_decay": 1.5}, "decay and final_decay must be in .* got 0.999 and 1.5"),
        ("teacher", {"last_blocks": 2, "final_decay": "1"}, "decay and final_decay must be in .* got 0.999 and '1'"),
        ("teacher", {"last_blocks": 2, "final_decay": 0.5}, "the first at most the second, got 0.999 and 0.5"),
        ("teacher", {"last_blocks": 2, "beta": 0.0}, "beta must be a finite number above 0, or None .* got 0.0"),
        (
            "teacher",
            {"last_blocks": 2, "reconstruction_weight": -1},
            "reconstruction_weight must be a finite number of at least 0, got -1",
        ),
        ("teacher", {"last_blocks": 2, "norm_pix_loss": True}, "need opt.objective_args.reconstruction_weight above 0"),
        ("teacher", {"last_blocks": 2, "masked_only_loss": True}, "need opt.objective_args.reconstruction_weight abo"),
        ("joint", {"generative_weight": math.nan}, "generative_weight must be a finite number of at least 0, got nan"),
        ("joint", {"generative_weight": math.inf}, "generative_weight must be a finite number of at least 0, got inf"),
        ("joint", {"generative_weight": "1"}, "generative_weight must be a finite number of at least 0, got '1'"),
        ("joint", {"masked_only_loss": True}, "do not apply to opt.objective 'joint'"),
        ("joint", {"norm_pix_loss": True}, "do not apply to opt.objective 'joint'"),
        ("joint", {"temperature": 1}, "opt.objective_args: unexpected keyword argument 'temperature'; accepted"),
    ],
)
def test_wrong_arguments_get_one_sentence(name, args, message):
    with pytest.raises(ValueError, match=message) as raised:
        build(encoder(), name, **args)
    assert "\n" not in str(raised.value)


class Failing(Smallest):
    def __init__(self, encoder, opt, needed):
        super().__init__(encoder, opt)
        self.power = 1 + needed


def test_only_the_config_is_blamed_for_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="^opt.objective_args: missing a required argument: 'needed'$"):
        build(encoder(), f"{__name__}:Failing")
    with pytest.raises(TypeError, match="^unsupported operand") as raised:
        build(encoder(), f"{__name__}:Failing", needed=None)
    assert raised.traceback[-1].name == "__init__"


@pytest.mark.parametrize("name", ["teacher", "joint"])
def test_an_encoder_that_masks_nothing_is_refused(name):
    message = f"opt.objective '{name}' needs masked patches, and model.model_args.mask_ratio 0 masks none"
    with pytest.raises(ValueError, match=message):
        build(encoder(mask_ratio=0.0), name)


def test_a_loss_over_masked_patches_needs_some():
    assert build(encoder(mask_ratio=0.0)).masked_only is False  # all patches count
    message = "opt.objective 'reconstruction' with opt.masked_only_loss needs masked patches, .*mask_ratio 0 masks none"
    with pytest.raises(ValueError, match=message):
        build(encoder(mask_ratio=0.0), masked_only_loss=True)


@pytest.mark.parametrize("name", ["reconstruction", "teacher", "joint"])
def test_an_encoder_that_hides_everything_is_refused(name):
    """Two of 50 patches are no whole time step of five bands."""
    model = encoder(mask_ratio=0.95, masking_mode="timestep")
    message = "mask_ratio 0.95 with masking_mode 'timestep' hides all 50 patches"
    with pytest.raises(ValueError, match=message):
        build(model, name, **({"last_blocks": 2} if name == "teacher" else {}))
    build(encoder(mask_ratio=0.95), name, **({"last_blocks": 2} if name == "teacher" else {}))  # two of single patches


@pytest.mark.parametrize(
    "name, message",
    [
        ("absent_package.objective:Own", "there is no module 'absent_package.objective'"),
        ("math:pi", "'pi' is not a subclass of audio_mamba.models.objectives.Objective"),
        ("math:Own", "'Own' is not a subclass"),
        ("math", "'' is not a subclass"),
        (".relative:Own", "there is no module '.relative'"),
    ],
)
def test_objectives_elsewhere_that_cannot_be_used_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        objectives.find(name)


class HeadElsewhere(Smallest):
    """What its losses need is not in its module."""

    def __init__(self, encoder, opt, kind: str):
        super().__init__(encoder, opt)
        width = encoder.embed_dim
        self.head = nn.Parameter(torch.zeros(width)) if kind == "parameter" else nn.Linear(width, 2)
        if kind == "frozen":
            self.head.requires_grad_(False)
        if kind == "renamed":
            self.module = nn.ModuleDict({"backbone": encoder, "head": self.head})


@pytest.mark.parametrize(
    "kind, message",
    [
        ("module", "nothing would train its attribute `head`; make it a part of `module`, or freeze it"),
        ("parameter", "nothing would train its attribute `head`"),
        ("renamed", "its module, of class ModuleDict, must be the encoder or have it as its attribute `encoder`"),
    ],
)
def test_parts_that_would_not_be_trained_or_saved_are_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        build(encoder(), f"{__name__}:HeadElsewhere", kind=kind)
    build(encoder(), f"{__name__}:HeadElsewhere", kind="frozen")


def test_an_error_inside_a_module_of_ones_own_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "half_written_objective.py").write_text("import absent_package_of_mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="absent_package_of_mine"):
        objectives.find("half_written_objective:Own")


def test_heads_are_made_on_the_device_of_the_encoder():
    objective = build(encoder().to("meta"), "joint")
    assert {parameter.device.type for parameter in objective.module.parameters()} == {"meta"}
    assert isinstance(objective.module, nn.Module)
