"""The names of experiments, which are modules in `configs`: as users write them, and as files store them."""

import importlib
import importlib.util
import pkgutil
import re
from types import ModuleType

from audio_mamba.published_names import PACKAGE, full_name


def stored_name(name: str) -> str:
    """The name of an experiment in files: `x`, `configs.poc.x`, `audio_mamba.configs.x` -> `configs.x`.

    Other modules keep their names. A name without a dot is an experiment if there is one of that name. A variant of a
    module follows a colon, such as `configs.studies.sizes:ssam_tiny_200_16x4`, and stays as it is.
    """
    module, colon, variant = name.partition(":")
    path = module if "." in module else f"configs.{module}"
    full = full_name(path)
    if full.startswith(f"{PACKAGE}.configs.") and ("." in module or importlib.util.find_spec(full)):
        return full.removeprefix(f"{PACKAGE}.") + colon + variant
    return name


def short_name(name: str) -> str:
    """The last part of a stored name: `configs.x` -> `x`, `configs.studies.y:x` -> `x`."""
    return re.split(r"[.:]", name)[-1]


def experiments() -> list[str]:
    """The stored names of all modules in configs: the experiments, the studies and what they share."""
    package = importlib.import_module(f"{PACKAGE}.configs")
    modules = pkgutil.walk_packages(package.__path__, f"{PACKAGE}.configs.")
    return sorted(module.name.removeprefix(f"{PACKAGE}.") for module in modules)


def import_named(name: str) -> ModuleType:
    """Import a module that the user names: an experiment under any of its names, or any other module.

    The name of an experiment may have a variant, which `hear_api.resolve.get_config` reads.

    Raises:
        ModuleNotFoundError: there is no such module, or the name is empty or relative.
    """
    if not name or name.startswith("."):
        raise ModuleNotFoundError("empty and relative names are not accepted", name=name)
    full = full_name(stored_name(name)).partition(":")[0]
    try:
        own = full.startswith(f"{PACKAGE}.configs.") and importlib.util.find_spec(full)
    except ModuleNotFoundError as error:
        if error.name != full:  # of a package that a config above it needs
            raise
        own = None  # below a module that is no package, such as configs.x.py
    return importlib.import_module(full if own else name)


def is_missing(name: str, error: ModuleNotFoundError) -> bool:
    """Whether `import_named` failed since the module, or a package around it, does not exist. Otherwise the module
    exists, but something that it imports does not."""
    return error.name is not None and f"{name}.".startswith(f"{error.name}.")
