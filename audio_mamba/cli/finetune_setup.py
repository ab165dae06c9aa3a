"""Set-up of finetune.py: check the arguments and build everything that the loop needs."""

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader

from audio_mamba import finetune_schema, models
from audio_mamba.cli.finetune_data import check_clips, judged_clips, read_clips
from audio_mamba.cli.finetune_splits import find_splits
from audio_mamba.cli.train_config import (
    apply_overrides,
    check_same_config,
    check_same_experiment,
    check_schedule,
    clips_per_update,
)
from audio_mamba.cli.train_data import Loaders, check_same_in_all_processes, drop_data_of_config
from audio_mamba.cli.train_resume import find_state, load_state
from audio_mamba.cli.train_setup import Loop, join_processes, open_workdir
from audio_mamba.config_names import stored_name
from audio_mamba.data.augment import Augmentation
from audio_mamba.data.contents import Contents
from audio_mamba.data.folds import Split
from audio_mamba.data.labelled import LabelledClips, LabelledDataset, training_loader, whole_clip_loader
from audio_mamba.finetune_schema import check_finetune_config
from audio_mamba.front_end import FrontEnd
from audio_mamba.hear_api.resolve import UNTRAINED, ModelSource, get_config, names_a_path, resolve
from audio_mamba.hear_api.weights import read_weights
from audio_mamba.models.classifier import Classifier
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.precision import check_precision
from audio_mamba.system.atomic_files import sha256
from audio_mamba.training import checkpoint, distributed, optim, resume
from audio_mamba.training.guards import StepGuard
from audio_mamba.training.interruption import begin_worker
from audio_mamba.training.metrics import SINGLE_LABEL

# Keys of a run's config.json that follow from others, beside those of `finetune_schema`.
FOUND = {"name": "", "model": {}, "front_end": {}, "fold": ""}


@dataclass
class Kept:
    """The state of the model after the epoch that `config.keep` chooses among those so far."""

    epoch: int
    metrics: dict[str, float]  # on the validation clips
    temperature: float
    model: dict[str, Tensor]


@dataclass
class Experiment:
    """What all folds share."""

    args: argparse.Namespace
    config: ConfigDict
    device: torch.device
    source: ModelSource
    encoder_digest: str  # of its weights
    clips: LabelledClips
    splits: dict[str, Split]
    label_mode: str
    metric: str

    def workdir(self, fold: str) -> Path:
        """The work folder of a fold's run: the one named, or one inside it for each of all folds, with %2F for /."""
        workdir = Path(self.args.workdir)
        return workdir / f"fold-{fold.replace('/', '%2F')}" if self.args.folds else workdir


@dataclass
class Run(Loop):
    """Everything that the loop of finetune.py needs."""

    model: Classifier
    experiment: Experiment
    fold: str
    test_loader: StatefulDataLoader | None
    kept: Kept | None
    trained_before: dict[str, Any]  # `trained_with` of the checkpoint that it resumes from; empty if there is none

    def trained_with(self) -> dict[str, Any]:
        """What scores depend on, beside the keys of the config that checkpoints hold fast."""
        config = self.experiment.config  # a fold of few clips may have smaller batches
        return {
            "num_epochs": config.num_epochs,
            "clips per step": clips_per_update(config),
            "precision": self.args.precision,
            "encoder": self.experiment.encoder_digest,
            **{name: contents.digest()[:16] for name, contents in self.contents.items()},
        }

    def more_state(self) -> dict[str, Any]:
        """What a fine-tuned checkpoint has beside those of train.py."""
        return {
            "classes": self.experiment.clips.classes,
            "loss": self.experiment.label_mode,
            "judged": judged_clips(self.experiment.clips, self.experiment.splits[self.fold]),
            "judged_content": judged_clips(
                self.experiment.clips, self.experiment.splits[self.fold], self.contents["training data"].shards
            ),
            "kept": None if self.kept is None else vars(self.kept),
            "trained_with": self.trained_with(),
        }


def load_config(args: argparse.Namespace) -> ConfigDict:
    """The config of the command line. Raises ValueError for an unknown module, key or value."""
    args.config = stored_name(args.config)
    config = check_finetune_config(get_config(args.config), source=args.config)
    with config.ignore_type():  # None may become a number
        apply_overrides(config, args.overrides)
    config = check_finetune_config(config, source="--set")
    if args.data:
        config.data.train_dirs = args.data
        drop_data_of_config(config, args, "val_dir", "test_dir")
    config.data.val_dir = args.val_data or config.data.val_dir
    config.data.test_dir = args.test_data or config.data.test_dir
    config.encoder.name = args.model or config.encoder.name
    config.encoder.random = config.encoder.random if args.start is None else args.start == "random"
    config.encoder.frozen = config.encoder.frozen or args.freeze
    with config.ignore_type():
        config.head.loss = args.loss or config.head.loss
    Augmentation(**config.augment.to_dict())
    check_precision(config.precision)
    return config


