"""A very small model with another front end: 32 kHz and 128 mel bands."""

from audio_mamba.front_end import FrontEnd
from tests.hear_api import small_config

FRONT_END = FrontEnd(sample_rate=32000, n_fft=800, hop_length=320, n_mels=128, mel_max_hz=16000.0)


def get_config():
    config = small_config.get_config()
    config.model.model_args.img_size = (200, 128)
    config.front_end = FRONT_END.settings()
    return config
