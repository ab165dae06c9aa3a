"""The worked examples of docs/extending.md: applied to a copy of the project they work as the page says."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
NEW_FILES = dict(
    re.findall(r"`((?:models|configs|mypackage)/[\w/]+\.py)`[^`]*:\n\n```python\n(.*?)^```", PAGE, re.M | re.S)
)
DIFFS = re.findall(r"^```diff\n(.*?)^```", PAGE, re.M | re.S)

CHECKS = {
    "encoder": """
import torch
import audio_mamba
from audio_mamba import models
from audio_mamba.hear_api.resolve import load_config
try:
    models.build("gru_ssast_tiny", {})
    raise SystemExit("an encoder was there before its module was imported")
except ValueError as error:
    assert "unknown model.arch 'gru_ssast_tiny'" in str(error) and "AUDIO_MAMBA_ENCODERS" in str(error)
assert load_config("mypackage.gru").model.arch == "gru_ssast_tiny"
model = models.build("gru_ssast_tiny", {"depth": 2, "embed_dim": 48, "frequency_first": False, "img_size": (200, 80),
                                        "patch_size": (4, 16), "gru_layers": 2})
prediction, target, mask = model(torch.randn(2, 1, 200, 80))
(prediction - target).square().mean().backward()
assert prediction.shape == target.shape == (2, 250, 64) and all(p.grad is not None for p in model.blocks.parameters())
assert len(model.blocks) == 2 and model.blocks[0].gru.num_layers == 2
audio = 0.1 * torch.randn(1, 40000)
embeddings, times = audio_mamba.load_model("mypackage.gru", "untrained", "cpu").get_timestamp_embeddings(audio)
assert embeddings.shape == (1, 63, 960) and times[0, :2].tolist() == [0, 40]

# Causal, as it says: features of a clip do not depend on what follows.
model.eval()
x = torch.randn(1, 1, 200, 80)
torch.testing.assert_close(model.forward_features(x, "bands")[:, :10], model.forward_features(x, "bands", steps=10))
""",
    "objective": """
import math
import pathlib
import tempfile
import numpy as np
import torch
from audio_mamba import models, train
from audio_mamba.cli import train_data
from audio_mamba.models.objectives.random_codes import RandomCodes
from audio_mamba.training import checkpoint
from audio_mamba.training.records import read_steps

encoder = models.ssast_tiny(depth=1, embed_dim=48, img_size=(200, 80), patch_size=(4, 16), frequency_first=False)
objective = RandomCodes(encoder, None, codes=40)
x, mask = torch.randn(2, 1, 200, 80), (torch.rand(2, 250) < 0.5).float()
loss, numbers = objective.loss(objective.module, {"spectrogram": x, "mask": mask})
projected = encoder.patchify(x).double().numpy() @ objective.module.projection.double().numpy()
projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
distances = np.linalg.norm(projected[:, :, None] - objective.module.codebook.double().numpy(), axis=-1)
logits = objective.module(x, mask)[1].detach().double().numpy()
log_share = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
errors = -np.take_along_axis(log_share, distances.argmin(-1)[..., None], -1)[..., 0]
assert math.isclose(loss.item(), errors[mask.bool().numpy()].mean(), rel_tol=1e-5)

train_data.FAKE_SAMPLES = 16
train.figures._save = lambda figure, path: None
workdir = pathlib.Path(tempfile.mkdtemp())
for epochs in (1, 2):
    train.main(["--config", "configs.ssast_tiny_200_16x4", "--workdir", str(workdir), "--fake-data", "--no-wandb",
                "--device", "cpu", "--num-workers", "0", "--print-freq", "1", "--set", "batch_size=4",
                "opt.objective=audio_mamba.models.objectives.random_codes:RandomCodes", "opt.objective_args.codes=40",
                "model.model_args.depth=1", "model.model_args.embed_dim=48", f"num_epochs={epochs}"])
rows = read_steps(workdir / "steps.csv")
assert len(rows) == 8 and all(0 <= row["accuracy"] <= 1 and 3 < row["train_loss"] < 5 for row in rows)
first, last = (checkpoint.load_checkpoint(workdir / "checkpoints" / f"checkpoint-{epoch}.pth") for epoch in (0, 1))
assert first["objective"]["module"].keys() == {"head.weight", "head.bias", "projection", "codebook"}
assert torch.equal(first["objective"]["module"]["codebook"], last["objective"]["module"]["codebook"])
assert not torch.equal(first["objective"]["module"]["head.bias"], last["objective"]["module"]["head.bias"])
""",
    "mixer": """
