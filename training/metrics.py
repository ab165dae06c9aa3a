"""Metrics of classification, by the definitions that scikit-learn and the AudioSet papers use.

scores: float [n, classes], higher for more likely; targets: bool [n, classes].
"""

from collections.abc import Callable

import numpy as np
import torch


def accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    """Share of clips whose highest score is that of their label."""
    return float((scores.argmax(axis=1) == targets.argmax(axis=1)).mean())


def balanced_accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over classes of the share of a class's clips that are right."""
    right = scores.argmax(axis=1) == targets.argmax(axis=1)
    return float(np.mean([right[targets[:, k]].mean() for k in range(targets.shape[1]) if targets[:, k].any()]))


def average_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class, float64 [classes]; NaN for a class without a clip."""
    return np.array([_average_precision(scores[:, k], targets[:, k]) for k in range(targets.shape[1])])


def areas_under_roc(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class, float64 [classes]; NaN for a class that no clip has, or that all have."""
    return np.array([_area_under_roc(scores[:, k], targets[:, k]) for k in range(targets.shape[1])])


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean of `average_precisions` over the classes that have one."""
    return _mean(average_precisions(scores, targets))


def mean_area_under_roc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean of `areas_under_roc` over the classes that have one."""
    return _mean(areas_under_roc(scores, targets))


def d_prime(scores: np.ndarray, targets: np.ndarray) -> float:
    """sqrt(2) times the standard normal's quantile of the mean area under the ROC curve (Gemmeke et al. 2017)."""
    area = torch.tensor(mean_area_under_roc(scores, targets), dtype=torch.float64)
    return float(2**0.5 * torch.special.ndtri(area))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "mAP": mean_average_precision,
    "AUC": mean_area_under_roc,
    "d_prime": d_prime,
}
SINGLE_LABEL = ("accuracy", "balanced_accuracy")  # these need one label per clip


def evaluate(scores: np.ndarray, targets: np.ndarray, label_mode: str) -> dict[str, float]:
    """All metrics by name.

    Args:
        scores: [n, classes], higher for more likely; logits or probabilities.
        targets: bool [n, classes].
        label_mode: "single" for one label per clip, "multi" for several, which leaves out the two accuracies.
    """
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets, bool)
    names = [name for name in METRICS if label_mode == "single" or name not in SINGLE_LABEL]
    return {name: METRICS[name](scores, targets) for name in names}


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Sum over thresholds of (recall gained) * precision; equal scores are one threshold."""
    if not positive.any():
        return np.nan
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each group of equal scores
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def _area_under_roc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive clip scores higher than a negative one; equal scores count half."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return np.nan
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[group]  # mean rank of equal scores, from 1
    return float((rank[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
