"""Logistic regression and nearest neighbours on frozen embeddings, with what they choose chosen on validation clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from audio_mamba.data.folds import Split
from audio_mamba.training.metrics import accuracy, mean_average_precision

LOGISTIC_REGRESSION, NEAREST_NEIGHBOURS = "logistic regression", "k-NN"
REGULARISATION = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of logistic regression
# Of its gradient. At scikit-learn's 1e-4, noise of 1e-6 in the embeddings changes which C is chosen.
TOLERANCE, ITERATIONS = 1e-6, 10000
NEIGHBOURS = (1, 3, 5, 10, 20)
RESAMPLES = 1000  # of accuracy; mean average precision takes long to compute
RESAMPLES_MULTI_LABEL = 200


@dataclass(frozen=True)
class Result:
    """What one classifier made of one model's embeddings.

    Attributes:
        scores: float64 [n, classes] of each clip when it was tested, NaN for clips that never were.
        valid_scores: likewise of each clip when it was in the validation part, by the chosen C or k.
        chosen: the C or k of each round.
    """

    classifier: str
    scores: np.ndarray
    valid_scores: np.ndarray
    chosen: list[float]


def classify(
    features: np.ndarray,
    targets: np.ndarray,
    rounds: list[Split],
    multi_label: bool,
    classifiers: tuple[str, ...] = (LOGISTIC_REGRESSION, NEAREST_NEIGHBOURS),
) -> list[Result]:
    """Train, choose and test in every round.

    In each round C, or k, is chosen by the score on the validation clips after training on the training clips (the
    smaller of equals); then the classifier is trained on both and tested. Features are standardised with the mean and
    deviation of the clips it trains on.

    Args:
        features: [n, width].
        targets: bool [n, classes].
        multi_label: one classifier per class, judged by mean average precision; else one over all classes, by accuracy.
        classifiers: which.
    """
    results = []
    for name in classifiers:
        fit, choices = _CLASSIFIERS[name]
        scores, valid_scores, chosen = np.full(targets.shape, np.nan), np.full(targets.shape, np.nan), []
        for part in tqdm(rounds, desc=name, unit="round", delay=2, leave=False):
            guesses = fit(features, targets, part.train, part.valid, choices, multi_label)
            on_valid = [metric(guess, targets[part.valid], multi_label) for guess in guesses]
            best = best_choice(on_valid)
            valid_scores[part.valid] = guesses[best]
            both = np.sort(np.concatenate([part.train, part.valid]))
            scores[part.test] = fit(features, targets, both, part.test, choices[best : best + 1], multi_label)[0]
            chosen.append(choices[best])
        results.append(Result(name, scores, valid_scores, chosen))
    return results


def best_choice(scores: Sequence[float]) -> int:
    """The place of the highest score, the first of equals, leaving out NaN; the middle if all are NaN."""
    return len(scores) // 2 if np.isnan(scores).all() else int(np.nanargmax(scores))


def _logistic(features, targets, train, test, choices, multi_label) -> list[np.ndarray]:
    """Scores [test, classes] for each C."""
    x, unseen = _standardised(features, train, test)
    return [found.scores(unseen, multi_label) for found in fit_linear(x, targets[train], choices, multi_label)]


@dataclass(frozen=True)
class Linear:
    """Logits x @ weight.T + bias; weight float64 [classes, width], bias float64 [classes]."""

    weight: np.ndarray
    bias: np.ndarray

    def scores(self, x: np.ndarray, multi_label: bool) -> np.ndarray:
        """Probabilities [n, classes] of features [n, width]: for one label per clip they add up to 1."""
        logits = x @ self.weight.T + self.bias
        return expit(logits) if multi_label else softmax(logits, axis=1)


def fit_linear(x: np.ndarray, targets: np.ndarray, choices: Sequence[float], multi_label: bool) -> list[Linear]:
    """Logistic regression for each C.

    A class without examples, or with nothing else, gets a constant, its share of the clips; a bias may be infinite.

    Args:
        x: standardised features [n, width].
        targets: bool [n, classes].
        choices: values of C.
    """
    span = None
    if x.shape[1] > len(x):
        # The solution is in the span of the training clips: the same regression, in as many dimensions as clips.
        span, _ = np.linalg.qr(x.T)
        x = x @ span
    return [_fit_linear(x, targets, choice, multi_label, span) for choice in choices]


def _fit_linear(x, targets, regularisation, multi_label, span) -> Linear:
    weight, bias = np.zeros((targets.shape[1], x.shape[1])), logit(targets.mean(axis=0, dtype=np.float64))
    if multi_label:
        for number, positive in enumerate(targets.T):
            if positive.any() and not positive.all():
                model = _regression(regularisation).fit(x, positive)
                weight[number], bias[number] = model.coef_[0], model.intercept_[0]
    else:
        model = _regression(regularisation).fit(x, targets.argmax(axis=1))
        # Of two classes scikit-learn has the logit of the second against the first.
        share = np.array([[-0.5], [0.5]]) if len(model.classes_) == 2 else np.eye(len(model.classes_))
        bias[:] = -np.inf
        weight[model.classes_], bias[model.classes_] = share @ model.coef_, share @ model.intercept_
    return Linear(weight if span is None else weight @ span.T, bias)


def _regression(regularisation) -> LogisticRegression:
    return LogisticRegression(C=regularisation, tol=TOLERANCE, max_iter=ITERATIONS)


def _neighbours(features, targets, train, test, choices, multi_label) -> list[np.ndarray]:
    """For each k, the share of each class among the nearest training clips by cosine, the nearer counting more."""
    x, unseen = _standardised(features, train, test)
    guesses = []
    for neighbours in choices:
        model = KNeighborsRegressor(min(neighbours, len(train)), metric="cosine", weights="distance")
        guesses.append(model.fit(x, targets[train].astype(np.float64)).predict(unseen))
    return guesses


def _standardised(features, train, test) -> tuple[np.ndarray, np.ndarray]:
    scaler = StandardScaler().fit(features[train])
    return scaler.transform(features[train]), scaler.transform(features[test])


_CLASSIFIERS: dict[str, tuple[Callable[..., list[np.ndarray]], tuple[float, ...]]] = {
    LOGISTIC_REGRESSION: (_logistic, REGULARISATION),
    NEAREST_NEIGHBOURS: (_neighbours, NEIGHBOURS),
}


def metric(scores: np.ndarray, targets: np.ndarray, multi_label: bool) -> float:
    """Accuracy, or the mean over classes of average precision (classes without a positive clip are left out).

    scores: float [n, classes]; targets: bool [n, classes].
    """
    return mean_average_precision(scores, targets) if multi_label else accuracy(scores, targets)


def bootstrap(
    all_scores: list[np.ndarray],
    targets: np.ndarray,
    multi_label: bool,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """The metric of several results on the same resamples of the tested clips, [resamples, results].

    groups: of each clip. Clips of one group are alike, so whole groups are drawn. Default: each clip is its own.
    """
    rng, n = np.random.default_rng(seed), len(targets)
    numbers = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    values = np.empty((RESAMPLES_MULTI_LABEL if multi_label else RESAMPLES, len(all_scores)))
    right = None
    if not multi_label:  # which clips are right does not change, so each resample is a mean
        right = np.stack([scores.argmax(axis=1) == targets.argmax(axis=1) for scores in all_scores], axis=1)
        right = np.stack([right[clips].sum(axis=0) for clips in members])  # [groups, results]
    sizes = np.array([len(clips) for clips in members])
    for row in values:
        drawn = rng.integers(len(members), size=len(members))
        if right is not None:
            row[:] = right[drawn].sum(axis=0) / sizes[drawn].sum()
        else:
            drawn = np.concatenate([members[group] for group in drawn])
            row[:] = [metric(scores[drawn], targets[drawn], True) for scores in all_scores]
    return values


def central_interval(values: np.ndarray) -> tuple[float, float]:
    """The lower and the upper end of the central 95% of bootstrap values."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
