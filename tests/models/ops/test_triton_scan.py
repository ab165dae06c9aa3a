"""Our Triton kernels of the selective scan on small shapes: interpreted, or on a CUDA device if there is one."""

import subprocess
import sys

import pytest
import torch

from audio_mamba.models.mamba import Mamba
from audio_mamba.models.ops.calls import ScanCall
from audio_mamba.models.ops.selective_scan import selective_scan
from audio_mamba.models.ops.selective_scan import triton as triton_scan
from tests.conftest import DEVICE, ROOT, runs_on_device
from tests.models.ops.scan_cases import (
    Flipped,
    Reversed,
    check_against_float64,
    make_inputs,
    outputs_and_gradients,
)

pytest.importorskip("triton")
pytestmark = runs_on_device

LENGTHS, CHANNELS, STATES, BATCHES = (17, 65, 1, 2), (5, 33, 1, 6), (8, 1, 24, 9), (2, 1, 1, 1)
OPTIONS = ({}, {"optional": False}, {"groups": True, "softplus": False}, {"channels_last": False})
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
# An orthogonal array: its 16 rows contain every pair of settings (from the field of four elements).
TIMES = ((0, 0, 0, 0), (0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2))
ROWS = [(i, j, *(i ^ TIMES[k][j] for k in (1, 2, 3))) for i in range(4) for j in range(4)]


@pytest.fixture
def in_chunks(monkeypatch):
    """Small shapes are cut into chunks, as long clips are."""
    monkeypatch.setattr(triton_scan, "MIN_CHUNK", 8)
    monkeypatch.setattr(triton_scan, "SPAN", 8)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row)))
def test_outputs_and_every_gradient(row, poisoned):
    """Each setting of a factor with each setting of every other one."""
    length, channels, state, dtype, option = (
        choices[level] for choices, level in zip((LENGTHS, CHANNELS, STATES, DTYPES, OPTIONS), row, strict=True)
    )
    batch = BATCHES[row[4]] if length < 65 else 1  # the interpreter is slow
    option = dict(option)
    if option.pop("groups", False):
        option["groups"] = {1: 1, 5: 5, 6: 2, 33: 3}[channels]
    inputs = make_inputs(batch, channels, length, state, dtype=dtype, **option)
    # Triton's interpreter truncates numbers to bfloat16 instead of rounding them.
    forgiven = {"forgiven": 2**-7} if dtype == torch.bfloat16 and DEVICE == "cpu" else {}
    check_against_float64(triton_scan, inputs, option.get("softplus", True), DEVICE, **forgiven)


@pytest.mark.parametrize("length", [16, 17, 23, 24])
def test_chunks_of_time(in_chunks, poisoned, length):
    assert triton_scan._plan(1, length, 3)[0] > 1
    check_against_float64(triton_scan, make_inputs(1, 3, length, 5, optional=length != 23), device=DEVICE)


def test_more_chunks_than_are_combined_at_once(in_chunks):
    assert triton_scan._plan(1, 72, 2)[0] == 9 > triton_scan.COMBINED
    check_against_float64(triton_scan, make_inputs(1, 2, 72, 2), device=DEVICE)


def test_the_number_of_chunks_depends_on_the_shape_only():
    assert triton_scan._plan(256, 251, 576) == (1, 256)  # pretraining
    chunks, steps = triton_scan._plan(1, 22000, 576)  # one long clip
    assert chunks > 32 and steps % triton_scan.SPAN == 0 and (chunks - 1) * steps < 22000 <= chunks * steps
    for length in (1, 2, 31, 32, 33, 129, 1000):
        chunks, steps = triton_scan._plan(1, length, 1)
        assert (chunks - 1) * steps < length <= chunks * steps


def check_reversed(inputs, softplus=True):
    """Against float64, and in the interpreter bit for bit as flipped by hand. A GPU may sum in another order."""
    check_against_float64(Flipped(Reversed(triton_scan)), inputs, softplus, DEVICE)
    if DEVICE == "cpu":
        backward, flipped = (outputs_and_gradients(walk(triton_scan), inputs, softplus) for walk in (Reversed, Flipped))
        assert all(torch.equal(backward[name], flipped[name]) for name in flipped)


@pytest.mark.parametrize("channels_last", [True, False])
def test_backward_in_time(poisoned, channels_last):
    check_reversed(make_inputs(2, 3, 19, 5, channels_last=channels_last))


def test_backward_in_time_without_optional_inputs_and_with_groups(poisoned):
    check_reversed(make_inputs(1, 6, 7, 3, optional=False, groups=2, softplus=False), softplus=False)


