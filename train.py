"""Pretrains an encoder by masked spectrogram modelling. The same command trains alone or under torchrun:

    python train.py --config configs.ssam_tiny_200_16x4 --workdir W --data ARCHIVE_DIR
    torchrun --standalone --nnodes=1 --nproc-per-node=4 train.py --config configs.ssam_tiny_200_16x4 --workdir W

W gets config.json, log.txt, steps.csv, curves.png, reconstructions.png and checkpoints/. Started again with the same W,
training goes on after the last checkpoint.
"""

import argparse
import ast
import json
import logging
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.utils.data import default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from atomic_files import atomic_write
import configs.base
import models
from data.loader import EpochBatches, make_loader, make_remote_loader, set_epoch
from data.remote import RemoteShards, is_remote
from data.samples import ArchiveError
from models.loss import reconstruction_loss
from training import checkpoint, distributed, figures, optim
from training.fake_data import RandomSpectrograms
from training.monitor import Monitor
from training.trackers import TensorBoard, Tracker, Wandb

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FAKE_SAMPLES = 1024
CLIPS_SHOWN = 3

logger = logging.getLogger("train")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", required=True, metavar="MODULE", help="config module, such as configs.ssam_tiny_200_16x4")
    add("--workdir", required=True, metavar="DIR", help="folder for everything the run writes; made where missing")
    add("--data", nargs="+", metavar="DIR",
        help="archive folders (default: data.train_dirs of the config), or addresses of shards such as "
             "http://host/shard-{000000..000099}.tar, with their samples in data.train_samples of the config")
    add("--fake_data", action="store_true", help=f"train on {FAKE_SAMPLES} random spectrograms instead of archives")
    add("--strict-data", action="store_true",
        help="stop at the first bad shard or sample (default: skip up to 1%% of them with warnings)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change entries of the config, such as num_epochs=2 opt.warmup_epochs=0")
    add("--precision", choices=PRECISIONS,
        help="of the autocast region; float16 also scales the loss (default: precision of the config, float32)")
    add("--resume", metavar="PATH",
        help="checkpoint to go on from (default: the last one in the workdir, if there is any)")
    add("--min_lr", type=float, default=0.0, help="learning rate at the end of the schedule (default: %(default)s)")
    add("--bias_decay", action="store_true",
        help="decay all weights alike, in one group, with betas (0.9, 0.999) instead of (0.9, 0.95)")
    add("--seed", type=int, default=0, help="of initialisation, order, crops and masks (default: %(default)s)")
    add("--num_workers", type=int, default=2, help="data-loading processes per process (default: %(default)s)")
    add("--print_freq", type=int, metavar="STEPS", help="steps per line (default: log_every_steps of the config)")
    add("--no_wandb", action="store_true", help="do not log to wandb")
    add("--tensorboard", action="store_true", help="log to TensorBoard, in the folder tensorboard of the workdir")
    return parser.parse_args(arguments)


def load_config(module_name: str, overrides: list[str]) -> ConfigDict:
    """The config of a module with KEY=VALUE entries replaced. Raises ValueError naming what is wrong."""
    config = configs.base.load_config(module_name)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override}: expected KEY=VALUE")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # a plain word is a string
        try:
            config.update_from_flattened_dict({key: value})
        except (KeyError, TypeError) as error:
            raise ValueError(f"--set {override}: {error.args[0]}") from error
    return configs.base.check_config(config, source="--set")


@dataclass
class Run:
    """Everything that the loop needs, ready to start at `first_epoch`."""

    args: argparse.Namespace
    config: ConfigDict
    workdir: Path
    device: torch.device
    model: nn.Module
    parallel_model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: StatefulDataLoader
    fixed_clips: dict[str, torch.Tensor]
    peak_rate: float
    first_epoch: int


