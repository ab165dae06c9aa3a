"""The metrics against scikit-learn, on scores with ties, and what temperature scaling finds."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, roc_auc_score

from audio_mamba import finetune_schema
from audio_mamba.training import metrics


@pytest.fixture(params=[None, 1], ids=["distinct scores", "many equal scores"])
def several(request):
    """Scores and targets of 200 clips with several of 7 labels each; the last label has no clip."""
    rng = np.random.default_rng(0)
    targets = rng.random((200, 7)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.01, 0.0]
    targets[0, 5] = True
    scores = rng.standard_normal(targets.shape) + targets
    return (scores if request.param is None else scores.round(request.param)), targets


def test_precision_and_area_of_each_class(several):
    scores, targets = several
    ours = metrics.average_precisions(scores, targets), metrics.areas_under_roc(scores, targets)
    for found, theirs in zip(ours, (average_precision_score, roc_auc_score)):
        expected = [theirs(targets[:, k], scores[:, k]) for k in range(6)]
        np.testing.assert_allclose(found[:6], expected, rtol=0, atol=1e-12)
        assert np.isnan(found[6])


def test_means_leave_out_classes_without_clips(several):
    scores, targets = several
    found = metrics.evaluate(scores, targets, "multi")
    assert found.keys() == {"mAP", "AUC", "d_prime"}
    precision, area = (
        np.mean([theirs(targets[:, k], scores[:, k]) for k in range(6)])
        for theirs in (average_precision_score, roc_auc_score)
    )
    assert found["mAP"] == pytest.approx(precision, abs=1e-12)
    assert found["AUC"] == pytest.approx(area, abs=1e-12)
    assert found["d_prime"] == pytest.approx(np.sqrt(2) * norm.ppf(area), abs=1e-9)


def test_one_label_per_clip():
    rng = np.random.default_rng(1)
    labels = rng.choice(5, 300, p=[0.5, 0.2, 0.2, 0.08, 0.02])
    targets = np.eye(6, dtype=bool)[labels]
    scores = rng.standard_normal(targets.shape) + 1.5 * targets
    found = metrics.evaluate(scores, targets, "single")
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, scores.argmax(1)), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([(scores.argmax(1) == k)[labels == k].mean() for k in range(5)]), abs=1e-12
    )
    seen = np.isin(scores.argmax(1), range(5))  # scikit-learn warns of guesses that are no label
    assert metrics.balanced_accuracy(scores[seen], targets[seen]) == pytest.approx(
        balanced_accuracy_score(labels[seen], scores[seen].argmax(1)), abs=1e-12
    )
    assert found["mAP"] == pytest.approx(
        average_precision_score(targets[:, :5], scores[:, :5], average="macro"), abs=1e-12
    )


@pytest.mark.parametrize("targets", [np.zeros((4, 2), bool), np.ones((4, 2), bool)], ids=["no clips", "all clips"])
def test_nothing_to_measure_is_nan(targets):
    assert np.isnan(metrics.mean_area_under_roc(torch.rand(4, 2).numpy(), targets))


def test_a_config_may_choose_every_metric():
    assert tuple(metrics.METRICS) == finetune_schema.METRICS
