"""Batching the segments of all clips and skipping padding gives the numbers of each clip alone."""

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio_mamba.data.normalisation import Statistics
from audio_mamba.front_end import PUBLISHED
from audio_mamba.hear_api import RuntimeSSAST, batches, clips
from audio_mamba.hear_api.segments import TOKENS_PER_BATCH, Cut, batch_segments, plan_segments
from audio_mamba.models import precision as precisions
from audio_mamba.models.ops import linear_choice
from audio_mamba.models.ops.private_torch import has_onednn_linear
from tests.golden_weights import fill_by_rule
from tests.hear_api.test_runtime import config_of

LENGTHS = [201, 4000, 16000, 31840, 32000, 33000, 70000]
CLIPS = [np.random.default_rng(n).uniform(-0.5, 0.5, n).astype(np.float32) for n in LENGTHS]


@pytest.fixture(scope="module", params=["ssam_tiny_200_16x4", "ssast_tiny_200_16x4"])
def runtime(request):
    runtime = RuntimeSSAST(config_of(request.param, depth=2), None)
    fill_by_rule(runtime.model)
    return runtime


def segment_by_segment(runtime, clip, layout):
    """The published procedure: every segment whole, one after another."""
    spectrogram = runtime.spectrogram(torch.from_numpy(clip))[0]
    segments = [
        torch.nn.functional.pad(part, (0, 0, 0, 200 - len(part)))[None, None] for part in spectrogram.split(200)
    ]
    with torch.no_grad():
        features = torch.cat([whole_features(runtime.model, segment, layout) for segment in segments])
    return features[: -(-len(spectrogram) // 4)].numpy()


def whole_features(model, segment, layout):
    tokens = model.encode(model.embed(segment))[0]  # [250, D], all of them
    if layout == "published":
        tokens = tokens.reshape(5, 50, -1).transpose(0, 1)
    return tokens.reshape(50, -1)


@pytest.mark.parametrize("layout", ["published", "bands"])
def test_a_mixed_list_gives_each_clip_its_numbers(runtime, layout):
    features = runtime.encode([runtime.spectrogram(torch.from_numpy(clip))[0] for clip in CLIPS], layout)
    for clip, ours in zip(CLIPS, features, strict=True):
        np.testing.assert_allclose(ours.numpy(), segment_by_segment(runtime, clip, layout), rtol=0, atol=5e-5)


@pytest.mark.parametrize("args", [{"direction": "alternate"}, {"direction": "both", "cls_position": "middle"}])
def test_bidirectional_encoders_read_whole_segments(args):
    """A clip of one step has the features that its whole segment gives."""
    runtime = RuntimeSSAST(config_of("ssam_tiny_200_16x4", depth=2, embed_dim=96, **args), None)
    spectrograms = [runtime.spectrogram(torch.from_numpy(clip))[0] for clip in CLIPS[::2]]
    for clip, ours in zip(CLIPS[::2], runtime.encode(spectrograms, "bands"), strict=True):
        np.testing.assert_allclose(ours.numpy(), segment_by_segment(runtime, clip, "bands"), rtol=0, atol=5e-5)


def test_embed_equals_the_hear_functions(runtime, tmp_path):
    paths = [tmp_path / f"{len(clip)}.wav" for clip in CLIPS]
    for path, clip in zip(paths, CLIPS):
        soundfile.write(path, clip, 16000, subtype="FLOAT")
    scenes, timed = runtime.embed([*CLIPS[:3], *paths[3:]]), runtime.embed(paths, kind="timestamps", output="torch")
    assert scenes.shape == (len(CLIPS), 960) and scenes.dtype == np.float32
    for clip, scene, (rows, times) in zip(CLIPS, scenes, timed, strict=True):
        audio = torch.from_numpy(clip)
        np.testing.assert_allclose(scene, runtime.get_scene_embeddings(audio)[0], rtol=0, atol=5e-5)
        expected_rows, expected_times = runtime.get_timestamp_embeddings(audio)
        torch.testing.assert_close(rows, expected_rows[0], rtol=0, atol=5e-5)
        torch.testing.assert_close(times, expected_times[0])


def test_embed_accepts_a_path_an_array_a_batch_and_an_empty_list(runtime, tmp_path):
    soundfile.write(tmp_path / "a.flac", CLIPS[2], 16000)
    assert runtime.embed(tmp_path / "a.flac").shape == runtime.embed(CLIPS[2]).shape == (1, 960)
    assert runtime.embed(np.stack([CLIPS[2]] * 2)).shape == (2, 960)
    assert runtime.embed([]).shape == (0, 960) and runtime.embed([], kind="timestamps") == []


def test_arrays_are_resampled_from_the_given_sample_rate(runtime):
    def tone(rate):
        return 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    at_16k, at_48k = runtime.embed(tone(16000)), runtime.embed(tone(48000), sample_rate=48000)
    assert np.corrcoef(at_16k[0], at_48k[0])[0, 1] > 0.99
    assert np.corrcoef(at_16k[0], runtime.embed(tone(48000))[0])[0, 1] < 0.99


def test_groups_and_blocks_do_not_change_the_numbers(runtime, monkeypatch):
    before = runtime.embed(CLIPS)
    monkeypatch.setattr("audio_mamba.hear_api.clips.GROUP_FRAMES", 150)
    monkeypatch.setattr("audio_mamba.hear_api.runtime.BLOCK_SAMPLES", 5000)
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 300)
    np.testing.assert_allclose(runtime.embed(CLIPS), before, rtol=0, atol=5e-5)


@pytest.mark.parametrize("kind", ["scene", "timestamps"])
def test_long_files_are_read_in_chunks_and_give_the_same_numbers(runtime, tmp_path, monkeypatch, kind):
    paths = [tmp_path / f"{len(clip)}.wav" for clip in CLIPS]
    for path, clip in zip(paths, CLIPS):
        soundfile.write(path, clip, 16000, subtype="FLOAT")
    whole = runtime.embed(paths, kind=kind)
    monkeypatch.setattr(clips, "LONG_SECONDS", 1.5)  # the last four are longer
    monkeypatch.setattr(clips, "GROUP_FRAMES", 250)
    chunks, read = clips.LongFile.chunks, []
    monkeypatch.setattr(clips.LongFile, "chunks", lambda file, *sizes: read.append(file.path) or chunks(file, *sizes))
    for ours, expected in zip(runtime.embed(paths, kind=kind), whole, strict=True):
        for array, expected_array in zip(ours, expected, strict=True) if kind == "timestamps" else [(ours, expected)]:
            np.testing.assert_allclose(array, expected_array, rtol=0, atol=2e-4)
    assert read == paths[3:]


def test_groups_depend_on_the_clips_alone(monkeypatch):
    monkeypatch.setattr(clips, "GROUP_FRAMES", 10)
    short, failed = [clips.ShortClip(np.zeros((n, 80)), 0.0) for n in (4, 7, 12, 3)], clips.Failure("damaged")
    long = clips.LongFile(Path("a.wav"), 10_000, Statistics(0.0, 1.0), PUBLISHED)
    sequence = [short[0], failed, short[1], short[2], short[3], long, failed, long]
    groups = list(clips.group_clips(sequence))
    ends = [sum(map(len, groups[:n])) for n in range(1, len(groups) + 1)]
    assert ends == [3, 4, 5, 6, 7, 8]
    for number, end in enumerate(ends, start=1):  # where a run may resume
        rest = list(clips.group_clips(sequence[end:]))
        assert [list(map(id, group)) for group in rest] == [list(map(id, group)) for group in groups[number:]]


def test_prefetch_keeps_the_order_and_raises_in_turn():
    with ThreadPoolExecutor(3) as pool:
        assert list(clips.prefetch(pool, divmod, ((n, 3) for n in range(20)), 4)) == [divmod(n, 3) for n in range(20)]
        results = clips.prefetch(pool, divmod, ((6, n) for n in (3, 2, 0, 1)), 4)
        assert [next(results), next(results)] == [(2, 0), (3, 0)]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_callers_in_threads_get_their_own_results(runtime):
    alone = [runtime.embed(clip) for clip in CLIPS]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(runtime.embed, CLIPS * 3))
    for ours, expected in zip(together, alone * 3):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout, tokens", [("bands", 250 + 5 * 1), ("published", 250 + 200 + 1)])
