"""The registry of encoders: arguments read off constructors, other packages' encoders, names that exist already."""

import functools

import pytest
import torch
from ml_collections import ConfigDict
from torch import nn

from audio_mamba import models
from audio_mamba.models import registry
from audio_mamba.schema import argument_names, check_config

SHARED = [
    "img_size",
    "patch_size",
    "in_chans",
    "mask_ratio",
    "masking_mode",
    "use_cls_token",
    "frequency_first",
    "masked_positions",
]


class Averaging(models.MaskedSpectrogramEncoder):
    """Blocks that are neither causal nor have weights in common with those of the project."""

    def __init__(self, embed_dim: int = 192, *, factor: float = 0.5, **arguments):
        super().__init__(embed_dim, **arguments)
        self.blocks = nn.ModuleList(nn.Linear(embed_dim, embed_dim) for _ in range(self.depth))
        self.factor = factor
        self.init_weights()


class Deeper(Averaging):
    """Has no constructor of its own."""


class Fixed(Averaging):
    def __init__(self, *, extra: int = 1):
        super().__init__(depth=extra)


@pytest.fixture
def archs(monkeypatch):
    """A copy of the table, which the test may change."""
    table = dict(registry.ARCHS)
    monkeypatch.setattr(registry, "ARCHS", table)
    return table


def test_arguments_come_from_the_constructor_and_through_kwargs_from_the_next_one():
    assert argument_names(models.SSAST)[:3] == ["embed_dim", "depth", "num_heads"]
    for cls in (models.SSAST, models.XLSTMSSAST, models.MambaSSAST):
        assert set(SHARED) < set(argument_names(cls)) and "self" not in argument_names(cls)
    assert {"rms_norm", "ssm_kwargs"} <= set(argument_names(functools.partial(models.MambaSSAST, depth=3)))
    assert "num_heads" not in argument_names(models.XLSTMSSAST) and "rms_norm" not in argument_names(models.SSAST)
    assert argument_names(Averaging) == argument_names(Deeper)
    assert argument_names(Averaging)[:3] == ["embed_dim", "factor", "depth"] and "arguments" not in argument_names(
        Deeper
    )
    assert argument_names(Fixed) == ["extra"]  # without **kwargs, nothing reaches the next constructor
    assert argument_names(lambda depth, /, width=1, *rest, head=2: None) == ["width", "head"]


@pytest.mark.parametrize("arch", ["mamba_ssast_base", "xlstm_ssast_medium", "ssast_huge"])
def test_each_accepted_argument_of_a_published_arch_is_one(arch):
    """What the check accepts, the constructor takes; what it refuses, the constructor refuses."""
    published = {"embed_dim": 96, "depth": 1, **({"num_heads": 3} if arch.startswith("ssast") else {})}
    defaults = {
        "img_size": (80, 40),
        "patch_size": (16, 4),
        "in_chans": 1,
        "mask_ratio": 0.25,
        "masking_mode": "timestep",
        "use_cls_token": False,
        "frequency_first": True,
        "masked_positions": True,
    }
    assert set(defaults) == set(SHARED) and set(published | defaults) <= set(argument_names(models.ARCHS[arch]))
    model = models.build(arch, published | defaults)
    assert (model.embed_dim, model.depth, model.img_size, model.mask_ratio) == (96, 1, (80, 40), 0.25)
    assert (model.masking_mode, model.cls_token, model.masked_positions) == ("timestep", None, True)
    with pytest.raises(ValueError, match="model.model_args: unexpected .* 'embed_dm'; did you mean 'embed_dim'"):
        models.build(arch, {"embed_dm": 1})


class Failing(Averaging):
    """Needs an argument, and has a fault."""

    def __init__(self, needed, **arguments):
        super().__init__(**arguments)
        self.needed = 1 + needed


def test_only_the_config_is_blamed_for_arguments_that_do_not_fit(archs):
    models.register_encoder("failing", Failing, {"a": {"depth": 1}})
    with pytest.raises(ValueError, match="^model.model_args: missing a required argument: 'needed'$"):
        models.build("failing_a", {})
    with pytest.raises(TypeError, match="^unsupported operand") as raised:
        models.build("failing_a", {"needed": None})
    assert raised.traceback[-1].name == "__init__"


