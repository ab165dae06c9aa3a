"""Live embeddings of audio that arrives in pieces of any length, in constant memory."""

import logging
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audio_mamba.data.features import LogMelStream
from audio_mamba.data.normalisation import RunningStats, Statistics, fixed_statistics, normalise
from audio_mamba.hear_api.inputs import as_samples, check_values
from audio_mamba.hear_api.resolve import DEFAULT_MODEL
from audio_mamba.hear_api.runtime import RuntimeSSAST

MODES = ("warmup", "running")

logger = logging.getLogger(__name__)


class StreamingSSAM:
    """The timestamp embeddings of an endless clip, each as soon as the frames of its patch step are complete.

    The state of the blocks is carried from step to step and reset at the start of each segment (every 2 s with
    the paper's configs). With an `overlap`, a segment begins with the last steps of the one before as context: no audio
    has to be waited for, but the first new step of a segment takes the computing time of the context as well. With the
    same normalisation statistics, the results match those of `RuntimeSSAST.get_timestamp_embeddings` in float32.

    Args:
        runtime: a RuntimeSSAST whose encoder is causal and carries state, such as SSAM.
        statistics: by which the log-mel is normalised. A fixed (mean, std); "warmup": those of the first
            `warmup_seconds`, before which there is no output, or "running" if these are digital silence; "running":
            those of all frames so far. None: the constants of the model's front end if it has them, else "running".
        warmup_seconds: see `statistics`.

    Raises:
        ValueError: an encoder that is not causal or carries no state; invalid statistics, or any for a model whose
            front end has constants.
    """

    def __init__(
        self, runtime: RuntimeSSAST, statistics: tuple[float, float] | str | None = None, warmup_seconds: float = 2.0
    ):
        _check_carries_state(runtime)
        if not 0 < warmup_seconds < math.inf:
            raise ValueError(f"warmup_seconds must be positive, got {warmup_seconds}")
        self.runtime, self._model = runtime, runtime.model
        fixed = fixed_statistics(runtime.front_end)
        if fixed and statistics is not None:
            raise ValueError(f"statistics do not apply: the model has its own, {fixed.mean:g} and {fixed.std:g}")
        self._mode, self._statistics = ("fixed", fixed) if fixed else _check_statistics(statistics or "running")
        self._warmup_frames = math.ceil(warmup_seconds * runtime.front_end.frames_per_second)
        self._log_mel, self._running = LogMelStream(runtime.front_end), RunningStats()
        self._frames = torch.zeros(0, runtime.front_end.n_mels)  # not yet embedded
        self._context = self._frames  # the last ones that were, for the next segment to start with
        self._step, self._ended = 0, False
        self._states: Any = None  # of the blocks; None at the start of a segment

    @torch.inference_mode()
    def feed(self, samples: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Take in the next piece of audio.

        Args:
            samples: floating-point [n] at the runtime's sample rate, any n.

        Returns:
            The embeddings [t, width] of the steps that are now complete (t may be 0), and their starts in
            ms, float64 [t].

        Raises:
            hear_api.inputs.InputError: another type or shape, NaN, Inf, or unscaled PCM.
            ValueError: after `finish`.
        """
        self._check_not_ended()
        piece = check_values(as_samples(samples, "the piece"), "the piece")
        frames = self._log_mel.feed(piece.to(self._model.pos_embed.device))
        return self._advance(frames, ended=False)

    @torch.inference_mode()
    def finish(self) -> tuple[Tensor, Tensor]:
        """End the audio. Returns the remaining steps as `feed` does, the last one padded as offline.

        ValueError if there were too few samples in total (201 are needed at 16 kHz), and on a second call.
        """
        self._check_not_ended()
        rest = self._log_mel.finish()
        self._ended = True
        return self._advance(rest, ended=True)

    def _check_not_ended(self) -> None:
        if self._ended:
            raise ValueError("this stream has ended; create another StreamingSSAM for more audio")

    def _advance(self, new: Tensor, ended: bool) -> tuple[Tensor, Tensor]:
        self._frames = torch.cat([self._frames.to(new), new])
        if self._mode == "warmup" and self._statistics is None:
            self._running.add(new[: self._warmup_frames - self._running.frames])
            if ended or self._running.frames == self._warmup_frames:
                self._end_warmup(ended)
        first, rows = self._step, []
        while steps := self._steps_ready(ended):
            rows.append(self._embed_steps(steps))
        times = torch.arange(first, self._step, dtype=torch.float64) * self.runtime.step_ms  # exact for days
        return torch.cat(rows) if rows else new.new_zeros(0, self.runtime.timestamp_embedding_size), times

    def _end_warmup(self, ended: bool) -> None:
        statistics = self._running.statistics()
        if statistics.std > 0 or ended:
            self._statistics = statistics
        else:  # nothing can be normalised by it; waiting for sound would take endless memory
            logger.warning("the warm-up is digital silence, so statistics of all audio so far are used instead")
            self._mode, self._running = "running", RunningStats()

    def _steps_ready(self, ended: bool) -> int:
        """How many steps can be embedded at once."""
        if self._mode == "warmup" and self._statistics is None:
            return 0
        waiting = len(self._frames) / self.runtime.frames_per_step
        left_in_segment = self.runtime.steps_per_segment - self.runtime.cut.place(self._step)
        return min(math.ceil(waiting) if ended else int(waiting), 1 if self._mode == "running" else left_in_segment)

    def _starts_segment(self) -> bool:
        beyond = self._step - self.runtime.cut.length
        return self._step == 0 or (beyond >= 0 and beyond % self.runtime.cut.stride == 0)

    def _embed_steps(self, steps: int) -> Tensor:
        """The next steps, all of one segment -> [steps, width]."""
        needed = steps * self.runtime.frames_per_step
        frames, self._frames = self._frames[:needed], self._frames[needed:]
        if self._mode == "running":
            self._running.add(frames)
        statistics = self._statistics or self._running.statistics()
        first = self.runtime.cut.place(self._step)
        if self._starts_segment():
            self._states = None
            if len(self._context):
                self._pass_on(normalise(self._context, statistics), first=0)
        if self.runtime.cut.before:
            context = torch.cat([self._context.to(frames), frames])
            self._context = context[-self.runtime.cut.before * self.runtime.frames_per_step :]
        frames = F.pad(normalise(frames, statistics), (0, 0, 0, needed - len(frames)))
        self._step += steps
        return self._pass_on(frames, first).reshape(steps, -1).float()

    def _pass_on(self, frames: Tensor, first: int) -> Tensor:
        """Normalised frames, whose first step is step `first` of the segment -> tokens [1, steps * M', D]."""
        tokens, self._states = self._model.step(self._model.embed_steps(frames[None, None], first), self._states)
        return tokens


def _check_carries_state(runtime: RuntimeSSAST) -> None:
    model = runtime.model
    if not (model.causal and model.carries_state):
        fault = "carries no state from step to step" if model.causal else "is not causal"
        raise ValueError(
            f"{type(model).__name__} ({runtime.config.model.arch}) {fault}, so it needs whole segments; for live audio "
            f"use a causal encoder such as {DEFAULT_MODEL}, or embed whole recordings"
        )


def _check_statistics(statistics: tuple[float, float] | str) -> tuple[str, Statistics | None]:
    """The mode, "fixed" or one of MODES, and the statistics of "fixed"."""
    if isinstance(statistics, str) and statistics in MODES:
        return statistics, None
    try:
        mean, std = map(float, statistics)
    except (TypeError, ValueError):
        mean = std = math.nan
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(
            f"statistics must be (mean, std) with std above 0, or one of {', '.join(MODES)}; got {statistics!r}"
        )
    return "fixed", Statistics(mean, std)
