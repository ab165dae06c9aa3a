"""The encoders beyond the golden numbers: masks, other sizes, causality, options, errors."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from audio_mamba import models
from audio_mamba.models import masking
from audio_mamba.models.loss import mean_over_masked, normalise_per_patch, reconstruction_loss

ARCHS = ["mamba_ssast_tiny", "ssast_tiny"]


def small(arch, **args):
    return getattr(models, arch)(
        **{"img_size": (200, 80), "patch_size": (4, 16), "frequency_first": False, "depth": 2} | args
    )


def test_arch_table_has_six_sizes_of_each_model():
    sizes = ("tiny", "small", "medium", "base", "large", "huge")
    own = {arch for arch, encoder in models.ARCHS.items() if encoder.func.__module__.startswith("audio_mamba.")}
    expected = {prefix + size for prefix in ("ssast_", "mamba_ssast_", "xlstm_ssast_") for size in sizes}
    assert own == expected | {"ssamba_tiny", "ssamba_small", "ssamba_base"}  # other tests may have registered theirs
    for size, (depth, width) in zip(sizes, [(12, 192), (12, 384), (12, 512), (12, 768), (24, 1024), (32, 1280)]):
        with torch.device("meta"):
            model = models.SSAST(depth=1, embed_dim=width, num_heads=models.SIZES[size][2])
        assert (models.SIZES[size][0], model.embed_dim) == (depth, width)


def test_constructors_are_attributes_of_the_module():
    assert models.ssast_tiny is models.ARCHS["ssast_tiny"]
    with pytest.raises(AttributeError, match="'ssast_enormous'"):
        _ = models.ssast_enormous


@pytest.mark.parametrize("frequency_first", [False, True])
def test_callers_need_not_know_the_order_of_the_input(frequency_first):
    size = {"img_size": (80, 200), "patch_size": (16, 4)} if frequency_first else {}
    model = small("ssast_tiny", frequency_first=frequency_first, depth=1, **size)
    spectrogram = torch.randn(2, 1, model.num_frames, model.n_mels)
    assert spectrogram.shape == (2, 1, 200, 80)
    x = model.from_time_first(spectrogram)
    assert torch.equal(model.to_time_first(model.unpatchify(model.patchify(x))), spectrogram)
    assert torch.equal(model.patchify(x)[0, 7 * 5 + 3].view(4, 16), spectrogram[0, 0, 28:32, 48:64])


def test_constructor_defaults_are_frequency_first_with_rms_norm():
    model = models.mamba_ssast_tiny(depth=1)
    assert (model.img_size, model.patch_size(), model.frequency_first) == ((80, 200), (16, 4), True)
    assert isinstance(model.blocks[0].norm, torch.nn.RMSNorm)
    assert isinstance(model.encoder_norm, torch.nn.LayerNorm)
    assert model.blocks[0].residual_in_fp32
    pred, target, mask = model(torch.randn(2, 1, 80, 200))
    assert pred.shape == target.shape == (2, 250, 64) and mask.sum(1).tolist() == [125, 125]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("frames", [200, 400, 600, 1000])
@pytest.mark.parametrize("patch", [(4, 8), (8, 16), (16, 16)])
def test_other_spectrogram_and_patch_sizes(arch, frames, patch):
    if frames % patch[0]:
        with pytest.raises(ValueError, match="does not divide"):
            small(arch, img_size=(frames, 80), patch_size=patch)
        return
    model = small(arch, img_size=(frames, 80), patch_size=patch, depth=1)
    x = torch.randn(1, 1, frames, 80)
    pred, target, _ = model(x)
    grid = (frames // patch[0], 80 // patch[1])
    assert model.grid_size() == grid
    assert pred.shape == target.shape == (1, grid[0] * grid[1], patch[0] * patch[1])
    assert model.forward_features(x).shape == (1, grid[0], grid[1] * 192)
    torch.testing.assert_close(model.unpatchify(target), x, rtol=0, atol=0)


@pytest.mark.parametrize("frequency_first", [False, True])
def test_target_elements_are_time_times_16_plus_mel(frequency_first):
    time, mel = torch.meshgrid(torch.arange(200), torch.arange(80), indexing="ij")
    x = (time * 1000 + mel).float()[None, None]
    size = {"img_size": (80, 200), "patch_size": (16, 4)} if frequency_first else {}
    model = small("ssast_tiny", frequency_first=frequency_first, depth=1, **size)
    x = x.transpose(-1, -2) if frequency_first else x
    patches = model.patchify(x)
    assert patches[0, 7 * 5 + 3, 2 * 16 + 9] == (7 * 4 + 2) * 1000 + 3 * 16 + 9
    torch.testing.assert_close(model.unpatchify(patches), x, rtol=0, atol=0)


@pytest.mark.parametrize("frequency_first", [False, True])
def test_patches_of_several_channels(frequency_first):
    """Embedded as by torch's own strided convolution; elements are (time * 16 + mel) * 3 + channel."""
    size = {"img_size": (80, 200), "patch_size": (16, 4)} if frequency_first else {}
    model = small("ssast_tiny", frequency_first=frequency_first, depth=1, in_chans=3, **size)
    x = torch.randn(2, 3, *model.img_size)
    time_first = (lambda t: t.mT) if frequency_first else (lambda t: t)
    tokens = time_first(model.patch_embed.proj(x)).flatten(2).mT
    torch.testing.assert_close(model.embed(x), tokens + model.pos_embed[:, 1:])
    patches = model.patchify(x)
    assert patches[0, 7 * 5 + 3, (2 * 16 + 9) * 3 + 2] == time_first(x)[0, 2, 7 * 4 + 2, 3 * 16 + 9]
    assert torch.equal(model.unpatchify(patches), x)
    assert model(x)[0].shape == patches.shape == (2, 250, 192)


