"""Who may import whom (the project's floors), read off the code itself."""
import ast

import pytest

from tests.conftest import ROOT

FLOORS = {"atomic_files": 1, "folder_lock": 1, "machine": 1, "workers": 1, "models.ops": 1, "models": 2, "data": 2,
          "training": 2, "hear_api": 3, "configs": 4, "external_sources": 4, "benchmarks": 4, "experiments": 4,
          "train": 4, "train_arguments": 4, "train_setup": 4}
OPTIONAL = {"torchaudio", "mamba_ssm", "causal_conv1d", "triton", "torchvision", "timm"}
FILES = [path for path in sorted(ROOT.rglob("*.py"))
         if path.relative_to(ROOT).parts[0].removesuffix(".py") in {*FLOORS, "stats_aggregation_v2"}]


def room_of(module):
    names = [room for room in FLOORS if module == room or module.startswith(room + ".")]
    return max(names, key=len, default=None)


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_flow_downward(path):
    room = room_of(module_of(path))
    for _, name in imports(ast.parse(path.read_text())):
        other = room_of(name)
        if room and other and other != room:
            assert FLOORS[other] < FLOORS[room] or FLOORS[room] == 4, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_optional_package_at_module_level_and_no_path_edits(path):
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node, name in imports(tree):
        if id(node) not in inside and "triton" not in path.stem:
            assert name.split(".")[0] not in OPTIONAL, f"{path.name} imports {name} at module level"
    assert "sys.path" not in path.read_text(), f"{path.name} edits sys.path"


def test_the_walk_sees_the_project():
    assert {"train", "models.ssam", "data.features", "hear_api.runtime"} <= {module_of(path) for path in FILES}
