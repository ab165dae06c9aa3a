"""How good are frozen embeddings for my labels? `python -m audio_mamba.hear_api.probe`, or `audio-mamba probe`."""
