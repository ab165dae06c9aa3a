"""Logistic regression and nearest neighbours on frozen embeddings, with what they choose chosen on validation clips."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from audio_mamba.hear_api.probe.clips import Round

REGULARISATION = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of logistic regression
NEIGHBOURS = (1, 3, 5, 10, 20)
RESAMPLES = 1000  # of accuracy; mean average precision takes long to compute
RESAMPLES_MULTI_LABEL = 200


@dataclass(frozen=True)
class Result:
    """What one classifier made of one model's embeddings.

    Attributes:
        scores: float64 [n, classes] of each clip when it was tested, NaN for clips that never were.
        chosen: the C or k of each round.
    """

    classifier: str
    scores: np.ndarray
    chosen: list[float]


def classify(features: np.ndarray, targets: np.ndarray, rounds: list[Round], multi_label: bool) -> list[Result]:
    """Train, choose and test in every round.

    In each round C, or k, is chosen by the score on the validation clips after training on the training clips (the
    smaller of equals); then the classifier is trained on both and tested. Features are standardised with the mean and
    deviation of the clips it trains on.

    Args:
        features: [n, width].
        targets: bool [n, classes].
        multi_label: one classifier per class, judged by mean average precision; else one over all classes, by accuracy.
    """
    results = []
    for name, fit, choices in (("logistic regression", _logistic, REGULARISATION), ("k-NN", _neighbours, NEIGHBOURS)):
        scores, chosen = np.full(targets.shape, np.nan), []
        for part in tqdm(rounds, desc=name, unit="round", delay=2, leave=False):
            on_valid = []
            for choice in choices:
                guesses = fit(features, targets, part.train, part.valid, choice, multi_label)
                on_valid.append(metric(guesses, targets[part.valid], multi_label))
            best = choices[int(np.nanargmax(on_valid))] if not np.isnan(on_valid).all() else choices[len(choices) // 2]
            both = np.sort(np.concatenate([part.train, part.valid]))
            scores[part.test] = fit(features, targets, both, part.test, best, multi_label)
            chosen.append(best)
        results.append(Result(name, scores, chosen))
    return results


def _logistic(features, targets, train, test, regularisation, multi_label) -> np.ndarray:
    """Scores [test, classes]; a class without examples, or with nothing else, gets its share of the training clips."""
    scaler = StandardScaler().fit(features[train])
    x, unseen = scaler.transform(features[train]), scaler.transform(features[test])
    scores = np.tile(targets[train].mean(axis=0, dtype=np.float64), (len(test), 1))
    if not multi_label:
        model = LogisticRegression(C=regularisation, max_iter=2000).fit(x, targets[train].argmax(axis=1))
        scores[:] = 0
        scores[:, model.classes_] = model.predict_proba(unseen)
        return scores
    for number in range(targets.shape[1]):
        positive = targets[train, number]
        if positive.any() and not positive.all():
            model = LogisticRegression(C=regularisation, max_iter=2000).fit(x, positive)
            scores[:, number] = model.predict_proba(unseen)[:, 1]
    return scores


def _neighbours(features, targets, train, test, neighbours, multi_label) -> np.ndarray:
    """Share of each class among the nearest training clips by cosine, the nearer counting more."""
    scaler = StandardScaler().fit(features[train])
    model = KNeighborsRegressor(min(neighbours, len(train)), metric="cosine", weights="distance")
    model.fit(scaler.transform(features[train]), targets[train].astype(np.float64))
    return model.predict(scaler.transform(features[test]))


def metric(scores: np.ndarray, targets: np.ndarray, multi_label: bool) -> float:
    """Accuracy, or the mean over classes of average precision (classes without a positive clip are left out)."""
    if not multi_label:
        return float((scores.argmax(axis=1) == targets.argmax(axis=1)).mean())
    precisions = class_precisions(scores, targets)
    return float(np.nanmean(precisions)) if not np.isnan(precisions).all() else float("nan")


def class_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class, NaN where no clip is positive."""
    return np.array(
        [
            average_precision_score(targets[:, number], scores[:, number]) if targets[:, number].any() else np.nan
            for number in range(targets.shape[1])
        ]
    )


def bootstrap(all_scores: list[np.ndarray], targets: np.ndarray, multi_label: bool, seed: int = 0) -> np.ndarray:
    """The metric of several results on the same resamples of the tested clips, [resamples, results]."""
    rng, n = np.random.default_rng(seed), len(targets)
    values = np.empty((RESAMPLES_MULTI_LABEL if multi_label else RESAMPLES, len(all_scores)))
    right = None
    if not multi_label:  # which clips are right does not change, so each resample is a mean
        right = np.stack([scores.argmax(axis=1) == targets.argmax(axis=1) for scores in all_scores], axis=1)
    for row in values:
        drawn = rng.integers(n, size=n)
        if right is not None:
            row[:] = right[drawn].mean(axis=0)
        else:
            row[:] = [metric(scores[drawn], targets[drawn], True) for scores in all_scores]
    return values


def interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95% of bootstrap values."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
