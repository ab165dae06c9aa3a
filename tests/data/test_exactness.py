"""Which samples an epoch has and in which order: in theory on 100,000, and in processes that torchrun starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from audio_mamba.data.archives import write_shard
from audio_mamba.data.loader import EpochBatches
from audio_mamba.data.samples import Sample

ROOT = Path(__file__).resolve().parents[2]
SHARD_SIZES = (7, 31, 15, 8)  # 61 samples: no world size or batch divides them
BATCH_SIZE = 4


def test_the_order_is_a_shuffle():
    count, shard_size = 100_000, 512
    for epoch in range(3):
        order = EpochBatches(count, batch_size=1, seed=1).batches(epoch)[:, 0]
        assert abs(spearmanr(order, np.arange(count)).statistic) < 0.02
        shard = order // shard_size
        neighbours = np.mean(shard[1:] == shard[:-1])
        assert neighbours < 2 * shard_size / count


def test_ranks_agree_on_the_number_of_steps_and_drop_another_rest_each_epoch():
    for world_size in (1, 2, 3, 7, 8):
        dropped = set()
        for epoch in range(5):
            parts = [EpochBatches(1003, 16, rank, world_size).batches(epoch) for rank in range(world_size)]
            assert {len(part) for part in parts} == {1003 // (16 * world_size)}
            seen = np.concatenate(parts, axis=None)
            assert len(np.unique(seen)) == len(seen)
            dropped.add(frozenset(range(1003)) - set(seen.tolist()))
        assert len(dropped) == 5


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("archive")
    first = 0
    for number, size in enumerate(SHARD_SIZES):
        clips = [
            Sample(
                f"{i:04d}", np.random.default_rng(i).standard_normal((8 + i, 80)).astype(np.float32), np.zeros(0, int)
            )
            for i in range(first, first + size)
        ]
        write_shard(directory / f"{number}.tar", clips)
        first += size
    return directory


def read_epochs(archive: Path, out_dir: Path, world_size: int) -> list[dict]:
    """What each rank saw."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nnodes=1",
            f"--nproc-per-node={world_size}",
            str(Path(__file__).with_name("epoch_reader.py")),
            str(archive),
            str(out_dir),
        ],
        check=True,
        timeout=200,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return [json.loads((out_dir / f"{rank}.json").read_text()) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_under_torchrun_ranks_and_workers_share_an_epoch_exactly(archive, tmp_path, world_size):
    ranks = read_epochs(archive, tmp_path, world_size)
    count, steps = sum(SHARD_SIZES), sum(SHARD_SIZES) // (BATCH_SIZE * world_size)
    for epoch in (0, 1, 2):
        order = np.random.default_rng((5, epoch)).permutation(count)[: steps * world_size * BATCH_SIZE]
        expected = order.reshape(steps, world_size, BATCH_SIZE)
        for rank, seen in enumerate(ranks):
            batches = seen[f"0 workers, epoch {epoch}"]
            assert [indices for indices, _ in batches] == expected[:, rank].tolist()
            assert seen[f"2 workers, epoch {epoch}"] == batches  # to the last bit
    for seen in ranks:
        for num_workers in (0, 2):
            assert seen[f"{num_workers} workers, epoch 2 resumed"] == seen["0 workers, epoch 2"]
