"""SSAM that walks backward through the tokens too, and the place of its class token."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from audio_mamba import models
from audio_mamba.models.loss import reconstruction_loss
from audio_mamba.models.mamba import Mamba
from tests.models.ops.scan_cases import CPU_BACKENDS

DIRECTIONS = ["forward", "alternate", "both"]
TIME_FIRST = {"img_size": (40, 32), "patch_size": (4, 16), "frequency_first": False}  # 10 steps of 2 bands
SMALL = {**TIME_FIRST, "embed_dim": 32, "depth": 2, "ssm_kwargs": {"d_state": 5}}


def small(**args):
    torch.manual_seed(0)
    model = models.MambaSSAST(**SMALL | args)
    for block in model.blocks:
        for path in block.mixer.paths:
            torch.nn.init.normal_(path.D)
    return model


def mixer(direction, **args):
    torch.manual_seed(0)
    block = Mamba(12, **{"d_state": 5, "direction": direction} | args)
    block.init_weights(depth=2)
    for path in block.paths:
        torch.nn.init.normal_(path.D)
    return block


def output_and_gradients(function, block, hidden):
    leaf = hidden.clone().requires_grad_()
    y = function(leaf)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y, *torch.autograd.grad(y, [leaf, *block.parameters()], weights)]


def inside(x, z, conv_weight, conv_bias, x_proj, dt_proj_weight, dt_proj_bias, A_log, D):
    """Convolution, scan and gate of one direction as the paper's formulas read, one step after another."""
    taps, (rank, states) = conv_weight.shape[-1], (dt_proj_weight.shape[1], A_log.shape[1])
    padded = F.pad(x, (0, 0, taps - 1, 0))
    x = F.silu(sum(conv_weight[:, 0, k] * padded[:, k : k + x.shape[1]] for k in range(taps)) + conv_bias)
    dt, B, C = (x @ x_proj.T).split([rank, states, states], dim=-1)
    dt = torch.log1p(torch.exp(dt @ dt_proj_weight.T + dt_proj_bias))
    h, outputs = 0, []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * -A_log.exp()) * h + (dt * x)[:, t, :, None] * B[:, t, None]
        outputs.append((h * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(outputs, dim=1) * F.silu(z)


def both_by_hand(block, hidden):
    """The mixer "v2" of Vision Mamba, with its own names of the parameters."""
    p = dict(block.named_parameters())

    def layers(suffix):
        names = ("conv1d{}.weight", "conv1d{}.bias", "x_proj{}.weight", "dt_proj{}.weight", "dt_proj{}.bias")
        return *(p[name.format(suffix)] for name in names), p[f"A{suffix}_log"], p[f"D{suffix}"]

    x, z = (hidden @ p["in_proj.weight"].T).chunk(2, dim=-1)
    total = inside(x, z, *layers("")) + inside(x.flip(1), z.flip(1), *layers("_b")).flip(1)
    return total @ p["out_proj.weight"].T


class TestMixer:
    @pytest.mark.parametrize("backend", ["auto", *CPU_BACKENDS])
    def test_backward_is_forward_on_flipped_tokens(self, backend):
        """Output and gradients, by hand in float64."""
        block, hidden = mixer("backward"), torch.randn(2, 19, 12)
        forward = copy.deepcopy(block).double()
        forward.direction = "forward"
        block.backend, forward.backend = backend, "reference"
        expected = output_and_gradients(lambda x: forward(x.flip(1)).flip(1), forward, hidden.double())
        for ours, true in zip(output_and_gradients(block, block, hidden), expected, strict=True):
            torch.testing.assert_close(ours.double(), true, rtol=1e-4, atol=1e-5 * true.abs().max().item())

    @pytest.mark.parametrize("backend", ["auto", *CPU_BACKENDS])
    def test_both_by_the_published_formulas(self, backend):
        """Output and gradients, step by step in float64."""
        block, hidden = mixer("both"), torch.randn(2, 13, 12)
        double = copy.deepcopy(block).double()
        block.backend = backend
        expected = output_and_gradients(lambda x: both_by_hand(double, x), double, hidden.double())
        for ours, true in zip(output_and_gradients(block, block, hidden), expected, strict=True):
            torch.testing.assert_close(ours.double(), true, rtol=1e-4, atol=1e-5 * true.abs().max().item())
        with torch.no_grad():
            torch.testing.assert_close(block(hidden).double(), expected[0], rtol=1e-4, atol=1e-5)

    def test_names_and_shapes_are_those_of_vision_mamba(self):
        state = {name: list(t.shape) for name, t in Mamba(192, direction="both").state_dict().items()}
        own = {
            "conv1d{}.weight": [384, 1, 4],
            "conv1d{}.bias": [384],
            "x_proj{}.weight": [12 + 2 * 16, 384],
            "dt_proj{}.weight": [384, 12],
            "dt_proj{}.bias": [384],
            "A{}_log": [384, 16],
            "D{}": [384],
        }
        assert state == {name.format(suffix): shape for name, shape in own.items() for suffix in ("", "_b")} | {
            "in_proj.weight": [768, 192],
            "out_proj.weight": [192, 384],
        }

    @pytest.mark.parametrize("direction", ["backward", "both"])
    def test_no_state_is_carried_into_a_walk_backward(self, direction):
        with pytest.raises(ValueError, match=f"direction '{direction}' needs all tokens at once"):
            mixer(direction).step(torch.zeros(1, 3, 12))

    def test_unknown_directions_are_refused(self):
        with pytest.raises(ValueError, match="unknown direction 'up' of a Mamba block; choose from forward, backward"):
            Mamba(8, direction="up")


class TestEncoder:
    def test_alternate_turns_every_second_block(self):
        model, tokens = small(direction="alternate", depth=4), torch.randn(1, 20, 32)
        assert [block.mixer.direction for block in model.blocks] == ["forward", "backward"] * 2
        by_hand = copy.deepcopy(model)
        for block in by_hand.blocks:
            block.mixer.direction = "forward"
        hidden, residual = tokens, None
        for number, block in enumerate(by_hand.blocks):
            if number % 2:
                hidden, residual = (t.flip(1) for t in block(hidden.flip(1), residual.flip(1)))
            else:
                hidden, residual = block(hidden, residual)
        expected = by_hand.encoder_norm(hidden + residual)
        torch.testing.assert_close(model.forward_blocks(tokens), expected)

    def test_alternate_has_the_weights_of_forward(self):
        """The same keys, shapes and random numbers."""
        forward, alternate = small().state_dict(), small(direction="alternate").state_dict()
        assert forward.keys() == alternate.keys() and all(torch.equal(alternate[key], forward[key]) for key in forward)

    def test_both_adds_the_layers_of_a_second_path_alone(self):
        added = small(direction="both").state_dict().keys() - small().state_dict().keys()
        assert len(added) == 2 * 7 and all("_b" in key for key in added)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("cls_position", ["first", "middle", "last"])
    def test_causal_and_carried_states_follow_from_the_arguments(self, direction, cls_position):
        model = small(direction=direction, cls_position=cls_position)
        causal = direction == "forward" and cls_position == "first"
        assert (model.causal, model.carries_state) == (causal, causal)
        if not causal:
            with pytest.raises(ValueError, match="only an SSAM of direction 'forward' with the class token first"):
                model.step(torch.zeros(1, 2, 32))

    def test_others_are_not_causal(self):
        for arch in ("ssast_tiny", "xlstm_ssast_tiny"):
            model = models.build(arch, {"depth": 1})
            assert (model.causal, model.carries_state) == (False, False)
        assert small(use_cls_token=False).causal

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_which_tokens_an_output_depends_on(self, direction):
        model, tokens = small(direction=direction), torch.randn(1, 20, 32, requires_grad=True)
        model.encode(tokens)[0, 8].square().sum().backward()
        reached = tokens.grad[0].abs().amax(-1) > 0
        assert reached[:9].all() and (reached[9:] == (direction != "forward")).all()

    @pytest.mark.parametrize("layout", ["bands", "published"])
    @pytest.mark.parametrize("args", [{"direction": "both"}, {"direction": "alternate"}, {"cls_position": "middle"}])
    def test_features_of_the_first_steps_are_those_of_the_whole(self, layout, args):
        """So the encoder must read all tokens."""
        model, x = small(**args).eval(), torch.randn(2, 1, 40, 32)
        assert model.tokens_read(layout, 3) == 20
        with torch.no_grad():
            few, all_steps = model.forward_features(x, layout, steps=3), model.forward_features(x, layout)
        assert torch.equal(few, all_steps[:, :3])

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("cls_position", ["first", "middle", "last"])
    def test_the_prediction_never_depends_on_masked_patches(self, direction, cls_position):
        model = small(direction=direction, cls_position=cls_position)
        x, mask = torch.randn(2, 1, 40, 32), torch.from_numpy(np.stack([model.draw_mask(np.random.default_rng(0))] * 2))
        pred, target, _ = model(x, mask)
        noise = model.unpatchify(torch.randn_like(pred) * mask.unsqueeze(-1))
        assert torch.equal(model(x + noise, mask)[0], pred)
        reconstruction_loss(pred, target).backward()
        unused = {name for name, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0}
        assert unused == ({"cls_token"} if (direction, cls_position) == ("forward", "last") else set())

    @pytest.mark.parametrize("token_order", ["time", "frequency"])
    @pytest.mark.parametrize(
        "args", [{"use_cls_token": False}, *({"cls_position": place} for place in ("first", "middle", "last"))]
    )
    def test_the_last_blocks_output_is_in_the_order_of_the_patches(self, token_order, args):
        """The targets of a teacher are made of block outputs, and belong to patches."""
        model, tokens = small(token_order=token_order, **args).eval(), torch.randn(2, 20, 32)
        with torch.no_grad():
            (output,) = model.block_outputs(tokens, 1)
            torch.testing.assert_close(model.encoder_norm(output), model.encode(tokens), rtol=0, atol=1e-6)

    def test_a_pair_of_ssamba_counts_as_one_block_of_the_outputs(self):
        torch.manual_seed(0)
        model = models.build("ssamba_tiny", {"depth": 6, "embed_dim": 32, "img_size": (32, 20)}).eval()
        tokens = torch.randn(2, model.pos_embed.shape[1] - 1, 32)
        with torch.no_grad():
            outputs = model.block_outputs(tokens, 2)
            normed = model.encoder_norm(model.encoder_norm(outputs[-1]))
            torch.testing.assert_close(normed, model.encode(tokens), rtol=0, atol=1e-5)
        assert len(outputs) == 2 and len(model.block_outputs(tokens, 3)) == 3

    def test_unknown_values_and_combinations_are_refused(self):
        for args, message in (
            ({"direction": "backward"}, "unknown direction 'backward'; choose from forward, alternate, both"),
            ({"cls_position": "second"}, "unknown cls_position 'second'; choose from first, middle, last"),
            ({"cls_position": "middle", "use_cls_token": False}, "cls_position 'middle' needs a class token"),
            ({"ssm_kwargs": {"direction": "both"}}, "ssm_kwargs: unexpected keyword argument 'direction'"),
        ):
            with pytest.raises(ValueError, match=message):
                models.build("mamba_ssast_tiny", args)


class TestClassToken:
    @pytest.mark.parametrize("frames", [4, 12, 40, 400])
    @pytest.mark.parametrize("cls_position", ["first", "middle", "last"])
    def test_its_place_among_the_patches(self, monkeypatch, frames, cls_position):
        """In the middle it is before patch number L // 2, as in AuM. It keeps its own position, and its output is left
        out."""
        model = small(img_size=(frames, 32), cls_position=cls_position)
        torch.nn.init.normal_(model.pos_embed[:, 0])
        tokens = torch.randn(2, frames // 2, 32)
        place = {"first": 0, "middle": frames // 4, "last": frames // 2}[cls_position]
        rows = [tokens[:, i] for i in range(frames // 2)]
        rows.insert(place, (model.cls_token + model.pos_embed[:, :1])[0].expand(2, -1))
        seen = []
        monkeypatch.setattr(model, "forward_blocks", lambda x: seen.append(x) or 2 * x)
        assert torch.equal(model.encode(tokens), 2 * tokens)
        assert torch.equal(seen[0], torch.stack(rows, dim=1))

    def test_it_makes_a_difference_to_the_patches_behind_it(self):
        tokens = torch.randn(1, 20, 32)
        first, middle, last = (small(cls_position=place).encode(tokens) for place in ("first", "middle", "last"))
        torch.testing.assert_close(middle[:, :10], last[:, :10])
        assert (middle[:, 10:] - last[:, 10:]).abs().amax() > 1e-4 and (first - last)[:, 0].abs().amax() > 1e-4


VARIANTS = [
    {"direction": "alternate"},
    {"direction": "both"},
    {"direction": "both", "cls_position": "middle"},
    {"direction": "alternate", "cls_position": "last"},
]


def loss_and_gradients(model, **changes):
    for name, value in changes.items():
        setattr(model, name, value)
    rng = torch.Generator().manual_seed(1)
    x, mask = torch.randn(2, 1, 40, 32, generator=rng), (torch.rand(2, 20, generator=rng) < 0.5).float()
    loss = reconstruction_loss(*model(x, mask)[:2])
    loss.backward()
    named = getattr(model, "_orig_mod", model).named_parameters()
    return loss.detach(), {name: p.grad for name, p in named if p.requires_grad}


@pytest.mark.parametrize("args", VARIANTS, ids=str)
def test_gradient_checkpointing_changes_no_bit(args):
    plain, checkpointed = (loss_and_gradients(small(**args), gradient_checkpointing=on) for on in (False, True))
    assert torch.equal(plain[0], checkpointed[0])
    assert all(torch.equal(checkpointed[1][name], gradient) for name, gradient in plain[1].items())


@pytest.mark.parametrize("args", VARIANTS, ids=str)
@pytest.mark.slow
def test_under_torch_compile(args):
    loss, gradients = loss_and_gradients(small(**args))
    compiled = loss_and_gradients(torch.compile(small(**args), backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(compiled[0], loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("args", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_near_float32(args, dtype):
    model, x, mask = small(**args), torch.randn(2, 1, 40, 32), torch.zeros(2, 20)
    expected = model(x, mask)[0]
    with torch.autocast("cpu", dtype):
        ours = model(x, mask)[0]
    ours.float().square().mean().backward()
    error = (ours.float() - expected).norm() / expected.norm()
    assert error < 2e-2 and all(math.isfinite(p.grad.sum()) for p in model.parameters() if p.requires_grad)