def test_backward_in_time_in_chunks(in_chunks, poisoned):
    assert triton_scan._plan(1, 23, 3)[0] > 1
    check_reversed(make_inputs(1, 3, 23, 5))


@pytest.mark.parametrize("missing", ["D", "z", "delta_bias"])
def test_each_optional_input(missing):
    inputs = make_inputs(2, 5, 9, 3)
    del inputs[missing]
    check_against_float64(triton_scan, inputs, device=DEVICE)


def test_many_states():
    check_against_float64(triton_scan, make_inputs(1, 3, 6, 70), device=DEVICE)


def test_very_large_steps_and_growing_states():
    inputs = make_inputs(1, 4, 20, 4, optional=False)
    inputs["delta"] = torch.rand(1, 4, 20) * torch.tensor(10.0) ** torch.randint(-3, 4, (1, 4, 20))
    check_against_float64(triton_scan, inputs, softplus=False, device=DEVICE)
    inputs["A"], inputs["delta"] = torch.full((4, 4), 0.5), torch.full((1, 4, 20), 0.1)
    check_against_float64(triton_scan, inputs, softplus=False, device=DEVICE)


def test_softplus_of_large_and_small_steps():
    inputs = make_inputs(1, 3, 12, 2, optional=False)
    inputs["delta"] = torch.linspace(-30, 30, 36).reshape(1, 3, 12)
    check_against_float64(triton_scan, inputs, device=DEVICE)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C"])
def test_nan_is_not_lost(name):
    inputs = {key: t.to(DEVICE) for key, t in make_inputs(1, 5, 9, 3).items()}
    inputs[name][..., -1] = torch.nan
    y = selective_scan(**inputs, delta_softplus=True, backend="triton")
    assert y[..., -1].isnan().all()
    assert name == "A" or y[..., :-1].isfinite().all()


def test_a_single_step_reads_nothing_before_its_inputs(monkeypatch):
    """Backward works on pairs of steps; with a single step, the first of the pair is absent."""
    padded_to = triton_scan._padded_to

    def padded_after_nan(t, size, dim):
        t = padded_to(t, size, dim)
        return torch.cat([t.new_full((64,), torch.nan), t.flatten()])[64:].view_as(t)

    monkeypatch.setattr(triton_scan, "_padded_to", padded_after_nan)
    found = outputs_and_gradients(triton_scan, make_inputs(1, 3, 1, 4), device=DEVICE)
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_empty_time_and_empty_batch():
    for batch, length in ((1, 0), (0, 5)):
        inputs = {key: t.to(DEVICE).requires_grad_() for key, t in make_inputs(batch, 3, length, 2).items()}
        y, last = selective_scan(**inputs, return_last_state=True, backend="triton")
        assert y.shape == (batch, 3, length) and (last == 0).all() and last.shape == (batch, 3, 2)
        y.sum().backward()
        assert (inputs["A"].grad == 0).all()


def test_gradient_of_only_the_output_or_only_the_last_state():
    inputs = {key: t.to(DEVICE) for key, t in make_inputs(1, 3, 10, 2).items()}
    gradients = []
    for which in ((0,), (1,), (0, 1)):
        u = inputs["u"].clone().requires_grad_()
        results = selective_scan(**inputs | {"u": u}, delta_softplus=True, return_last_state=True, backend="triton")
        gradients.append(torch.autograd.grad([results[i].sum() for i in which], u)[0])
    torch.testing.assert_close(gradients[0] + gradients[1], gradients[2])


def test_the_views_of_a_mamba_block():
    """They are parts of wider rows and start at odd offsets."""
    torch.manual_seed(0)
    mixer, hidden = Mamba(7, d_state=3, expand=1), torch.randn(2, 6, 7)
    mixer.init_weights(depth=1)
    mixer.to(DEVICE)
    results = []
    for backend in ("triton", "reference"):
        mixer.backend = backend
        y = mixer(hidden.to(DEVICE))
        results.append([y, *torch.autograd.grad(y.square().sum(), list(mixer.parameters()))])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_steps_that_are_far_apart_in_memory_are_copied(monkeypatch):
    monkeypatch.setattr(triton_scan, "MOST_STRIDE", 8)
    inputs = make_inputs(2, 3, 9, 2)
    wide = inputs["u"].new_zeros(2, 9, 9)
    wide[..., :3] = inputs["u"].transpose(1, 2)
    assert triton_scan._near_and_adjacent(wide[..., :3]).is_contiguous() and not wide[..., :3].is_contiguous()
    inputs["u"] = wide[..., :3].transpose(1, 2)
    check_against_float64(triton_scan, inputs, device=DEVICE)


