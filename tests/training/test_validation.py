import io
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from audio_mamba.training import distributed
from audio_mamba.training.validation import gather_outputs, mean_loss, read_through


def test_every_sample_weighs_the_same_whatever_its_batch():
    batches = [
        {"index": torch.arange(3), "x": torch.tensor([1.0, 2.0, 3.0])},
        {"index": torch.arange(1), "x": torch.tensor([10.0])},
    ]
    assert mean_loss(batches, lambda batch: batch["x"].mean(), torch.device("cpu")) == pytest.approx(4.0)


def test_it_stops_between_batches_on_request():
    seen = []
    loss = mean_loss(
        [{"index": torch.arange(1)}] * 3,
        lambda batch: seen.append(0) or torch.tensor(1.0),
        torch.device("cpu"),
        stop=lambda: len(seen) == 2,
    )
    assert loss is None and len(seen) == 2


def clips(*numbers):
    index = torch.tensor(numbers)
    return {"index": index, "x": index[:, None] * torch.tensor([1.0, -2.0]), "target": (index[:, None] + 1).float()}


def test_outputs_of_all_processes_come_in_the_order_of_the_clips(monkeypatch):
    other = clips(3, 1)
    theirs = other["index"], 10 * other["x"], other["target"]
    monkeypatch.setattr(distributed, "gather", lambda ours: [ours, theirs])
    index, logits, target = gather_outputs([clips(4, 0), clips(2)], lambda batch: 10 * batch["x"])
    assert index.tolist() == [0, 1, 2, 3, 4] and target[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert logits.tolist() == [[10 * n, -20 * n] for n in range(5)]


@pytest.mark.parametrize("who", ["this process", "another"])
def test_no_process_has_outputs_if_one_stops(monkeypatch, who):
    if who == "another":
        monkeypatch.setattr(distributed, "gather", lambda ours: [ours, None])
    seen = []
    found = gather_outputs(
        [clips(0), clips(1)],
        lambda batch: seen.append(0) or batch["x"],
        stop=lambda: who == "this process" and len(seen) == 1,
    )
    assert found is None


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_slow_reading_shows_on_a_terminal_how_far_it_is(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    loader = DataLoader(SlowClips(), batch_size=2)
    indices = [batch["index"].tolist() for batch in read_through(loader, torch.device("cpu"), "validating")]
    assert indices == [[0, 1], [2, 3], [4]]
    shown = "validating:" in sys.stderr.getvalue() and "/3 [" in sys.stderr.getvalue()
    assert shown == (stream is Terminal)


class SlowClips(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        time.sleep(0.6)
        return {"index": index}
