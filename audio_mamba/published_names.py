"""Published import names in a checkout: `hear_api`, `configs` and others are the modules of `audio_mamba`, not copies.

The code imports itself as `audio_mamba.hear_api`, while the published scripts import `hear_api` and
`configs.poc.<name>`. A module that is loaded twice would register its operators twice, and `isinstance` would fail
between the two copies. So each published name gives the module object of its full name, or is refused.
"""

import importlib
import importlib.util
import sys
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType, ModuleType

PACKAGE = "audio_mamba"
SHARED = ("configs", "data", "external_sources", "hear_api", "stats_aggregation_v2", "train")
REFUSED = ("models", "training")


def full_name(name: str) -> str:
    """The full name of a module: `configs.poc.x`, `configs.x`, `audio_mamba.configs.x` -> `audio_mamba.configs.x`."""
    name = name if name.startswith(f"{PACKAGE}.") else f"{PACKAGE}.{name}"
    return name.replace(f"{PACKAGE}.configs.poc.", f"{PACKAGE}.configs.")


class PublishedNames(MetaPathFinder, Loader):
    """Imports a published name as the module of its full name; leaves other projects' modules alone."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        top, _, rest = fullname.partition(".")
        name = full_name(fullname)
        if name == fullname or top not in (PACKAGE, *SHARED):
            return None
        if top != PACKAGE and not (_is_shared(top) if rest else _is_ours(PathFinder.find_spec(top))):
            return None
        spec = importlib.util.find_spec(name)
        return spec and ModuleSpec(fullname, self, origin=spec.origin, is_package=bool(spec.submodule_search_locations))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(full_name(spec.name))
        spec.loader_state = module.__spec__  # importing under another name replaces it; see exec_module
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, fullname: str) -> CodeType | None:
        """The code of a module, which `python -m hear_api.embed` asks for."""
        name = full_name(fullname)
        spec = importlib.util.find_spec(name)
        if spec is None or not isinstance(spec.loader, InspectLoader):
            raise ImportError(f"no code for {name}", name=fullname)
        return spec.loader.get_code(name)


def install() -> None:
    """Make published names importable. Calling it again does nothing."""
    if not any(isinstance(finder, PublishedNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, PublishedNames())


def share(name: str) -> None:
    """Called by a module of SHARED while it is imported as `name`: replace it by the module of its full name."""
    sys.modules[name] = importlib.import_module(full_name(name))


def refuse(name: str) -> None:
    """Called by a module of REFUSED while it is imported as `name`. Always raises ImportError."""
    raise ImportError(f"import {full_name(name)} instead of {name}: one module under two names would be loaded twice")


def _is_shared(top: str) -> bool:
    return sys.modules.get(top) is not None and sys.modules.get(top) is sys.modules.get(full_name(top))


def _is_ours(spec: ModuleSpec | None) -> bool:
    """Whether a top-level module is a file of this checkout, to which the package links."""
    if spec is None or not spec.origin:
        return False
    linked = Path(__file__).parent / spec.name
    linked = linked / "__init__.py" if spec.submodule_search_locations else linked.with_suffix(".py")
    return Path(spec.origin).resolve() == linked.resolve()
