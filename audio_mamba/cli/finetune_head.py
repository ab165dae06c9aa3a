"""The head's first weights by logistic regression, `head.start` "probe" of finetune.py.

Fine-tuning that starts from a fitted head distorts the features less than from an untrained one (Kumar et al. 2022,
arXiv 2202.10054), and with few clips it starts where a probe of the frozen encoder ends.
"""

import logging
import sys

import numpy as np
import torch
from torch import Tensor

from audio_mamba.cli.finetune_setup import Run
from audio_mamba.data.labelled import LabelledDataset, whole_clip_loader
from audio_mamba.models.precision import autocast
from audio_mamba.training import distributed
from audio_mamba.training.interruption import Interruption, begin_worker
from audio_mamba.training.metrics import evaluate
from audio_mamba.training.validation import gather_outputs, read_through

MAX_BIAS = 20.0  # of a class that no training clip has, or every one

logger = logging.getLogger("finetune")


def fit_head(run: Run, interruption: Interruption) -> None:
    """Set the head to logistic regression on the frozen features of the whole training clips. Every process must call
    this together.

    C is the one with the highest validation metric, the smallest of equals. If a signal comes, the head stays as it is
    and `interruption.stop_now` is set.
    """
    from sklearn.preprocessing import StandardScaler

    from audio_mamba.hear_api.probe.classify import REGULARISATION, best_choice, fit_linear

    experiment, split = run.experiment, run.experiment.splits[run.fold]
    metric, label_mode = experiment.metric, experiment.label_mode
    train = LabelledDataset(experiment.clips, split.train, sys.maxsize, seed=run.args.seed, strict=run.args.strict_data)
    found = [
        _features(run, dataset, interruption) for dataset in (train, LabelledDataset(experiment.clips, split.valid))
    ]
    if interruption.stop_now:
        return
    (x, targets), (unseen, expected) = found
    scaler = StandardScaler().fit(x)
    multi = label_mode == "multi"
    maps = fit_linear(scaler.transform(x), targets, REGULARISATION, multi)
    unseen = scaler.transform(unseen)
    scores = [evaluate(each.scores(unseen, multi), expected, label_mode)[metric] for each in maps]
    best = best_choice(scores)
    chosen = maps[best]
    numbers = (scaler.mean_, scaler.scale_, chosen.weight, chosen.bias.clip(-MAX_BIAS, MAX_BIAS))
    run.model.set_head(*(torch.from_numpy(array).to(run.device, torch.float32) for array in numbers))
    for parameter in run.model.head.parameters():
        distributed.from_main(parameter.data)
    if distributed.is_main():
        logger.info("head: logistic regression, C %g, validation %s %.4f", REGULARISATION[best], metric, scores[best])


def _features(run: Run, dataset: LabelledDataset, interruption: Interruption) -> tuple[np.ndarray, np.ndarray]:
    """Normalised features float64 [n, width] and targets bool [n, classes] of whole clips, the same in all processes;
    empty if a signal came."""
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    options = {"num_workers": run.args.num_workers, "worker_init_fn": begin_worker}
    loader = whole_clip_loader(dataset, run.config.batch_size, **ranks, **options)

    def normalised(batch: dict[str, Tensor]) -> Tensor:
        spectrogram, frames = (batch[name].to(run.device, non_blocking=True) for name in ("spectrogram", "frames"))
        with autocast(run.device, run.args.precision):
            return run.model.normalised(spectrogram, frames).float()

    run.model.eval()
    batches = read_through(loader, run.device, "features for the head")
    outputs = gather_outputs(batches, normalised, stop=lambda: interruption.stop_now or interruption.requested)
    if outputs is None:
        interruption.stop()
        return np.empty((0, 0)), np.empty((0, 0), bool)
    _, features, target = outputs
    return features.double().numpy(), target.numpy() > 0.5
