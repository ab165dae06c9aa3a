"""Float32 in the place of a precision that the processor has no fast products in."""

import json
import logging
import time

import pytest
import torch

from audio_mamba import train
from audio_mamba.hear_api.api import load_model
from audio_mamba.models import precision
from audio_mamba.training.records import read_log
from tests.training.runs import arguments, write_archive


@pytest.fixture
def measured(slow_precisions_give_way, monkeypatch):
    """Sets how many times as long products in lower precisions take; returns the dtypes that were timed."""
    timed = []

    def set_share(share):
        def seconds(dtypes):
            timed.extend(dtypes)
            return [1.0 if dtype == torch.float32 else share for dtype in dtypes]

        monkeypatch.setattr(precision, "_seconds", seconds)
        return timed

    return set_share


@pytest.mark.parametrize("share, usable", [(0.6, "bfloat16"), (2.0, "bfloat16"), (20.0, "float32")])
def test_a_slow_precision_gives_way_to_float32_once_with_a_warning(measured, caplog, share, usable):
    timed = measured(share)
    for _ in range(2):
        assert precision.usable_precision(torch.device("cpu"), "bfloat16") == usable
    expected = ["float32 is used: this processor has no fast products in bfloat16 (they take 20 times as long)"]
    assert [record.message for record in caplog.records] == (expected if usable == "float32" else [])
    assert timed == [torch.bfloat16, torch.float32]


def test_neither_float32_nor_other_devices_are_measured(measured):
    timed = measured(20.0)
    assert precision.usable_precision(torch.device("cpu"), "float32") == "float32"
    assert precision.usable_precision(torch.device("cuda"), "float16") == "float16"
    assert not timed


@pytest.mark.usefixtures("slow_precisions_give_way")
def test_the_measurement_tells_a_slow_product(monkeypatch):
    """The real one, with a product that takes long in one dtype."""
    product = torch.nn.functional.linear

    def slow(x, weight):
        for _ in range(20 if x.dtype == torch.float16 else 1):
            result = product(x.float(), weight.float())
        return result

    monkeypatch.setattr(torch.nn.functional, "linear", slow)
    assert precision.usable_precision(torch.device("cpu"), "float16") == "float32"
    assert precision.usable_precision(torch.device("cpu"), "bfloat16") == "bfloat16"


@pytest.mark.usefixtures("slow_precisions_give_way")
def test_other_work_on_the_machine_does_not_change_the_answer(monkeypatch):
    """Products that wait for the processor, whichever the dtype, are not slow ones; threads stay as they were."""
    product, threads = torch.nn.functional.linear, torch.get_num_threads()
    for waiting in (torch.float32, torch.bfloat16):
        precision._is_too_slow.cache_clear()

        def waits(x, weight, waiting=waiting):
            assert torch.get_num_threads() == 1
            time.sleep(0.1 * (x.dtype == waiting))
            return product(x.float(), weight.float())

        monkeypatch.setattr(torch.nn.functional, "linear", waits)
        assert precision.usable_precision(torch.device("cpu"), "bfloat16") == "bfloat16"
    assert torch.get_num_threads() == threads


def test_embeddings_are_then_those_of_float32(measured):
    audio = [torch.sin(torch.arange(16000) / 20).numpy()]
    measured(20.0)
    exact, slow = (load_model("ssam_tiny_free_audio", device="cpu", precision=name) for name in ("float32", "bfloat16"))
    assert slow.working_precision == "float32"
    assert torch.equal(torch.as_tensor(exact.embed(audio)), torch.as_tensor(slow.embed(audio)))
    precision._is_too_slow.cache_clear()
    measured(0.6)
    assert slow.working_precision == "bfloat16"
    assert not torch.equal(torch.as_tensor(exact.embed(audio)), torch.as_tensor(slow.embed(audio)))


def test_training_is_then_that_of_float32_and_says_so(tmp_path, measured, caplog):
    measured(20.0)
    data, losses = write_archive(tmp_path / "data", [4]), []
    for name in ("float32", "bfloat16"):
        options = ("--device", "cpu", "--precision", name)
        with caplog.at_level(logging.WARNING):
            train.main(arguments(tmp_path / name, data, *options, num_epochs=1, batch_size=2))
        losses.append([line["train_loss"] for line in read_log(tmp_path / name / "log.txt")])
        assert json.loads((tmp_path / name / "config.json").read_text())["precision"] == "float32"
    assert losses[0] == losses[1]
    assert "float32 is used" in caplog.text


def test_float32_is_float32_within_an_autocast_of_the_caller():
    """In one batch, and in several, which run in threads of their own."""
    model = load_model("ssam_tiny_free_audio", device="cpu", precision="float32")
    audio = [torch.sin(torch.arange(16000) / (20 + i)).numpy() for i in range(40)]
    for clips in (audio[:1], audio):
        plain = torch.as_tensor(model.embed(clips))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(torch.as_tensor(model.embed(clips)), plain)
