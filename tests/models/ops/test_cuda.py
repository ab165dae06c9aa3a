"""Tests that need a CUDA device: `./run_tests.sh -m cuda`."""

import copy
import fcntl

import pytest
import torch

from audio_mamba import models
from audio_mamba.models.loss import reconstruction_loss
from audio_mamba.models.ops import mamba_block, packages
from audio_mamba.models.ops.add_norm import add_norm
from audio_mamba.models.ops.calls import BlockCall, ScanCall
from audio_mamba.models.ops.causal_conv1d import causal_conv1d
from audio_mamba.models.ops.selective_scan import BACKENDS, chunked, package, selective_scan
from audio_mamba.models.ops.selective_scan import triton as triton_scan
from tests.conftest import DEVICE
from tests.models.ops.scan_cases import ROWS, check_against_float64, inputs_of, make_inputs, outputs_and_gradients

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
needs_mamba_ssm = pytest.mark.skipif(
    packages.unavailable_reason("mamba-ssm") is not None, reason=str(packages.unavailable_reason("mamba-ssm"))
)


class TestScan:
    @pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row)))
    def test_outputs_and_every_gradient(self, row):
        inputs, softplus = inputs_of(row)
        check_against_float64(triton_scan, inputs, softplus, "cuda")

    def test_many_channels_in_one_chunk(self):
        """As in pretraining; small batches are cut into chunks."""
        batch, length, channels = 64, 67, 1100
        assert triton_scan._plan(batch, length, channels)[0] == 1
        check_against_float64(triton_scan, make_inputs(batch, channels, length, 3), device="cuda")

    def test_a_long_clip(self):
        inputs = make_inputs(1, 32, 22000, 8)
        assert triton_scan._plan(1, 22000, 32)[0] > 100
        ours = outputs_and_gradients(triton_scan, inputs, device="cuda")
        plain = outputs_and_gradients(chunked, inputs)
        for name, value in plain.items():
            assert (ours[name] - value).norm() <= 1e-4 * value.norm(), name

    def test_same_bits_every_time(self):
        first, second = (
            outputs_and_gradients(triton_scan, make_inputs(8, 200, 251, 24), device="cuda") for _ in range(2)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_auto_takes_our_kernels_where_mamba_ssm_is_missing(self):
        inputs = {name: t.cuda() for name, t in make_inputs(2, 20, 40, 6).items()}
        name = "triton" if package.unsupported_reason(ScanCall(**inputs)) else "mamba_ssm"
        chosen, named = (selective_scan(**inputs, delta_softplus=True, backend=backend) for backend in ("auto", name))
        assert chosen.isfinite().all() and torch.equal(chosen, named)

    @needs_mamba_ssm
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("groups", [0, 2])
    def test_agreement_with_mamba_ssm(self, dtype, groups):
        inputs = make_inputs(3, 64, 251, 24, dtype=dtype, groups=groups)
        results = []
        for back_end in (triton_scan, package):
            leaves = {name: t.cuda().requires_grad_() for name, t in inputs.items()}
            y = back_end.selective_scan(**leaves, delta_softplus=True)
            results.append([y, *torch.autograd.grad(y.float().square().sum(), list(leaves.values()))])
        for ours, theirs in zip(*results, strict=True):
            scale = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype] * theirs.float().norm()
            assert (ours.float() - theirs.float()).norm() <= scale

    @needs_mamba_ssm
    def test_mamba_ssm_refuses_a_gradient_of_the_last_state(self):
        inputs = {name: t.cuda().requires_grad_() for name, t in make_inputs(1, 8, 9, 3).items()}
        with pytest.raises(RuntimeError, match="no gradient of the last state"):
            selective_scan(**inputs, return_last_state=True, backend="mamba_ssm")
        selective_scan(**inputs, return_last_state=True)[1].sum().backward()
        assert inputs["u"].grad.abs().sum() > 0


