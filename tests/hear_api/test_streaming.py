"""Live embeddings equal those of the whole clip, given the same statistics."""

import numpy as np
import pytest
import torch

from audio_mamba.data.features import log_mel
from audio_mamba.hear_api import RuntimeSSAST
from audio_mamba.hear_api.inputs import InputError
from audio_mamba.hear_api.streaming import StreamingSSAM
from tests.golden_weights import fill_by_rule, golden_audio
from tests.hear_api.test_runtime import config_of


@pytest.fixture(scope="module", params=[{}, {"use_cls_token": False, "rms_norm": True}])
def runtime(request):
    runtime = RuntimeSSAST(config_of("ssam_tiny_200_16x4", depth=2, embed_dim=64, **request.param), None)
    fill_by_rule(runtime.model)
    return runtime


def statistics_of(audio):
    spectrogram = log_mel(audio)
    return spectrogram.mean().item(), spectrogram.std().item()


def stream(streaming, audio, piece):
    results = [streaming.feed(part) for part in audio.split(piece)] + [streaming.finish()]
    return tuple(torch.cat(parts) for parts in zip(*results))


@pytest.mark.parametrize("piece", [1, 160, 1000, 32000])
@pytest.mark.parametrize("samples", [201, 8000, 50001])
def test_streaming_equals_offline_given_the_statistics(runtime, piece, samples):
    if piece == 1:
        samples = min(samples, 8000)
    audio = golden_audio(samples)[0]
    rows, times = stream(StreamingSSAM(runtime, statistics_of(audio)), audio, piece)
    expected_rows, expected_times = runtime.get_timestamp_embeddings(audio)
    torch.testing.assert_close(rows, expected_rows[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(times, expected_times[0].double())


@pytest.mark.slow
@pytest.mark.parametrize("piece", [1, 160, 1000, 32000])
def test_streaming_equals_offline_at_the_published_size(piece):
    runtime, audio = RuntimeSSAST(config_of("ssam_tiny_200_16x4"), None), golden_audio(80000)[0]
    fill_by_rule(runtime.model)
    rows, _ = stream(StreamingSSAM(runtime, statistics_of(audio)), audio, piece)
    torch.testing.assert_close(rows, runtime.get_timestamp_embeddings(audio)[0][0], rtol=0, atol=1e-4)


def test_a_step_is_returned_as_soon_as_its_frames_are_complete(runtime):
    streaming, audio = StreamingSSAM(runtime, (0.0, 1.0)), golden_audio(8000)[0]
    arrivals = [at for at in range(0, 8000, 40) if len(streaming.feed(audio[at : at + 40])[0])]
    # Step i ends with frame 4 i + 3, whose window ends 200 samples after sample 160 (4 i + 3).
    assert [at + 40 for at in arrivals] == [160 * (4 * i + 3) + 200 for i in range(len(arrivals))]


def test_warm_up_returns_nothing_and_then_uses_its_own_statistics(runtime):
    audio = golden_audio(50001)[0]
    statistics = StreamingSSAM(runtime, statistics_of(audio)), StreamingSSAM(runtime, "warmup", 0.5)
    assert len(statistics[1].feed(audio[:7000])[0]) == 0 and len(statistics[1].feed(audio[7000:9000])[0]) == 14
    mean, std = (f(log_mel(audio)[:50]).item() for f in (torch.mean, torch.std))
    rows, _ = stream(StreamingSSAM(runtime, "warmup", 0.5), audio, 1700)
    expected, _ = stream(StreamingSSAM(runtime, (mean, std)), audio, 50001)
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-4)
    short, _ = stream(StreamingSSAM(runtime, "warmup", 0.5), audio[:4000], 4000)
    torch.testing.assert_close(short, runtime.get_timestamp_embeddings(audio[:4000])[0][0], rtol=0, atol=1e-4)


def test_a_warm_up_of_digital_silence_goes_on_with_running_statistics(runtime, caplog):
    """Its deviation of 0 would blow up all that follows."""
    audio = torch.cat([torch.zeros(9000), golden_audio(50001)[0]])
    rows, _ = stream(StreamingSSAM(runtime, "warmup", 0.5), audio, 1700)
    expected, _ = stream(StreamingSSAM(runtime, "running"), audio, 59001)
    torch.testing.assert_close(rows[-10:], expected[-10:], rtol=0, atol=1e-4)
    assert "digital silence" in caplog.text


def test_times_stay_exact_for_days(runtime):
    live = StreamingSSAM(runtime, (-8.0, 4.0))
    live._step = 3_400_000  # 37 hours; the start of a segment
    _, times = live.feed(golden_audio(16000)[0])
    assert times.tolist() == [40 * (3_400_000 + i) for i in range(len(times))] and len(times) > 20


def test_running_statistics_do_not_depend_on_the_pieces_and_never_look_ahead(runtime):
    audio = golden_audio(16000)[0]
    rows, _ = stream(StreamingSSAM(runtime), audio, 16000)
    others, _ = stream(StreamingSSAM(runtime), audio, 777)
    torch.testing.assert_close(rows, others, rtol=0, atol=1e-4)
    changed = audio.clone()
    changed[12000:] = 0
    others, _ = stream(StreamingSSAM(runtime), changed, 777)
    unchanged = 18  # steps whose windows end before sample 12000
    torch.testing.assert_close(rows[:unchanged], others[:unchanged], rtol=0, atol=1e-4)
    assert (rows[unchanged + 1 :] - others[unchanged + 1 :]).abs().amax(dim=1).min() > 1e-3


def test_memory_stays_constant(runtime):
    streaming, sizes = StreamingSSAM(runtime), []
    for _ in range(60):
        streaming.feed(torch.randn(1600))
        kept = [*streaming._states[0], streaming._frames, streaming._log_mel._held]
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept))
    assert max(sizes[30:]) <= max(sizes[:30])


