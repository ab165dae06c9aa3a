"""VoxCeleb1 (Nagrani et al. 2017): who speaks, 1,251 speakers, the split of `iden_split.txt`.

    (echo file,label,split; sed 's/^1/train/; s/^2/valid/; s/^3/test/' iden_split.txt | \\
        awk '{split($2, part, "/"); print $2 "," part[1] "," $1}') > voxceleb1.csv
    audio-mamba prepare vox1/wav datasets/voxceleb1 --labels voxceleb1.csv --fold-column split --clip-seconds 150
    python finetune.py --config configs.finetune_voxceleb1 --workdir RUN

Crops of 3 s in training and whole utterances in test: Nagrani et al. All else, with mean and deviation over time as in
x-vectors (Snyder et al. 2018): ours.
"""

from audio_mamba.configs.finetune import recipe


def get_config():
    config = recipe("voxceleb1")
    config.head.pooling = "mean_std"
    config.data.crop_frames = 300
    config.batch_size, config.num_epochs = 64, 30
    config.opt.learning_rate, config.opt.warmup_epochs = 2e-3, 3.0
    config.opt.layer_decay, config.opt.label_smoothing = 0.75, 0.1
    config.augment.update({"time_mask": 30, "freq_mask": 10})
    config.log_every_steps = 100
    return config
