"""A long pretraining run on all free recordings within reach (README.md tells the steps)."""
