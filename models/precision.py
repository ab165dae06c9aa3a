"""The precisions in which encoders can run, by the names that configs and commands use."""

import contextlib

import torch

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """A context in which an encoder on `device` runs in `precision`, one of PRECISIONS; its weights stay float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])
