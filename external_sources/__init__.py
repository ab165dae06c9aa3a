"""Runs the unmodified evaluation kits (heareval, hearvalidator, X-ARES) on today's libraries. See README.md here."""

if __name__ == "external_sources":  # its published name, in a checkout
    from audio_mamba import published_names

    published_names.share(__name__)
