"""`python -m audio_mamba` is the command `audio-mamba`, in a checkout too."""

from audio_mamba.cli.main import main

if __name__ == "__main__":
    main()
