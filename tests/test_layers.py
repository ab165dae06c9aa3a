"""Who may import whom, read off the code itself: imports flow downward, without circles and without back doors."""

import ast

import pytest

from tests.conftest import ROOT

# The entry points and scripts of floor 5 may import each other; no file may do so in a circle.
FLOORS = {
    "audio_mamba.published_names": 0,
    "audio_mamba.config_names": 1,
    "audio_mamba.front_end": 0,
    "audio_mamba.schema": 1,
    "audio_mamba.finetune_schema": 2,
    "audio_mamba.system": 0,
    "audio_mamba.models.ops": 1,
    "audio_mamba.models": 2,
    "audio_mamba.data": 2,
    "audio_mamba.training": 2,
    "audio_mamba.hear_api": 3,
    "audio_mamba.configs": 4,
    "audio_mamba.external_sources": 4,
    "audio_mamba": 5,  # the public names alone
    "audio_mamba.__main__": 5,
    "audio_mamba.cli": 5,
    "audio_mamba.train": 5,
    "audio_mamba.finetune": 5,
    "audio_mamba.stats_aggregation_v2": 5,
    "benchmarks": 5,
    "experiments": 5,
}
OPTIONAL = {"torchaudio", "mamba_ssm", "causal_conv1d", "triton", "torchvision", "timm"}


def project_files():
    """Path of each file by its module name; a link in audio_mamba/ stands for what it points to."""
    paths = [ROOT / "train.py", ROOT / "finetune.py", ROOT / "stats_aggregation_v2.py"]
    for folder in (
        ROOT / "audio_mamba",
        *(link.resolve() for link in (ROOT / "audio_mamba").iterdir() if link.is_dir()),
    ):
        paths += folder.rglob("*.py")
    for folder in (ROOT / "benchmarks", ROOT / "experiments"):
        paths += folder.rglob("*.py")
    return {module_of(path): path for path in sorted({path.resolve() for path in paths})}


def module_of(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    top = name.split(".")[0]
    return (
        f"audio_mamba.{name}"
        if (ROOT / "audio_mamba" / top).exists() or (ROOT / f"audio_mamba/{top}.py").exists()
        else name
    )


FILES = project_files()


def room_of(module):
    if module == "audio_mamba":
        return module
    names = [room for room in FLOORS if room != "audio_mamba" and f"{module}.".startswith(f"{room}.")]
    return max(names, key=len, default=None)


def nodes_with_imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def imported_files(module):
    """The project's modules that a module imports, at its top or inside its functions; not the packages it is in."""
    names = {name for _, name in nodes_with_imports(ast.parse(FILES[module].read_text())) if name in FILES}
    return {name for name in names if name != module and not module.startswith(f"{name}.")}


@pytest.mark.parametrize("module", FILES)
def test_imports_flow_downward(module):
    room = room_of(module)
    assert room, f"{module} has no floor"
    for name in imported_files(module):
        other = room_of(name)
        if other != room:
            assert FLOORS[other] < FLOORS[room] or FLOORS[room] == 5, f"{module} imports {name}"


def test_no_imports_in_a_circle():
    graph = {module: imported_files(module) for module in FILES}
    finished, path = set(), []

    def visit(module):
        assert module not in path, "imports in a circle: " + " -> ".join([*path[path.index(module) :], module])
        if module not in finished:
            path.append(module)
            for name in graph[module]:
                visit(name)
            finished.add(path.pop())

    for module in FILES:
        visit(module)


@pytest.mark.parametrize("module", FILES)
def test_no_back_doors(module):
    """The project's own modules are imported by statements, under their full names, never by text or by path."""
    tree, text = ast.parse(FILES[module].read_text()), FILES[module].read_text()
    assert "sys.path" not in text, f"{module} edits sys.path"
    published = {room.removeprefix("audio_mamba.") for room in FLOORS if room.startswith("audio_mamba.")}
    for _, name in nodes_with_imports(tree):
        assert name.split(".")[0] not in published, f"{module} imports {name} by its published name"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr):
            called = ast.unparse(node.func).split(".")[-1]
            named = ast.unparse(node.args[0]).strip("f'\"").split(".")[0]
            if called in ("import_module", "__import__"):
                assert named not in {"audio_mamba", *published}, f"{module} imports {ast.unparse(node)}"


@pytest.mark.parametrize("module", FILES)
def test_no_optional_package_at_module_level(module):
    tree = ast.parse(FILES[module].read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node, name in nodes_with_imports(tree):
        if id(node) not in inside and "triton" not in FILES[module].stem:
            assert name.split(".")[0] not in OPTIONAL, f"{module} imports {name} at module level"


def test_the_walk_sees_the_project():
    assert {
        "audio_mamba.train",
        "audio_mamba.finetune",
        "audio_mamba.models.ssam",
        "audio_mamba.cli.train_setup",
        "audio_mamba.published_names",
        "audio_mamba.hear_api.runtime",
        "benchmarks.cpu",
        "audio_mamba.data",
        "audio_mamba",
    } <= FILES.keys()
