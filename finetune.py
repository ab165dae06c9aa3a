"""Fine-tune an encoder to classify labelled clips, in one process or in several under torchrun:

    python finetune.py --model ssam_tiny_free_audio --data ARCHIVE --workdir W
    python finetune.py --data HEAR_TASK --folds all --workdir W
    torchrun --standalone --nnodes=1 --nproc-per-node=2 finetune.py --config configs.finetune_esc50 --fold 1 --workdir W

An installed package runs as `audio-mamba finetune` or `torchrun ... -m audio_mamba.finetune`, with the same options.

The run writes config.json, log.txt, steps.csv, curves.png, checkpoints/, classifier/ (the weights it keeps, for
`audio-mamba predict`), results.json and predictions.csv to W. Run the same command again to resume exactly where it
stopped. On SIGTERM, SIGUSR1 and Ctrl-C it saves a checkpoint and exits with status 0.
"""

import argparse
import csv
import json
import logging
import math
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

from audio_mamba.cli.failures import running, setting_up
from audio_mamba.cli.finetune_arguments import parse_arguments
from audio_mamba.cli.finetune_head import fit_head
from audio_mamba.cli.finetune_setup import Experiment, Kept, Run, set_up, start_run
from audio_mamba.cli.train_data import check_unchanged
from audio_mamba.hear_api.classifier import save_classifier
from audio_mamba.models.classifier import classification_loss, fit_temperature, probabilities
from audio_mamba.models.objectives.base import Losses
from audio_mamba.models.precision import autocast
from audio_mamba.system.atomic_files import atomic_text, atomic_write
from audio_mamba.system.terminal import quiet_exit
from audio_mamba.train import checkpoint_state, save_in_epoch, start_monitor, train_epoch
from audio_mamba.training import checkpoint, distributed, resume
from audio_mamba.training.interruption import Interruption
from audio_mamba.training.metrics import evaluate
from audio_mamba.training.monitor import Monitor
from audio_mamba.training.resume import Progress
from audio_mamba.training.validation import Outputs, gather_outputs, read_through

BEFORE_TRAINING = -1  # the epoch of a fitted head
EPOCHS_KEPT = 2  # checkpoints of whole epochs; the kept weights are in each of them

logger = logging.getLogger("finetune")


def train(run: Run, interruption: Interruption) -> None:
    """Train from the run's progress to its last epoch, or until it is asked to stop; then test the weights it keeps."""
    config, experiment, first = run.config, run.experiment, run.start.progress
    if distributed.is_main():
        logger.info(
            "%s%s: %d classes, %s label; %d training, %d validation and %d test clips; %d steps per epoch",
            run.args.config,
            f", fold {run.fold}" if run.fold else "",
            len(experiment.clips.classes),
            experiment.label_mode,
            *map(len, experiment.splits[run.fold]),
            len(run.loaders.train),
        )
        if first.epoch < config.num_epochs or first.epoch == 0:
            write_json(run.workdir / "config.json", config.to_dict())
            for folder in (run.workdir, Path(run.args.workdir)):  # results, and their mean, of fewer epochs
                (folder / "results.json").unlink(missing_ok=True)
    monitor = start_monitor(run)

    if config.head.start == "probe" and run.kept is None:  # every checkpoint of such a run has a kept state
        start_from_probe(run, interruption)
    for epoch in range(first.epoch, config.num_epochs if not interruption.stop_now else 0):
        check_unchanged(run.loaders, run.contents)
        steps = train_epoch(run, epoch, monitor, interruption, loss_of)
        outputs = None if interruption.stop_now else outputs_of(run, run.loaders.validation, interruption)
        if outputs is None:
            save_in_epoch(run, Progress(epoch, steps), monitor)
            break
        loss, metrics = loss_and_metrics(run, outputs)
        monitor.end_epoch(loss, metrics)
        keep(run, epoch, metrics, outputs)
        save_after_epoch(run, epoch, monitor)
    monitor.close()
    if not interruption.stop_now:
        finish(run, interruption)


def start_from_probe(run: Run, interruption: Interruption) -> None:
    """Fit the head; the classifier is then as good as a probe, and is kept until an epoch is better."""
    fit_head(run, interruption)
    if not interruption.stop_now and (outputs := outputs_of(run, run.loaders.validation, interruption)) is not None:
        _, metrics = loss_and_metrics(run, outputs)
        keep(run, BEFORE_TRAINING, metrics, outputs)


