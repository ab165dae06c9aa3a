"""The listen command, on a file and on stdin."""

import io
import itertools
import re
import signal
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from audio_mamba.hear_api import listen as listen_module
from audio_mamba.hear_api.listen import Novelty, main
from tests.conftest import ROOT

UINT = struct.Struct("<I")
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


def test_steps_that_come_at_the_end_are_timed_too(tmp_path, capsys, one_thread):
    """A second of audio, less than the 2 s of the statistics."""
    soundfile.write(tmp_path / "a.wav", tone(440, 1), 16000)
    main([str(tmp_path / "a.wav"), *MODEL, "--statistics=warmup"])
    median, factor = re.search(r"26 steps .* ([\d.]+) ms \(median\).*factor ([\d.]+)", capsys.readouterr().out).groups()
    assert float(median) > 0 and float(factor) > 0


def test_raw_stdin_in_a_separate_process():
    raw = (tone(440, 1) * 32767).astype("<i2").tobytes() + b"\0"  # with half a sample at the end
    command = [sys.executable, "-m", "hear_api.listen", "-", *MODEL]
    done = subprocess.run(command, cwd=ROOT, input=raw, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"26 steps of 40 ms" in done.stdout


def start(*arguments, **pipes):
    return subprocess.Popen([sys.executable, "-m", "hear_api.listen", *arguments, *MODEL], cwd=ROOT, **pipes)


def wav(channels, rate, size=None):
    """Float samples as a wav file whose header counts `size` bytes, as if ffmpeg wrote it to a pipe."""
    data = np.stack(channels, 1).astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, len(channels), rate, 4 * rate * len(channels), 4 * len(channels), 32)
    sizes = [0xFFFFFFFF] * 2 if size is None else [36 + size, size]
    return b"RIFF%bWAVEfmt %b%bdata%b" % (*map(UINT.pack, (sizes[0], 16)), form, UINT.pack(sizes[1])) + data


def bar(out):
    """The characters that show novelty."""
    return "".join(re.findall(r"\|(.*)", out.decode()))