def test_pieces_are_arrays_or_tensors_of_any_floats(runtime):
    audio = golden_audio(3000)[0]
    rows, _ = StreamingSSAM(runtime).feed(audio)
    for piece in (audio.numpy(), audio.double(), audio.double().numpy()):
        assert torch.equal(StreamingSSAM(runtime).feed(piece)[0], rows)


def test_invalid_input_is_refused(runtime):
    with pytest.raises(InputError, match="the piece holds NaN or Inf"):
        StreamingSSAM(runtime).feed(torch.full((10,), np.nan))
    for piece, message in (
        (torch.zeros(1, 3000), r"the piece must be \[n_samples\], got \[1, 3000\]"),
        (torch.ones(3000, dtype=torch.int16), "int16; integer PCM needs scaling"),
        ([0.0] * 3000, "floating-point samples .* got list"),
    ):
        with pytest.raises(InputError, match=message):
            StreamingSSAM(runtime).feed(piece)
    with pytest.raises(ValueError, match="200 samples"):
        stream(StreamingSSAM(runtime), torch.zeros(200), 50)
    for statistics in ("mean", (1.0,), (0.0, -1.0), (0.0, 0.0), 5):
        with pytest.raises(ValueError, match="statistics must be"):
            StreamingSSAM(runtime, statistics)
    for seconds in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="warmup_seconds must be positive"):
            StreamingSSAM(runtime, "warmup", seconds)
    with pytest.raises(ValueError, match=r"SSAST \(ssast_tiny\) is not causal"):
        StreamingSSAM(RuntimeSSAST(config_of("ssast_tiny_200_16x4", depth=1), None))


def test_a_finished_stream_refuses_more(runtime):
    streaming = StreamingSSAM(runtime)
    streaming.feed(torch.zeros(1000))
    streaming.finish()
    for more in (lambda: streaming.feed(torch.zeros(1000)), streaming.finish):
        with pytest.raises(ValueError, match="has ended"):
            more()
