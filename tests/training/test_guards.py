import math

import pytest
import torch

from audio_mamba.training import optim
from audio_mamba.training.guards import NonFiniteError, StepGuard, spread_to_gradient, update_ratio


def watched(guard, losses_and_norms, first=0):
    answers = []
    for step, (loss, norm) in enumerate(losses_and_norms, start=first):
        bad = guard.watch(0, step, torch.tensor(loss), torch.tensor(norm), torch.tensor([10 * step, 10 * step + 1]))
        answers.append(bad.item())
    return answers


def test_bad_steps_are_flagged_counted_and_named(caplog):
    guard = StepGuard(scaled=False, name_sample="clip {}".format)
    answers = watched(guard, [(1.0, 1.0), (math.nan, math.nan), (1.0, math.inf), (1.0, 2.0)])
    assert answers == [0.0, 1.0, 1.0, 0.0]
    assert not caplog.records  # not read before the review
    assert guard.skipped == 2
    guard.review()
    assert guard.skipped == 2
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 1, step 2 skipped: the loss is nan; its samples in this process: clip 10; clip 11",
        "epoch 1, step 3 skipped: the gradient is NaN or Inf; its samples in this process: clip 20; clip 21",
    ]


def test_ten_bad_steps_in_a_row_end_the_run_and_nine_do_not():
    guard = StepGuard(scaled=False, name_sample=str)
    watched(guard, [(math.nan, math.nan)] * 9 + [(1.0, 1.0)] + [(math.nan, math.nan)] * 9)
    guard.review()
    watched(guard, [(math.nan, math.nan)])
    with pytest.raises(NonFiniteError, match="10 steps in a row, up to step 1 of epoch 1"):
        guard.review()


def test_overflows_of_a_scaled_gradient_get_no_warning_but_a_bad_loss_does(caplog):
    guard = StepGuard(scaled=True, name_sample=str)
    watched(guard, [(1.0, math.inf)] * 16)
    guard.review()
    assert guard.skipped == 16 and not caplog.records
    watched(guard, [(math.nan, math.nan)])
    guard.review()
    assert "the loss is nan" in caplog.text
    watched(guard, [(math.nan, math.nan)] * 40)
    with pytest.raises(NonFiniteError):
        guard.review()


def test_a_flagged_step_changes_neither_weights_nor_moments():
    model = torch.nn.Linear(2, 2)
    optimizer = optim.make_optimizer(model, weight_decay=0.1)
    optim.set_learning_rate(optimizer, 0.1)

    def step(gradient, bad):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optim.skip_step_if(optimizer, torch.tensor(bad))
        optimizer.step()
        return (
            [parameter.detach().clone() for parameter in model.parameters()],
            [value.clone() for state in optimizer.state.values() for value in state.values()],
        )

    first = step(1.0, 0.0)
    skipped = step(math.nan, 1.0)
    assert all(map(torch.equal, first[0], skipped[0])) and all(map(torch.equal, first[1], skipped[1]))
    assert not torch.equal(step(1.0, 0.0)[0][0], first[0][0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_constant_in_the_loss_reaches_the_gradient(bad):
    """For a finite loss, nothing changes."""
    weight = torch.tensor(0.3, requires_grad=True)
    for constant, expected in ((0.0, 0.6), (bad, math.nan)):
        loss = weight.square() + constant
        spread = spread_to_gradient(loss)
        (gradient,) = torch.autograd.grad(spread, weight)
        assert torch.equal(gradient, torch.tensor(expected)) or gradient.isnan() and math.isnan(expected)
        assert torch.equal(spread, loss) == (constant == 0)


def test_the_update_ratio_is_the_ratio_of_norms():
    before, after = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], [torch.tensor([3.0, 0.6]), torch.tensor([[4.8]])]
    assert update_ratio(before, after).item() == pytest.approx(1.0 / 5.0)
