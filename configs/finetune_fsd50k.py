"""FSD50K (Fonseca et al. 2022): 51,197 clips of 0.3 to 30 s, 200 classes, several labels per clip, its own splits.

    audio-mamba prepare FSD50K.dev_audio datasets/fsd50k/dev --labels dev.csv --classes classes.csv \\
        --clip-seconds 30 --fold-column split
    audio-mamba prepare FSD50K.eval_audio datasets/fsd50k/eval --labels eval.csv --classes classes.csv \\
        --clip-seconds 30
    python finetune.py --config configs.finetune_fsd50k --workdir RUN

classes.csv has the columns idx,label. Rate 5e-4 at 24 clips, 40 epochs, class-balanced sampling, masks of 48/128 bands
and 192 frames, mixup 0.5, crops of 10 s: PSLA (Gong et al. 2021), whose encoder is another one. The rate here is a
fifth of it, ours, as are warm-up, cosine and layer decay.
"""

from audio_mamba.configs.finetune import recipe


def get_config():
    config = recipe("fsd50k/dev", test_dir="fsd50k/eval")
    config.head.loss, config.metric = "multi", "mAP"
    config.data.crop_frames, config.data.balanced = 1000, True
    config.augment.update({"mixup": 0.5, "time_mask": 192, "freq_mask": 30})
    config.batch_size, config.num_epochs = 24, 40
    config.opt.learning_rate, config.opt.warmup_epochs = 1e-4 * 256 / 24, 2.0
    config.opt.layer_decay = 0.75
    config.log_every_steps = 100
    return config
