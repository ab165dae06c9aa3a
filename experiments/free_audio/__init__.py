"""Pretraining SSAM and SSAST on free recordings, and what it is worth (README.md tells the steps and the result)."""
