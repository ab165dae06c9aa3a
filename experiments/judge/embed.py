"""Embeddings of a task's clips by an encoder: layers and poolings of one pass, or log-mels without an encoder."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from audio_mamba.data.audio import load_audio
from audio_mamba.data.features import log_mel
from audio_mamba.hear_api.runtime import RuntimeSSAST
from experiments.judge.poolings import POOLINGS

OUTPUT = "output"  # of the encoder
GROUP = 32  # clips at once


class Features(NamedTuple):
    """What is made of an encoder's steps: blocks whose outputs are put together, such as "6+output", and a pooling."""

    layers: str
    pooling: str

    @classmethod
    def named(cls, name: str) -> "Features":
        """From "LAYERS:POOLING", or "POOLING" of the output. ValueError for an unknown pooling."""
        layers, _, pooling = name.rpartition(":")
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; choose from {', '.join(POOLINGS)}")
        return cls(layers or OUTPUT, pooling)

    def parts(self) -> list[str]:
        """The layers one by one."""
        return self.layers.split("+")


@contextmanager
def reading_layers(runtime: RuntimeSSAST, layers: Sequence[str]) -> Iterator[None]:
    """Make `runtime` give several layers in one pass: [bands, layers, embed_dim] in the place of [bands, embed_dim] of
    each step. A layer is a block, counted from 1, whose output goes through the final norm, or "output".

    Blocks after the last of the layers are not computed. ValueError if there is no such block.
    """
    model, width, forward_blocks = runtime.model, runtime.timestamp_embedding_size, runtime.model.forward_blocks
    blocks = model.blocks
    for layer in layers:
        if layer != OUTPUT and not (layer.isdigit() and 1 <= int(layer) <= len(model.blocks)):
            raise ValueError(f"no layer {layer!r}; choose 1 to {len(model.blocks)}, or {OUTPUT!r}")
    streams: dict[tuple[int, str], Tensor] = {}  # by thread, since the runtime encodes a batch in each

    def keep(layer: str) -> Callable[..., None]:
        def hook(_, __, output) -> None:  # SSAM's blocks return what they add to the stream, and the stream
            streams[threading.get_ident(), layer] = output if isinstance(output, Tensor) else output[0] + output[1]

        return hook

    def all_layers(tokens: Tensor) -> Tensor:
        output, norm, thread = forward_blocks(tokens), model.encoder_norm, threading.get_ident()
        found = [
            output if layer == OUTPUT else norm(streams.pop((thread, layer)).to(norm.weight.dtype)) for layer in layers
        ]
        return torch.cat(found, dim=-1)  # [B, L, layers * D]

    hooks = [model.blocks[int(layer) - 1].register_forward_hook(keep(layer)) for layer in layers if layer != OUTPUT]
    if OUTPUT not in layers:
        model.blocks = blocks[: max(map(int, layers))]
    model.forward_blocks = all_layers  # type: ignore[method-assign]
    runtime.timestamp_embedding_size = width * len(layers)
    try:
        yield
    finally:
        del model.forward_blocks
        model.blocks = blocks
        runtime.timestamp_embedding_size = width
        for hook in hooks:
            hook.remove()


def steps_of(runtime: RuntimeSSAST | None, paths: Sequence[Path], layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The steps of each clip in true time order, [t, width] by layer: of an encoder, or without one of log-mels."""
    if runtime is None:
        yield from ({OUTPUT: log_mel(torch.from_numpy(load_audio(path)))} for path in paths)
        return
    width = runtime.model.embed_dim
    with reading_layers(runtime, layers):
        for start in range(0, len(paths), GROUP):
            for steps, _ in runtime.embed(paths[start : start + GROUP], kind="timestamps", output="torch"):
                by_layer = steps.unflatten(1, (-1, len(layers), width)).unbind(2)  # [t, bands, D] each
                yield {layer: part.flatten(1) for layer, part in zip(layers, by_layer)}


def embeddings(
    runtime: RuntimeSSAST | None, paths: Sequence[Path], features: Sequence[Features], name: str = ""
) -> dict[Features, np.ndarray]:
    """float32 [n, width] of each of the features; the layers of one are concatenated after pooling."""
    wanted = {(layer, chosen.pooling) for chosen in features for layer in chosen.parts()}
    layers = sorted({layer for layer, _ in wanted})
    pooled: dict[tuple[str, str], list[Tensor]] = {key: [] for key in wanted}
    with torch.no_grad():
        for steps in tqdm(steps_of(runtime, paths, layers), desc=name, total=len(paths), unit="clip", leave=False):
            for layer, pooling in wanted:
                pooled[layer, pooling].append(POOLINGS[pooling](steps[layer]))
    stacked = {key: torch.stack(rows).numpy() for key, rows in pooled.items()}
    return {
        chosen: np.concatenate([stacked[layer, chosen.pooling] for layer in chosen.parts()], axis=1)
        for chosen in features
    }
