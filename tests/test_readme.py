"""The README tells the truth: what it names exists, and its first commands run."""

import os
import re
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def python_example() -> str:
    """The code block of the README that starts with an import."""
    block = re.search(r"(?:^    import .*\n)(?:^    .*\n)+", README, re.M)
    assert block, "the README has no Python example"
    return "".join(line.removeprefix("    ") for line in block[0].splitlines(keepends=True))


def test_the_python_example_is_python():
    compile(python_example(), "README.md", "exec")
    assert "get_scene_embeddings" in python_example() and "load_audio" in python_example()


def test_every_script_and_module_that_it_names_exists():
    scripts = set(re.findall(r"\./(\w+\.sh)|python (\w+\.py)|nproc-per-node=\d (\w+\.py)", README))
    names = {name for match in scripts for name in match if name}
    assert {"quickstart.sh", "run_tests.sh", "train.py", "extract_features.sh", "stats_aggregation_v2.py"} <= names
    missing = [name for name in names if not (ROOT / name).is_file()]
    modules = set(re.findall(r"python -m ([\w.]+)|(configs\.[\w.]+\d)", README))
    for name in {name for match in modules for name in match if name}:
        path = ROOT / name.replace("configs.poc.", "configs.").replace(".", "/")
        if not (path.with_suffix(".py").is_file() or path.is_dir()):
            missing.append(name)
    assert not missing


def test_the_tree_names_every_file_of_the_project_and_nothing_else():
    tree = README.split("## The tree")[1].split("\n\n")[1]
    named, folder = set(), ""
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        entries = line.strip().split("  ")[0].split(", ")
        folder = folder if indent > 4 else ""
        named |= {folder + entry for entry in entries}
        if entries[0].endswith("/") and indent == 4:
            folder = entries[0]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
    for room in ("configs", "models", "data", "training", "hear_api"):
        files = {f"{room}/{path.name}" for path in (ROOT / room).glob("*.py")} - {f"{room}/__init__.py"}
        if room == "configs":
            files = {"configs/base.py"}  # the experiments are not listed one by one
        assert files <= named, f"not in the README's tree: {sorted(files - named)}"


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_quickstart_and_the_python_example_in_a_fresh_clone(tmp_path):
    clone = tmp_path / "clone"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode()
    for name in files.rstrip("\0").split("\0"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    env = {key: value for key, value in os.environ.items() if key not in ("VENV", "VIRTUAL_ENV", "PYTHONPATH")}
    env |= {"CROPS": "200", "PATH": re.sub(r"[^:]*/venv/bin:|[^:]*/\.venv/bin:", "", env["PATH"])}
    done = subprocess.run(["./quickstart.sh"], cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"configs\.ssam_tiny_200_16x4_r1 \| \d+\.\d ±", done.stdout)
    out = clone / "quickstart_output"
    for name in ("ssam_tiny/reconstructions.png", "ssam_tiny/curves.png", "results/results.md"):
        assert (out / name).stat().st_size > 0

    shutil.copy(next((out / "audio").rglob("*.wav")), clone / "recording.mp3")  # a mislabelled file must do as well
    code = python_example() + "assert scene.shape == (1, 960) and steps.shape[:2] == times_ms.shape\n"
    for arguments in (["-c", code], ["-m", "hear_api.embed", "recording.mp3"]):
        subprocess.run([clone / ".venv/bin/python", *arguments], cwd=clone, env=env, check=True)
    assert (clone / "embeddings.npz").stat().st_size > 0