def test_unstructured_masks_keep_the_published_number_and_are_uniform():
    rng = np.random.default_rng(0)
    masks = np.stack([masking.draw_mask(rng, (50, 5), 0.5, "unstructured") for _ in range(2000)])
    assert set(masks.sum(1)) == {125}
    np.testing.assert_allclose(masks.mean(0), 0.5, atol=0.06)
    odd = masking.draw_mask(rng, (5, 5), 0.3, "unstructured")
    assert odd.sum() == 25 - int(25 * 0.7)


@pytest.mark.parametrize("ratio, visible", [(0.5, 125), (0.65, 87), (0.75, 62), (0.8, 50), (0.9, 25), (0.0, 250)])
def test_the_published_number_of_patches_stays_visible(ratio, visible):
    rng = np.random.default_rng(0)
    assert (masking.draw_mask(rng, (50, 5), ratio, "unstructured") == 0).sum() == visible
    if ratio in (0.8, 0.9):  # whole steps, and as many tokens
        assert (masking.draw_mask(rng, (50, 5), ratio, "timestep") == 0).sum() == visible


@pytest.mark.parametrize("grid", [(50, 5), (50, 10), (25, 5), (13, 5), (100, 5), (150, 5), (250, 5), (7, 3)])
def test_masks_keep_the_published_number_of_patches_at_every_ratio(grid):
    """`int(L (100 - 100 r) / 100)`, with its rounding in float64; in timestep mode the whole steps of that many."""
    steps, bands = grid
    rng = np.random.default_rng(0)
    for ratio in [number / 500 for number in range(500)]:
        published = int(steps * bands * (100 - 100 * ratio) / 100)
        for mode in ("unstructured", "cluster"):
            assert (masking.draw_mask(rng, grid, ratio, mode) == 0).sum() == published, ratio
        by_step = masking.draw_mask(rng, grid, ratio, "timestep").reshape(grid)
        assert (by_step == by_step[:, :1]).all() and (by_step == 0).sum() == published // bands * bands, ratio


@pytest.mark.parametrize("arch", [*ARCHS, "xlstm_ssast_tiny"])
@pytest.mark.parametrize("mode", masking.MODES)
@pytest.mark.parametrize("ratio, visible", [(0.5, 125), (0.8, 50), (0.9, 25)])
def test_encoders_keep_the_published_number_of_patches(arch, mode, ratio, visible):
    model = small(arch, depth=1, mask_ratio=ratio, masking_mode=mode)
    x = torch.randn(2, 1, 200, 80)
    assert [(mask == 0).sum() for mask in model(x)[2]] == [visible, visible]  # drawn in `forward`
    assert (model.draw_mask(np.random.default_rng(0)) == 0).sum() == visible  # drawn by the data loader


def test_timestep_masks_hide_whole_time_steps():
    mask = masking.draw_mask(np.random.default_rng(0), (50, 5), 0.5, "timestep").reshape(50, 5)
    assert (mask == mask[:, :1]).all() and mask[:, 0].sum() == 25


