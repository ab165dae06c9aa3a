"""AudioSet-20K (Gemmeke et al. 2017): the balanced training clips of 10 s, 527 classes, several labels per clip.

    audio-mamba prepare AUDIO datasets/audioset_labelled/balanced_train --labels balanced_train_segments.csv \\
        --classes class_labels_indices.csv       # and likewise eval
    python finetune.py --config configs.finetune_audioset_balanced --workdir RUN

Rate 5e-5 at 12 clips, 25 epochs, masks of 48/128 bands and 192 frames, mixup 0.5, whole clips of 10 s: AST (Gong et al.
2021, and its code). As there, the evaluation clips choose the checkpoint. Warm-up and cosine, and layer decay: ours.
"""

from audio_mamba.configs.finetune import recipe


def get_config():
    config = recipe("audioset_labelled/balanced_train", val_dir="audioset_labelled/eval")
    config.head.loss, config.metric = "multi", "mAP"
    config.data.num_frames = 1000
    config.augment.update({"mixup": 0.5, "time_mask": 192, "freq_mask": 30})
    config.batch_size, config.num_epochs = 12, 25
    config.opt.learning_rate, config.opt.warmup_epochs = 5e-5 * 256 / 12, 2.0
    config.opt.layer_decay = 0.75
    config.log_every_steps = 100
    return config