import numpy as np
import torch
import audio_mamba
from audio_mamba import models
from audio_mamba.hear_api.resolve import resolve
from audio_mamba.hear_api.runtime import build_runtime
from mypackage.gated import GatedRecurrence

# The recurrence as a loop, in float64.
torch.manual_seed(0)
mixer, x = GatedRecurrence(6).double(), torch.randn(2, 11, 6, dtype=torch.float64)
value, forget, gate = (x @ mixer.in_proj.weight.T + mixer.in_proj.bias).chunk(3, -1)
a, h, truth = torch.sigmoid(forget), 0, []
for t in range(11):
    h = a[:, t] * h + (1 - a[:, t]) * value[:, t]
    truth.append((h * gate[:, t] * torch.sigmoid(gate[:, t])) @ mixer.out_proj.weight.T)
truth = torch.stack(truth, 1)
torch.testing.assert_close(mixer(x), truth)
pieces, state = [], None
for first, end in ((0, 4), (4, 5), (5, 11)):
    y, state = mixer.step(x[:, first:end], state)
    pieces.append(y)
torch.testing.assert_close(torch.cat(pieces, 1), truth)
torch.testing.assert_close(mixer.float()(x.float()), truth.float(), rtol=1e-4, atol=1e-5)  # the kernels of the machine
with torch.no_grad():
    mixer.in_proj.bias[12:24] = 200.0  # the gates fully open: the state stays at zero
assert (mixer(x.float()) == 0).all()

# In the encoder: causal, trained as others are, with live embeddings equal to those of the file.
model = models.build("gated_ssast_tiny", {"depth": 2, "embed_dim": 48, "frequency_first": False,
                                          "img_size": (200, 80), "patch_size": (4, 16)})
prediction, target, mask = model(torch.randn(2, 1, 200, 80))
(prediction - target).square().mean().backward()
assert all(p.grad.abs().max() > 0 for p in model.blocks.parameters())
model.eval()
x = torch.randn(1, 1, 200, 80)
torch.testing.assert_close(model.forward_features(x, "bands")[:, :10], model.forward_features(x, "bands", steps=10))
runtime = build_runtime(resolve("mypackage.gated", "untrained"), device="cpu")
audio = 0.1 * torch.randn(40000)
embeddings, times = runtime.get_timestamp_embeddings(audio[None])
assert embeddings.shape == (1, 63, 960) and times[0, :2].tolist() == [0, 40]
with torch.no_grad():
    tokens = runtime.model.embed(x)
    whole, states, steps = runtime.model.encode(tokens), None, []
    for first in range(0, 250, 50):
        out, states = runtime.model.step(tokens[:, first : first + 50], states)
        steps.append(out)
torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-3, atol=1e-4)

# Exported for any size of the batch, with one block, since tracing takes its time.
import pathlib
import tempfile
from audio_mamba.hear_api.export import export
source = resolve("mypackage.gated", "untrained")
source.config.model.model_args.depth = 1
runtime = build_runtime(source, device="cpu")
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    export(runtime, pathlib.Path(folder) / "gated.pt2")
    program = torch.export.load(pathlib.Path(folder) / "gated.pt2").module()
    segments = torch.randn(3, 1, *runtime.model.img_size)
    torch.testing.assert_close(program(segments), runtime.model.forward_features(segments, "bands"))
""",
    "front end": """
import numpy as np
import torch
from audio_mamba.data.features import log_mel, mel_filter_bank
from audio_mamba.front_end import PUBLISHED, FrontEnd, FrontEndError, parse_settings
from audio_mamba.hear_api.resolve import resolve
from audio_mamba.hear_api.runtime import build_runtime

audio = 0.1 * np.random.default_rng(0).standard_normal(1600)
amplitude = parse_settings(["power=1"])
padded = np.pad(audio, 200, mode="reflect")
window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
frames = np.stack([padded[160 * i : 160 * i + 400] * window for i in range(11)])
truth = np.log(np.abs(np.fft.rfft(frames)) @ mel_filter_bank() + PUBLISHED.log_offset)
np.testing.assert_allclose(log_mel(torch.from_numpy(audio).float(), amplitude).numpy(), truth, rtol=1e-3, atol=1e-3)
assert FrontEnd.from_settings({}) == FrontEnd.from_settings({"power": 2.0}) == PUBLISHED
try:
    amplitude.check_same(PUBLISHED, "the archive a")
    raise SystemExit("a mismatch was accepted")
