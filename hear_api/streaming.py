"""Live embeddings: SSAM on audio that arrives in pieces of any length, in constant memory."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audio_mamba.data.feature_stream import LogMelStream
from audio_mamba.data.features import FRAMES_PER_SECOND, N_MELS, STD_OFFSET
from audio_mamba.data.moments import Moments
from audio_mamba.hear_api.inputs import as_samples, check_values
from audio_mamba.hear_api.runtime import RuntimeSSAST

MODES = ("warmup", "running")


class StreamingSSAM:
    """The timestamp embeddings of an endless clip, each as soon as its 40 ms of frames are complete.

    The state of the Mamba blocks is carried from step to step and begins anew every 2 s, with each unit, so that the
    results are those of `RuntimeSSAST.get_timestamp_embeddings` in float32 given the same normalisation statistics.

    Args:
        runtime: a RuntimeSSAST with a causal encoder (SSAM).
        statistics: of the log-mel, by which it is normalised: (mean, std), fixed; "warmup", those of the first
            `warmup_seconds`, until whose end nothing comes out; or "running", those of all frames so far.
        warmup_seconds: see above.

    ValueError for an encoder that is not causal and for statistics that are none.
    """

    def __init__(
        self, runtime: RuntimeSSAST, statistics: tuple[float, float] | str = "running", warmup_seconds: float = 2.0
    ):
        if not runtime.model.causal:
            raise ValueError(
                f"{type(runtime.model).__name__} is not causal, so it needs whole units; streaming is for SSAM"
            )
        if statistics not in MODES:
            statistics = _check_statistics(statistics)
        if not 0 < warmup_seconds < math.inf:
            raise ValueError(f"warmup_seconds must be positive, got {warmup_seconds}")
        self._runtime, self._model, self._statistics = runtime, runtime.model, statistics
        self._warmup_frames = math.ceil(warmup_seconds * FRAMES_PER_SECOND) if statistics == "warmup" else 0
        self._log_mel, self._moments = LogMelStream(), Moments()
        self._frames = torch.zeros(0, N_MELS)  # not yet embedded
        self._step, self._states, self._ended = 0, None, False

    @torch.inference_mode()
    def feed(self, samples: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Some more samples, floating-point [n] at 16 kHz, any n -> the embeddings [t, width] of the steps that are now
        complete, perhaps none, and their starts in ms [t].

        `hear_api.inputs.InputError` for other types and shapes, NaN, Inf and unscaled PCM; ValueError after `finish`.
        """
        self._check_not_ended()
        samples = check_values(as_samples(samples, "the piece"), "the piece")
        frames = self._log_mel.feed(samples.to(self._model.pos_embed.device))
        return self._advance(frames, ended=False)

    @torch.inference_mode()
    def finish(self) -> tuple[Tensor, Tensor]:
        """The audio has ended: the steps that are left, as `feed` returns them, the last one padded as offline.

        ValueError after fewer than 201 samples in all, and for a second call.
        """
        self._check_not_ended()
        rest = self._log_mel.finish()
        self._ended = True
        return self._advance(rest, ended=True)

    def _check_not_ended(self) -> None:
        if self._ended:
            raise ValueError("this stream has ended; other audio needs another StreamingSSAM")

    def _advance(self, new: Tensor, ended: bool) -> tuple[Tensor, Tensor]:
        self._frames = torch.cat([self._frames.to(new), new])
        if self._statistics == "warmup":
            self._moments.add(new[: self._warmup_frames - self._moments.frames])
            if ended or self._moments.frames == self._warmup_frames:
                self._statistics = self._moments.mean_and_std()
        first, rows = self._step, []
        while self._statistics != "warmup" and (steps := self._steps_waiting(ended)):
            rows.append(self._embed_steps(steps))
        times = torch.arange(first, self._step) * self._runtime.step_ms
        return torch.cat(rows) if rows else new.new_zeros(0, self._runtime.timestamp_embedding_size), times

    def _steps_waiting(self, ended: bool) -> int:
        """How many steps can be embedded at once."""
        waiting = len(self._frames) / self._runtime.frames_per_step
        waiting = math.ceil(waiting) if ended else int(waiting)
        most = self._runtime.steps_per_segment - self._step_in_segment()
        return min(waiting, 1 if self._statistics == "running" else most)

    def _step_in_segment(self) -> int:
        return self._step % self._runtime.steps_per_segment

    def _embed_steps(self, steps: int) -> Tensor:
        """The next steps, all of one unit -> [steps, width]."""
        needed = steps * self._runtime.frames_per_step
        frames, self._frames = self._frames[:needed], self._frames[needed:]
        if self._statistics == "running":
            self._moments.add(frames)
        mean, std = self._moments.mean_and_std() if self._statistics == "running" else self._statistics
        frames = F.pad((frames - mean) / (std + STD_OFFSET), (0, 0, 0, needed - len(frames)))
        if self._step_in_segment() == 0:
            self._states = self._model.first_states(batch=1)
        tokens = self._model.embed_steps(frames[None, None], first=self._step_in_segment())  # [1, 5 steps, D]
        tokens, self._states = self._model.proceed(tokens, self._states)
        self._step += steps
        return tokens.reshape(steps, -1).float()


def _check_statistics(statistics) -> tuple[float, float]:
    try:
        mean, std = map(float, statistics)
    except (TypeError, ValueError):
        mean = std = math.nan
    if not (math.isfinite(mean) and math.isfinite(std) and std >= 0):
        raise ValueError(f"statistics must be (mean, std), or one of {', '.join(MODES)}; got {statistics!r}")
    return mean, std
