"""`python -m audio_mamba` is the command `audio-mamba`, in a checkout too."""

from audio_mamba.cli.main import main
from audio_mamba.system.terminal import quiet_exit

if __name__ == "__main__":
    with quiet_exit():
        main()
