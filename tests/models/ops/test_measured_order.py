"""The order of GPU back ends as a measured choice: the table, and what "auto" makes of it."""

from types import SimpleNamespace

import pytest
import torch

from audio_mamba.models.mamba import Mamba
from audio_mamba.models.ops import dispatch, mamba_block, measured_order
from audio_mamba.models.ops.calls import AddNormCall, BlockCall, ConvCall, ScanCall
from audio_mamba.models.ops.dispatch import Operator
from audio_mamba.models.ops.measured_order import MANY, parse, reordered

MADE_UP = """
# operator       GPU    shapes  pass      back ends and milliseconds
selective_scan   sm_90  many    training  mamba_ssm 5.5  triton 2.25
selective_scan   sm_90  few     training  mamba_ssm 1.5  triton 2.25   # one long clip
selective_scan   sm_80  many    inference triton 3 mamba_ssm 2
mamba_block      sm_90  many    training  mamba_ssm 50   triton 45.5
"""


class Cuda(SimpleNamespace):
    """What the choice reads of a tensor on a GPU."""

    def __init__(self, *shape, requires_grad=False):
        super().__init__(shape=shape, device=torch.device("cuda", 0), requires_grad=requires_grad)


@pytest.fixture
def on_sm_90(monkeypatch):
    monkeypatch.setattr(measured_order, "ORDERS", parse(MADE_UP))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(ScanCall, "needs_gradient", property(lambda call: call.u.requires_grad))


def scan_call(batch, channels, requires_grad=True):
    u = Cuda(batch, channels, 251, requires_grad=requires_grad)
    return ScanCall(u, u, Cuda(channels, 24), None, None)


def test_the_fastest_comes_first():
    assert parse(MADE_UP) == {
        ("selective_scan", "sm_90", "many", "training"): ("triton", "mamba_ssm"),
        ("selective_scan", "sm_90", "few", "training"): ("mamba_ssm", "triton"),
        ("selective_scan", "sm_80", "many", "inference"): ("mamba_ssm", "triton"),
        ("mamba_block", "sm_90", "many", "training"): ("triton", "mamba_ssm"),
    }


@pytest.mark.parametrize(
    "line",
    [
        "selective_scan sm_90 many",
        "selective_scan H100 many training mamba_ssm 5 triton 2",
        "selective_scan sm_90 some training mamba_ssm 5 triton 2",
        "selective_scan sm_90 many backward mamba_ssm 5 triton 2",
        "selective_scan sm_90 many training mamba_ssm 5",
        "selective_scan sm_90 many training mamba_ssm 5 cpu 2",
        "selective_scan sm_90 many training mamba_ssm 5 triton",
        "selective_scan sm_90 many training mamba_ssm 5 triton fast",
        "selective_scan sm_90 many training mamba_ssm 5 triton 0",
        "selective_scan sm_90 many training mamba_ssm 5 triton 2 triton 3",
        "add_norm sm_90 many training triton 2 reference 3",
    ],
)
def test_a_line_of_another_form_is_an_error_that_quotes_it(line):
    with pytest.raises(ValueError, match=f"^'{line}' is not of the form"):
        parse(line)


def test_a_second_line_for_the_same_case_is_an_error():
    line = "selective_scan sm_90 many training mamba_ssm 5 triton 2"
    with pytest.raises(ValueError, match="second line for the same case"):
        parse(f"{line}\n{line}")


def test_measured_back_ends_change_places_and_the_others_keep_theirs():
    names = ["mamba_ssm", "triton", "cpu", "reference"]
    assert reordered(names, ("triton", "mamba_ssm")) == ["triton", "mamba_ssm", "cpu", "reference"]
    assert reordered(names, ("reference", "triton")) == ["mamba_ssm", "reference", "cpu", "triton"]
    assert reordered(names, ("causal_conv1d", "cpu")) == reordered(names, ()) == names


def test_the_projects_table_can_be_read():
    assert parse(measured_order.TABLE) == measured_order.ORDERS


@pytest.mark.parametrize(
    "call, chosen",
    [
        (scan_call(256, 576), "triton"),
        (scan_call(1, MANY), "triton"),
        (scan_call(1, MANY - 1), "mamba_ssm"),
        (scan_call(256, 576, requires_grad=False), "mamba_ssm"),  # measured on another GPU only
    ],
)
def test_auto_follows_the_measurement_of_its_gpu_shapes_and_pass(on_sm_90, call, chosen):
    modules = {name: SimpleNamespace(unsupported_reason=lambda call: None) for name in ("mamba_ssm", "triton")}
    assert Operator("selective_scan", modules).choose(call) is modules[chosen]
    assert Operator("selective_scan", modules).choose(call, "mamba_ssm") is modules["mamba_ssm"]


@pytest.mark.parametrize(
    "batch, trains, chosen",
    [(256, True, "triton"), (256, False, "triton"), (1, True, "triton"), (1, False, "mamba_ssm")],
)
def test_on_an_h200_our_scan_comes_first_where_both_were_timed(on_sm_90, monkeypatch, batch, trains, chosen):
    monkeypatch.setattr(measured_order, "ORDERS", parse(measured_order.TABLE))
    modules = {name: SimpleNamespace(unsupported_reason=lambda call: None) for name in ("mamba_ssm", "triton")}
    assert Operator("selective_scan", modules).choose(scan_call(batch, 576, trains)) is modules[chosen]


def test_the_fastest_is_not_taken_where_it_does_not_support_the_call(on_sm_90):
    modules = {
        "mamba_ssm": SimpleNamespace(unsupported_reason=lambda call: None),
        "triton": SimpleNamespace(unsupported_reason=lambda call: "it is too large"),
    }
    assert Operator("selective_scan", modules).choose(scan_call(256, 576)) is modules["mamba_ssm"]


def test_without_measurements_and_on_a_cpu_nothing_changes(on_sm_90, monkeypatch):
    x = torch.zeros(1, MANY, 3)
    assert measured_order.measured_order("selective_scan", ScanCall(x, x, x[0], x, x)) == ()
    assert measured_order.measured_order("causal_conv1d", ConvCall(Cuda(1, MANY, 3), Cuda(MANY, 4))) == ()
    assert measured_order.measured_order("add_norm", AddNormCall(Cuda(1, 2, 3), None, torch.nn.LayerNorm(3))) == ()
    monkeypatch.setattr(measured_order, "ORDERS", {})
    assert measured_order.measured_order("selective_scan", scan_call(256, 576)) == ()


def test_the_fused_block_gives_way_to_its_operators_where_those_are_faster(on_sm_90, monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(mamba_block.package, "unsupported_reason", lambda call: None)
    block = Mamba(8, expand=2)  # 16 channels
    many, few = (BlockCall(Cuda(batch, 7, 8), block) for batch in (MANY // 16, MANY // 16 - 1))
    assert mamba_block.choose_fused(many) is None
    assert mamba_block.choose_fused(many, "mamba_ssm") is mamba_block.package
    assert mamba_block.choose_fused(few) is mamba_block.package
    with torch.no_grad():
        assert mamba_block.choose_fused(many) is mamba_block.package  # inference was not measured
