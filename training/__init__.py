"""Pretraining: the optimizer and its schedule, processes, checkpoints and what a run shows. The loop itself is in train.py."""