@pytest.fixture
def large_memory(tmp_path_factory):
    """Runs the tests with tensors of gigabytes one after the other, in whichever process they are."""
    with open(tmp_path_factory.getbasetemp().parent / "large_memory.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        torch.cuda.empty_cache()


def copies(tensor, count):
    """[1, ...] -> [count, ...], without memory."""
    return tensor.expand(count, *tensor.shape[1:])


class TestBeyond32Bits:
    """More elements than 32 bits can index. All batch entries are the same, so the last result must equal the first."""

    LENGTH, CHANNELS = 1100, 4096
    BATCH = 2**31 // (1100 * 4096) + 2

    @staticmethod
    def need(gigabytes):
        free = torch.cuda.mem_get_info()[0] / 2**30
        if free < gigabytes:
            pytest.skip(f"{free:.0f} GiB of memory are free, not {gigabytes}")

    @staticmethod
    def check(*tensors):
        for tensor in tensors:
            assert torch.equal(tensor[-1], tensor[0]) and tensor[-1].isfinite().all() and tensor[-1].any()

    def scan_inputs(self):
        """u fills its memory; the other sequences are one entry, expanded."""
        inputs = make_inputs(1, self.CHANNELS, self.LENGTH, 1, dtype=torch.bfloat16)
        many = {name: copies(t.to(DEVICE), self.BATCH) if t.dim() == 3 else t.to(DEVICE) for name, t in inputs.items()}
        return many | {"u": many["u"].transpose(1, 2).contiguous().transpose(1, 2)}

    def test_scan(self, large_memory):
        self.need(16)
        with torch.no_grad():
            self.check(selective_scan(**self.scan_inputs(), delta_softplus=True, backend="triton"))

    def test_scan_backward(self, large_memory):
        self.need(44)
        inputs = self.scan_inputs()
        leaves = [inputs[name].requires_grad_() for name in ("u", "delta", "z")]
        y = selective_scan(**inputs, delta_softplus=True, backend="triton")
        self.check(*torch.autograd.grad(y, leaves, copies(torch.ones_like(y[:1]), self.BATCH)))

    def test_convolution_forward_and_backward(self, large_memory):
        self.need(24)
        weight = torch.randn(self.CHANNELS, 4, device=DEVICE, requires_grad=True)
        x = torch.randn(1, self.LENGTH, self.CHANNELS, device=DEVICE, dtype=torch.bfloat16)
        x = copies(x, self.BATCH).contiguous().transpose(1, 2).requires_grad_()
        y = causal_conv1d(x, weight, None, "silu", backend="triton")
        dx, d_weight = torch.autograd.grad(y, [x, weight], copies(torch.ones_like(y[:1]), self.BATCH))
        self.check(y.detach(), dx)
        assert d_weight.isfinite().all()

    def test_add_norm_forward_and_backward(self, large_memory):
        self.need(48)
        norm = torch.nn.LayerNorm(self.CHANNELS).to(DEVICE)
        shape = 1, self.LENGTH, self.CHANNELS
        hidden, residual = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        hidden, residual = (copies(t, self.BATCH).requires_grad_() for t in (hidden, residual))
        normed, total = add_norm(hidden, residual, norm, backend="triton")
        weights = [copies(torch.randn_like(t[:1]), self.BATCH) for t in (normed, total)]
        gradients = torch.autograd.grad([normed, total], [hidden, residual], weights)
        self.check(normed.detach(), total.detach(), *gradients)


def small_model(**kwargs):
    torch.manual_seed(0)
    return models.MambaSSAST(
        embed_dim=64, depth=3, img_size=(40, 80), patch_size=(4, 16), frequency_first=False, **kwargs
    )


class TestModel:
    @pytest.mark.parametrize("rms_norm", [True, False])
    def test_the_encoder_gives_the_same_as_on_the_cpu(self, rms_norm):
        model, x = small_model(rms_norm=rms_norm), torch.randn(3, 1, 40, 80)
        with torch.no_grad():
            torch.testing.assert_close(
                copy.deepcopy(model).cuda().forward_features(x.cuda()).cpu(),
                model.forward_features(x),
                rtol=1e-4,
                atol=1e-4,
            )

    @pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("cpu", "reference")])
    def test_carried_states_give_the_outputs_of_the_whole(self, backend):
        model = small_model().cuda()
        model.use_backend(backend)
        tokens = torch.randn(2, 50, 64, device="cuda")
        if backend == "mamba_ssm" and (reason := packages.unavailable_reason("mamba-ssm")):
            pytest.skip(reason)
        with torch.no_grad():
            states, parts = None, []
            for part in tokens.split([10, 1, 39], dim=1):
                out, states = model.step(part, states)
                parts.append(out)
            torch.testing.assert_close(torch.cat(parts, dim=1), model.encode(tokens), rtol=0, atol=1e-4)

    def test_fused_add_norm_changes_no_result(self):
        x = torch.randn(2, 1, 40, 80, device="cuda")
        with torch.no_grad():
            features = [small_model(fused_add_norm=fused).cuda().forward_features(x) for fused in (True, False)]
        torch.testing.assert_close(*features, rtol=1e-5, atol=1e-5)

    @needs_mamba_ssm
    def test_the_fused_block_equals_its_parts(self):
        model = small_model().cuda()
        mixer, hidden = model.blocks[0].mixer, torch.randn(2, 30, 64, device="cuda")
        if reason := mamba_block.package.unsupported_reason(BlockCall(hidden, mixer)):
            pytest.skip(reason)
        results = []
        for backend in ("auto", "triton"):
            mixer.backend = backend
            y = mixer(hidden)
            results.append([y, *torch.autograd.grad(y.square().sum(), list(mixer.parameters()))])
        for fused, parts in zip(*results, strict=True):
            assert (fused - parts).norm() <= 1e-3 * parts.norm()

    def test_torch_compile_without_graph_breaks(self):
        model, x = small_model().cuda(), torch.randn(2, 1, 40, 80, device="cuda")
        mask = torch.zeros(2, 50, device="cuda")
        for block in model.blocks:
            block.mixer.backend = "triton"  # the packages' functions are no operators
        expected = model(x, mask)[0]
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, mask)[0], expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_torch_compile_with_backward(self, backend):
        model, x = small_model(), torch.randn(2, 1, 40, 80).to(DEVICE)
        mask = (torch.arange(50) % 2 == 0).float().expand(2, -1).to(DEVICE)
        model.to(DEVICE).use_backend("triton")
        results = []
        for function in (model, torch.compile(model, fullgraph=True, backend=backend)):
            loss = reconstruction_loss(*function(x, mask))
            gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
            results.append([loss, *gradients])
        for compiled, plain in zip(*reversed(results), strict=True):
            assert (compiled - plain).norm() <= 1e-3 * plain.norm() + 1e-7

    def test_gradient_checkpointing_with_our_kernels(self):
        x = torch.randn(2, 1, 40, 80, device=DEVICE)
        mask = (torch.arange(50) % 2 == 0).float().expand(2, -1).to(DEVICE)
        results = []
        for checkpointing in (False, True):
            model = small_model().to(DEVICE)
            model.use_backend("triton")
            model.gradient_checkpointing = checkpointing
            loss = reconstruction_loss(*model(x, mask))
            results.append([loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])])
        for checkpointed, plain in zip(*reversed(results), strict=True):
            torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_training_goes_as_on_the_cpu(precision):
    """Twenty steps of AdamW on the same batches, within what the precision allows."""
    torch.manual_seed(1)
    batches = [(torch.randn(4, 1, 40, 80).cumsum(2) / 5, (torch.rand(4, 50) < 0.5).float()) for _ in range(20)]
    losses = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", precision)):
        model = small_model().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses[device] = []
        for x, mask in batches:
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = reconstruction_loss(*model(x.to(device), mask.to(device)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[device].append(loss.item())
    assert losses["cpu"][-1] < 0.9 * losses["cpu"][0]
    tolerance = 1e-4 if precision == torch.float32 else 3e-3
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=tolerance)


def test_the_convolution_reads_views_of_any_layout():
    weight = torch.randn(24, 4, device="cuda")
    x = torch.randn(2, 30, 48, device="cuda")[..., :24].transpose(1, 2)
    torch.testing.assert_close(
        causal_conv1d(x, weight, None, "silu"), causal_conv1d(x.contiguous().cpu(), weight.cpu(), None, "silu").cuda()
    )
