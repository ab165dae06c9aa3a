"""Run by torchrun in the tests: reads epochs of an archive and writes what this rank saw to OUT_DIR/<rank>.json.

torchrun ... epoch_reader.py ARCHIVE_DIR OUT_DIR
"""

import hashlib
import json
import os
import sys
from pathlib import Path

from audio_mamba.data.loader import make_loader, set_epoch

BATCH_SIZE = 4


def batches_of(loader) -> list:
    """Each batch as its indices and a digest of its bits."""
    return [
        [batch["index"].tolist(), hashlib.sha256(batch["spectrogram"].numpy().tobytes()).hexdigest()]
        for batch in loader
    ]


def main(archive: str, out_dir: str) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    seen = {}
    for num_workers in (0, 2):
        options = {
            "num_frames": 12,
            "batch_size": BATCH_SIZE,
            "rank": rank,
            "world_size": world_size,
            "seed": 5,
            "num_workers": num_workers,
        }
        loader = make_loader([archive], **options)
        for epoch in (0, 1):
            set_epoch(loader, epoch)
            seen[f"{num_workers} workers, epoch {epoch}"] = batches_of(loader)
        set_epoch(loader, 2)
        batches = iter(loader)
        first = [next(batches) for _ in range(2)]
        resumed = make_loader([archive], **options)
        resumed.load_state_dict(loader.state_dict())
        seen[f"{num_workers} workers, epoch 2"] = batches_of(first) + batches_of(batches)
        seen[f"{num_workers} workers, epoch 2 resumed"] = batches_of(first) + batches_of(resumed)
    Path(out_dir, f"{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
