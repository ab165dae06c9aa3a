"""The settings of the log-mel front end, which travel with archives and checkpoints.

Spectrograms of one front end mean nothing to an encoder that was trained on those of another, so manifests and
configs hold these settings, and whoever brings two parts together compares them by name.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

NORMALISATION = ("mean", "std")


class FrontEndError(ValueError):
    """Settings that are not valid, or two front ends that differ; the message names the settings."""


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """Log-mel settings; the defaults are the published ones (Yadav and Tan 2024, section 3.1, and their code).

    Attributes:
        sample_rate: of the audio, in Hz.
        n_fft: length of the window and of the Fourier transform, in samples.
        hop_length: samples from one frame to the next.
        n_mels: mel bands.
        mel_min_hz, mel_max_hz: lower edge of the first band and upper edge of the last.
        log_offset: added to the mel power before the logarithm.
        mean, std: of log-mels, the same for all clips: the encoder reads (log-mel - mean) / std. None, as published:
            those of each clip, so the encoder does not see how loud a clip is. Archives hold log-mels as they are, so
            their front end has neither.

    Raises:
        FrontEndError: a value is out of range.
    """

    sample_rate: int = 16000
    n_fft: int = 400
    hop_length: int = 160
    n_mels: int = 80
    mel_min_hz: float = 50.0
    mel_max_hz: float = 8000.0
    log_offset: float = 1.1920929e-07  # float32 machine epsilon
    mean: float | None = None
    std: float | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in NORMALISATION:
                continue
            whole = field.type is int
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value >= whole:
                kind = "a whole number of at least 1" if whole else "a number of at least 0"
                raise FrontEndError(f"front_end.{field.name} must be {kind}, got {value!r}")
        if self.n_fft % 2:
            raise FrontEndError(f"front_end.n_fft must be even, got {self.n_fft}")
        if not self.mel_min_hz < self.mel_max_hz <= self.sample_rate / 2:
            raise FrontEndError(
                f"front_end: 0 <= mel_min_hz < mel_max_hz <= sample_rate / 2 must hold, got "
                f"{_text(self.mel_min_hz)}, {_text(self.mel_max_hz)} and a sample_rate of {self.sample_rate}"
            )
        if not 0 < self.log_offset < math.inf:
            raise FrontEndError(f"front_end.log_offset must be a positive number, got {self.log_offset!r}")
        if self.mean is None and self.std is None:
            return
        numbers = [
            value for value in (self.mean, self.std) if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if len(numbers) < 2 or not all(map(math.isfinite, numbers)) or not numbers[1] > 0:
            raise FrontEndError(
                "front_end.mean and front_end.std must be two numbers, the second positive, or both None; got "
                f"{self.mean!r} and {self.std!r}"
            )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "FrontEnd":
        """The front end of a manifest or a config; other keys are ignored, absent ones are the published values."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: settings[key] for key in settings if key in names})

    def settings(self) -> dict[str, int | float | None]:
        """All settings by name, for a config."""
        return dataclasses.asdict(self)

    def of_archives(self) -> "FrontEnd":
        """The same log-mels, not normalised."""
        return dataclasses.replace(self, mean=None, std=None)

    def check_same(self, other: "FrontEnd", source: str) -> None:
        """FrontEndError, naming each differing setting, unless `other`, that of `source`, equals this one."""
        mine, theirs = self.settings(), other.settings()
        differing = [
            f"{key} is {_text(theirs[key])} there and {_text(mine[key])} here"
            for key in mine
            if mine[key] != theirs[key]
        ]
        if differing:
            raise FrontEndError(f"{source} has another front end: {', '.join(differing)}")

    @property
    def frames_per_second(self) -> float:
        """100 with the published settings."""
        return self.sample_rate / self.hop_length

    @property
    def min_samples(self) -> int:
        """The shortest audio: reflection by half a window needs one sample more than that (201, 12.6 ms)."""
        return self.n_fft // 2 + 1

    def num_frames(self, n_samples: int) -> int:
        """Frames of `n_samples` samples: one each hop, the first centred on sample 0."""
        return 1 + n_samples // self.hop_length


PUBLISHED = FrontEnd()


def _text(value: float | None) -> str:
    """All digits, since settings are compared exactly."""
    return "that of each clip" if value is None else str(value).removesuffix(".0")


def parse_settings(entries: list[str]) -> FrontEnd:
    """The front end of entries KEY=VALUE of a command line, for an archive. FrontEndError for an unknown key or a wrong
    value."""
    settings: dict[str, Any] = {}
    types = {field.name: field.type for field in dataclasses.fields(FrontEnd) if field.name not in NORMALISATION}
    for entry in entries:
        key, _, text = entry.partition("=")
        if key not in types:
            raise FrontEndError(f"unknown front-end setting {key!r}; accepted are {', '.join(types)}")
        try:
            settings[key] = int(text) if types[key] is int else float(text)
        except ValueError:
            raise FrontEndError(
                f"front_end.{key} must be a {'whole ' if types[key] is int else ''}number, got {text!r}"
            ) from None
    return FrontEnd(**settings)
