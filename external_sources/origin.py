"""What embeddings are made from; it is noted beside them, so that they do not pass for those of other weights."""

import json
from pathlib import Path
from typing import NamedTuple

from audio_mamba.external_sources import layout
from audio_mamba.hear_api.api import hear_functions
from audio_mamba.published_names import import_named
from audio_mamba.system.atomic_files import atomic_write, sha256

SETTINGS = "embeddings-settings.json"  # in the folder of each task


class Origin(NamedTuple):
    """What the embeddings of a model follow from."""

    module: str
    model: str | None  # given to load_model
    file: str | None  # of weights that it takes for that, where this can be known
    sha256: str | None  # of the file; its time would be another one in every clone of the project
    scene_layout: str | None  # None: as the module has it

    def weights(self) -> str:
        """In words."""
        return f"{self.file} (SHA-256 {self.sha256[:12]})" if self.sha256 else self.model or "no MODEL"


def find_origin(module: str, model: str | None, scene_layout: str | None) -> Origin:
    """What embeddings by `load_model(model)` follow from; the model is not loaded.

    Args:
        module: stored name of a module with the HEAR API. Which file it takes is known of the configs of this
            project, and of any other module where `model` is a file.
        model: given to `load_model`, or None to call it without.
        scene_layout: in place of the config's, or None.

    Raises:
        SystemExit: a config of this project is faulty. Weights that are absent are left to `load_model` to complain of.
    """
    own = import_named(module).load_model.__module__ == hear_functions.__module__
    if own:
        from audio_mamba.hear_api.resolve import load_config, weights_file  # torch, which other modules may not need

        try:
            config = load_config(module)
        except ValueError as error:
            raise SystemExit(f"CONFIG: {error}") from None
        scene_layout = scene_layout or config.scene_layout
    try:
        if own:
            file = weights_file(module, model)
        else:
            file = Path(model) if model and Path(model).is_file() else None
        digest = file and sha256(file)
    except OSError:
        file = digest = None
    return Origin(module, model, file and str(file.absolute()), digest, scene_layout)


def note_origin(task: Path, origin: Origin) -> None:
    """Write down where the embeddings in the folder of a task come from. Those of events have no layout to choose."""
    noted = origin._asdict()
    if json.loads((task / layout.METADATA).read_text())["embedding_type"] != "scene":
        del noted["scene_layout"]
    with atomic_write(task / SETTINGS) as file:
        file.write(json.dumps(noted, indent=2).encode())


def read_note(task: Path) -> dict | None:
    """What `note_origin` wrote down in a folder, or None where nothing is noted."""
    return json.loads((task / SETTINGS).read_text()) if (task / SETTINGS).is_file() else None


def check_heads(task: Path, noted: dict | None) -> None:
    """Refuse the results of heads that were trained on other embeddings than those that are there now.

    Args:
        task: folder of a downstream run, where the embeddings are linked.
        noted: what `read_note` gave when they were trained; None, of earlier versions, is let pass.

    Raises:
        SystemExit: names both.
    """
    present = read_note(task)
    if not noted or not present:
        return
    if difference := _difference(*(Origin(**{"scene_layout": None} | note) for note in (noted, present))):
        variable, then, now = difference
        raise SystemExit(
            f"{variable}: {task} was trained on embeddings made with {then}, and those there now were "
            f"made with {now}; remove its folders in {layout.RUNS}, or take another OUTPUT_DIR"
        )


def check_origin(embeddings: Path, origin: Origin) -> None:
    """Refuse to add to the complete embeddings of a model, or to take them for those of `origin`, where they have
    another one.

    Raises:
        SystemExit: names the first such task. Embeddings that note nothing, those of the published scripts and of
            earlier versions, are let pass.
    """
    for task in layout.embedded_tasks(embeddings):
        noted = read_note(task)
        if noted and (difference := _difference(origin._replace(**noted), origin)):
            variable, then, now = difference
            raise SystemExit(
                f"{variable}: {task} was embedded with {then}, not with {now} (see {SETTINGS} there); "
                f"take another OUTPUT_DIR or NAME=..., or remove {embeddings} and its runs in "
                f"{layout.RUNS}"
            )


def _difference(then: Origin, now: Origin) -> tuple[str, str, str] | None:
    """Which variable of extract_features.sh makes the difference, and what it stood for and stands for."""
    if then.module != now.module:
        return "CONFIG", then.module, now.module
    known = then.sha256 and now.sha256
    if then.sha256 != now.sha256 if known else then.model != now.model:
        return "MODEL", then.weights(), now.weights()
    if then.scene_layout != now.scene_layout:
        return "LAYOUT", *(f"layout {origin.scene_layout or 'of the module'}" for origin in (then, now))
    return None
