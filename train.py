"""Pretrain an encoder by masked spectrogram modelling, in one process or in several under torchrun:

    python train.py --config configs.ssam_tiny_200_16x4 --workdir W --data ARCHIVE_DIR
    torchrun --standalone --nnodes=1 --nproc-per-node=4 train.py --config configs.ssam_tiny_200_16x4 --workdir W

An installed package runs as `audio-mamba train` or `torchrun ... -m audio_mamba.train`, with the same options.

The run writes config.json, log.txt, steps.csv, curves.png, reconstructions.png and checkpoints/ to W, and resume/ while
it trains. Run the same command again to resume exactly where it stopped. On SIGTERM, SIGUSR1 and Ctrl-C it saves a
checkpoint and exits with status 0.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audio_mamba import published_names
from audio_mamba.cli.failures import running, setting_up
from audio_mamba.cli.train_arguments import parse_arguments
from audio_mamba.cli.train_config import clips_per_update
from audio_mamba.cli.train_data import check_unchanged
from audio_mamba.cli.train_resume import tensors_of
from audio_mamba.cli.train_setup import Loop, Run, set_up
from audio_mamba.data.loader import set_epoch
from audio_mamba.front_end import FrontEnd
from audio_mamba.models.objectives.base import Losses
from audio_mamba.models.ops.linear_choice import linear_choice
from audio_mamba.models.precision import autocast
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.system.terminal import quiet_exit
from audio_mamba.training import checkpoint, distributed, figures, optim, resume, validation
from audio_mamba.training.guards import NonFiniteError, spread_to_gradient, update_ratio
from audio_mamba.training.interruption import Interruption, Shielded
from audio_mamba.training.monitor import Monitor
from audio_mamba.training.prefetch import prefetch
from audio_mamba.training.resume import Progress
from audio_mamba.training.trackers import TensorBoard, Tracker, Wandb

Batch = dict[str, torch.Tensor]
LossOf = Callable[[Any, nn.Module, Batch], Losses]  # (run, model, batch) -> its losses

NOTED_OPTIONS = ("seed", "init", "min_lr", "bias_decay")  # in config.json: what changes the weights beside the config

logger = logging.getLogger("train")

if __name__ == "train":  # imported from a checkout
    published_names.share(__name__)


def train(run: Run, interruption: Interruption) -> None:
    """Train from the run's progress to its last epoch, or until it is asked to stop."""
    args, config, loader, first = run.args, run.config, run.loaders.train, run.start.progress
    if distributed.is_main():
        logger.info(
            "%s: %.2f M parameters, %d steps per epoch, %d process(es) on %s",
            args.config,
            sum(p.numel() for p in run.objective.module.parameters()) / 1e6,
            len(loader),
            distributed.world_size(),
            run.device,
        )
        logger.info(
            "peak learning rate %.3g: opt.learning_rate %.3g x %d samples / 256",
            run.peak_rate,
            config.opt.learning_rate,
            clips_per_update(config),
        )
    if distributed.is_main() and first.epoch < config.num_epochs:
        options = {name: getattr(args, name) for name in NOTED_OPTIONS} | {"processes": distributed.world_size()}
        with atomic_write(run.workdir / "config.json") as file:
            file.write(json.dumps({"name": args.config, **config.to_dict(), "options": options}, indent=2).encode())
    monitor = start_monitor(run)

    if first.epoch >= config.num_epochs:
        logger.info("nothing to do: all %d epochs are complete", config.num_epochs)
    for epoch in range(first.epoch, config.num_epochs):
        check_unchanged(run.loaders, run.contents)
        steps = train_epoch(run, epoch, monitor, interruption, loss_of)
        val_loss = None if interruption.stop_now else validate(run, interruption)
        if interruption.stop_now:
            save_in_epoch(run, Progress(epoch, steps), monitor)
            break
        monitor.end_epoch(val_loss)
        if distributed.is_main() and (picture := save_reconstructions(run, epoch)):
            monitor.image("reconstructions", picture)
        if checkpoint.is_due(epoch, config.num_epochs):
            save_after_epoch(run, epoch, monitor)
    monitor.close()
    if distributed.is_main() and not interruption.stop_now:
        resume.remove_stale(run.workdir, finished=True)


