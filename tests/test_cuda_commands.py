"""Training and embedding on a CUDA device as users start them: `./run_tests.sh -m cuda`.

Most also run on the CPU, training among the slow tests, so that they are known to be right before a GPU sees them.
"""

import json

import pytest
import torch

pytest.importorskip("ml_collections")
pytest.importorskip("webdataset")

from audio_mamba.hear_api.api import load_model
from audio_mamba.training.records import read_steps
from tests.training.runs import STANDALONE, arguments, finish, losses, start

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)
CPU = pytest.param("cpu")
SLOW_CPU = pytest.param("cpu", marks=pytest.mark.slow)
CONFIG = "configs.ssam_tiny_200_16x4"


def train(workdir, device, *options, launcher_options=STANDALONE, processes=1):
    """16 steps of a tiny SSAM on random spectrograms. Returns the mean loss, and the rows of steps.csv."""
    command = arguments(workdir, None, "--device", device, *options, config=CONFIG, batch_size=64, num_epochs=1)
    run = start(processes, command, launcher_options)
    output = finish(run, timeout=280)
    assert run.returncode == 0, output
    return losses(workdir)[-1], read_steps(workdir / "steps.csv")


@pytest.fixture(scope="module")
def plain_losses(tmp_path_factory):
    """The loss in float32 on the CPU or the GPU, computed once for all tests of this file."""
    known = {}

    def loss(device):
        if device not in known:
            known[device] = train(tmp_path_factory.mktemp(device), device)[0]
        return known[device]

    return loss


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("device", [CUDA, SLOW_CPU])
def test_training_in_lower_precision_stays_close_to_float32(tmp_path, plain_losses, device, precision):
    """float16 through the GradScaler, whose first scale may be too large for a few steps.

    A processor that is slow in the precision takes float32.
    """
    loss, rows = train(tmp_path, device, "--precision", precision)
    used = json.loads((tmp_path / "config.json").read_text())["precision"]
    assert used == precision or device == "cpu" and used == "float32"
    assert loss == pytest.approx(plain_losses(device), rel=0.01)
    assert rows and rows[-1]["skipped"] <= 2
    assert (rows[-1].get("loss_scale", 0) > 1) == (used == "float16")


@pytest.mark.parametrize("device", [CUDA, SLOW_CPU])
def test_gradient_checkpointing_trains_the_same(tmp_path, plain_losses, device):
    loss, _ = train(tmp_path, device, "--gradient-checkpointing")
    assert loss == pytest.approx(plain_losses(device), rel=1e-4)


@pytest.mark.parametrize("device", [CUDA, SLOW_CPU])
def test_a_compiled_model_trains_the_same(tmp_path, plain_losses, device):
    loss, _ = train(tmp_path, device, "--compile")
    assert loss == pytest.approx(plain_losses(device), rel=1e-3)


@pytest.mark.parametrize("device", [CUDA])
def test_tf32_stays_close_to_float32(tmp_path, plain_losses, device):
    assert train(tmp_path, device, "--tf32")[0] == pytest.approx(plain_losses(device), rel=0.01)


@pytest.mark.parametrize("device", [CUDA, SLOW_CPU])
def test_one_process_under_torchrun_trains_the_same(tmp_path, plain_losses, device):
    """The parallel wrapper on nccl, or on gloo for the CPU."""
    loss, _ = train(tmp_path, device, launcher_options=(*STANDALONE, "--max-restarts=0"))
    assert loss == pytest.approx(plain_losses(device), rel=1e-4)


@pytest.mark.parametrize("precision, allowed", [("float32", 1e-4), ("float16", 1e-3), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("device", [CUDA, CPU])
@pytest.mark.parametrize("name", ["ssam_tiny_free_audio", "ssast_tiny_free_audio"])
def test_embeddings_in_each_precision_are_close_to_float32_on_the_cpu(name, device, precision, allowed):
    """Clips from quiet to loud, and one longer than a segment."""
    loudness = torch.tensor([[1e-3], [0.01], [0.1], [0.5]])
    generator = torch.Generator().manual_seed(0)
    clips = [*(torch.randn(4, 16000, generator=generator) * loudness), torch.randn(40000, generator=generator) / 10]
    true = load_model(name, device="cpu", precision="float32").embed(clips, output="torch")
    found = load_model(name, device=device, precision=precision).embed(clips, output="torch")
    assert found.dtype == torch.float32 and found.device.type == "cpu" and found.isfinite().all()
    assert ((found - true).norm(dim=1) <= allowed * true.norm(dim=1)).all()
