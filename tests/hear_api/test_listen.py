"""The listen command, on a file and on stdin."""

import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from audio_mamba.hear_api.listen import Novelty, main
from tests.conftest import ROOT

MODEL = ["--config", "tests.hear_api.small_config", "--weights", "untrained", "--device", "cpu"]


@pytest.fixture
def one_thread():
    """Restores the number of threads, which the command sets for this process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def tone(hertz, seconds):
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 16000)) / 16000)


def test_a_file(tmp_path, capsys, one_thread):
    soundfile.write(tmp_path / "a.wav", tone(440, 3), 16000)
    main([str(tmp_path / "a.wav"), *MODEL, "--statistics=-5,3"])
    out = capsys.readouterr().out
    assert "\n    0.0 s |" in out and "\n    2.0 s |" in out
    steps, factor = re.search(r"(\d+) steps of 40 ms.*real-time factor ([\d.]+)", out).groups()
    assert int(steps) == 76 and 0 < float(factor) < 5  # ceil(301 frames / 4)


def test_raw_stdin_in_a_separate_process():
    raw = (tone(440, 1) * 32767).astype("<i2").tobytes() + b"\0"  # with half a sample at the end
    command = [sys.executable, "-m", "hear_api.listen", "-", *MODEL]
    done = subprocess.run(command, cwd=ROOT, input=raw, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"26 steps of 40 ms" in done.stdout


def test_ctrl_c_ends_live_audio_and_prints_the_measurements(monkeypatch, capsys, one_thread):
    def pieces(source, sample_rate):
        yield from torch.tensor(tone(440, 1), dtype=torch.float32).split(640)
        raise KeyboardInterrupt

    monkeypatch.setattr("audio_mamba.hear_api.listen.read_pieces", pieces)
    main(["-", *MODEL])
    assert re.search(r"\n24 steps of 40 ms.*real-time factor 0?[\d.]+\n", capsys.readouterr().out)


def test_invalid_statistics_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["a.wav", "--statistics", "mean"])
    assert "'mean' is neither MEAN,STD nor one of warmup, running" in capsys.readouterr().err


def test_errors_are_one_line(tmp_path, one_thread):
    with pytest.raises(SystemExit, match="listen: .*absent.wav: no such audio file"):
        main([str(tmp_path / "absent.wav"), *MODEL])
    with pytest.raises(SystemExit, match="listen: SSAST is not causal"):
        main(["-", "--config", "ssast_tiny_200_16x4", "--weights", "untrained", "--device", "cpu"])


def test_novelty_is_high_where_the_embeddings_change():
    rng, novelty = np.random.default_rng(0), Novelty(50)
    before, after = torch.tensor(rng.standard_normal((2, 64)), dtype=torch.float32)
    rows = torch.cat([before.expand(100, -1), after.expand(100, -1)]) + 0.1 * torch.randn(200, 64)
    values = [novelty(row, number % 50) for number, row in enumerate(rows)]
    assert np.argmax(values[20:]) + 20 in range(100, 103) and np.mean(values[180:]) < 0.2


def test_novelty_does_not_show_where_segments_start():
    """Embeddings that differ only by their step in the segment, and by noise: a jump from step 49 to step 0."""
    rng = np.random.default_rng(0)
    by_step = torch.tensor(np.linspace(-1, 1, 50)[:, None] * rng.standard_normal(64), dtype=torch.float32)
    rows = by_step.repeat(20, 1) + 0.1 * torch.tensor(rng.standard_normal((1000, 64)), dtype=torch.float32)

    def starts_among_the_highest(step_of):
        novelty = Novelty(50)
        values = np.array([novelty(row, step_of(number)) for number, row in enumerate(rows)])[100:]
        return np.mean(np.argsort(-values)[:18] % 50 == 0)

    assert starts_among_the_highest(lambda number: number % 50) <= 0.1  # by chance 0.02
    assert starts_among_the_highest(lambda number: 0) > 0.3  # with one average for all steps