def test_a_registered_encoder_is_judged_by_its_own_arguments(archs):
    models.register_encoder("mamba2_ssast", Averaging)
    assert {name for name in archs if name.startswith("mamba2_ssast_")} == {f"mamba2_ssast_{s}" for s in models.SIZES}
    config = {"model": {"arch": "mamba2_ssast_small", "model_args": {"factor": 2.0, "depth": 2}}}
    checked = check_config(ConfigDict(config), models.known_archs(), "here")
    model = models.build(checked.model.arch, checked.model.model_args.to_dict())
    assert (type(model), model.factor, model.depth, model.embed_dim) == (Averaging, 2.0, 2, 384)
    config["model"]["model_args"] = {"factr": 2.0}
    with pytest.raises(ValueError, match="'mamba2_ssast_small': .*'model.model_args.factr'; did you mean .*factor'"):
        check_config(ConfigDict(config), models.known_archs(), "here")
    config["model"]["model_args"] = {"num_heads": 3}
    with pytest.raises(ValueError, match="nothing reads the key 'model.model_args.num_heads'"):
        check_config(ConfigDict(config), models.known_archs(), "here")


def test_an_encoder_need_only_have_blocks(archs):
    models.register_encoder("averaging", Averaging, {"mini": {"depth": 2, "embed_dim": 32}})
    model = models.build("averaging_mini", {}, backend="reference").eval()
    x = torch.randn(2, 1, 80, 200)
    tokens = model.embed(x)
    cls_token = (model.cls_token + model.pos_embed[:, :1]).expand(2, -1, -1)
    hidden = torch.cat([cls_token, tokens], dim=1)
    for block in model.blocks:
        hidden = hidden @ block.weight.T + block.bias
    expected = nn.functional.layer_norm(hidden, (32,), eps=1e-6)[:, 1:]
    torch.testing.assert_close(model.encode(tokens), expected)
    assert (model.causal, model.carries_state) == (False, False)
    with pytest.raises(ValueError, match="Averaging carries no state"):
        model.step(tokens)


@pytest.mark.parametrize(
    "arch, causal", [("mamba_ssast_tiny", True), ("xlstm_ssast_tiny", False), ("ssast_tiny", False)]
)
def test_published_encoders_say_whether_they_are_causal(arch, causal):
    model = models.build(arch, {"depth": 2, "embed_dim": 96})
    assert (model.causal, model.carries_state) == (causal, causal)
    tokens = torch.randn(1, 250, 96, requires_grad=True)
    model.encode(tokens)[0, 100].square().sum().backward()
    assert (tokens.grad[0, 101:].abs().max() > 0) != causal


def test_nothing_is_registered_if_something_is_wrong(archs):
    before = dict(archs)
    for name, encoder, sizes, kind, message in (
        ("own", nn.Linear, None, TypeError, "must be a subclass of MaskedSpectrogramEncoder, got .*Linear"),
        ("own", Averaging(depth=1), None, TypeError, "must be a subclass of MaskedSpectrogramEncoder"),
        ("ssast", Averaging, None, ValueError, "'ssast_tiny' is already registered by audio_mamba.models.ssast.SSAST"),
        ("my-own", Averaging, None, ValueError, "'my-own_tiny' must consist of letters"),
        ("own", Fixed, None, ValueError, "own_tiny: Fixed has no argument 'depth'; accepted are extra"),
        ("own", Averaging, {"a": {"depth": 1}, "b": {"dept": 1}}, ValueError, "own_b: .*'dept'; did you mean 'depth'"),
    ):
        with pytest.raises(kind, match=message):
            models.register_encoder(name, encoder, sizes)
        assert archs == before
    for _ in range(2):  # a module may be reloaded
        models.register_encoder("own", Averaging, {"a": {"depth": 1}})
    assert archs.keys() - before.keys() == {"own_a"}


def test_modules_named_in_the_environment_are_imported(archs, tmp_path, monkeypatch):
    (tmp_path / "registers_one.py").write_text(
        "from tests.models.test_registry import Averaging\n"
        "from audio_mamba.models import register_encoder\n"
        "register_encoder('elsewhere', Averaging)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="unknown model.arch 'elsewhere_tiny'; .*AUDIO_MAMBA_ENCODERS"):
        models.build("elsewhere_tiny", {"depth": 1})
    monkeypatch.setenv("AUDIO_MAMBA_ENCODERS", " registers_one ,")
    assert type(models.build("elsewhere_tiny", {"depth": 1})).__name__ == "Averaging"
    monkeypatch.setenv("AUDIO_MAMBA_ENCODERS", "registers_nothing")
    with pytest.raises(ValueError, match="AUDIO_MAMBA_ENCODERS: cannot import 'registers_nothing'"):
        models.build("ssast_tiny", {"depth": 1})
