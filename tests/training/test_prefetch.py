import pytest
import torch

from audio_mamba.training.prefetch import prefetch


def make_batches(count):
    return [{"spectrogram": torch.full((2, 3), float(i)), "mask": torch.full((2,), float(-i))} for i in range(count)]


def test_on_a_cpu_batches_pass_through_one_by_one():
    batches, read = make_batches(3), []

    def source():
        for batch in batches:
            read.append(batch)
            yield batch

    for number, batch in enumerate(prefetch(source(), torch.device("cpu"))):
        assert batch is batches[number] and len(read) == number + 1


def test_no_batches_give_no_batches():
    assert list(prefetch([], torch.device("cpu"))) == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestCuda:
    @pytest.mark.parametrize("count", [0, 1, 2, 7])
    def test_all_batches_arrive_in_order(self, count):
        pinned = [{name: t.pin_memory() for name, t in batch.items()} for batch in make_batches(count)]
        seen = [batch["spectrogram"] + 0 for batch in prefetch(pinned, torch.device("cuda"))]
        assert [t.mean().item() for t in seen] == list(range(count)) and all(t.is_cuda for t in seen)

    def test_a_batch_stays_intact_while_it_is_used(self):
        """With large copies and a busy device, the memory of a batch is not reused too early."""
        pinned = [{"x": torch.full((2**22,), float(i)).pin_memory()} for i in range(20)]
        work = torch.randn(2048, 2048, device="cuda")
        sums = []
        for batch in prefetch(pinned, torch.device("cuda")):
            for _ in range(5):
                work = work @ work / work.norm()
            sums.append(batch["x"].double().mean())
            del batch
        assert [s.item() for s in sums] == list(range(20))