except FrontEndError as error:
    assert "power is 2 there and 1 here" in str(error)

runtime = build_runtime(resolve("ssam_tiny_32khz", "untrained"), device="cpu")
embeddings, times = runtime.get_timestamp_embeddings(torch.zeros(1, 32000) + 0.1 * torch.randn(1, 32000))
assert runtime.sample_rate == 32000 and embeddings.shape == (1, 26, 8 * 192) and times[0, 1] == 40
""",
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with the examples of the page."""
    copy = tmp_path_factory.mktemp("extended")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if os.path.lexists(ROOT / name) and not name.endswith((".npz", ".png", ".pth")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    for name, code in NEW_FILES.items():
        assert not (copy / name).exists()
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(code)
    for diff in DIFFS:
        done = subprocess.run(["git", "apply", "-"], cwd=copy, input=diff, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stderr}\n{diff}"
    return copy


def test_the_page_has_all_examples():
    assert set(NEW_FILES) == {
        "mypackage/gru.py",
        "mypackage/gated.py",
        "models/objectives/random_codes.py",
        "models/ops/selective_scan/doubling.py",
        "configs/ssam_tiny_32khz.py",
    }
    assert len(DIFFS) == 2 and len(re.findall("^```python", PAGE, re.M)) == len(NEW_FILES)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.slow
def test_the_example_works(extended, name):
    done = subprocess.run([sys.executable, "-c", CHECKS[name]], cwd=extended, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_commands_take_the_encoder(extended, tmp_path):
    """Trained, embedded with --config, found by the environment variable without it, and else refused by name."""
    soundfile.write(tmp_path / "my.wav", 0.1 * np.random.default_rng(0).standard_normal(32000), 16000)
    run = str(tmp_path / "run")
    train = [
        "train.py",
        "--config",
        "mypackage.gru",
        "--workdir",
        run,
        "--fake-data",
        "--no-wandb",
        "--num-workers",
        "0",
    ]
    small = ["model.model_args.depth=1", "model.model_args.embed_dim=32", "num_epochs=1", "batch_size=32"]
    done = run_python(extended, *train, "--set", *small)
    assert done.returncode == 0, done.stderr
    embed = ["-m", "audio_mamba.hear_api.embed", "my.wav", "--weights", run, "--workers", "1", "--device", "cpu"]
    named, variable = {"PYTHONPATH": str(extended)}, {"AUDIO_MAMBA_ENCODERS": "mypackage.gru"}
    for options, variables in (["--config", "mypackage.gru", "--out", "a.npz"], {}), (["--out", "b.npz"], variable):
        done = run_python(tmp_path, *embed, *options, **named, **variables)
        assert done.returncode == 0, done.stderr
    rows = [np.load(tmp_path / name)["embedding"] for name in ("a.npz", "b.npz")]
    assert rows[0].shape == (1, 5 * 32) and np.array_equal(*rows)
    done = run_python(tmp_path, *embed, "--out", "c.npz", **named)
    assert re.search(r"^embed: .*unknown model.arch 'gru_ssast_tiny'; .*\$AUDIO_MAMBA_ENCODERS\)$", done.stderr, re.M)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    done = run_python(extended, *train, "--set", "model.model_args.gru_layer=2")
    assert done.returncode == 1 and "did you mean 'model.model_args.gru_layers'?" in done.stderr


def test_the_back_end_equals_the_reference(extended):
    """By the tests that compare all back ends, of which this is now one."""
    run_tests(extended, "tests/models/ops/test_scan_backends.py", "-k", "doubling and (groups or causality)")


@pytest.mark.slow
def test_the_back_end_passes_the_tests_that_the_page_says(extended):
    run_tests(extended, "tests/models/ops/test_scan_backends.py", "-k", "doubling and not memory")


@pytest.mark.slow
def test_the_examples_import_downward(extended):
    run_tests(extended, "tests/test_layers.py", "-k", "random_codes or doubling or 32khz or circle")


def run_python(folder, *arguments, **variables):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=os.environ | variables
    )


def run_tests(copy, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout
