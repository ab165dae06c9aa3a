"""Weights, inputs and masks of the golden numbers, rebuilt from the rules of tests/golden/README.md."""

import zlib

import numpy as np
import torch
from torch import nn


def fill_by_rule(model: nn.Module, tag: int = 1) -> nn.Module:
    """Fill every entry of the state dict but pos_embed from its own name; returns the model."""
    state = model.state_dict()
    for key, tensor in state.items():
        if key != "pos_embed":
            state[key] = torch.from_numpy(_values(key, tuple(tensor.shape), tag).astype(np.float32))
    model.load_state_dict(state)
    return model


def _values(key, shape, tag):
    a = np.random.RandomState((zlib.crc32(key.encode()) + tag) % 2**32).standard_normal(shape)
    if key.endswith("A_log"):
        return np.log(np.arange(1, shape[-1] + 1)) + 0.1 * a
    if key.endswith(".D"):
        return 1 + 0.1 * a
    if key.endswith("dt_proj.bias"):
        return -4 + 0.5 * a
    if "norm" in key and key.endswith("weight"):
        return 1 + 0.1 * a
    if key.endswith("bias") or key in ("cls_token", "mask_token"):
        return 0.02 * a
    return a / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else shape[0])


def golden_input(tag: int = 1) -> torch.Tensor:
    """[2, 1, 200, 80]"""
    values = np.random.RandomState(1000 + tag).standard_normal((2, 1, 200, 80))
    return torch.from_numpy(values.astype(np.float32))


def golden_mask(tag: int = 1) -> torch.Tensor:
    """[2, 250], 1 = masked, the same for both clips"""
    mask = np.random.RandomState(2000 + tag).permutation(250) % 2
    return torch.from_numpy(mask.astype(np.float32)).expand(2, -1)


def golden_audio(samples: int, tag: int = 1) -> torch.Tensor:
    """[2, samples] at 16 kHz"""
    rng, t = np.random.RandomState(tag), np.arange(samples) / 16000
    clips = [
        0.3 * np.sin(2 * np.pi * (200 + 150 * i) * t * (1 + 0.1 * t)) + 0.05 * rng.standard_normal(samples)
        for i in range(2)
    ]
    return torch.from_numpy(np.stack(clips).astype(np.float32))


def assert_rounds_alike(ours: np.ndarray, published: np.ndarray, exact: np.ndarray, most: float) -> None:
    """That float32 numbers are as near to the exact ones, of float64, as the published float32 numbers are, which are
    near (root mean squares: within twice their error, and within `most`)."""
    error, theirs = (float(np.sqrt(np.mean(np.square(numbers - exact)))) for numbers in (ours, published))
    assert theirs < most and error < 2 * theirs, (error, theirs)
