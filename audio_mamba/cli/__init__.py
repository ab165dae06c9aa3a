"""The `audio-mamba` command, and the set-up of the training loops."""