def test_clusters_are_squares_of_one_side():
    """An opening by a square of k patches keeps what squares of at least that side cover."""
    rng = np.random.default_rng(0)
    made_of = dict.fromkeys((3, 4, 5, 6), 0)  # side: masks
    for _ in range(300):
        mask = masking.draw_mask(rng, (60, 40), 0.2, "cluster").reshape(60, 40)
        assert mask.sum() == 480
        around = np.pad(mask, 6, mode="edge")  # edges cut squares
        for side in made_of:
            opened = ndimage.binary_opening(around, np.ones((side, side)))[6:-6, 6:-6]
            made_of[side] += bool(mask.sum() - opened.sum() < 25)  # the last square may be a part
    assert made_of[3] == 300 and made_of[4] == pytest.approx(200, abs=30) and made_of[5] == pytest.approx(100, abs=30)
    assert made_of[6] == 0


def test_clusters_may_hide_any_patch_of_the_published_grid():
    rng = np.random.default_rng(0)
    hidden = np.mean([masking.draw_mask(rng, (50, 5), 0.5, "cluster") for _ in range(1000)], axis=0)
    assert hidden.mean() == pytest.approx(0.5) and hidden.min() > 0.25 and hidden.max() < 0.75


def test_random_masking_replaces_masked_tokens_by_the_mask_token_alone():
    model = small("ssast_tiny", depth=1)
    tokens = torch.randn(3, 250, 192)
    masked, mask = model.random_masking(tokens)
    assert not torch.equal(mask[0], mask[1])
    assert torch.equal(masked[mask == 0], tokens[mask == 0])
    assert torch.equal(masked[mask == 1], model.mask_token[0].expand(int(mask.sum()), -1))
    with pytest.raises(ValueError, match=r"the mask must be \[3, 250\]"):
        model.random_masking(tokens, torch.zeros(3, 200))