def loss_of(run: Run, model: nn.Module, batch: dict[str, torch.Tensor]) -> Losses:
    """The mean loss of a training batch; `model` is the run's model or its parallel wrapper."""
    logits = logits_of(run, model, batch)
    target = batch["target"].to(run.device, non_blocking=True)
    return classification_loss(logits, target, run.experiment.label_mode, run.config.opt.label_smoothing), {}


def logits_of(run: Run, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, classes]."""
    spectrogram, frames = (batch[name].to(run.device, non_blocking=True) for name in ("spectrogram", "frames"))
    with autocast(run.device, run.args.precision):
        return model(spectrogram, frames)


def outputs_of(run: Run, loader: StatefulDataLoader, interruption: Interruption) -> Outputs | None:
    """For the whole clips of all processes, logits float32; None, and `interruption.stop_now` set, if a signal came."""
    run.model.eval()
    outputs = gather_outputs(
        read_through(loader, run.device, "evaluating"),
        lambda batch: logits_of(run, run.model, batch).float(),
        stop=lambda: interruption.requested,
    )
    if outputs is None:
        interruption.stop()
    return outputs


def loss_and_metrics(run: Run, outputs: Outputs) -> tuple[float, dict[str, float]]:
    """Mean loss and all metrics of clips, the same in every process."""
    mode, (_, logits, target) = run.experiment.label_mode, outputs
    scores = probabilities(logits, mode)
    return classification_loss(logits, target, mode).item(), evaluate(scores.numpy(), target.numpy() > 0.5, mode)


def keep(run: Run, epoch: int, metrics: dict[str, float], outputs: Outputs) -> None:
    """Keep the weights of this epoch: by `config.keep` always, or if the validation metric is higher than after every
    earlier epoch; the first of equals stays."""
    metric = run.experiment.metric
    better = run.kept is None or _nan_as_worst(metrics[metric]) > _nan_as_worst(run.kept.metrics[metric])
    if run.config.keep == "last" or better:
        state = {key: value.detach().cpu().clone() for key, value in run.model.state_dict().items()}
        temperature = fit_temperature(outputs.logits, outputs.target, run.experiment.label_mode)
        run.kept = Kept(epoch, metrics, temperature, state)


def _nan_as_worst(value: float) -> float:
    """The value of a metric for comparison; NaN counts as worse than every number."""
    return -math.inf if math.isnan(value) else value


def save_after_epoch(run: Run, epoch: int, monitor: Monitor) -> None:
    """Write the checkpoint, and the classifier if this epoch is kept; remove all but the last few checkpoints."""
    state = checkpoint_state(run, monitor)
    if not distributed.is_main():
        return
    folder = run.workdir / "checkpoints"
    checkpoint.save_checkpoint(checkpoint.checkpoint_path(folder, epoch), epoch=epoch, **state)
    if run.kept is not None and run.kept.epoch in (epoch, BEFORE_TRAINING):
        write_classifier(run, run.kept)
    after_epochs = [path for _, path in resume.checkpoints(run.workdir) if path.parent == folder]
    for path in after_epochs[EPOCHS_KEPT:]:
        path.unlink()


def write_classifier(run: Run, kept: Kept) -> None:
    save_classifier(
        run.workdir / "classifier",
        kept.model,
        run.config,
        classes=run.experiment.clips.classes,
        loss=run.experiment.label_mode,
        temperature=kept.temperature,
        notes=without_infinities({"epoch": kept.epoch + 1, "validation": kept.metrics}),
    )


def finish(run: Run, interruption: Interruption) -> None:
    """Evaluate the kept weights on the test clips (else on the validation clips), and write the results."""
    kept, loader = run.kept, run.test_loader or run.loaders.validation
    assert kept is not None and loader is not None
    run.model.load_state_dict(kept.model)
    outputs = outputs_of(run, loader, interruption)
    if outputs is None:
        return
    loss, metrics = loss_and_metrics(run, outputs)
    if not distributed.is_main():
        return
    part, metric = "test" if run.test_loader else "validation", run.experiment.metric
    results = {"fold": run.fold, "epoch": kept.epoch + 1, "metric": metric, "temperature": kept.temperature}
    results |= {"validation": kept.metrics} | ({"test": metrics, "test_loss": loss} if run.test_loader else {})
    trains_nothing = run.trained_before and run.start.progress.epoch >= run.config.num_epochs
    results |= {"trained_with": run.trained_before if trains_nothing else run.trained_with()}
    write_classifier(run, kept)
    write_predictions(run, kept, outputs)
    write_json(run.workdir / "results.json", results)
    resume.remove_stale(run.workdir, finished=True)
    logger.info("weights after epoch %d: %s %.4f on the %s clips", kept.epoch + 1, metric, metrics[metric], part)


def write_predictions(run: Run, kept: Kept, outputs: Outputs) -> None:
    """A row per clip in predictions.csv: its name, its labels, and the calibrated probability of every class."""
    classes = run.experiment.clips.classes
    likely = probabilities(outputs.logits, run.experiment.label_mode, kept.temperature).numpy()
    with atomic_text(run.workdir / "predictions.csv") as file:
        table = csv.writer(file)
        table.writerow(["clip", "labels", *classes])
        for clip, row in zip(outputs.clips, likely):
            labels = [classes[label] for label in run.experiment.clips.labels[clip]]
            table.writerow([run.experiment.clips.keys[clip], ";".join(labels), *(f"{value:.6g}" for value in row)])


def summarise(experiment: Experiment) -> None:
    """Write results.json of all folds: each fold's test metrics, their mean and standard deviation."""
    folds = [read_results(experiment.workdir(fold) / "results.json") for fold in experiment.splits]
    scores = {name: [fold["test"][name] for fold in folds] for name in folds[0]["test"]}
    scores = {name: [np.nan if value is None else value for value in values] for name, values in scores.items()}
    mean = {name: float(np.mean(values)) for name, values in scores.items()}
    deviation = {name: float(np.std(values, ddof=1)) if len(values) > 1 else np.nan for name, values in scores.items()}
    metric, workdir = experiment.metric, experiment.args.workdir
    write_json(
        Path(workdir) / "results.json",
        {"metric": metric, "test_mean": mean, "test_standard_deviation": deviation, "folds": folds},
    )
    logger.info(
        "%s: test %s %.4f, standard deviation over %d folds %.4f",
        workdir,
        metric,
        mean[metric],
        len(folds),
        deviation[metric],
    )