def test_a_wav_on_a_pipe_is_obeyed(tmp_path, capsys, one_thread):
    left, right = (0.3 * np.sin(2 * np.pi * hertz * np.arange(3 * 44100) / 44100) for hertz in (440, 3000))
    right[: 44100 * 2] = 0
    shown = {}
    for channel, size in (("mix", None), ("right", 2 * 4 * 3 * 44100)):
        with start("-", "--channel", channel, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as listener:
            shown[channel], _ = listener.communicate(wav([left, right], 44100, size), timeout=60)
        assert listener.returncode == 0 and b"76 steps of 40 ms" in shown[channel]  # 3 s, as in `test_a_file`
    for channel, samples in (("mix", (left + right) / 2), ("right", right)):
        soundfile.write(tmp_path / "a.wav", samples, 44100, subtype="FLOAT")
        main([str(tmp_path / "a.wav"), *MODEL])
        assert bar(capsys.readouterr().out.encode()) == bar(shown[channel])
    assert bar(shown["mix"]) != bar(shown["right"])


@pytest.mark.parametrize("suffix, kind", [("flac", "FLAC"), ("mp3", "mp3"), ("ogg", "Ogg")])
def test_compressed_audio_on_a_pipe_is_refused_by_name(tmp_path, suffix, kind):
    soundfile.write(tmp_path / f"a.{suffix}", tone(440, 3), 16000)
    with (
        subprocess.Popen(["cat", str(tmp_path / f"a.{suffix}")], stdout=subprocess.PIPE) as cat,
        start("-", stdin=cat.stdout, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as listener,
    ):
        cat.stdout.close()
        error = listener.communicate(timeout=60)[1].decode()
    assert listener.returncode == 1 and f"listen: stdin: this is {kind}, not samples; decode it first" in error
    assert "Traceback" not in error


def test_a_reader_that_goes_away_ends_it_without_a_word(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440, 30), 16000)
    with start(str(tmp_path / "a.wav"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listener:
        assert listener.stdout.readline().startswith(b"small_config:untrained")
        listener.stdout.close()
        assert listener.wait(timeout=60) == 128 + signal.SIGPIPE
        assert listener.stderr.read() == b""


def test_it_runs_with_closed_streams(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440, 1), 16000)
    command = f"{sys.executable} -m hear_api.listen {{}} {' '.join(MODEL)}"
    done = subprocess.run(["bash", "-c", command.format(tmp_path / "a.wav") + " 2>&-"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and b"26 steps of 40 ms" in done.stdout
    done = subprocess.run(["bash", "-c", command.format("-") + " <&-"], cwd=ROOT, capture_output=True)
    assert done.returncode == 1 and done.stderr.startswith(b"listen: ") and b"Traceback" not in done.stderr


def test_ctrl_c_ends_live_audio_and_prints_the_measurements(monkeypatch, capsys, one_thread):
    def pieces(source, sample_rate, channel):
        yield from torch.tensor(tone(440, 1), dtype=torch.float32).split(640)
        raise KeyboardInterrupt

    monkeypatch.setattr("audio_mamba.hear_api.listen.read_pieces", pieces)
    main(["-", *MODEL])
    assert re.search(r"\n24 steps of 40 ms.*real-time factor 0?[\d.]+\n", capsys.readouterr().out)


def test_times_are_those_of_the_last_steps(monkeypatch, capsys):
    """Live audio may go on for months; the times of all steps would fill the memory."""
    monkeypatch.setattr(listen_module, "MEASURED_STEPS", 3)
    times = iter([5.0] * 10 + [0.001, 0.002, 0.003, 0.0])  # the last call gives no step
    clock = iter([0.0, *itertools.chain.from_iterable((total, total) for total in itertools.accumulate(times))])
    monkeypatch.setattr(listen_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    runtime = SimpleNamespace(
        steps_per_segment=1, step_ms=40, sample_rate=16000, cut=SimpleNamespace(place=lambda _: 0)
    )
    streaming = SimpleNamespace(
        runtime=runtime,
        feed=lambda _: (torch.ones(1, 4), torch.zeros(1)),
        finish=lambda: (torch.ones(0, 4), torch.zeros(0)),
    )
    speed = listen_module.listen(streaming, iter(torch.zeros(13, 640)))
    assert speed["steps"] == 13 and speed["median_ms"] == pytest.approx(2) and speed["p95_ms"] < 3.1
    assert speed["real_time_factor"] == pytest.approx(50.006 / (13 * 0.04))


def test_invalid_statistics_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["a.wav", "--statistics", "mean"])
    assert "'mean' is neither MEAN,STD nor one of warmup, running" in capsys.readouterr().err


def test_errors_are_one_line(tmp_path, one_thread):
    with pytest.raises(SystemExit, match="listen: .*absent.wav: no such audio file"):
        main([str(tmp_path / "absent.wav"), *MODEL])
    with pytest.raises(SystemExit, match=r"listen: SSAST \(ssast_tiny\) is not causal"):
        main(["-", "--config", "ssast_tiny_200_16x4", "--weights", "untrained", "--device", "cpu"])


def test_sound_that_cannot_be_embedded_is_refused_with_the_name_of_its_source(tmp_path, monkeypatch, one_thread):
    for name, samples, fault in (
        ("short", tone(440, 0.00625), "too short, 100 samples at 16000 Hz; 201 are needed"),
        ("loud", 32768 * tone(440, 1), r"must hold samples in \[-1, 1\]"),
        ("not_finite", np.full(16000, np.nan), "holds NaN or Inf"),
    ):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
        with pytest.raises(SystemExit, match=rf"listen: .*{name}\.wav: {fault}"):
            main([str(tmp_path / f"{name}.wav"), *MODEL])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / f"{name}.wav").read_bytes())))
        with pytest.raises(SystemExit, match=f"listen: stdin: {fault}"):
            main(["-", *MODEL])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(SystemExit, match="listen: stdin: too short, 0 samples at 16000 Hz; 201 are needed"):
        main(["-", *MODEL])


def test_novelty_is_high_where_the_embeddings_change():
    rng, novelty = np.random.default_rng(0), Novelty(50)
    before, after = torch.tensor(rng.standard_normal((2, 64)), dtype=torch.float32)
    rows = torch.cat([before.expand(100, -1), after.expand(100, -1)])
    rows += 0.1 * torch.tensor(rng.standard_normal((200, 64)), dtype=torch.float32)
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
