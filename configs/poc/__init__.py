"""The experiments under the names of the paper's commands: `configs.poc.<name>` is the module `configs.<name>`."""
import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


class _SameModule(MetaPathFinder, Loader):
    """Finds `configs.poc.<name>` where there is a `configs.<name>`, and gives that very module."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname.startswith(f"{__name__}.") and find_spec(_own_name(fullname)):
            return ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(_own_name(spec.name))
        spec.loader_state = module.__spec__  # which the import of another name replaces
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state


def _own_name(fullname: str) -> str:
    return "configs" + fullname.removeprefix(__name__)


sys.meta_path.append(_SameModule())
