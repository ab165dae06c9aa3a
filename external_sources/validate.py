"""Check a module against the HEAR API: `python -m external_sources.validate MODULE [-m WEIGHTS] [-d cpu|cuda]`.

This runs hear-validator with its own options. The exit status is non-zero if it rejects the module.
"""

import sys

from audio_mamba.external_sources.compat import stand_ins
from audio_mamba.system.terminal import quiet_exit


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.external_sources.validate") -> None:
    """Run hear-validator on the arguments of a command line."""
    with stand_ins():
        from hearvalidator.validate import main as validate
    sys.argv = [prog, *(sys.argv[1:] if arguments is None else arguments)]
    validate()


if __name__ == "__main__":
    with quiet_exit():
        main()
