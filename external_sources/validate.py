"""Check a module against the HEAR API: `python -m external_sources.validate MODULE [-m WEIGHTS] [-d cpu|cuda]`.

This is hear-validator, with its own options; its exit status is non-zero for a module it rejects.
"""

from external_sources.compat import stand_ins


def main() -> None:
    """Run hear-validator on the arguments of the command line."""
    with stand_ins():
        from hearvalidator.validate import main as validate
    validate()


if __name__ == "__main__":
    main()