def find_encoder(name: str, random: bool) -> ModelSource:
    """Config and weights of an encoder, named as for `load_model`. With `random`, its weights are not read."""
    if names_a_path(name):
        source = resolve(None, name)
        return ModelSource(source.config, None, source.name) if random else source
    return resolve(name, UNTRAINED if random else None)


def set_up(args: argparse.Namespace, resources: ExitStack) -> Experiment:
    """Read the config and the clips. Every process must call this together.

    Args:
        args: the command line; defaults that the config decides are filled in.
        resources: takes the lock of the workdir.

    Raises:
        ValueError, OSError: a mistake of the user, in one sentence; raised in every process alike.
    """
    if args.folds and args.resume:
        raise ValueError("--folds and --resume cannot be combined: each fold resumes from its own work folder")
    config = load_config(args)
    if config.head.start == "probe" and find_spec("sklearn") is None:
        raise ValueError('head.start "probe" needs scikit-learn: pip install ".[train]", or --set head.start=zeros')
    source = find_encoder(config.encoder.name, config.encoder.random)
    device = join_processes(args, config)
    workdir = open_workdir(Path(args.workdir), resources)
    front_end = FrontEnd.from_settings(source.config.front_end)
    clips = read_clips(config, front_end, workdir / "data")
    label_mode = config.head.loss or ("multi" if clips.multi_label else "single")
    metric = config.metric or ("accuracy" if label_mode == "single" else "mAP")
    if label_mode == "multi" and metric in SINGLE_LABEL:
        raise ValueError(f"metric {metric} needs one label per clip; for several choose mAP, AUC or d_prime")
    splits = find_splits(clips, config, args)
    for fold, split in splits.items():
        check_clips(clips, split, label_mode, f"fold {fold}" if fold else str(config.data.train_dirs[0]), metric)
    digest = UNTRAINED if source.weights is None else f"SHA-256 {sha256(source.weights)[:16]}"
    return Experiment(args, config, device, source, digest, clips, splits, label_mode, metric)


def build_encoder(source: ModelSource, num_frames: int | None) -> MaskedSpectrogramEncoder:
    """The encoder of a source with its weights, for inputs of `num_frames` frames if they are given.

    Raises:
        ValueError: a length that the patches do not divide, or weights that do not fit.
    """
    section = source.config.model
    arguments = section.model_args.to_dict()
    section.backend = "auto"  # pretraining may have been on another device, which had its kernels
    encoder = models.build(section.arch, arguments)
    if num_frames not in (None, encoder.num_frames):
        mels = encoder.n_mels
        arguments["img_size"] = (mels, num_frames) if encoder.frequency_first else (num_frames, mels)
        try:
            encoder = models.build(section.arch, arguments)
        except ValueError as error:
            raise ValueError(f"data.num_frames is {num_frames}: {error}") from error
    section.model_args = ConfigDict(arguments)
    if source.weights is not None:
        try:
            state = encoder.with_own_positions(read_weights(source.weights))
        except ValueError as error:
            raise checkpoint.CheckpointError(f"{source.weights}: {error}") from error
        checkpoint.load_model_state(encoder, state, source=source.weights)
    return encoder


