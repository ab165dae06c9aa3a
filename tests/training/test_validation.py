import pytest
import torch

from audio_mamba.training.validation import mean_loss


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
