"""From audio files to training batches: log-mel front end, archives, loader, and the commands that prepare them."""

if __name__ == "data":  # its published name, in a checkout
    from audio_mamba import published_names

    published_names.share(__name__)
