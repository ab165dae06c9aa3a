"""Predict what a moving average of the encoder makes of the whole clip (data2vec, Baevski et al. 2022)."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_mamba.models.checks import check_not_negative
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.loss import mean_over_masked
from audio_mamba.models.objectives.base import (
    Batch,
    EncoderWithHead,
    Losses,
    Objective,
    check_masking,
    deviation_over_clips,
)
from audio_mamba.models.objectives.reconstruction import Reconstruction
from audio_mamba.models.ops.linear import Linear
from audio_mamba.schema import is_finite, is_whole

TARGET_NORMS = ("layer", "instance")


class Teacher(Objective):
    """The student, the encoder, reads the masked clip; its teacher, an average of its past weights, the whole clip.

    The target at a patch is made as in data2vec (arXiv 2202.03555, section 3.3): first normalise what each of the
    teacher's last K blocks gives, then take the mean of the K. Either each patch is normalised over its channels (a
    layer norm without parameters; theirs for images), or each channel over the patches of the clip (an instance norm;
    theirs for speech), which leaves nothing that all patches of a clip share. The output of a block is the residual
    stream after it; data2vec takes what its feed-forward layer adds. A head of two layers on the student's tokens
    predicts the targets of the masked patches.

    After each step, teacher = decay * teacher + (1 - decay) * student, over all weights; the decay grows linearly over
    the run. The teacher needs no gradients and is not wrapped for several processes: each of them has the same student,
    so the same teacher.

    Numbers to watch: `target_std` and `token_std`, the deviation over clips of the targets and of the student's tokens
    (see `deviation_over_clips`; of targets with an instance norm, which makes their mean over a clip 0, at each patch);
    with a reconstruction, also `teacher_loss` and `reconstruction_loss`, its two parts.

    Args:
        encoder, opt: see `Objective`.
        last_blocks: K; data2vec has 8 of 12 for speech. Blocks that work in pairs count as one.
        decay: of the average at the start of the run.
        final_decay: at its end.
        target_norm: "layer" or "instance".
        beta: where the loss changes from squared to absolute errors (smooth L1). None: the squared error, as in
            data2vec for speech.
        reconstruction_weight: of the published loss, which is added; it reads `opt.norm_pix_loss` and
            `opt.masked_only_loss`. 0: none, and the encoder's own head stays as it is.

    Raises:
        ValueError: a value out of range, an encoder that masks nothing, or options of the reconstruction without it.
    """

    def __init__(
        self,
        encoder: MaskedSpectrogramEncoder,
        opt: Any,
        last_blocks: int = 8,
        decay: float = 0.999,
        final_decay: float = 0.9999,
        target_norm: str = "layer",
        beta: float | None = None,
        reconstruction_weight: float = 0.0,
    ):
        super().__init__(encoder, opt)
        check_masking(encoder, "teacher")
        blocks = len(encoder.blocks) // encoder.blocks_per_layer
        if not (is_whole(last_blocks) and last_blocks <= blocks):
            raise ValueError(
                f"opt.objective_args.last_blocks must be a whole number from 1 to {blocks}, the blocks of "
                f"the encoder, got {last_blocks!r}"
            )
        if target_norm not in TARGET_NORMS:
            raise ValueError(
                f"opt.objective_args.target_norm must be one of {', '.join(TARGET_NORMS)}, got {target_norm!r}"
            )
        if not (is_finite(decay) and is_finite(final_decay) and 0 <= decay <= final_decay <= 1):
            raise ValueError(
                "opt.objective_args.decay and final_decay must be in [0, 1], the first at most the second, "
                f"got {decay!r} and {final_decay!r}"
            )
        if beta is not None and not (is_finite(beta) and beta > 0):
            raise ValueError(
                f"opt.objective_args.beta must be a finite number above 0, or None for a squared error, got {beta!r}"
            )
        check_not_negative("opt.objective_args.reconstruction_weight", reconstruction_weight)
        if not reconstruction_weight and (opt.norm_pix_loss or opt.masked_only_loss):
            raise ValueError(
                "opt.norm_pix_loss and opt.masked_only_loss need opt.objective_args.reconstruction_weight above 0 with "
                "opt.objective 'teacher'"
            )
        self.last_blocks, self.beta, self.reconstruction_weight = last_blocks, beta, reconstruction_weight
        self.decay, self.final_decay, self.target_norm = decay, final_decay, target_norm
        width = encoder.embed_dim
        head = nn.Sequential(Linear(width, width), nn.GELU(), Linear(width, width))
        self.module = EncoderWithHead(encoder, head, reconstructs=reconstruction_weight > 0)
        self.reconstruction = Reconstruction(encoder, opt)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()

    def start(self) -> None:
        self.teacher.load_state_dict(self.encoder.state_dict())

    @torch.no_grad()
    def targets(self, x: Tensor) -> Tensor:
        """The target of each patch of spectrograms: float32 [B, L, D]."""
        outputs = self.teacher.block_outputs(self.teacher.embed(x), self.last_blocks)
        if self.target_norm == "layer":
            normalised = [F.layer_norm(output.float(), output.shape[-1:]) for output in outputs]
        else:
            normalised = [F.layer_norm(output.float().mT, output.shape[1:2]).mT for output in outputs]
        return torch.stack(normalised).mean(dim=0)

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        x, mask = batch["spectrogram"], batch["mask"]
        target = self.targets(x)
        tokens, predicted, patches = model(x, mask)
        error = self._error(predicted.float(), target).mean(dim=-1)  # [B, L, D] -> [B, L]
        loss = mean_over_masked(error, mask)
        numbers = {
            "target_std": deviation_over_clips(target, at_each_patch=self.target_norm == "instance"),
            "token_std": deviation_over_clips(tokens),
        }
        if self.reconstruction_weight:
            reconstruction = self.reconstruction.error(patches, self.encoder.patchify(x), mask)
            numbers |= {"teacher_loss": loss.detach(), "reconstruction_loss": reconstruction.detach()}
            loss = loss + self.reconstruction_weight * reconstruction
        return loss, numbers

    def _error(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.beta is None:
            return (predicted - target).square()
        return F.smooth_l1_loss(predicted, target, reduction="none", beta=self.beta)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        decay = self.decay + (self.final_decay - self.decay) * progress
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.encoder.parameters()), 1 - decay)
        for theirs, ours in zip(self.teacher.buffers(), self.encoder.buffers(), strict=True):
            theirs.copy_(ours)

    def picture(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
        return self.reconstruction.picture(batch) if self.reconstruction_weight else None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.teacher.load_state_dict(state["teacher"])