def test_a_causal_encoder_skips_the_padding_of_the_last_segment(runtime, layout, tokens, monkeypatch):
    seen, encode = [], runtime.model.encode
    monkeypatch.setattr(runtime.model, "encode", lambda x: seen.append(x.shape[0] * x.shape[1]) or encode(x))
    runtime.encode([torch.zeros(201, 80)], layout)
    if not runtime.model.causal:
        tokens = 500
    padding = 50 if tokens == 451 else 0  # one token less does not justify a separate batch
    assert tokens <= sum(seen) <= tokens + padding


def test_batches_hold_every_segment_once_and_pad_little():
    steps = list(np.random.default_rng(0).integers(1, 400, 300))
    segments = plan_segments(steps, Cut(50), lambda kept: 5 * kept)
    batches = list(batch_segments(segments, "cpu"))
    assert sorted((segment.clip, segment.first) for batch in batches for segment in batch) == [
        (clip, first) for clip, count in enumerate(steps) for first in range(0, count, 50)
    ]
    assert all(len(batch) * batch[0].tokens <= TOKENS_PER_BATCH["cpu"] for batch in batches)
    padded = sum(len(batch) * max(segment.tokens for segment in batch) for batch in batches)
    assert padded < 1.02 * sum(segment.tokens for segment in segments)


