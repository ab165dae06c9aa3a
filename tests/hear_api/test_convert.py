"""Checkpoints of SSAMBA and AuM: made by hand in their layouts, converted, and equal to a plain re-implementation."""

import logging
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from audio_mamba import load_model
from audio_mamba.hear_api.convert import build, convert, main, read_state
from audio_mamba.training.checkpoint import CheckpointError

DIM, DEPTH, STATE, TAPS, EXPAND, RANK = 24, 4, 16, 4, 2, 2
INNER = EXPAND * DIM
PATCH = 16


def mixer_shapes(suffix):
    a_log = "A_b_log" if suffix else "A_log"
    return {
        f"conv1d{suffix}.weight": (INNER, 1, TAPS),
        f"conv1d{suffix}.bias": (INNER,),
        f"x_proj{suffix}.weight": (RANK + 2 * STATE, INNER),
        f"dt_proj{suffix}.weight": (INNER, RANK),
        f"dt_proj{suffix}.bias": (INNER,),
        a_log: (INNER, STATE),
        f"D{suffix}": (INNER,),
    }


def encoder_shapes(patches, positions, shared=False, layer_norm=False):
    """The shapes of all layers; `shared`: one convolution for both directions; `layer_norm`: norms have biases."""
    shapes = {
        "patch_embed.proj.weight": (DIM, 1, PATCH, PATCH),
        "patch_embed.proj.bias": (DIM,),
        "cls_token": (1, 1, DIM),
        positions: (1, 1 + patches, DIM),
        "norm_f.weight": (DIM,),
        "head.weight": (7, DIM),
        "head.bias": (7,),
    }
    for layer in range(DEPTH):
        mixer = {"in_proj.weight": (2 * INNER, DIM), "out_proj.weight": (DIM, INNER)} | mixer_shapes("")
        mixer |= {"A_b_log": (INNER, STATE)} if shared else mixer_shapes("_b")
        for name, shape in mixer.items():
            shapes[f"layers.{layer}.mixer.{name}"] = shape
        shapes[f"layers.{layer}.norm.weight"] = (DIM,)
    if layer_norm:
        shapes |= {name.replace("weight", "bias"): (DIM,) for name in shapes if "norm" in name}
    return shapes


def drawn(shapes):
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in state:
        if name.endswith(("norm.weight", "norm_f.weight")):
            state[name] += 1
        if name.endswith("_log"):
            state[name] += torch.log(torch.arange(1.0, STATE + 1))
    return state


def aum(steps=3, positions="pos_embed", shared=False):
    return drawn(encoder_shapes(8 * steps, positions, shared))


def ssamba(mels=48, frames=64, layer_norm=False):
    shapes = encoder_shapes(mels // PATCH * (frames // PATCH), "pos_embed", layer_norm=layer_norm)
    shapes = {f"module.v.{name}": shape for name, shape in shapes.items()}
    shapes["module.mask_embed"] = (1, 1, DIM)
    for head in ("cpredlayer", "gpredlayer"):
        shapes |= {f"module.{head}.0.weight": (DIM, DIM), f"module.{head}.0.bias": (DIM,)}
        shapes |= {f"module.{head}.2.weight": (256, DIM), f"module.{head}.2.bias": (256,)}
    sizes = {"module.p_input_fdim": torch.tensor(mels), "module.p_input_tdim": torch.tensor(frames)}
    return drawn(shapes) | sizes


def plain(state, x, cls_at, cls_row, share, masked=()):
    """The published formulas, token by token in float64.

    Args:
        state: without `module.` and `v.`
        x: spectrogram [mels, frames].
        cls_at: place of the class token in the sequence; cls_row: of its position in the table.
        share: of the sum of both directions that goes through out_proj.
        masked: numbers of patches that are replaced by mask_embed.

    Returns:
        {(band, step): output [D]} without the class token.
    """
    weights = {name: value.double() for name, value in state.items()}
    table = weights["pos_embed.pos_embed" if "pos_embed.pos_embed" in weights else "pos_embed"][0]
    positions = [row for number, row in enumerate(table) if number != cls_row]
    bands, steps = x.shape[0] // PATCH, x.shape[1] // PATCH
    sequence, places = [], []
    for band in range(bands):
        for step in range(steps):  # as Conv2d on [1, mels, frames] and flatten
            patch = x[band * PATCH : (band + 1) * PATCH, step * PATCH : (step + 1) * PATCH]
            token = (weights["patch_embed.proj.weight"][:, 0] * patch).sum((1, 2)) + weights["patch_embed.proj.bias"]
            if len(sequence) in masked:
                token = weights["mask_embed"][0, 0]
            sequence.append(token + positions[len(sequence)])
            places.append((band, step))
    sequence.insert(cls_at, weights["cls_token"][0, 0] + table[cls_row])
    places.insert(cls_at, None)
    output = (in_pairs if "norm_f.bias" in weights else in_sequence)(weights, torch.stack(sequence), share)
    return {place: row for place, row in zip(places, output, strict=True) if place}


def in_sequence(weights, hidden, share):
    residual = torch.zeros(())
    for layer in range(DEPTH):
        residual = residual + hidden
        hidden = mix(weights, layer, residual, share)
    return norm(weights, "norm_f", residual + hidden)


def in_pairs(weights, hidden, share):
    """As SSAMBA's training script has it: the second of two blocks reads the tokens in reverse."""
    residual = torch.zeros(())
    for layer in range(0, DEPTH, 2):
        stream = residual + hidden
        back = mix(weights, layer + 1, stream.flip(0), share)
        hidden, residual = mix(weights, layer, stream, share) + back.flip(0), stream + stream.flip(0).flip(0)
    return norm(weights, "norm_f", norm(weights, "norm_f", residual + hidden))


def norm(weights, name, x):
    """RMSNorm, or LayerNorm if there is a bias."""
    bias = weights.get(f"{name}.bias")
    if bias is not None:
        x = x - x.mean(-1, keepdim=True)
    scaled = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]
    return scaled if bias is None else scaled + bias


