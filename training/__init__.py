"""What the loops in train.py and finetune.py use: optimizer, schedule, processes, checkpoints, logs and figures."""

if __name__ == "training":
    from audio_mamba import published_names

    published_names.refuse(__name__)
