"""What a start on millions of clips costs: time to the first batch, and memory of a worker.

The shards are sparse files of zeros with a true index beside each, so two million clips take little disk.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from audio_mamba.data.archives import SHARD_PATTERN, write_manifest
from audio_mamba.data.loader import make_loader
from audio_mamba.data.shard_index import PLACE, index_path, short_digest
from audio_mamba.front_end import FrontEnd

SHARD_CLIPS, FRAMES, MELS = 512, 1000, 80
ZEROS_ARE_SILENCE = FrontEnd(log_offset=1.0)  # else the loader takes the zeros of a sparse file for a hole
MB = 2**20


def measure_large_index(directory: Path, clips: int) -> dict[str, float]:
    """Start-up and memory with `clips` clips, and with one shard, each in a process of its own."""
    measured = {}
    for name, shards in (("small", 1), ("large", -(-clips // SHARD_CLIPS))):
        write_sparse_archive(directory / name, shards)
        output = subprocess.run(
            [sys.executable, "-m", "benchmarks.large_index", str(directory / name)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        measured[name] = json.loads(output)
    return measured["large"] | {"worker_base_pss_mb": measured["small"]["worker_pss_mb"]}


def write_sparse_archive(directory: Path, shards: int) -> None:
    directory.mkdir(parents=True)
    places = np.zeros(SHARD_CLIPS, PLACE)
    places["frames"] = FRAMES
    places["mels"], places["value_bytes"], places["std"] = MELS, 2, 1
    places["data_size"] = clip_bytes = FRAMES * MELS * 2
    places["data_offset"] = places["values_offset"] = np.arange(SHARD_CLIPS) * clip_bytes
    keys = np.array([f"{i:08d}_00000_a_name_of_usual_length".encode() for i in range(SHARD_CLIPS)])
    names = [SHARD_PATTERN.format(i) for i in range(shards)]
    for name in names:
        with open(directory / name, "wb") as file:
            file.truncate(SHARD_CLIPS * clip_bytes)
        np.savez(
            index_path(directory / name),
            shard_bytes=SHARD_CLIPS * clip_bytes,
            shard_digest=short_digest(directory / name),
            keys=keys,
            places=places,
        )
    write_manifest(
        directory,
        {
            "samples": shards * SHARD_CLIPS,
            "settings": ZEROS_ARE_SILENCE.settings(),
            "shards": [{"name": name, "samples": SHARD_CLIPS} for name in names],
        },
    )


def memory_mb(pid: int) -> dict[str, float]:
    """Memory of a process that is its own, and with its part of what it shares (Linux only)."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return {
        "worker_private_mb": (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) * 1024 / MB,
        "worker_pss_mb": kilobytes["Pss"] * 1024 / MB,
    }


def main(directory: str) -> None:
    start = time.perf_counter()
    loader = make_loader([directory], num_frames=200, batch_size=64, front_end=ZEROS_ARE_SILENCE, num_workers=2)
    batches = iter(loader)
    next(batches)
    started = time.perf_counter() - start
    for _ in range(3):
        next(batches)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    worker = max((memory_mb(int(pid)) for pid in children), key=lambda memory: memory["worker_pss_mb"])
    shards = len(list(Path(directory).glob("*.tar")))
    print(
        json.dumps(
            {
                "clips": len(loader.dataset),
                "shards": shards,
                "start_s": started,
                "index_mb": loader.dataset.index_bytes / MB,
            }
            | worker
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
