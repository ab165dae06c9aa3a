"""One module per experiment; each is also a HEAR API module. `configs.base` holds what they share."""

if __name__ == "configs":  # its published name, in a checkout
    from audio_mamba import published_names

    published_names.share(__name__)
