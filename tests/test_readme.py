"""The documents tell the truth: what they name exists, options are accepted, and their commands run."""

import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import soundfile

from audio_mamba import config_names
from audio_mamba.cli.main import COMMANDS, HEAR_COMMANDS
from audio_mamba.cli.main import main as audio_mamba_command
from tests.conftest import ROOT
from tests.training.runs import arguments

README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
GOLDEN = ROOT / "tests" / "golden"
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
PAGES += [ROOT / "experiments" / name / "README.md" for name in ("free_audio", "long_run")]
PAGES += [ROOT / "external_sources/README.md"]
PAGES += sorted((ROOT / "weights").glob("*/README.md"))


def code_blocks(text):
    """Indented or fenced blocks, without their indentation."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    indented = re.findall(r"(?:^    .*\n|^\n(?=    ))+", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return fenced + [re.sub(r"^    ", "", block, flags=re.M).strip("\n") + "\n" for block in indented]


def commands(text):
    """Command lines in code blocks, continuation lines joined, comments and redirections left out."""
    lines = "\n".join(code_blocks(text)).replace("\\\n", " ").splitlines()
    return [re.split(r"\s#\s", line)[0].strip() for line in lines]


def python_example():
    """The code block of the README that starts with an import."""
    (block,) = (block for block in code_blocks(README) if block.startswith("import audio_mamba"))
    return block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_the_documents_compiles(page):
    for block in code_blocks(page.read_text()):
        if re.match(r"(import|from) \w|model\.|scenes = |\"\"\"", block):
            compile(block, str(page), "exec")


def test_the_front_page_is_one_page():
    assert len(README.splitlines()) <= 150 and len(README.split()) <= 1200
    assert len(python_example().splitlines()) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), f"{target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_and_modules_that_it_names_exist(page):
    text = page.read_text()
    for name in re.findall(r"(?<![\w/])\./([\w/]+\.sh)|python (\w+\.py)", text):
        script = "".join(name)
        assert (ROOT / script).is_file(), f"{script} does not exist"
    for name in re.findall(r"python -m ([\w.]+)", text):
        if name.split(".")[0] in ("audio_mamba", "benchmarks", "experiments", "data", "hear_api", "external_sources"):
            assert importlib.util.find_spec(
                name if name.startswith(("benchmarks", "experiments", "audio_mamba")) else f"audio_mamba.{name}"
            ), name
    for name in re.findall(r"\bconfigs\.(?:poc\.)?(ss\w+|ax\w+)", text):
        made = f"configs/{name}.py" in text  # by an example of this page
        assert made or (ROOT / "configs" / f"{name}.py").is_file() or name.endswith("_"), f"no configs.{name}"


def parser_of(words):
    """For a command of the documents: its arguments for the `audio-mamba` command, or of python. None for others."""
    if words[:1] == ["audio-mamba"]:
        assert words[1] in COMMANDS, words
        if words[1] == "hear" and len(words) > 2:
            assert words[2] in HEAR_COMMANDS, words
            return ["audio-mamba", *words[1:3]]
        return ["audio-mamba", words[1]]
    if "finetune.py" in words:
        return ["audio-mamba", "finetune"]
    if "train.py" in words or "audio_mamba.train" in words:
        return ["audio-mamba", "train"]
    if "stats_aggregation_v2.py" in words:
        return ["audio-mamba", "hear", "table"]
    if words[:2] == ["python", "-m"]:
        return ["python", "-m", words[2]]
    return None


def arguments_of(words):
    """The words after the name of the program."""
    for number, word in enumerate(words):
        if word.endswith(("train.py", "finetune.py")) or word == "audio_mamba.train":
            return words[number + 1 :]
    return words


def options_of(command, monkeypatch, capsys):
    """The options that --help of a command lists."""
    program, *rest = command
    if program == "audio-mamba":
        main, shown = audio_mamba_command, [*rest, "--help"]
    else:
        module = config_names.import_named(rest[1])
        main = getattr(module, "main", None) or import_module(f"{module.__name__}.__main__").main
        shown = ["--help"]
    monkeypatch.setattr(sys, "argv", ["audio-mamba", "--help"])  # the HEAR kit's validator and two benchmarks read it
    with pytest.raises(SystemExit) as ended:
        main(*([shown] if inspect.signature(main).parameters else []))
    assert not ended.value.code
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))


def documented_commands():
    """Program -> {option: a line of the documents that has it}."""
    found = {}
    for page in PAGES:
        for line in [*commands(page.read_text()), *re.findall(r"`([^`\n]+)`", page.read_text())]:
            for part in re.split(r" \| |; |&& | do ", line):
                words = part.split()
                while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] in ("srun", "time")):
                    words = words[1:]
                if "{" not in part and (command := parser_of(words)):
                    options = (word.split("=")[0] for word in arguments_of(words) if re.match("--?[a-z]", word))
                    found.setdefault(tuple(command), {}).update(
                        {option: line for option in options if option != "-m" or "validate" in part.split("-m")[1]}
                    )
    return found


DOCUMENTED = documented_commands()


def test_the_documents_show_every_command():
    assert {("audio-mamba", name) for name in COMMANDS if name != "hear"} <= DOCUMENTED.keys()


@pytest.mark.parametrize("command", DOCUMENTED, ids=" ".join)
def test_options_that_the_documents_name_are_accepted(command, monkeypatch, capsys):
    if not command[-1].startswith("training"):  # which the changelog says is gone
        accepted = options_of(command, monkeypatch, capsys)
        for option, line in DOCUMENTED[command].items():
            assert option.replace("_", "-") in accepted, f"{option} is not an option of: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_of_the_scripts_that_it_names_are_read(page):
    for line in commands(page.read_text()) + re.findall(r"`([^`\n]+)`", page.read_text()):
        if script := re.search(r"\./((?:extract|downstream)_\w+\.sh)", line):
            for variable in re.findall(r"\b([A-Z]+)=", line):
                assert f"${{{variable}:+" in (ROOT / script[1]).read_text(), line


@pytest.mark.parametrize(
    "folder",
    [
        "audio_mamba",
        "audio_mamba/cli",
        "audio_mamba/system",
        "models",
        "models/objectives",
        "data",
        "training",
        "hear_api",
        "hear_api/probe",
        "benchmarks",
        "experiments/free_audio",
        "experiments/long_run",
    ],
)
def test_the_architecture_names_every_file_of(folder):
    """The row of a folder in the tree names its Python files, and no others."""
    tree = ARCHITECTURE.split("## The tree")[1]
    (row,) = re.findall(rf"^\| `{folder}/` \| (.*) \|$", tree, re.M)
    named = set(re.findall(r"`([\w.]+\.(?:py|sh))`", row))
    files = {path.name for path in (ROOT / folder).glob("*.py") if not path.is_symlink() and path.name[:2] != "__"}
    assert files <= named, f"not named in docs/architecture.md, {folder}/: {sorted(files - named)}"
    missing = [name for name in named if not (ROOT / folder / name).is_file()]
    assert not missing, f"named in docs/architecture.md, but not in {folder}/: {missing}"


def test_files_and_folders_that_the_architecture_names_exist():
    names = re.findall(r"(?<![\w/<])(?:\w+/)+(?:\w+\.\w+)?|\w+\.(?:py|sh)\b", ARCHITECTURE.split("## The tree")[0])
    assert {"data/audio.py", "models/loss.py", "training/checkpoint.py", "train.py", "hear_api/runtime.py"} <= set(
        names
    )
    missing = [name for name in names if not name.startswith("RUN/") and not (ROOT / name).exists()]
    assert not missing


def test_the_models_of_the_front_page():
    """Their parameters and widths are those of the golden files."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("| `")]
    seen = set()
    for name, _, parameters, width, *_ in rows:
        base, _, sizes = name.strip("`").partition("{")
        names = [f"{base}{size}_200_16x4" for size in sizes.split("}")[0].split(",")] if sizes else [base]
        published = [re.sub("free_audio.*", "200_16x4", name) for name in names]
        golden = [json.loads((GOLDEN / f"{name}.json").read_text()) for name in published]
        assert [f"{one['parameters'] / 1e6:.1f}" for one in golden] == parameters.removesuffix(" M").split(", "), name
        assert [str(5 * one["state_dict"]["mask_token"][0][-1]) for one in golden] == width.split(", "), name
        seen |= set(names)
    ours = ("alternate", "both", "joint", "teacher")  # without weights to load
    experiments = {f"ssam_{name}_tiny_200_16x4" for name in ours}
    assert seen | experiments == {path.stem for path in (ROOT / "configs").glob("*_tiny*.py")} | {
        path.stem for path in (ROOT / "configs").glob("*_200_16x4.py")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of a few seconds, as the documents' examples name them."""
    folder, rng = tmp_path_factory.mktemp("user"), np.random.default_rng(0)
    labelled = [f"labelled/{label}/{number}.wav" for label in ("cat", "dog") for number in range(6)]
    single = ["my.wav", "recording.wav", "dog.wav", "recordings/a.wav", "recordings/b.flac", "more/c.flac"]
    for name in single + labelled:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        soundfile.write(folder / name, 0.1 * rng.standard_normal(40000), 16000)
    for name in ("recording.mp3", "speech.mp3"):
        shutil.copy(folder / "my.wav", folder / name)  # a mislabelled file must do as well
    return folder


def test_the_python_example(folder, monkeypatch):
    monkeypatch.chdir(folder)
    code = python_example().replace(
        'load_model("ssam_tiny_free_audio")', 'load_model("ssam_tiny_free_audio", device="cpu")'
    )
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["embeddings"].shape == (2, 960) and names["embeddings"].dtype == np.float32


def test_the_commands_of_the_front_page(folder, tmp_path, monkeypatch):
    """Those of `audio-mamba`, one after the other, as printed but for the size of the model."""
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("audio_mamba.training.figures._save", lambda figure, path: None)
    lines = [line.split() for line in commands(README) if line.startswith("audio-mamba ")]
    assert [words[1] for words in lines] == ["embed", "probe", "prepare", "train", "embed"]
    for words in lines:
        if words[1] == "train":
            words += ["--set", "num_epochs=1", "batch_size=2", "model.model_args.depth=1", "--num-workers", "0"]
        audio_mamba_command(words[1:])
    for name in ("embeddings.npz", "mine.npz"):
        with np.load(name) as result:
            assert result["embedding"].shape == (2, 960) and len(result["path"]) == 2
    assert not np.array_equal(np.load("embeddings.npz")["embedding"], np.load("mine.npz")["embedding"])


# The commands that the README of version 1 printed, but those for GPUs, clusters and those that tests/evaluation runs.
OLD_COMMANDS = """
python -m data.prepare AUDIO ARCHIVES
python -m data.prepare AUDIO BOTH --validation 0.5
python -m data.inspect ARCHIVES
python -m data.verify ARCHIVES
python -m data.index ARCHIVES
python train.py TRAIN_OPTIONS
python -m hear_api.embed my.wav
python -m hear_api.embed recordings/ more/*.flac --weights RUN --out scenes.parquet
python -m hear_api.embed recordings/ --weights RUN --out steps.npz --kind timestamps
python -m hear_api.listen recording.wav --weights RUN
python -m hear_api.listen - --weights RUN
python -m hear_api.export --config ssam_tiny_200_16x4 --weights RUN --out model.pt2
python -m external_sources.validate configs.ssam_tiny_200_16x4 -m untrained
python -m audio_mamba.training.report RUN RUN --out report.html
python -m experiments.free_audio.tables RESULTS
python -m benchmarks.embed --help
python -m benchmarks.train --help
python -m benchmarks.loader --help
python -m benchmarks.cpu --help
python -m benchmarks.gpu --help
"""
PUBLISHED_PYTHON = """
from configs.ssam_tiny_200_16x4 import load_model
assert load_model().scene_embedding_size == 960
"""
OLD_PYTHON = """
import torch
from configs.ssam_tiny_200_16x4 import load_model
from data.audio import load_audio
model = load_model("RUN")
audio = torch.from_numpy(load_audio("recording.mp3"))[None]
scene = model.get_scene_embeddings(audio)
steps, times_ms = model.get_timestamp_embeddings(audio)
scenes = model.embed(["recording.mp3", audio[0].numpy()])
assert scene.shape == (1, 960) and steps.shape[:2] == times_ms.shape and scenes.shape == (2, 960)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_commands_of_the_first_version_still_work(folder, tmp_path):
    for name in ("recordings", "more", "my.wav", "recording.wav", "recording.mp3"):
        (tmp_path / name).symlink_to(folder / name)
    env = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    paths = {
        "train.py": ROOT / "train.py",
        "RESULTS": ROOT / "experiments" / "free_audio" / "results" / "all_results.csv",
    }
    raw = (1000 * np.random.default_rng(0).standard_normal(40000)).astype("<i2").tobytes()  # as arecord writes it
    options = arguments(
        "RUN", "ARCHIVES", "--tensorboard", config="configs.poc.ssam_tiny_200_16x4", num_epochs=1, batch_size=2
    )
    options = [option.replace("model.model_args.embed_dim=48", "model.model_args.embed_dim=192") for option in options]
    for line in OLD_COMMANDS.strip().splitlines():
        words = [word.replace("AUDIO", "recordings") if word == "AUDIO" else word for word in line.split()]
        words = [part for word in words for part in (options if word == "TRAIN_OPTIONS" else [word])]
        words = [str(paths.get(word, word)) for word in words]
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env=env, capture_output=True, input=raw)
        assert done.returncode == 0, f"{line}\n{done.stdout.decode()}{done.stderr.decode()}"
    assert list((tmp_path / "RUN" / "tensorboard").iterdir())
    with np.load(tmp_path / "embeddings.npz") as ours, np.load(tmp_path / "steps.npz") as steps:
        assert ours["embedding"].shape == (1, 960) and steps["embedding"].shape == (2 * 63, 960)

    published = tmp_path / "weights" / "ssam_tiny_200_16x4_4x256_fp16_r1"
    shutil.copytree(tmp_path / "RUN", published)
    for code in (OLD_PYTHON, PUBLISHED_PYTHON):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=env | {"PT_MAMBA_MODEL_DIR": str(published.parent)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-m", "training.report"], cwd=ROOT, capture_output=True, text=True)
    assert "import audio_mamba.training instead of training" in done.stderr
    assert "python -m training.report" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_quickstart_in_a_fresh_clone(tmp_path):
    clone = tmp_path / "clone"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode()
    for name in files.rstrip("\0").split("\0"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    env = {key: value for key, value in os.environ.items() if key not in ("VENV", "VIRTUAL_ENV", "PYTHONPATH")}
    env |= {"CROPS": "200", "PATH": re.sub(r"[^:]*/venv/bin:|[^:]*/\.venv/bin:", "", env["PATH"])}
    done = subprocess.run(["./quickstart.sh"], cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^  (plain log-mels|trained here|shipped) +(\d+\.\d)   \w", done.stdout, re.M)
    assert [name for name, _ in rows] == ["plain log-mels", "trained here", "shipped"]
    assert all(12.5 <= float(score) <= 100 for _, score in rows)  # eight classes
    assert "WARNING" not in done.stdout + done.stderr
    out = clone / "quickstart_output"
    for name in ("ssam_tiny/reconstructions.png", "ssam_tiny/curves.png", "results/results.md"):
        assert (out / name).stat().st_size > 0
    subprocess.run(
        [clone / ".venv/bin/python", "-m", "hear_api.embed", next((out / "audio").rglob("*.wav"))],
        cwd=clone,
        env=env,
        check=True,
    )
    assert (clone / "embeddings.npz").stat().st_size > 0
