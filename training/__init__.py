"""Pretraining: optimizer, schedule, processes, checkpoints and what a run shows. The loop is in train.py."""

if __name__ == "training":
    from audio_mamba import published_names

    published_names.refuse(__name__)
