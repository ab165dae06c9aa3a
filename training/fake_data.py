"""Random spectrograms instead of archives, to try a config or measure its speed without data."""

from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import Dataset


class RandomSpectrograms(Dataset):
    """White noise, indexed by (epoch, index). A sample depends only on (seed, epoch, index).

    An item has spectrogram float32 [1, num_frames, n_mels], index, and mask float32 [L] from `draw_mask(generator)`.
    """

    def __init__(
        self,
        n_samples: int,
        num_frames: int,
        n_mels: int,
        seed: int,
        draw_mask: Callable[[np.random.Generator], np.ndarray],
    ):
        self.n_samples, self.num_frames, self.n_mels = n_samples, num_frames, n_mels
        self.seed, self.draw_mask = seed, draw_mask

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor | np.ndarray | int]:
        epoch, index = item
        rng = np.random.default_rng((self.seed, epoch, index))
        mask = self.draw_mask(rng)
        spectrogram = rng.standard_normal((1, self.num_frames, self.n_mels), dtype=np.float32)
        return {"spectrogram": torch.from_numpy(spectrogram), "mask": mask, "index": index}