@pytest.mark.parametrize(
    "arch, args, tells_apart",
    [
        ("ssast_tiny", {}, False),
        ("ssast_tiny", {"masked_positions": True}, True),
        ("mamba_ssast_tiny", {}, True),
        ("mamba_ssast_tiny", {"masked_positions": True}, True),
    ],
)
def test_only_positions_let_ssast_tell_masked_patches_apart(arch, args, tells_apart):
    torch.manual_seed(0)
    model = small(arch, **args).double()
    x = torch.randn(2, 1, 200, 80, dtype=torch.float64)
    pred, _, mask = model(x)
    for clip in range(2):
        hidden = pred[clip, mask[clip] == 1]
        assert (hidden.std(dim=0).max() > 1e-3) == tells_apart
        assert pred[clip, mask[clip] == 0].std(dim=0).max() > 1e-3
    # The prediction never depends on the content of the masked patches.
    noise = model.unpatchify(torch.randn_like(pred) * mask.unsqueeze(-1))
    torch.testing.assert_close(model(x + noise, mask)[0], pred, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("use_cls_token", [True, False])
def test_masked_positions_by_hand(use_cls_token):
    model = small("ssast_tiny", masked_positions=True, use_cls_token=use_cls_token)
    x, mask = torch.randn(1, 1, 200, 80), torch.arange(250)[None] % 2
    tokens, positions = model.embed(x), model.pos_embed[:, -250:]
    tokens[:, 1::2] = model.mask_token + positions[:, 1::2]
    torch.testing.assert_close(model(x, mask)[0], model.pred(model.encode(tokens)))


@pytest.mark.parametrize("arch, causal", [("mamba_ssast_tiny", True), ("ssast_tiny", False)])
def test_ssam_is_causal_and_ssast_is_not(arch, causal):
    model = small(arch)
    tokens = torch.randn(1, 250, 192, requires_grad=True)
    model.encode(tokens)[0, 100].square().sum().backward()
    reached = tokens.grad[0].abs().amax(-1) > 0
    assert reached[:101].all()
    assert reached[101:].any() != causal


class Attention(nn.MultiheadAttention):
    """A mixer that reads all tokens, so it has no `step`."""

    backend = "auto"

    def init_weights(self, depth):
        pass

    def forward(self, hidden):
        return super().forward(hidden, hidden, hidden)[0]


class Hybrid(models.MambaSSAST):
    """SSAM whose last mixer is attention."""

    def make_mixer(self, direction, /, **arguments):
        mixer = super().make_mixer(direction, **arguments)
        self.made = getattr(self, "made", 0) + 1
        return Attention(self.embed_dim, 2, batch_first=True) if self.made == self.depth else mixer


def test_ssam_with_a_mixer_that_reads_all_tokens_is_not_causal():
    """Features of few steps are then those of the whole segment, not of its first tokens."""
    sizes = {"embed_dim": 16, "depth": 2, "img_size": (40, 32), "patch_size": (4, 16), "frequency_first": False}
    model, x = Hybrid(**sizes), torch.randn(2, 1, 40, 32)
    torch.testing.assert_close(model.forward_features(x, "bands", steps=6), model.forward_features(x, "bands")[:, :6])
    assert (model.causal, model.carries_state) == (False, False)
    with pytest.raises(ValueError, match="mixers that have `step`"):
        model.step(torch.randn(1, 2, 16))


class Sums(models.MaskedSpectrogramEncoder):
    """Its blocks are causal, so the class says that it is."""

    causal = carries_state = True

    class Block(nn.Module):
        def forward(self, x):
            return x + x.cumsum(dim=1)

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.blocks = nn.ModuleList(self.Block() for _ in range(self.depth))
        self.init_weights()


@pytest.mark.parametrize("cls_position", ["first", "middle", "last"])
def test_features_of_few_steps_are_those_of_all_wherever_the_class_token_is(cls_position):
    """In the middle of the first tokens it would stand before others of them than in the middle of all."""
    model = Sums(
        embed_dim=16, depth=2, img_size=(40, 32), patch_size=(4, 16), frequency_first=False, cls_position=cls_position
    )
    x = torch.randn(2, 1, 40, 32)
    assert torch.equal(model.forward_features(x, "bands", steps=6), model.forward_features(x, "bands")[:, :6])
    assert model.causal == model.carries_state == (cls_position == "first")


def test_the_class_token_is_optional():
    for arch in ARCHS:
        model = small(arch, use_cls_token=False)
        assert "cls_token" not in model.state_dict() and model.pos_embed.shape == (1, 250, 192)
        assert model(torch.randn(1, 1, 200, 80))[0].shape == (1, 250, 64)


def test_ssm_kwargs_replace_all_published_values():
    mixer = small("mamba_ssast_tiny", ssm_kwargs={"d_state": 8}).blocks[0].mixer
    assert mixer.A_log.shape == (2 * 192, 8) and mixer.conv1d.weight.shape[-1] == 4
    for name, message in (("d_sate", "did you mean 'd_state'"), ("direction", "accepted are d_state, d_conv, expand")):
        with pytest.raises(ValueError, match=f"ssm_kwargs: unexpected keyword argument '{name}'; {message}"):
            small("mamba_ssast_tiny", ssm_kwargs={name: 8})


def test_fused_add_norm_and_fp32_residual_change_no_float32_result():
    x, mask = torch.randn(1, 1, 200, 80), torch.zeros(1, 250)
    outputs = []
    for args in ({}, {"fused_add_norm": False}, {"residual_in_fp32": False}):
        torch.manual_seed(0)
        outputs.append(small("mamba_ssast_tiny", **args)(x, mask)[0])
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_losses_by_hand():
    rng = np.random.default_rng(0)
    pred, target = (torch.from_numpy(rng.standard_normal((2, 4, 6))) for _ in range(2))
    mask = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])
    error = ((pred - target) ** 2).numpy()
    assert reconstruction_loss(pred, target).item() == pytest.approx(error.mean(), rel=1e-5)
    masked = error[mask.numpy() == 1].mean()
    assert reconstruction_loss(pred, target, mask, masked_only=True).item() == pytest.approx(masked, rel=1e-5)
    normal = normalise_per_patch(target)
    np.testing.assert_allclose(normal.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(normal.var(-1), 1, atol=1e-5)
    assert reconstruction_loss(pred, target, torch.zeros(2, 4), masked_only=True) == 0
    with pytest.raises(ValueError, match="needs the mask"):
        reconstruction_loss(pred, target, masked_only=True)


def test_losses_of_shapes_that_torch_would_broadcast_are_refused():
    target, mask = torch.randn(2, 4, 6), torch.ones(2, 4)
    for pred in (target.mean(1, keepdim=True), target.mean(2, keepdim=True), target[:1]):
        with pytest.raises(ValueError, match=r"the prediction is \[.*\], but the target is \[2, 4, 6\]"):
            reconstruction_loss(pred, target)
    with pytest.raises(ValueError, match=r"the error is \[2, 1\], but the mask is \[2, 4\]"):
        mean_over_masked(target.mean((1, 2))[:, None], mask)


@pytest.mark.parametrize(
    "args, message",
    [
        ({"img_size": (200, 81)}, "does not divide"),
        ({"mask_ratio": 1.0}, "mask_ratio must be"),
        ({"masking_mode": "blocks"}, "unknown masking_mode 'blocks'"),
        ({"mask_ratio": "0.5"}, r"mask_ratio must be a number in \[0, 1\), got '0.5'"),
        ({"embed_dim": 190}, "multiple of (4|8)"),
        ({"embed_dim": 0}, "embed_dim must be a whole number of at least 1, got 0"),
        ({"embed_dim": None}, "embed_dim must be a whole number of at least 1, got None"),
        ({"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ({"depth": -1}, "depth must be a whole number of at least 1, got -1"),
        ({"depth": 2.0}, "depth must be a whole number of at least 1, got 2.0"),
        ({"in_chans": 0}, "in_chans must be a whole number of at least 1, got 0"),
        ({"in_chans": True}, "in_chans must be a whole number of at least 1, got True"),
        ({"patch_size": [0, 16]}, r"patch_size must be two whole numbers of at least 1, got \[0, 16\]"),
        ({"patch_size": [-4, 16]}, r"patch_size must be two whole numbers of at least 1, got \[-4, 16\]"),
        ({"img_size": [200, 80, 1]}, r"img_size must be two whole numbers of at least 1, got \[200, 80, 1\]"),
        ({"img_size": 200}, "img_size must be two whole numbers of at least 1, got 200"),
        *(
            ({name: "false"}, f"{name} must be True or False, got 'false'")
            for name in ("use_cls_token", "frequency_first", "masked_positions")
        ),
    ],
)
def test_bad_arguments_are_refused(args, message):
    for arch in (*ARCHS, "xlstm_ssast_tiny", "ssamba_tiny"):
        with pytest.raises(ValueError, match=message):
            small(arch, **args)


@pytest.mark.parametrize(
    "arch, args, message",
    [
        ("ssast_tiny", {"num_heads": 0}, "num_heads must be a whole number of at least 1, got 0"),
        ("ssast_tiny", {"num_heads": "few"}, "num_heads must be a whole number of at least 1, got 'few'"),
        ("mamba_ssast_tiny", {"norm_epsilon": -1e-6}, "norm_epsilon must be a finite number of at least 0, got -1e-06"),
        ("mamba_ssast_tiny", {"ssm_kwargs": 8}, "ssm_kwargs must be a section with arguments of Mamba, got 8"),
        *(
            ("mamba_ssast_tiny", {name: None}, f"{name} must be True or False, got None")
            for name in ("rms_norm", "fused_add_norm", "residual_in_fp32", "same_final_norm")
        ),
    ],
)
def test_bad_arguments_of_one_encoder_are_refused(arch, args, message):
    with pytest.raises(ValueError, match=message):
        small(arch, **args)


@pytest.mark.parametrize(
    "args, message",
    [
        *(
            ({name: 0}, f"{name} must be a whole number of at least 1, got 0")
            for name in ("d_state", "d_conv", "expand")
        ),
        ({"expand": 1.5}, "expand must be a whole number of at least 1, got 1.5"),
        ({"dt_rank": 0}, "dt_rank must be 'auto' or a whole number of at least 1, got 0"),
        ({"dt_rank": "all"}, "dt_rank must be 'auto' or a whole number of at least 1, got 'all'"),
        ({"dt_min": 0}, "dt_min and dt_max must be finite numbers above 0, .* got 0 and 0.1"),
        ({"dt_min": 0.2}, "the first at most the second, got 0.2 and 0.1"),
        ({"dt_min": None}, "dt_min and dt_max must be finite numbers above 0, .* got None and 0.1"),
        ({"dt_max": "0.1"}, "dt_min and dt_max must be finite numbers above 0, .* got 0.001 and '0.1'"),
        *(({name: "no"}, f"{name} must be True or False, got 'no'") for name in ("conv_bias", "bias")),
        ({"dt_init_floor": "low"}, "dt_init_floor must be a finite number of at least 0, got 'low'"),
    ],
)
@pytest.mark.parametrize("direction", ["forward", "both_scans"])
def test_bad_arguments_of_the_mixer_are_refused(direction, args, message):
    with pytest.raises(ValueError, match=message):
        small("mamba_ssast_tiny", direction=direction, ssm_kwargs=args)


def test_wrong_input_shape_names_both_shapes():
    with pytest.raises(ValueError, match=r"expected a spectrogram \[B, 1, 200, 80\], got \[1, 1, 80, 200\]"):
        small("ssast_tiny")(torch.zeros(1, 1, 80, 200))