def start_run(experiment: Experiment, fold: str) -> Run:
    """Build the run of a fold, at its newest checkpoint if there is one. Every process must call this together.

    Raises:
        ValueError, OSError: as for `set_up`.
    """
    args, device, clips, split = experiment.args, experiment.device, experiment.clips, experiment.splits[fold]
    workdir, config = experiment.workdir(fold), experiment.config.copy_and_resolve_references()
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    distributed.seed_all(args.seed)
    encoder = build_encoder(experiment.source, config.data.num_frames)
    encoder.gradient_checkpointing = args.gradient_checkpointing
    model = Classifier(encoder, len(clips.classes), config.head.pooling, config.encoder.frozen).to(device)
    config.name, config.fold = args.config, fold
    config.model, config.front_end = experiment.source.config.model, experiment.source.config.front_end
    check_same_experiment(workdir, config, finetune_schema.DEFAULTS | FOUND)
    if distributed.is_main():
        resume.remove_stale(workdir)
    parameters = list(model.parameters())
    every, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    resume.check_space(workdir, trained, more_values=2 * every - trained)  # the model, and the one that is kept
    # A small data set still fills one batch on each process.
    config.batch_size = min(config.batch_size, max(1, len(split.train) // distributed.world_size()))
    loaders, test_loader = build_loaders(experiment, config, split, encoder.num_frames)
    contents = loaders.contents()
    check_same_in_all_processes(contents)
    check_schedule(config, len(loaders.train), args.min_lr)
    groups = model.parameter_groups(config.opt.weight_decay, config.opt.layer_decay, config.opt.head_rate)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "float16")
    kept, trained_before = check_checkpoint(experiment, config, workdir, contents)
    distributed.seed_apart(args.seed)
    start = load_state(args, config, workdir, model, optimizer, scaler, len(loaders.train), contents)
    return Run(
        args=args,
        config=config,
        workdir=workdir,
        device=device,
        model=model,
        parallel_model=distributed.parallel(model, device),
        optimizer=optimizer,
        scaler=scaler,
        loaders=loaders,
        contents=contents,
        peak_rate=optim.peak_learning_rate(config.opt.learning_rate, clips_per_update(config)),
        start=start,
        guard=StepGuard(scaler.is_enabled(), clips.name, start.skipped_steps),
        experiment=experiment,
        fold=fold,
        test_loader=test_loader,
        kept=kept,
        trained_before=trained_before,
    )


def check_checkpoint(
    experiment: Experiment, config: ConfigDict, workdir: Path, contents: Mapping[str, Contents]
) -> tuple[Kept | None, dict[str, Any]]:
    """`Run.kept` and `Run.trained_before`, from the checkpoint that the run of `config` resumes from.

    Changed shards in the same folders are left to `load_state`, which refuses them or is told to accept them.

    Raises:
        ValueError: the checkpoint has other classes, another config or loss, or other validation or test clips.
    """
    path, state = find_state(experiment.args.resume, workdir)
    if path is None or state is None:
        return None, {}
    classes, advice = experiment.clips.classes, "choose another --workdir, or start from its encoder with --model"
    if state.get("classes") != classes:
        theirs = state.get("classes")
        words = f"{len(theirs)} classes ({', '.join(theirs[:3])} ...)" if theirs else "no classes"
        raise ValueError(
            f"{path} has {words}, but the data have {len(classes)} ({', '.join(classes[:3])} ...): {advice}"
        )
    check_same_config(path, state["args"]["config"], config, advice, finetune_schema.DEFAULTS | FOUND)
    if (loss := state.get("loss", experiment.label_mode)) != experiment.label_mode:
        raise ValueError(
            f"{path} was trained with the loss {loss!r}, but these clips need {experiment.label_mode!r}: {advice}"
        )
    clips, split = experiment.clips, experiment.splits[config.fold]
    judged = judged_clips(clips, split)
    for part, digest in state.get("judged", judged).items():
        if digest != judged[part]:
            raise ValueError(
                f"the {part} clips are not those of {path}, which may have been trained on some of them: restore the "
                "data with their folds and groups, or choose another --workdir"
            )
    other_folders = _folders_of(state["args"]["config"]["data"]) != _folders_of(config.data)
    if other_folders and experiment.args.data_changed == "refuse":
        judged = judged_clips(clips, split, contents["training data"].shards)
        for part, digest in state.get("judged_content", judged).items():
            if digest != judged[part]:
                raise ValueError(
                    f"the {part} clips have the same names as those of {path}, but other content: choose another "
                    "--workdir, or, if they are the same recordings, add --data-changed restart-epoch"
                )
    return None if state["kept"] is None else Kept(**state["kept"]), state.get("trained_with", {})


def _folders_of(data: Mapping) -> list[str]:
    return [*data["train_dirs"], data.get("val_dir", ""), data.get("test_dir", "")]


def build_loaders(
    experiment: Experiment, config: ConfigDict, split: Split, encoder_frames: int
) -> tuple[Loaders, StatefulDataLoader | None]:
    """The loaders for training and validation and, if there are such clips, for test."""
    args, clips = experiment.args, experiment.clips
    crop_frames = config.data.crop_frames or encoder_frames
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    options = {
        "num_workers": args.num_workers,
        "pin_memory": experiment.device.type == "cuda",
        "worker_init_fn": begin_worker,
    }
    augmentation = Augmentation(**config.augment.to_dict())
    training = LabelledDataset(clips, split.train, crop_frames, augmentation, args.seed, args.strict_data)
    loader = training_loader(training, config.batch_size, config.data.balanced, **ranks, **options)
    valid, test = (
        whole_clip_loader(LabelledDataset(clips, chosen), config.batch_size, **ranks, **options)
        for chosen in (split.valid, split.test)
    )
    return Loaders(loader, valid), test if len(split.test) else None
