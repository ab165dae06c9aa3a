"""The choice among back ends: order, names, the user's switch, and errors."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from ml_collections import ConfigDict
from torch.autograd import forward_ad

from audio_mamba import models
from audio_mamba.cli.train_config import check_same_experiment
from audio_mamba.models.mamba import Mamba
from audio_mamba.models.ops import (
    add_norm,
    causal_conv1d,
    dispatch,
    mamba_block,
    native,
    selective_scan,
    triton_support,
)
from audio_mamba.models.ops.calls import BlockCall, ConvCall
from audio_mamba.models.ops.dispatch import NAMES, VARIABLE, Operator
from audio_mamba.schema import check_config
from tests.models.ops.scan_cases import make_inputs

CALL = ConvCall(torch.zeros(1, 1, 1), torch.zeros(1, 1))


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "_announced", set())


def back_end(reason=None, **attributes):
    return SimpleNamespace(unsupported_reason=lambda call: reason, **attributes)


def test_auto_takes_the_first_back_end_that_supports_the_call():
    first, second, third = back_end("it is too large"), back_end(), back_end()
    assert Operator("double", {"triton": first, "cpu": second, "reference": third}).choose(CALL) is second


def test_auto_considers_a_back_end_only_on_its_devices():
    by_name, other = back_end(AUTO_DEVICES=("cuda",)), back_end()
    operator = Operator("double", {"triton": by_name, "reference": other})
    assert operator.choose(CALL) is other and operator.choose(CALL, "triton") is by_name


def test_a_named_back_end_that_does_not_support_the_call_is_an_error():
    operator = Operator("double", {"triton": back_end("it is too large"), "reference": back_end()})
    with pytest.raises(RuntimeError, match="double: back end 'triton' does not support this call: it is too large"):
        operator.choose(CALL, "triton")


def test_derivatives_in_forward_mode_are_left_to_the_reference():
    by_kernel, reference = back_end(), back_end()
    operator = Operator("double", {"cpu": by_kernel, "reference": reference})
    with forward_ad.dual_level():
        assert operator.choose(CALL) is operator.choose(CALL, "reference") is reference
        with pytest.raises(RuntimeError, match="double: back end 'cpu' .*: it has no derivatives in forward mode"):
            operator.choose(CALL, "cpu")
    assert operator.choose(CALL) is by_kernel


def test_an_error_without_any_back_end_gives_all_reasons():
    operator = Operator("double", {"triton": back_end("it is too large"), "cpu": back_end("it is too small")})
    with pytest.raises(RuntimeError, match="no back end .*triton: it is too large; cpu: it is too small"):
        operator.choose(CALL)


def test_a_name_that_the_operator_lacks_means_auto():
    only = back_end()
    assert Operator("double", {"reference": only}).choose(CALL, "chunked") is only


def test_each_choice_is_logged_once(caplog):
    operator = Operator("double", {"cpu": back_end(), "reference": back_end()})
    with caplog.at_level(logging.INFO):
        for backend in ("auto", "auto", "cpu", "reference", "auto"):
            operator.choose(CALL, backend)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["double on cpu: back end 'cpu'", "double on cpu: back end 'reference'"]


def test_an_exception_of_a_running_kernel_is_not_hidden(monkeypatch):
    def fail(*arguments):
        raise ArithmeticError("inside the kernel")

    first = next(iter(name for name in ("cpu", "chunked") if name == "chunked" or native.unsupported_reason() is None))
    monkeypatch.setattr(selective_scan.BACKENDS[first], "selective_scan", fail)
    with pytest.raises(ArithmeticError, match="inside the kernel"):
        selective_scan.selective_scan(**make_inputs(1, 4, 6, 2))


@pytest.mark.parametrize("operator", [selective_scan, causal_conv1d, add_norm, mamba_block])
def test_every_back_end_has_an_accepted_name_and_its_two_functions(operator):
    name = operator.__name__.rpartition(".")[2]
    for backend, module in operator.BACKENDS.items():
        assert backend in NAMES and backend != "auto"
        assert callable(module.unsupported_reason) and callable(getattr(module, name))


class TestSwitch:
    def test_the_variable_chooses_under_auto_and_code_that_names_a_back_end_wins(self, monkeypatch):
        inputs = make_inputs(1, 4, 60, 2)
        for name in ("reference", "chunked"):
            monkeypatch.setattr(selective_scan.BACKENDS[name], "selective_scan", lambda *_, name=name: name)
        monkeypatch.setenv(VARIABLE, "reference")
        assert selective_scan.selective_scan(**inputs) == "reference"
        assert selective_scan.selective_scan(**inputs, backend="chunked") == "chunked"
        monkeypatch.setenv(VARIABLE, "chunked")
        assert selective_scan.selective_scan(**inputs) == "chunked"

    def test_an_unknown_value_is_an_error_that_names_the_variable(self, monkeypatch):
        monkeypatch.setenv(VARIABLE, "fastest")
        for call in (
            lambda: selective_scan.selective_scan(**make_inputs(1, 4, 6, 2)),
            lambda: models.build("ssast_tiny", {"depth": 1}),
        ):
            with pytest.raises(ValueError, match="AUDIO_MAMBA_BACKEND=fastest .* auto, .*triton.*reference"):
                call()

    def test_the_reasons_of_a_value_that_does_not_fit_are_raised(self, monkeypatch):
        monkeypatch.setenv(VARIABLE, "mamba_ssm")
        with pytest.raises(RuntimeError, match="selective_scan: back end 'mamba_ssm' .* cpu, not on a CUDA device"):
            selective_scan.selective_scan(**make_inputs(1, 4, 6, 2))

    def test_operators_without_that_back_end_stay_at_auto(self, monkeypatch):
        monkeypatch.setenv(VARIABLE, "chunked")
        with torch.no_grad():
            assert models.mamba_ssast_tiny(depth=1).encode(torch.randn(1, 5, 192)).isfinite().all()

    def test_the_fused_block_is_used_only_if_nothing_else_is_asked_for(self, monkeypatch):
        call = BlockCall(torch.zeros(1, 1, 8), Mamba(8))
        monkeypatch.setattr(mamba_block.package, "unsupported_reason", lambda call: None)
        chosen = {name: mamba_block.choose_fused(call, name) for name in NAMES}
        assert {name for name, module in chosen.items() if module is mamba_block.package} == {"auto", "mamba_ssm"}
        monkeypatch.setenv(VARIABLE, "cpu")
        assert mamba_block.choose_fused(call) is None
        monkeypatch.setattr(mamba_block.package, "unsupported_reason", lambda call: "it is too large")
        assert mamba_block.choose_fused(call, "mamba_ssm") is None

    def test_the_variable_wins_over_the_config(self, monkeypatch):
        def built(backend):
            model = models.build("mamba_ssast_tiny", {"depth": 2}, backend)
            return {block.mixer.backend for block in model.blocks}

        assert built("chunked") == {"chunked"}
        monkeypatch.setenv(VARIABLE, "reference")
        assert built("chunked") == built("auto") == {"reference"}
        monkeypatch.setenv(VARIABLE, "auto")
        assert built("chunked") == {"auto"}
        with pytest.raises(ValueError, match="model.backend 'fastest' is unknown; choose from auto"):
            built("fastest")

    def test_the_config_key_has_a_default(self):
        def config(**model):
            return check_config(ConfigDict({"model": model}), models.ARCHS, source="here")

        assert config().model.backend == "auto" and config(backend="cpu").model.backend == "cpu"

    def test_a_run_may_resume_with_other_kernels(self, tmp_path):
        """And a run whose config.json is older than the key."""
        config = check_config(ConfigDict(), models.ARCHS, source="here")
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "checkpoint-0.pth").touch()
        for backend in (None, "cpu"):
            entries = config.to_dict()
            if backend is None:
                del entries["model"]["backend"]
            else:
                entries["model"]["backend"] = backend
            (tmp_path / "config.json").write_text(json.dumps(entries))
            check_same_experiment(tmp_path, config)
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"opt": {"learning_rate": 1.0}}))
        with pytest.raises(ValueError, match="opt.learning_rate is 1.0 there"):
            check_same_experiment(tmp_path, config)


@pytest.fixture
def cuda_tensor(monkeypatch):
    """What is asked of a CUDA tensor, with Triton installed, on a machine whose compilers are not known yet."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_support, "_installed", lambda: True)
    for name in ("CC", "CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)
    triton_support._cannot_build_reason.cache_clear()
    yield SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"))
    triton_support._cannot_build_reason.cache_clear()


def test_triton_needs_a_compiler_and_says_so_once(cuda_tensor, monkeypatch, tmp_path, caplog):
    """As in containers that can run PyTorch but build nothing: Triton would fail at its first kernel."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for _ in range(2):
        assert "no gcc, no clang and no CC" in triton_support.unsupported_reason(cuda_tensor)
    assert len(caplog.records) == 1 and "other kernels are used instead" in caplog.text


def test_triton_needs_the_headers_of_python(cuda_tensor, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(triton_support.sysconfig, "get_path", lambda *names: str(tmp_path))
    assert f"no {tmp_path / 'Python.h'}" in triton_support.unsupported_reason(cuda_tensor)
    triton_support._cannot_build_reason.cache_clear()
    (tmp_path / "Python.h").touch()
    assert triton_support.unsupported_reason(cuda_tensor) is None
