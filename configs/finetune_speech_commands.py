"""Speech Commands v2 (Warden 2018): 105,829 words of 1 s, 35 classes, its own splits.

    audio-mamba prepare speech_commands_v0.02 datasets/speech_commands --fold-column split
    python finetune.py --config configs.finetune_speech_commands --workdir RUN

Rate 2.5e-4 at 128 clips, 30 epochs, masks of 48/128 bands and 48 frames, mixup 0.6, shifts of 10 frames: AST and SSAST
(Gong et al. 2021 and 2022, and their code). Warm-up and cosine in place of their steps, and layer decay: ours.
"""

from audio_mamba.configs.finetune import recipe


def get_config():
    config = recipe("speech_commands")
    config.batch_size, config.num_epochs = 128, 30
    config.opt.learning_rate, config.opt.warmup_epochs = 2.5e-4 * 256 / 128, 3.0
    config.opt.layer_decay = 0.75
    config.augment.update({"mixup": 0.6, "time_mask": 48, "freq_mask": 30, "time_shift": 10})
    config.log_every_steps = 100
    return config