def optimizer_step(
    run: Loop, epoch: int, step: int, loss: torch.Tensor, samples: torch.Tensor, line_follows: bool
) -> dict[str, torch.Tensor | float]:
    """Step the optimizer at the end of an accumulation window, unless its gradient is not finite.

    Args:
        loss: the sum over the window's batches.
        samples: the numbers of the window's samples, [n].
        line_follows: a line is written next, so that its costly measures are taken.

    Returns:
        what `Monitor.step` takes as `latest`.
    """
    model, optimizer, scaler = run.parallel_model, run.optimizer, run.scaler
    scaler.unscale_(optimizer)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), run.config.opt.clip_grad_value or float("inf"))
    bad = run.guard.watch(epoch, step, loss, grad_norm, samples)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    before = [weight.detach().clone() for weight in weights] if line_follows else None
    if not scaler.is_enabled():  # an enabled GradScaler skips bad steps itself
        optim.skip_step_if(optimizer, bad)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    latest: dict[str, torch.Tensor | float] = {"grad_norm": grad_norm}
    if before:
        latest |= {"update_ratio": update_ratio(before, weights), "skipped": run.guard.skipped}
        if scaler.is_enabled():
            latest["loss_scale"] = scaler.get_scale()
    return latest


def train_epoch(run: Loop, epoch: int, monitor: Monitor, interruption: Interruption, loss_of: LossOf) -> int:
    """Train the rest of the epoch; return how many of its steps are complete. finetune.py trains its epochs here, too.

    An incomplete accumulation window at the end of the epoch is dropped. (In the published code its gradients leak into
    the first window of the next epoch.)
    """
    config, model, optimizer, scaler = run.config, run.parallel_model, run.optimizer, run.scaler
    loader, first = run.loaders.train, run.start.progress
    accumulation = config.opt.grad_accum_steps
    first_step = first.step if epoch == first.epoch else 0
    rate = 0.0
    window_losses: list[torch.Tensor] = []  # of one accumulation window, as are the samples
    window_samples: list[torch.Tensor] = []
    model.train()
    optimizer.zero_grad()
    set_epoch(loader, epoch, first_step)

    for step, batch in monitor.epoch(epoch, prefetch(Shielded(loader), run.device), first_step):
        window_begins, window_ends = step % accumulation == 0, (step + 1) % accumulation == 0
        latest: dict[str, torch.Tensor | float] = {}
        if window_begins:
            rate = optim.learning_rate_at(
                epoch + step / len(loader),
                peak=run.peak_rate,
                min_lr=run.args.min_lr,
                num_epochs=config.num_epochs,
                warmup_epochs=config.opt.warmup_epochs,
                decay_epochs=optim.decay_epochs(config.opt),
            )
            optim.set_learning_rate(optimizer, rate)
            window_losses, window_samples = [], []

        with nullcontext() if window_ends else distributed.no_sync(model):
            loss, averaged = loss_of(run, model, batch)
            scaler.scale(spread_to_gradient(loss) / accumulation).backward()
        window_losses.append(loss.detach())
        window_samples.append(batch["index"])

        if window_ends:
            samples = torch.cat(window_samples)
            line_follows = any(map(monitor.line_due, range(step, step + accumulation)))
            latest = optimizer_step(run, epoch, step, torch.stack(window_losses).sum(), samples, line_follows)
            run.after_step((epoch + (step + 1) / len(loader)) / config.num_epochs)
        monitor.step(loss, rate, averaged=averaged, **latest)
        if run.device.type == "cpu" or monitor.line_due(step):
            run.guard.review()
        if window_ends:
            if interruption.poll():
                return step + 1
            if interruption.save_now:
                save_in_epoch(run, Progress(epoch, step + 1), monitor)
                interruption.saved()
    return len(loader)


def loss_of(run: Run, model: nn.Module, batch: Batch) -> Losses:
    """The losses of a batch; `model` is what the objective trains, or its parallel wrapper."""
    with autocast(run.device, run.args.precision):
        return run.objective.loss(model, to_model_input(run, batch))


def to_model_input(run: Run, batch: Batch) -> Batch:
    """The batch with spectrograms in the layout of the model, [B, 1, T, M] or [B, 1, M, T], and masks [B, L], on the
    run's device."""
    spectrogram = batch["spectrogram"].to(run.device, non_blocking=True)
    mask = batch["mask"].to(run.device, non_blocking=True)
    return {**batch, "spectrogram": run.model.from_time_first(spectrogram), "mask": mask}