@pytest.fixture
def threads():
    """Sets the number of torch's threads, and restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.skipif(not has_onednn_linear(), reason="torch's own library rounds by the number of rows")
def test_the_bits_of_a_clip_depend_on_neither_the_others_nor_the_threads(runtime, precision, threads, monkeypatch):
    monkeypatch.setattr(linear_choice, "_choice", "onednn")
    monkeypatch.setattr(runtime, "precision", precision)
    alone = []
    for clip in CLIPS:
        threads(1)
        alone.append(runtime.embed(clip, kind="timestamps")[0][0])
    for count, tokens in ((1, 4000), (2, 300), (3, 600)):
        threads(count)
        monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", tokens)
        together = [rows for rows, _ in runtime.embed(CLIPS[::-1], kind="timestamps")][::-1]
        assert all(map(np.array_equal, together, alone))
        assert torch.get_num_threads() == count and torch.is_grad_enabled()


def test_an_error_in_one_batch_is_raised_and_stops_the_others(runtime, threads, monkeypatch):
    threads(2)
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 1)
    calls, forward = [], runtime.model.forward_features

    def failing(x, *arguments, **settings):
        calls.append(len(x))
        if len(calls) == 3:
            raise RuntimeError("out of something")
        return forward(x, *arguments, **settings)

    monkeypatch.setattr(runtime.model, "forward_features", failing)
    with pytest.raises(RuntimeError, match="out of something"):
        runtime.encode([torch.zeros(200, 80)] * 40, "bands")
    assert len(calls) < 10 and torch.get_num_threads() == 2


def test_inference_mode_of_the_caller(runtime, threads, tmp_path, monkeypatch):
    """It holds in one thread alone, and its tensors cannot be filled outside of it."""
    threads(2)
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 600)
    soundfile.write(tmp_path / "long.wav", CLIPS[-1], 16000, subtype="FLOAT")
    inputs, audio = [*CLIPS[:5], tmp_path / "long.wav"], torch.from_numpy(CLIPS[-1])
    monkeypatch.setattr(clips, "LONG_SECONDS", 3)
    expected, scene = runtime.embed(inputs), runtime.get_scene_embeddings(audio)
    with torch.inference_mode():
        found = runtime.embed(inputs)
        assert torch.equal(runtime.get_scene_embeddings(audio), scene)
    np.testing.assert_array_equal(found, expected)
    assert not torch.is_inference_mode_enabled()


def in_new_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_a_thread_that_starts_during_a_call_has_all_of_torch_threads(threads, monkeypatch):
    threads(3)
    monkeypatch.setattr(batches, "_idle", [])
    seen = []

    def encode(_):
        seen.append((torch.get_num_threads(), in_new_thread(torch.get_num_threads)))

    for _ in range(2):  # with new workers, and with those of the first call
        batches.run_batches(encode, range(6), torch.device("cpu"), contextlib.nullcontext)
    assert seen == [(1, 3)] * 12
    assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_workers_of_its_own(threads):
    threads(2)
    call = [[].append, range(4), torch.device("cpu"), contextlib.nullcontext]
    batches.run_batches(*call)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # ends it if it waits for the parent's threads
        try:
            batches.run_batches(*call)
        finally:
            os._exit(0 if call[0].__self__ == [*range(4)] * 2 else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures("slow_precisions_give_way")
def test_a_precision_is_measured_once_before_the_batches(runtime, threads, monkeypatch):
    threads(2)
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 600)
    monkeypatch.setattr(runtime, "precision", "bfloat16")
    measured = []
    monkeypatch.setattr(precisions, "_seconds", lambda _: time.sleep(0.2) or measured.append(1) or [20.0, 1.0])
    runtime.encode([torch.zeros(200, 80)] * 8, "bands")
    assert len(measured) == 1
