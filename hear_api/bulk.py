"""Many audio files through the encoder in bounded memory, in an order of work that depends on the files alone.

Files are encoded in groups; a journal is committed where a group ends. A run that is taken up there forms the same
groups as one that was never interrupted, so that it gives the same bits.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audio_mamba.data.audio import AudioError, printable
from audio_mamba.front_end import PUBLISHED
from audio_mamba.hear_api.ahead import run_ahead
from audio_mamba.hear_api.journal import Entry, Journal
from audio_mamba.hear_api.pieces import Decoded, stream_pieces
from audio_mamba.hear_api.runtime import RuntimeSSAST

GROUP_FRAMES = 12_800  # 64 units
PIECE_UNITS = 30  # of a long file: a minute
PIECES_AHEAD = 2


class BulkEmbedder:
    """Takes decoded files in order and leaves their embeddings in a journal.

    kind: "scene", one row per file in the runtime's scene layout, or "timestamps", one row per 40 ms.
    on_failure: called with the entry of each file that failed. on_progress: with seconds of audio and a number of
    files, perhaps a part of one, as they are done.
    """

    def __init__(
        self,
        runtime: RuntimeSSAST,
        kind: str,
        journal: Journal,
        on_failure: Callable[[Entry], None],
        on_progress: Callable[[float, float], None],
    ):
        self._runtime, self._kind, self._journal = runtime, kind, journal
        self._layout = runtime.scene_layout if kind == "scene" else "bands"
        self._on_failure, self._on_progress = on_failure, on_progress
        self._group: list[tuple[Entry, Tensor | None]] = []
        self._group_frames = 0

    def run(self, files: Iterable[Path], decoded: Iterable[Decoded]) -> None:
        """Embed all files."""
        for path, result in zip(files, decoded, strict=True):
            if result.error:
                self._fail(path, result.error)
            elif result.spectrogram is None:
                self._finish_group()
                try:
                    self._embed_long(path, result)
                except AudioError as error:  # since its first reading, the file has gone or changed
                    self._journal.drop()
                    self._fail(path, str(error).removeprefix(f"{path}: "))
            else:
                entry = Entry(printable(path), seconds=result.seconds)
                self._group.append((entry, torch.from_numpy(result.spectrogram)))
                self._group_frames += len(result.spectrogram)
            if self._group_frames >= GROUP_FRAMES:
                self._finish_group()
        self._finish_group()

    def _finish_group(self) -> None:
        features = iter(self._runtime.encode([s for _, s in self._group if s is not None], self._layout))
        entries = []
        for entry, spectrogram in self._group:
            if spectrogram is not None:
                rows = next(features)
                rows = rows.mean(dim=0, keepdim=True) if self._kind == "scene" else rows
                self._journal.append(rows.cpu().numpy())
                entry = Entry(entry.path, len(rows), entry.seconds)
            entries.append(entry)
        self._journal.commit(entries)
        self._group, self._group_frames = [], 0
        self._on_progress(sum(entry.seconds for entry in entries), len(entries))

    def _embed_long(self, path: Path, statistics: Decoded) -> None:
        total, count = np.zeros(self._journal.width), 0
        piece_frames = PIECE_UNITS * self._runtime.steps_per_unit * self._runtime.frames_per_step
        pieces = stream_pieces(path, statistics.mean, statistics.std, piece_frames)
        with ThreadPoolExecutor(1) as pool:  # one thread alone may pull the generator
            for piece in run_ahead(pool, next, iter(lambda: (pieces, None), None), PIECES_AHEAD):
                if piece is None:
                    break
                rows = self._runtime.encode([piece], self._layout)[0].cpu().numpy()
                total, count = total + rows.sum(axis=0, dtype=np.float64), count + len(rows)
                if self._kind == "timestamps":
                    self._journal.append(rows)
                self._on_progress(
                    len(piece) / PUBLISHED.frames_per_second, len(piece) / PUBLISHED.num_frames(statistics.samples)
                )
        if count != -(-PUBLISHED.num_frames(statistics.samples) // self._runtime.frames_per_step):
            raise AudioError(f"{path}: changed while it was read")
        if self._kind == "scene":
            self._journal.append((total / count)[None])
        self._journal.commit([Entry(printable(path), count if self._kind == "timestamps" else 1, statistics.seconds)])

    def _fail(self, path: Path, error: str) -> None:
        entry = Entry(printable(path), error=error)
        self._on_failure(entry)
        self._group.append((entry, None))
