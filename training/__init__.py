"""Pretraining: optimizer, schedule, processes, checkpoints and what a run shows. The loop is in train.py."""
