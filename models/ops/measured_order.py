"""Which of several GPU back ends "auto" takes, where they were measured against each other.

TABLE has a line for each measurement: the operator; the GPU's compute capability; the shapes, "many" or "few"
sequences; the pass, "training" or "inference"; and each back end with its milliseconds in one run of benchmarks.gpu.
The fastest comes first. For `mamba_block`, "triton" is the block composed of its operators. What was not measured keeps
the order of the operator's BACKENDS.
"""

import math
from collections.abc import Mapping

import torch

from audio_mamba.models.ops.calls import BlockCall, Call, ConvCall, ScanCall
from audio_mamba.models.ops.private_torch import constant_when_traced

TABLE = """
# operator        GPU    shapes  pass       back ends and milliseconds
selective_scan    sm_90  many    training   mamba_ssm 6.75  triton 4.50   # H200, benchmarks/results
selective_scan    sm_90  many    inference  mamba_ssm 1.65  triton 1.05
selective_scan    sm_90  few     training   mamba_ssm 3.41  triton 2.11
"""
BACKENDS = {
    "selective_scan": {"mamba_ssm", "triton"},
    "causal_conv1d": {"causal_conv1d", "triton"},
    "mamba_block": {"mamba_ssm", "triton"},
}
SHAPES, PASSES = ("many", "few"), ("training", "inference")
MANY = 2**15  # sequences, batch times channels: with fewer, `selective_scan.triton` cuts time to keep a large GPU busy

Key = tuple[str, str, str, str]


def parse(table: str) -> dict[Key, tuple[str, ...]]:
    """The back ends of each line of a table, the fastest first, by operator, GPU, shapes and pass.

    Raises:
        ValueError: a line that does not have this form, or a second one for the same case; the message quotes it.
    """
    orders: dict[Key, tuple[str, ...]] = {}
    for line in table.splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        key, rest = words[:4], words[4:]
        times = {name: _milliseconds(text) for name, text in zip(rest[::2], rest[1::2])}
        if (
            len(key) < 4
            or not (key[1].startswith("sm_") and key[1][3:].isdigit())
            or key[2] not in SHAPES
            or key[3] not in PASSES
            or len(rest) % 2
            or len(times) != len(rest) / 2
            or times.keys() != BACKENDS.get(key[0])
            or not all(0 < milliseconds < math.inf for milliseconds in times.values())
        ):
            raise ValueError(
                f"{line.strip()!r} is not of the form: operator sm_NN {'|'.join(SHAPES)} {'|'.join(PASSES)}, then "
                f"every back end of the operator with its milliseconds; see BACKENDS of {__name__}"
            )
        operator, gpu, shapes, direction = key
        if (operator, gpu, shapes, direction) in orders:
            raise ValueError(f"{line.strip()!r} is the second line for the same case")
        orders[operator, gpu, shapes, direction] = tuple(sorted(times, key=times.__getitem__))
    return orders


def _milliseconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


ORDERS: Mapping[Key, tuple[str, ...]] = parse(TABLE)


def measured_order(operator: str, call: Call) -> tuple[str, ...]:
    """The measured back ends for a call, the fastest first; empty if they were not measured."""
    if not ORDERS or call.device_type != "cuda":
        return ()
    if isinstance(call, ScanCall):
        first, sequences, trains = call.u, call.u.shape[0] * call.u.shape[1], call.needs_gradient
    elif isinstance(call, ConvCall):
        first, sequences, trains = call.x, call.x.shape[0] * call.x.shape[1], call.needs_gradient
    elif isinstance(call, BlockCall):
        A_log = call.block.paths[0].A_log
        first, sequences = call.hidden, call.hidden.shape[0] * A_log.shape[0]
        trains = torch.is_grad_enabled() and (call.hidden.requires_grad or A_log.requires_grad)
    else:
        return ()
    shapes = "few" if sequences < MANY else "many"
    direction = "training" if trains else "inference"
    return ORDERS.get((operator, generation(first.device), shapes, direction), ())


@constant_when_traced
def generation(device: torch.device) -> str:
    """The compute capability of a CUDA device, such as "sm_90"."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def reordered(names: list[str], first: tuple[str, ...]) -> list[str]:
    """`names`, in which those of `first` take their places in the order of `first`."""
    turn = iter(name for name in first if name in names)
    return [next(turn) if name in first else name for name in names]