def read_results(path: Path) -> dict[str, Any]:
    """The results of a fold. ValueError if the file is damaged."""
    try:
        results = json.loads(path.read_bytes())
        if not isinstance(results, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it to evaluate the fold again") from error
    return results


def write_json(path: Path, content: dict) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(without_infinities(content), indent=2).encode())


def without_infinities(content: dict) -> dict:
    """The content with None for NaN and Inf, which JSON lacks; d' is Inf for a perfect AUC."""
    return json.loads(json.dumps(content), parse_constant=lambda name: None)


def main(arguments: list[str] | None = None, prog: str = "finetune.py") -> None:
    """Command line."""
    with quiet_exit():
        args = parse_arguments(str(__doc__), arguments, prog)
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # from torchdata, once per loader
        with ExitStack() as resources:
            finetune(args, resources)
        distributed.cleanup()


def finetune(args: argparse.Namespace, resources: ExitStack) -> None:
    """Set up and train every fold."""
    with setting_up("finetune.py"):
        experiment = set_up(args, resources)
    with running("finetune.py", args) as interruption:
        for fold in experiment.splits:
            if interruption.stop_now:
                break
            with setting_up("finetune.py"):
                run = start_run(experiment, fold)
                finished = bool(args.folds) and is_finished(run)
            if not finished:
                train(run, interruption)
        if args.folds and not interruption.stop_now and distributed.is_main():
            summarise(experiment)


def is_finished(run: Run) -> bool:
    """Whether a fold has all its epochs and its results; the same answer in every process.

    Without epochs there is no checkpoint that says what the results are of, so such a fold is trained again.

    Raises:
        ValueError: it was trained, or begun, with something else than the other folds will be.
    """
    results = run.workdir / "results.json"
    trained = 0 < run.config.num_epochs <= run.start.progress.epoch
    done = trained and results.exists()
    then = read_results(results).get("trained_with", {}) if done else run.trained_before
    if not trained:  # more epochs may follow, and --data-changed has accepted other data
        then = {name: then[name] for name in ("clips per step", "precision", "encoder") if name in then}
    done, problem = distributed.gather((done, difference_to(run, then)))[0]
    if problem:
        raise ValueError(
            f"{run.workdir} was trained with another {problem}: remove it to train the fold again, or choose another "
            "--workdir"
        )
    return done


def difference_to(run: Run, then: dict[str, Any]) -> str | None:
    """What differs in `then`, a `trained_with` (of earlier versions empty), from what the run is trained with."""
    now = run.trained_with()
    then = now | then
    return next((f"{name} ({then[name]}, now {now[name]})" for name in now if then[name] != now[name]), None)


if __name__ == "__main__":
    main()
