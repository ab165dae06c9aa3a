"""ESC-50 (Piczak 2015): 2,000 clips of 5 s, 50 classes, five folds.

    audio-mamba prepare ESC-50/audio datasets/esc50 --labels ESC-50/meta/esc50.csv --fold-column fold
    python finetune.py --config configs.finetune_esc50 --folds all --workdir RUN

Rate 1e-4 at 48 clips, 50 epochs, masks of 24/128 bands and 96 frames, no mixup: SSAST (Gong et al. 2022, and its code).
Warm-up and cosine in place of its steps, layer decay, time shift and label smoothing: ours.
"""

from audio_mamba.configs.finetune import recipe


def get_config():
    config = recipe("esc50")
    config.data.crop_frames = 500
    config.batch_size, config.num_epochs = 48, 50
    config.opt.learning_rate, config.opt.warmup_epochs = 1e-4 * 256 / 48, 5.0
    config.opt.layer_decay, config.opt.label_smoothing = 0.75, 0.1
    config.augment.update({"time_mask": 96, "freq_mask": 15, "time_shift": 50})
    return config
