"""AudioSet-2M (Gemmeke et al. 2017): balanced and unbalanced training clips of 10 s, 527 classes.

    python finetune.py --config configs.finetune_audioset_full --workdir RUN     # archives as for the balanced clips

Rate 1e-5 at 12 clips, 5 epochs, class-balanced sampling, masks of 48/128 bands and 192 frames, mixup 0.5: AST (Gong et
al. 2021, and its code). As there, the evaluation clips choose the checkpoint. Warm-up, cosine and layer decay: ours.
"""

from audio_mamba.configs.finetune import recipe


def get_config():
    base = "audioset_labelled"
    config = recipe(f"{base}/balanced_train", f"{base}/unbalanced_train", val_dir=f"{base}/eval")
    config.data.balanced = True
    config.head.loss, config.metric = "multi", "mAP"
    config.data.num_frames = 1000
    config.augment.update({"mixup": 0.5, "time_mask": 192, "freq_mask": 30})
    config.batch_size, config.num_epochs = 12, 5
    config.opt.learning_rate, config.opt.warmup_epochs = 1e-5 * 256 / 12, 0.1
    config.opt.layer_decay = 0.75
    config.log_every_steps = 100
    return config