def test_a_sequence_whose_rows_32_bits_cannot_count_is_refused():
    def call(length):
        u, row = (torch.zeros(1).expand(1, size, length) for size in (2, 24))
        return ScanCall(u, u, torch.zeros(2, 24), row, row)

    assert "more than 2147483647" in triton_scan.unsupported_reason(call(2**31 // 24 + 1))
    assert "2147483647" not in str(triton_scan.unsupported_reason(call(2**31 // 24)))


def test_same_bits_every_time():
    first, second = (outputs_and_gradients(triton_scan, make_inputs(2, 17, 5, 3), device=DEVICE) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optional, reverse", [(True, False), (False, False), (True, True)])
def test_opcheck(optional, reverse):
    inputs = make_inputs(1, 3, 5, 2, optional=optional)
    leaves = {
        name: (t if name in ("A", "D", "delta_bias") else t.transpose(1, 2)).to(DEVICE).requires_grad_()
        for name, t in inputs.items()
    }
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    arguments = *(leaves.get(name) for name in names), True, True, reverse
    torch.library.opcheck(torch.ops.audio_mamba.selective_scan_triton, arguments)
    arguments = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
    y, last, starts = torch.ops.audio_mamba.selective_scan_triton(*arguments)
    torch.library.opcheck(
        torch.ops.audio_mamba.selective_scan_triton_backward,
        (torch.randn_like(y), torch.randn_like(last), starts, *arguments[:-2], reverse),
    )


@pytest.mark.parametrize("states, copied", [(24, False), (8, False), (20, True)])
def test_states_that_fill_their_tiles_are_read_where_they_are(states, copied):
    """In float32 and contiguous, B and C are not copied. Padding is zeros."""
    u, A, row = torch.randn(2, 7, 3), -torch.rand(3, states), torch.randn(2, 7, states)
    launch = triton_scan._Launch(u, u, A, row, row, None, None, None, True, False)
    assert (launch.B.data_ptr() == row.data_ptr()) != copied and launch.B.is_contiguous()
    for padded, plain in ((launch.B, row), (launch.A.t(), A * triton_scan.LOG2_E)):
        assert torch.equal(padded[..., :states], plain) and (padded[..., states:] == 0).all()


def test_inference_calls_the_kernels_without_the_dispatcher(monkeypatch):
    """Which costs tens of microseconds per call. The numbers are the same."""
    inputs = {name: t.to(DEVICE) for name, t in make_inputs(1, 3, 10, 2).items()}
    leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    through_operator = triton_scan.selective_scan(**leaves, delta_softplus=True)
    monkeypatch.setattr(torch.ops.audio_mamba, "selective_scan_triton", None)
    assert torch.equal(triton_scan.selective_scan(**inputs, delta_softplus=True), through_operator)
    with torch.no_grad():
        assert torch.equal(triton_scan.selective_scan(**leaves, delta_softplus=True), through_operator)
    with pytest.raises(TypeError):
        triton_scan.selective_scan(**leaves)


def test_training_saves_little_memory():
    """Saved for backward: the inputs, and the state before every 32 steps."""
    inputs = {name: t.to(DEVICE).requires_grad_() for name, t in make_inputs(1, 4, 70, 8).items()}
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(**inputs, delta_softplus=True, backend="triton")
    assert sum(saved.values()) <= sum(t.numel() for t in inputs.values()) + 3 * 4 * 8


class TestChoice:
    def test_auto_never_takes_the_interpreter(self, monkeypatch):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(triton_scan, "selective_scan", lambda *arguments: pytest.fail("the interpreter ran"))
        selective_scan(**make_inputs(1, 2, 3, 2))

    def test_without_the_interpreter_the_cpu_is_refused(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(RuntimeError, match="'triton' does not support this call.* cpu, not on a CUDA device"):
            selective_scan(**make_inputs(1, 2, 3, 2), backend="triton")

    def test_float64_is_refused(self):
        inputs = {name: t.double().to(DEVICE) for name, t in make_inputs(1, 2, 3, 2).items()}
        with pytest.raises(RuntimeError, match="'triton' does not support this call.*float64"):
            selective_scan(**inputs, backend="triton")

    def test_the_models_run_on_a_cpu_without_triton(self):
        code = (
            "import sys; sys.modules['triton'] = None\n"
            "import torch\nfrom audio_mamba import models\n"
            "model = models.mamba_ssast_tiny(depth=1)\n"
            "model(torch.zeros(1, 1, 80, 200))[0].sum().backward()\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