def set_up(args: argparse.Namespace) -> Run:
    """Builds the run. Whatever the user got wrong raises ValueError or OSError here, on every process alike."""
    config = load_config(args.config, args.overrides)
    optim.check_names(config.opt.optimizer, config.opt.schedule)
    args.print_freq = args.print_freq or config.log_every_steps
    args.precision = args.precision or config.precision
    if args.precision not in PRECISIONS:
        raise ValueError(f"precision {args.precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
    device = distributed.init()
    logging.basicConfig(level=logging.INFO if distributed.is_main() else logging.WARNING, stream=sys.stdout,
                        format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.manual_seed(args.seed)
    model = build_model(config).to(device)
    loader = build_loader(args, config, model, device)
    optimizer = optim.make_optimizer(model, config.opt.weight_decay, args.bias_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "float16")
    global_batch = config.opt.grad_accum_steps * config.batch_size * distributed.world_size()

    # The clips for the pictures, from all over the data: data that do not fit the model are found here.
    if isinstance(loader.dataset, RemoteShards):
        fixed_clips = loader.dataset.first(CLIPS_SHOWN)
    else:
        shown = np.linspace(0, len(loader.dataset) - 1, CLIPS_SHOWN, dtype=int).tolist()
        fixed_clips = default_collate([loader.dataset[0, index] for index in shown])
    workdir = Path(args.workdir)
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    first_epoch = resume(args, workdir, model, optimizer, scaler)
    return Run(args, config, workdir, device, model, distributed.parallel(model, device), optimizer, scaler, loader,
               fixed_clips, optim.peak_learning_rate(config.opt.learning_rate, global_batch), first_epoch)


def build_model(config: ConfigDict) -> nn.Module:
    arch = config.model.arch
    if arch not in models.ARCHS:
        raise ValueError(f"model.arch {arch!r} is unknown; choose from {', '.join(models.ARCHS)}")
    return getattr(models, arch)(**config.model.model_args.to_dict())


def build_loader(args: argparse.Namespace, config: ConfigDict, model: nn.Module,
                 device: torch.device) -> StatefulDataLoader:
    frames, mels = reversed(model.img_size) if model.frequency_first else model.img_size
    if config.data.num_frames != frames:
        raise ValueError(f"data.num_frames is {config.data.num_frames}, but the model reads {frames} frames "
                         f"(model.model_args.img_size is {model.img_size})")
    rank, world_size = distributed.rank(), distributed.world_size()
    if args.fake_data:
        dataset = RandomSpectrograms(FAKE_SAMPLES, frames, mels, args.seed, model.draw_mask)
        batches = EpochBatches(len(dataset), config.batch_size, rank, world_size, args.seed)
        return StatefulDataLoader(dataset, batch_sampler=batches, num_workers=args.num_workers)
    directories = args.data or config.data.train_dirs
    options = {"num_frames": frames, "n_mels": mels, "batch_size": config.batch_size, "rank": rank,
               "world_size": world_size, "seed": args.seed, "num_workers": args.num_workers,
               "draw_mask": model.draw_mask, "pin_memory": device.type == "cuda", "strict": args.strict_data}
    if all(map(is_remote, directories)):
        return make_remote_loader(directories, samples=sum(config.data.train_samples), **options)
    for directory in directories:
        if not Path(directory).is_dir():
            raise ValueError(f"no data folder {directory}; name archive folders with --data, or set $DATASETS_BASE_DIR")
    return make_loader(directories, **options)


def resume(args: argparse.Namespace, workdir: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
           scaler: torch.amp.GradScaler) -> int:
    """Loads the checkpoint to go on from, if there is one, and returns the epoch to begin."""
    latest = checkpoint.latest_checkpoint(workdir / "checkpoints")
    path = args.resume or (latest and latest[0])
    if path is None:
        return 0
    state = checkpoint.load_checkpoint(path)
    checkpoint.load_model_state(model, state["model"], source=path)
    optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:  # empty unless the run was in float16
        scaler.load_state_dict(state["scaler"])
    logger.info("going on from %s: %d epoch(s) are done", path, state["epoch"] + 1)
    return state["epoch"] + 1


def train(run: Run) -> None:
    args, config = run.args, run.config
    if distributed.is_main():
        logger.info("%s: %.2f M parameters, %d steps per epoch, %d process(es) on %s", args.config,
                    sum(p.numel() for p in run.model.parameters()) / 1e6, len(run.loader),
                    distributed.world_size(), run.device)
        with atomic_write(run.workdir / "config.json") as file:
            file.write(json.dumps({"name": args.config, **config.to_dict()}, indent=2).encode())
    monitor = Monitor(run.workdir, first_epoch=run.first_epoch, num_epochs=config.num_epochs,
                      steps_per_epoch=len(run.loader), print_freq=args.print_freq, trackers=start_trackers(run),
                      samples_per_step=config.batch_size * distributed.world_size())

    if run.first_epoch >= config.num_epochs:
        logger.info("all %d epochs are done already", config.num_epochs)
    for epoch in range(run.first_epoch, config.num_epochs):
        train_epoch(run, epoch, monitor)
        monitor.end_epoch()
        if distributed.is_main() and checkpoint.is_due(epoch, config.num_epochs):
            checkpoint.save_checkpoint(
                checkpoint.checkpoint_path(run.workdir / "checkpoints", epoch),
                model=run.model.state_dict(), optimizer=run.optimizer.state_dict(), epoch=epoch,
                scaler=run.scaler.state_dict(), args={**vars(args), "config": config.to_dict()})
            save_reconstructions(run, epoch)
            monitor.image("reconstructions", run.workdir / "reconstructions.png")
    monitor.close()


def start_trackers(run: Run) -> list[Tracker]:
    """Those that the user wants, on the main process."""
    trackers: list[Tracker] = []
    if distributed.is_main():
        if run.args.tensorboard:
            trackers.append(TensorBoard(run.workdir, first_step=run.first_epoch * len(run.loader)))
        if not run.args.no_wandb:
            trackers.append(Wandb(run.config.wandb.project, run.workdir, run.config.to_dict()))
    return trackers


def train_epoch(run: Run, epoch: int, monitor: Monitor) -> None:
    """One pass over the data. An incomplete accumulation window at its end is dropped, as in the published code."""
    config, model, optimizer, scaler = run.config, run.parallel_model, run.optimizer, run.scaler
    accumulation = config.opt.grad_accum_steps
    max_norm = config.opt.clip_grad_value or float("inf")
    rate, grad_norm = 0.0, None
    model.train()
    optimizer.zero_grad()
    set_epoch(run.loader, epoch)

    for step, batch in monitor.epoch(epoch, run.loader):
        window_begins, window_ends = step % accumulation == 0, (step + 1) % accumulation == 0
        if window_begins:
            rate = optim.learning_rate_at(epoch + step / len(run.loader), peak=run.peak_rate, min_lr=run.args.min_lr,
                                          num_epochs=config.num_epochs, warmup_epochs=config.opt.warmup_epochs)
            optim.set_learning_rate(optimizer, rate)

        spectrogram, mask = to_model_input(run, batch)
        with nullcontext() if window_ends else distributed.no_sync(model):
            with autocast(run):
                pred, target, mask = model(spectrogram, mask)
                loss = reconstruction_loss(pred, target, mask, normalise_patches=config.opt.norm_pix_loss,
                                           masked_only=config.opt.masked_only_loss)
            scaler.scale(loss / accumulation).backward()

        if window_ends:
            scaler.unscale_(optimizer)
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        monitor.step(loss, rate, grad_norm)


def to_model_input(run: Run, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectrograms in the layout of the model, [B, 1, T, M] or [B, 1, M, T], and masks [B, L], on its device."""
    spectrogram = batch["spectrogram"].to(run.device, non_blocking=True)
    if run.model.frequency_first:
        spectrogram = spectrogram.mT
    return spectrogram, batch["mask"].to(run.device, non_blocking=True)


def autocast(run: Run) -> torch.autocast:
    dtype = PRECISIONS[run.args.precision]
    return torch.autocast(run.device.type, dtype=dtype, enabled=dtype != torch.float32)


def save_reconstructions(run: Run, epoch: int) -> None:
    """Writes the picture of the run's fixed clips, with their fixed masks, as the model fills them in now."""
    spectrogram, mask = to_model_input(run, run.fixed_clips)
    run.model.eval()
    with autocast(run):
        clips = figures.reconstruct(run.model, spectrogram, mask, run.config.opt.norm_pix_loss)
    figures.save_reconstructions(run.workdir / "reconstructions.png", clips,
                                 title=f"{run.args.config.rsplit('.', 1)[-1]} after {epoch + 1} epoch(s)")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata's, for each loader
    try:
        try:
            run = set_up(args)
        except (ValueError, OSError) as error:
            raise SystemExit(f"train.py: {error}")
        try:
            train(run)
        except ArchiveError as error:  # from a worker, the sentence comes last, after the worker's traceback
            raise SystemExit(f"train.py: {str(error).splitlines()[-1]}")
    finally:
        distributed.cleanup()


if __name__ == "__main__":
    main()
