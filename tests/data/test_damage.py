"""Recordings with random damage: an error with the name of the file, or all samples at their own times."""

import random

import numpy as np
import pytest

from audio_mamba.data.audio import AudioError, load_audio
from tests.data.recordings import DAMAGED_KINDS, damage, is_in_time, undamaged


def outcome(path, suffix: str, seed: int) -> str:
    """What becomes of one damage: "refused", "in time", "undetectable: why" or "wrong"."""
    content = undamaged(suffix, seed % 4)
    path.write_bytes(content)
    expected = load_audio(path)
    damaged = damage(content, suffix, random.Random(seed))
    path.write_bytes(damaged.content)
    try:
        found = load_audio(path)
    except AudioError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return "refused"
    if damaged.kind == "join":
        expected = np.concatenate([expected, expected])
    if is_in_time(found, expected, damaged.start, damaged.end):
        return "in time"
    return f"undetectable: {damaged.undetectable}" if damaged.undetectable else "wrong"


@pytest.mark.parametrize("suffix", DAMAGED_KINDS)
def test_nothing_is_lost_or_moved_without_a_word(tmp_path, suffix):
    outcomes = [outcome(tmp_path / f"damaged.{suffix}", suffix, seed) for seed in range(1000, 1025)]
    assert "wrong" not in outcomes and {"refused", "in time"} <= set(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", DAMAGED_KINDS)
def test_nothing_is_lost_or_moved_without_a_word_500_times(tmp_path, suffix):
    outcomes = [outcome(tmp_path / f"damaged.{suffix}", suffix, seed) for seed in range(500)]
    assert "wrong" not in outcomes, [seed for seed, found in enumerate(outcomes) if found == "wrong"]