def mix(weights, layer, stream, share):
    """Norm and mixer of a layer: [L, D] -> [L, D]."""
    tokens = norm(weights, f"layers.{layer}.norm", stream)
    prefix = f"layers.{layer}.mixer."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    x, z = (tokens @ own["in_proj.weight"].T).chunk(2, dim=1)  # [L, E]
    if "conv1d_b.weight" in own:
        forward = scan(own, convolve(own, x, ""), z, "", "A_log")
        backward = scan(own, convolve(own, x.flip(0), "_b"), z.flip(0), "_b", "A_b_log").flip(0)
    else:  # one convolution, and the sum is not halved
        x, share = convolve(own, x, ""), 1.0
        forward, backward = scan(own, x, z, "", "A_log"), scan(own, x.flip(0), z.flip(0), "", "A_b_log").flip(0)
    return share * (forward + backward) @ own["out_proj.weight"].T


def convolve(weights, x, suffix):
    """Convolution and SiLU: [L, E] -> [L, E]."""
    rows = []
    for token in range(len(x)):
        row = weights[f"conv1d{suffix}.bias"].clone()
        for tap in range(min(TAPS, token + 1)):
            row += weights[f"conv1d{suffix}.weight"][:, 0, TAPS - 1 - tap] * x[token - tap]
        rows.append(torch.nn.functional.silu(row))
    return torch.stack(rows)


def scan(weights, x, z, suffix, a_log):
    """The scan with D and gate: [L, E] -> [L, E]."""
    a = -torch.exp(weights[a_log])
    state, rows = torch.zeros(INNER, STATE, dtype=torch.float64), []
    for u, gate in zip(x, z, strict=True):
        dt, b, c = (weights[f"x_proj{suffix}.weight"] @ u).split([RANK, STATE, STATE])
        delta = torch.log1p(torch.exp(weights[f"dt_proj{suffix}.weight"] @ dt + weights[f"dt_proj{suffix}.bias"]))
        state = torch.exp(delta[:, None] * a) * state + (delta * u)[:, None] * b
        rows.append((state @ c + weights[f"D{suffix}"] * u) * torch.nn.functional.silu(gate))
    return torch.stack(rows)


def without_prefix(state):
    return {name.removeprefix("module.").removeprefix("v."): value for name, value in state.items()}


def in_float64(converted):
    runtime, _ = build(converted, "a.pth")
    for block in runtime.model.blocks:
        block.residual_in_fp32 = False
    return runtime.double()


