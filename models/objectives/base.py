"""What every objective of pretraining has, and the module of those that train a head of their own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from audio_mamba.models.encoder import MaskedSpectrogramEncoder

Batch = Mapping[str, Tensor]
Losses = tuple[Tensor, Mapping[str, Tensor | float]]  # the mean loss of a batch, and further numbers to watch by name


class Objective(ABC):
    """What pretraining minimises, chosen by `opt.objective`.

    train.py calls `start` or, to resume, `load_state_dict`; then `loss` for every batch and `after_step` after every
    step of the optimizer. A batch has "spectrogram", in the input layout of the encoder ([B, 1, T, M], or [B, 1, M, T]
    if it is frequency-first), and "mask" [B, L], 1 where masked, both on the device.

    Args:
        encoder: on its device. Its weights may still change until `start`.
        opt: the section `opt` of the config. A subclass may take further arguments, which are then the keys of
            `opt.objective_args`.

    Attributes:
        encoder: is saved as `model` in checkpoints.
        module: what the optimizer trains: the encoder, or a module that has it as its attribute `encoder`.
    """

    def __init__(self, encoder: MaskedSpectrogramEncoder, opt: Any):
        self.encoder = encoder
        self.module: nn.Module = encoder

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        """The loss of a batch, a scalar, and further numbers to watch by name, floats or scalars without gradients.

        `model` is `module`, compiled or wrapped for several processes. Call it exactly once. Every batch gives numbers
        of the same names.
        """

    def start(self) -> None:  # noqa: B027 - an optional hook
        """Called before the first step of a new run, when the encoder has its initial weights."""

    def after_step(self, progress: float) -> None:  # noqa: B027 - an optional hook
        """Called after each step of the optimizer; `progress` is the completed share of the run, above 0, up to 1."""

    def picture(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
        """Predicted patches [B, L, P] as normalised log-mels, true ones and the mask; None if nothing predicts them."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the encoder, as tensors and builtins; empty if there is nothing."""
        own = {key: value for key, value in self.module.state_dict().items() if not key.startswith("encoder.")}
        return {"module": own} if self.module is not self.encoder else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`, after the encoder's weights. Raises KeyError or RuntimeError if it does not fit."""
        if self.module is not self.encoder:
            encoder = {f"encoder.{key}": value for key, value in self.encoder.state_dict().items()}
            self.module.load_state_dict({**encoder, **state["module"]})


class EncoderWithHead(nn.Module):
    """An encoder and a further head on its masked tokens.

    Args:
        encoder: see `Objective`.
        head: [B, L, D] -> [B, L, ...].
        reconstructs: also train the encoder's own head, which predicts the patches. Otherwise it is frozen.
    """

    def __init__(self, encoder: MaskedSpectrogramEncoder, head: nn.Module, reconstructs: bool = False):
        super().__init__()
        self.encoder, self.head, self.reconstructs = encoder, head, reconstructs
        encoder.pred.requires_grad_(reconstructs)  # DistributedDataParallel would wait for its gradients

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Encoded tokens [B, L, D], the head's output, and with `reconstructs` the predicted patches [B, L, P]."""
        tokens, mask = self.encoder.encode_masked(x, mask)
        return tokens, self.head(tokens), self.encoder.pred(tokens) if self.reconstructs else None


def deviation_over_clips(tokens: Tensor, at_each_patch: bool = False) -> Tensor:
    """Of tokens [B, L, D]: the standard deviation over the clips of their mean tokens (ddof 0), averaged over channels.

    It tends to 0 if the representation collapses to the same for all clips; of a batch of one clip it is 0.

    Args:
        tokens: [B, L, D].
        at_each_patch: of the tokens at each patch instead, averaged over the patches, too. For tokens whose mean over a
            clip is 0 in any case.
    """
    tokens = tokens.detach().float()
    return (tokens if at_each_patch else tokens.mean(dim=1)).std(dim=0, correction=0).mean()


def check_masking(encoder: MaskedSpectrogramEncoder, objective: str, options: str = "") -> None:
    """Raise ValueError if the encoder masks nothing, which `objective` needs, at least with these options."""
    if not encoder.draw_mask(np.random.default_rng(0)).any():
        raise ValueError(
            f"opt.objective {objective!r}{options} needs masked patches, and model.model_args.mask_ratio "
            f"{encoder.mask_ratio:g} masks none"
        )
