"""What benchmarks.gpu measures: the list of measurements, and for each a function to run repeatedly."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from audio_mamba import models
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.loss import reconstruction_loss
from audio_mamba.models.ops import packages
from audio_mamba.models.ops.selective_scan import chunked, package, triton
from audio_mamba.training import optim

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXPAND, STATE = 3, 24  # of SSAM
SCANS = {"pretraining": (256, EXPAND * 192, 251, STATE), "long clip": (1, EXPAND * 192, 22000, STATE)}  # B, D, L, N
LENGTHS = (251, 1000, 4000, 16000, 22000)
BATCH = 256
COMPILED, BACKWARD_IN_TIME = "torch.compile", "ours, backward in time"
ENCODERS = {"SSAM": "mamba_ssast", "AxLSTM": "xlstm_ssast", "SSAST": "ssast"}  # with the prefixes of their archs
SIZES = ("SSAM-tiny", "SSAM-tiny alternate", "SSAM-tiny both", "SSAM-small", "SSAM-base", "AxLSTM-tiny")


@dataclass(frozen=True)
class Task:
    """One measurement. kind: scan, encoder, step or tokens; way: whose kernels."""

    kind: str
    subject: str
    way: str
    precision: str
    backward: bool


def other_side() -> str:
    """Whose scan ours is compared with, and why, in a sentence."""
    reason = packages.unavailable_reason("mamba-ssm")
    return f"torch.compile of the plain PyTorch scan, since {reason}" if reason else "mamba-ssm"


def tasks() -> list[Task]:
    """All measurements, the most important first."""
    ways = ["ours"] if packages.unavailable_reason("mamba-ssm") else ["ours", "mamba-ssm"]
    fused = [] if packages.incompatible_reason() else [way + ", fused block" for way in ways[1:]]
    compiled = [Task("scan", "pretraining", COMPILED, "bfloat16", backward) for backward in (False, True)]
    found = [
        Task("scan", subject, way, precision, backward)
        for precision in ("bfloat16", "float32")
        for subject in SCANS
        for way in ways
        for backward in (False, True)
    ]
    found += [Task("scan", "pretraining", BACKWARD_IN_TIME, "bfloat16", backward) for backward in (False, True)]
    found += [Task("step", f"SSAM-tiny, {BATCH}", way, "bfloat16", True) for way in ways + fused]
    if len(ways) == 1:
        found += compiled
    found += [
        Task(kind, f"{encoder}, {BATCH}", "ours", precision, kind == "step")
        for encoder in SIZES
        for precision in ("bfloat16", "float16", "float32")
        for kind in ("encoder", "step")
        if (kind, encoder, precision) != ("step", "SSAM-tiny", "bfloat16")
    ]
    found += [
        Task("tokens", f"{encoder}-tiny, {length}", "ours", "bfloat16", backward)
        for length in LENGTHS
        for backward in (False, True)
        for encoder in ENCODERS
    ]
    # Last, since compiling takes long and the long clip would take hours.
    if len(ways) > 1:
        found += compiled
    return found + [Task("scan", "long clip", "plain", "bfloat16", backward) for backward in (False, True)]


def build(encoder: str, way: str, **arguments: object) -> MaskedSpectrogramEncoder:
    """An encoder on the GPU with the kernels of a way; "SSAM-tiny both" is SSAM-tiny of direction "both"."""
    name, size = encoder.split("-")
    size, _, direction = size.partition(" ")
    if direction:
        arguments["direction"] = direction
    model = models.ARCHS[f"{ENCODERS[name]}_{size}"](**arguments).cuda()
    if isinstance(model, models.MambaSSAST):
        model.use_backend("triton" if way == "ours" else "mamba_ssm")
        for block in model.blocks if way == "mamba-ssm" else ():
            block.mixer.forward = block.mixer.compose
    return model


def scan_work(shape: tuple[int, int, int, int], number_size: int, backward: bool) -> tuple[int, int]:
    """The least bytes and exponentials of a scan with gate: forward reads u, delta and z and writes y; backward reads
    u, delta, z and dy and writes the gradients of the first three, and does all exponentials again."""
    batch, channels, length, state = shape
    steps = batch * channels * length
    return (4 + 7 * backward) * number_size * steps, (1 + backward) * state * steps


def scan_run(task: Task) -> Callable[[], object]:
    batch, channels, length, state = SCANS[task.subject]
    dtype = DTYPES[task.precision]

    def sequence(width: int) -> Tensor:  # channels-last views, as the Mamba block passes them; mamba-ssm copies those
        values = torch.randn(batch, length, width, device="cuda", dtype=dtype).transpose(1, 2)
        return values.contiguous() if task.way == "mamba-ssm" else values

    u, z, delta, B, C = (sequence(width) for width in (channels, channels, channels, state, state))
    A = -torch.arange(1.0, state + 1, device="cuda").expand(channels, -1).contiguous()
    inputs = [u, delta - 2, A, B, C, torch.ones(channels, device="cuda"), z, torch.zeros(channels, device="cuda")]
    inputs = [t.requires_grad_(task.backward) for t in inputs]
    weights = torch.randn_like(u)
    scan = {
        "ours": triton.selective_scan,
        BACKWARD_IN_TIME: partial(triton.selective_scan, reverse=True),
        "mamba-ssm": package.selective_scan,
        "plain": chunked.selective_scan,
    }.get(task.way) or torch.compile(chunked.selective_scan)

    def run():
        with torch.set_grad_enabled(task.backward):
            y = scan(*inputs, delta_softplus=True)
        return torch.autograd.grad(y, inputs, weights) if task.backward else y

    return run


def model_run(task: Task) -> Callable[[], object]:
    """An encoder's features of a batch, or a training step on it."""
    encoder = task.subject.split(",")[0]
    norm = {"rms_norm": False} if encoder.startswith("SSAM") else {}
    model = build(encoder, task.way, img_size=(200, 80), patch_size=(4, 16), frequency_first=False, **norm)
    x, mask = torch.randn(BATCH, 1, 200, 80, device="cuda"), (torch.rand(BATCH, 250, device="cuda") < 0.5).float()
    dtype = DTYPES[task.precision]
    autocast = torch.autocast("cuda", dtype, enabled=dtype != torch.float32)
    if task.kind == "encoder":

        def run():
            with torch.no_grad(), autocast:
                model.forward_features(x)

        return run

    optimizer = torch.optim.AdamW(optim.parameter_groups(model, 0.05), lr=1e-4, betas=(0.9, 0.95), fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)

    def step():
        with autocast:
            loss = reconstruction_loss(*model(x, mask))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def tokens_run(task: Task) -> Callable[[], object]:
    encoder, length = task.subject.split(", ")
    model = build(encoder, task.way)
    tokens = torch.randn(1, int(length), model.embed_dim, device="cuda")

    def run():
        with torch.set_grad_enabled(task.backward), torch.autocast("cuda", DTYPES[task.precision]):
            y = model.forward_blocks(tokens)
        if task.backward:
            y.float().sum().backward()

    return run


RUNS = {"scan": scan_run, "encoder": model_run, "step": model_run, "tokens": tokens_run}