def spectrogram(runtime, seed=1):
    mels, frames = runtime.model.img_size
    return torch.randn(mels, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LAYOUTS = {  # state, place of the class token, row of its position
    "AuM": (aum(), 12, 12),
    "AuM, 4 steps, module for positions": (aum(4, "pos_embed.pos_embed"), 16, 0),
    "AuM, one convolution": (aum(shared=True), 12, 12),
    "AuM, DataParallel": ({f"module.{name}": value for name, value in aum().items()}, 12, 12),
    "SSAMBA": (ssamba(), 0, 0),
    "SSAMBA, other size": (ssamba(mels=32, frames=48), 0, 0),
    "SSAMBA, LayerNorms and pairs": (ssamba(layer_norm=True), 0, 0),
}


@pytest.mark.parametrize("whole_sum", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_converted_model_equals_a_plain_reimplementation(layout, whole_sum):
    state, cls_at, cls_row = LAYOUTS[layout]
    converted = convert(state, whole_sum)
    assert converted.kind == layout.split(",")[0]
    runtime = in_float64(converted)
    x = spectrogram(runtime)
    expected = plain(without_prefix(state), x, cls_at, cls_row, 1.0 if whole_sum else 0.5)
    with torch.no_grad():
        ours = runtime.model.encode(runtime.model.embed(x[None, None]))[0]  # [L, D], time-major
        features = runtime.model.forward_features(x[None, None], "bands")[0]
    steps, bands = runtime.model.grid_size()
    assert len(expected) == steps * bands == len(ours)
    for (band, step), row in expected.items():
        torch.testing.assert_close(ours[step * bands + band], row, rtol=0, atol=1e-6)
        torch.testing.assert_close(features[step, band * DIM : (band + 1) * DIM], row, rtol=0, atol=1e-6)
    assert not runtime.model.causal and not runtime.model.carries_state


def test_masked_patches_of_ssamba_keep_their_positions():
    runtime = in_float64(convert(ssamba()))
    x = spectrogram(runtime)
    steps, bands = runtime.model.grid_size()
    masked = {0, 5, 6, 11}  # in their order, by bands
    mask = torch.zeros(steps, bands, dtype=torch.float64)
    for number in masked:
        mask[number % steps, number // steps] = 1
    expected = plain(without_prefix(ssamba()), x, 0, 0, 0.5, masked)
    rows = torch.stack([expected[band, step] for step in range(steps) for band in range(bands)])
    with torch.no_grad():
        prediction, _, _ = runtime.model(x[None, None], mask.flatten()[None])
        torch.testing.assert_close(prediction[0], runtime.model.pred(rows), rtol=0, atol=1e-6)


def test_the_command_writes_a_model_and_says_what_it_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO, "audio_mamba.hear_api.convert")
    torch.save(ssamba(), tmp_path / "ssamba.pth")
    main([str(tmp_path / "ssamba.pth"), "--out", str(tmp_path / "ssamba")])
    out = "\n".join(caplog.messages) + "\n"
    caplog.clear()
    assert out.startswith("SSAMBA as mamba_ssast_tiny, 4 blocks of width 24 with direction 'both', ")
    assert "spectrograms of 48 mel bands x 64 frames -> " in out
    assert "left out, without a place here: cpredlayer.0.bias, cpredlayer.0.weight, " in out
    assert "random, not in the checkpoint: pred.0.weight, pred.0.bias, pred.2.weight, pred.2.bias\n" in out
    model, (built, _) = load_model(tmp_path / "ssamba", device="cpu"), build(convert(ssamba()), "a.pth")
    for name, value in built.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], value)
    assert torch.equal(model.model.mask_token, ssamba()["module.mask_embed"])
    audio = 0.1 * torch.randn(1, 24000)
    embeddings, times = model.get_timestamp_embeddings(audio)
    assert embeddings.shape == (1, 10, 3 * DIM) and times[0, :2].tolist() == [0, 160]

    save_file(aum(), tmp_path / "aum.safetensors")
    torch.save({"model": aum(), "epoch": 3}, tmp_path / "nested.pth")
    for source in ("aum.safetensors", "nested.pth"):
        main([str(tmp_path / source), "--out", str(tmp_path / source.split(".")[0]), "--whole-sum"])
        out = "\n".join(caplog.messages) + "\n"
        caplog.clear()
        assert out.startswith(
            "AuM as mamba_ssast_tiny, 4 blocks of width 24 with direction 'both', spectrograms of 128 "
        )
        assert "here: head.bias, head.weight\n" in out and "in the checkpoint: mask_token, pred.0.weight, " in out
    states = [load_model(tmp_path / name, device="cpu").model.state_dict() for name in ("aum", "nested")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_checkpoint_is_not_replaced_by_its_conversion(tmp_path):
    save_file(aum(), tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="would replace .*model.safetensors; choose another folder"):
        main([str(tmp_path / "model.safetensors"), "--out", str(tmp_path)])
    assert (tmp_path / "model.safetensors").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "dim, size",
    [(192, "tiny"), (384, "small"), (768, "base"), (24, "tiny")],
)
def test_archs_are_named_by_width(dim, size):
    state = {
        "patch_embed.proj.weight": torch.empty(dim, 1, 16, 16),
        "pos_embed": torch.empty(1, 513, dim),
        "layers.0.mixer.A_log": torch.empty(2 * dim, 16),
        "layers.0.mixer.conv1d.weight": torch.empty(2 * dim, 1, 4),
    }
    model = convert(state).model
    assert (model["arch"], model["model_args"]["embed_dim"]) == (f"mamba_ssast_{size}", dim)
    assert model["model_args"]["img_size"] == (128, 1024) and model["model_args"]["direction"] == "forward"


def changed(state, **changes):
    """The state without the entries that are None, with the others replaced; "__" stands for a dot."""
    names = {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in (state | names).items() if value is not None}


@pytest.mark.parametrize(
    "state, message",
    [
        (changed(aum(), rope__freqs=torch.ones(3)), "knows no place for rope.freqs$"),
        (changed(aum(), layers__1__norm__bias=torch.ones(DIM)), "a.pth .*unexpected blocks.1.norm.bias"),
        (changed(aum(), layers__1__mixer__conv1d_b__weight=None), "a.pth .*no blocks.1.mixer.conv1d_b.weight"),
        (changed(aum(), layers__1__mixer__D_b=torch.ones(0)), r"layers.1.mixer.D_b has no values, \[0\]"),
        (changed(aum(), pos_embed=torch.ones(2, 25, DIM)), r"pos_embed must be one table, got \[2, 25, 24\]"),
        (changed(aum(), layers__1__mixer__gamma=torch.ones(DIM)), "a.pth .*unexpected blocks.1.mixer.gamma"),
        (changed(aum(), layers__2__mixer__D=torch.ones(3)), r"a.pth .*blocks.2.mixer.D is \(3,\) instead of \(48,\)"),
        (changed(aum(), layers__2__mixer__D_b=None), "a.pth .*no blocks.2.mixer.D_b"),
        (
            changed(aum(), layers__9__norm__weight=torch.ones(DIM)),
            r"without a gap, got \[0, 1, 2, 3, 9\]",
        ),
        (changed(aum(), cls_token=None), "a.pth .*no cls_token"),
        (changed(aum(), pos_embed=None), "no pos_embed"),
        (
            changed(aum(), pos_embed=torch.ones(1, 24, DIM)),
            "23 positions of patches of 16 x 16 do not fill 128",
        ),
        (changed(aum(), pos_embed=torch.ones(24, DIM)), r"pos_embed must have 3 dimensions, got \[24, 24\]"),
        (changed(aum(), patch_embed__proj__weight=torch.ones(DIM, 3, 16, 16)), "reads 3 channels"),
        (
            changed(aum(), norm_f__weight=torch.full((DIM,), torch.nan)),
            "NaN or Inf, first in encoder_norm.weight",
        ),
        (
            ssamba() | {"module.p_input_tdim": torch.tensor(1024)},
            "for 64 frames, but p_input_tdim is 1024",
        ),
        (
            changed(aum(), norm_f__weight=torch.ones(DIM, dtype=torch.complex64)),
            "norm_f.weight must be floating-point, got torch.complex64",
        ),
        ({"blocks.0.weight": torch.ones(3)}, "knows no place for blocks.0.weight"),
        ({"head.weight": torch.ones(3)}, "no patch_embed.proj.weight: not a checkpoint of SSAMBA or AuM"),
    ],
)
def test_what_has_no_place_is_refused_by_name(state, message):
    with pytest.raises(CheckpointError, match=message):
        build(convert(state), "a.pth")


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


def test_files_that_are_no_state_dicts_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"v.cls_token": Exploit()}, "exploit.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Exploit()))
    torch.save([1, 2], "list.pth")
    torch.save({"epoch": 3}, "number.pth")
    torch.save({}, "empty.pth")
    for name, message in (
        ("exploit.pth", "cannot read checkpoint exploit.pth: it asks for"),
        ("plain.pth", "cannot read checkpoint plain.pth"),
        ("list.pth", "list.pth is not a state dict"),
        ("number.pth", "number.pth is not a state dict"),
        ("empty.pth", "empty.pth is not a state dict"),
        ("absent.pth", "no checkpoint file at absent.pth"),
        ("absent.safetensors", "absent.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_state(name)
        with pytest.raises(SystemExit, match=f"^convert: .*{message}"):
            main([name, "--out", "model"])
    assert not (tmp_path / "exploited").exists() and not (tmp_path / "model").exists()
