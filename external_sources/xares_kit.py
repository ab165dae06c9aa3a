"""What the unmodified xares 0.1.3 (X-ARES, Zhang et al., Interspeech 2025) needs to run on our encoders.

The files of the package are not changed. It is imported and run inside `stand_ins`.
"""

import contextlib
import importlib.machinery
import itertools
import random
import types
from collections.abc import Iterator
from typing import Any

import soundfile
import soxr
import torch
from torch import Tensor

from audio_mamba.config_names import import_named
from audio_mamba.external_sources.compat import replaced_modules


class HearEncoder(torch.nn.Module):
    """A model with the HEAR API as an encoder of X-ARES, which reads its timestamp embeddings.

    Args:
        module: stored name of a config, or of any module with the HEAR API.
        model: what its `load_model` returned.

    Attributes:
        sampling_rate: of the audio in Hz.
        output_dim: width D of the embeddings.
        hop_size_in_ms: from one embedding to the next.
    """

    def __init__(self, module: str, model: Any):
        super().__init__()
        self.model = model
        self._embed = import_named(module).get_timestamp_embeddings
        self.sampling_rate: int = model.sample_rate
        self.output_dim: int = model.timestamp_embedding_size
        _, timestamps = self._embed(torch.zeros(1, 2 * self.sampling_rate), model)
        self.hop_size_in_ms = float(timestamps[0, 1] - timestamps[0, 0])

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, samples] -> embeddings float32 [B, T, D]."""
        return self._embed(audio, self.model)[0]


def make_encoder(name: str, module: str, model: Any) -> HearEncoder:
    """A `HearEncoder` whose class is called `<name>Encoder`, since X-ARES names its folders by the class."""
    return type(f"{name}Encoder", (HearEncoder,), {})(module, model)


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Let xares find what it imports of torchaudio, transformers and jiwer.

    It decodes and resamples with torchaudio. Here soundfile and soxr do that, even where torchaudio is installed, so
    that scores do not depend on it. The other two are for tasks with a language model, which are not run. The order of
    its training data depends on the clock; here it is the same each time.
    """
    torchaudio = _module("torchaudio", load=_load, functional=types.SimpleNamespace(resample=_resample))
    language = _module("transformers", AutoModelForCausalLM=None, AutoTokenizer=None), _module("jiwer", wer=None)
    with replaced_modules(torchaudio, *language):
        from webdataset import filters
        from xares import audiowebdataset

        kits_own = audiowebdataset.expand_with_brace
        seeds = itertools.count(42)
        with contextlib.ExitStack() as patches:
            patches.callback(setattr, filters, "random", random)
            filters.random = types.SimpleNamespace(**vars(random) | {"Random": lambda *_: random.Random(next(seeds))})
            patches.callback(torch.set_num_threads, torch.get_num_threads())  # each task of xares sets it
            patches.callback(setattr, audiowebdataset, "expand_with_brace", kits_own)
            audiowebdataset.expand_with_brace = lambda urls: sorted(kits_own(urls))  # else in the order of the disk
            yield


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(members)
    return module


def _load(path: str) -> tuple[Tensor, int]:
    """`torchaudio.load`: float32 [channels, samples] and the rate."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), rate


def _resample(audio: Tensor, rate: int, wanted: int) -> Tensor:
    """`torchaudio.functional.resample`, with soxr: audio [channels, samples]."""
    if rate == wanted:
        return audio
    return torch.from_numpy(soxr.resample(audio.numpy().T, rate, wanted, quality="HQ").T.copy())
