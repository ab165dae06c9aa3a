"""The experiments under the names of the paper's commands: `configs.poc.<name>` is the module `configs.<name>`."""
import importlib
import pkgutil
import sys

import configs

for _info in pkgutil.iter_modules(configs.__path__):
    if not _info.ispkg and _info.name != "base":
        _module = importlib.import_module(f"configs.{_info.name}")
        sys.modules[f"{__name__}.{_info.name}"] = _module
        setattr(sys.modules[__name__], _info.name, _module)