def validate(run: Run, interruption: Interruption) -> float | None:
    """The validation loss; None without validation data, and, with `interruption.stop_now` set, if a signal came.

    Training goes on with the random numbers that it would draw without validation.
    """
    if run.loaders.validation is None:
        return None
    module, random_states = run.objective.module.eval(), resume.random_states()
    loss = validation.mean_loss(
        validation.read_through(run.loaders.validation, run.device, "validating"),
        lambda batch: loss_of(run, module, batch)[0],
        run.device,
        stop=lambda: interruption.requested,
    )
    resume.set_random_states(random_states)
    if loss is None:
        interruption.stop()
    return loss


def checkpoint_state(run: Loop, monitor: Monitor) -> dict[str, object]:
    """The content of a checkpoint except for its epoch and step. All processes must call this together.

    Raises:
        NonFiniteError: a weight is NaN or Inf.
    """
    more = run.more_state()
    weights = {**run.model.state_dict(), **tensors_of({"objective": more.get("objective", {})})}
    if key := checkpoint.first_not_finite(weights):
        raise NonFiniteError(f"the weights became NaN or Inf, first in {key}; they are not saved")
    processes = distributed.gather({"random": resume.random_states(), "monitor": monitor.state_dict()})
    return {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "processes": processes,
        "samples_per_step": run.samples_per_step,
        "global_step": monitor.global_step,
        "skipped_steps": int(run.guard.skipped),
        "data": {name: data.state() for name, data in run.contents.items()},
        "linear_library": linear_choice() if run.device.type == "cpu" else None,
        "args": {**vars(run.args), "config": run.config.to_dict()},
        **more,
    }


def save_in_epoch(run: Loop, progress: Progress, monitor: Monitor) -> None:
    state = checkpoint_state(run, monitor)
    if distributed.is_main():
        resume.save_step_checkpoint(run.workdir, progress, **state)
        logger.info("saved at step %d of epoch %d", progress.step, progress.epoch + 1)


def save_after_epoch(run: Loop, epoch: int, monitor: Monitor) -> None:
    state = checkpoint_state(run, monitor)
    if distributed.is_main():
        checkpoint.save_checkpoint(checkpoint.checkpoint_path(run.workdir / "checkpoints", epoch), epoch=epoch, **state)


def save_reconstructions(run: Run, epoch: int) -> Path | None:
    """Draw how the model reconstructs the run's fixed clips under their fixed masks; None if it does not."""
    run.objective.module.eval()
    with torch.no_grad(), autocast(run.device, run.args.precision):
        patches = run.objective.picture(to_model_input(run, run.fixed_clips))
    if patches is None:
        return None
    path = run.workdir / "reconstructions.png"
    figures.save_reconstructions(
        path,
        figures.reconstructions(run.model, *patches, FrontEnd.from_settings(run.config.front_end).frames_per_second),
        title=f"{run.args.config.rsplit('.', 1)[-1]} after {epoch + 1} epoch(s)",
    )
    return path


def start_monitor(run: Loop) -> Monitor:
    """The monitor of a run, as it was at the checkpoint that the run resumes from."""
    monitor = Monitor(
        run.workdir,
        first_epoch=run.start.progress.epoch,
        first_step=run.start.progress.step,
        global_step=run.start.global_step,
        num_epochs=run.config.num_epochs,
        steps_per_epoch=len(run.loaders.train),
        print_freq=run.args.print_freq,
        samples_per_step=run.samples_per_step,
        trackers=start_trackers(run),
    )
    if run.start.monitor:
        monitor.load_state_dict(run.start.monitor)
    return monitor


def start_trackers(run: Loop) -> list[Tracker]:
    """The trackers that the command line asks for; none except on the main process."""
    trackers: list[Tracker] = []
    if distributed.is_main():
        if run.args.tensorboard:
            trackers.append(TensorBoard(run.workdir, first_step=run.start.global_step))
        if not run.args.no_wandb:
            resumed = run.start.progress != Progress(0, 0)
            trackers.append(Wandb(run.config.wandb.project, run.workdir, run.config.to_dict(), resumed))
    return trackers


def main(arguments: list[str] | None = None, prog: str = "train.py") -> None:
    """Command line."""
    with quiet_exit():
        args = parse_arguments(str(__doc__), arguments, prog)
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # from torchdata, once per loader
        with ExitStack() as resources:
            pretrain(args, resources)
        distributed.cleanup()


def pretrain(args: argparse.Namespace, resources: ExitStack) -> None:
    """Set up and train."""
    with setting_up("train.py"):
        run = set_up(args, resources)
    with running("train.py", args) as interruption:
        train(run, interruption)


if __name__ == "__main__":
    main()
