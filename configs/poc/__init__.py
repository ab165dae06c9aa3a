"""The paper's commands say `configs.poc.<name>`: the module `configs.<name>` (see `audio_mamba.published_names`)."""
