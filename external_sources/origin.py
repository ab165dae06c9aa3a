"""What embeddings and heads were made from, noted beside them so that they are not mistaken for others."""

import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from audio_mamba.config_names import import_named
from audio_mamba.external_sources import layout
from audio_mamba.external_sources.task_files import read_json
from audio_mamba.hear_api.api import hear_functions
from audio_mamba.system.atomic_files import atomic_write, sha256

SETTINGS = "embeddings-settings.json"  # in the folder of each task
HEAD_SETTINGS = "downstream-settings.json"  # in the folder of each run: seed, grid, and the note on the embeddings
TASK_SHA256 = "task_sha256"  # key of the note: digest of the task's files


class Origin(NamedTuple):
    """What the embeddings of a model depend on."""

    module: str
    model: str | None  # argument of load_model
    file: str | None  # weight file that load_model chooses for it, if known
    sha256: str | None  # of the file, since its time differs between copies of the project
    scene_layout: str | None  # None: the module's own
    scene_pooling: str | None = None
    overlap: float | None = None
    encoder: dict | None = None  # `trained_config.described_encoder` of a config of this project

    def weights(self) -> str:
        """The weights in words, for messages."""
        return f"{self.file} (SHA-256 {self.sha256[:12]})" if self.sha256 else self.model or "no MODEL"


def find_origin(
    module: str,
    model: str | None,
    scene_layout: str | None,
    scene_pooling: str | None = None,
    overlap: float | None = None,
) -> Origin:
    """What embeddings of `load_model(model)` depend on. The model is not loaded.

    Args:
        module: stored name of a module with the HEAR API. Its weight file is known for configs of this project, and for
            any other module if `model` is a file.
        model: argument of `load_model`, or None to call it without one.
        scene_layout, scene_pooling, overlap: in place of the config's, or None.

    Raises:
        SystemExit: invalid config of this project. Missing weights are not reported here but by `load_model`.
    """
    own = import_named(module).load_model.__module__ == hear_functions.__module__
    encoder = None
    if own:
        # They import torch, which other modules may not need.
        from audio_mamba.hear_api.resolve import load_config, resolve, weights_file
        from audio_mamba.hear_api.trained_config import described_encoder

        try:
            config = load_config(module)
        except ValueError as error:
            raise SystemExit(f"CONFIG: {error}") from None
        scene_layout, scene_pooling = scene_layout or config.scene_layout, scene_pooling or config.scene_pooling
        overlap = config.overlap if overlap is None else overlap
        with suppress(ValueError, OSError):  # which `load_model` reports
            encoder = described_encoder(resolve(module, model).config)
    try:
        file = weights_file(module, model) if own else Path(model) if model and Path(model).is_file() else None
        digest = sha256(file) if file else None
    except OSError:
        file = digest = None
    path = str(file.absolute()) if file else None
    return Origin(module, model, path, digest, scene_layout, scene_pooling, overlap, encoder)


def note_origin(task: Path, origin: Origin, task_sha256: str | None = None) -> None:
    """Note the origin of the embeddings in the folder of a task. Those of event tasks have only one layout, and are
    not pooled.

    task_sha256: of the task's files, as `task_files.TaskFiles.digest` gives it.
    """
    noted = origin._asdict() | {TASK_SHA256: task_sha256}
    if read_json(task / layout.METADATA, dict)["embedding_type"] != "scene":
        del noted["scene_layout"], noted["scene_pooling"]
    with atomic_write(task / SETTINGS) as file:
        file.write(json.dumps(noted, indent=2).encode())


def read_note(task: Path) -> dict | None:
    """What `note_origin` wrote in a folder, or None."""
    return read_json(task / SETTINGS, dict) if (task / SETTINGS).is_file() else None


def stale_heads(task: Path) -> str | None:
    """Why the results of a downstream run do not belong to the present embeddings, in words; None if they do.

    Args:
        task: folder of the run, to which the embeddings are linked. Results without a note (published scripts, earlier
            versions) are accepted.
    """
    if not (task / HEAD_SETTINGS).is_file():
        return None
    noted, present = read_json(task / HEAD_SETTINGS, dict).get("embeddings"), read_note(task)
    if noted and not present and layout.embeddings_of(task):
        return f"{task} was trained on other embeddings than the present ones, which have no {SETTINGS}"
    if not noted or not present:
        return None
    default = Origin("", None, None, None, None)
    difference = difference_of(origin_in(noted, default), origin_in(present, default))
    if difference is None and present.get(TASK_SHA256) not in (None, noted.get(TASK_SHA256)):
        then, now = (
            f"task files of SHA-256 {note[TASK_SHA256][:12]}" if note.get(TASK_SHA256) else "unknown task files"
            for note in (noted, present)
        )
        difference = "TASKS_DIR", then, now
    if difference is None:
        return None
    variable, then, now = difference
    return f"{variable}: {task} was trained on embeddings made with {then}, but the present ones were made with {now}"


def check_origin(embeddings: Path, origin: Origin, hidden: bool = False) -> None:
    """Refuse to add to the complete embeddings of a model, or to use them, if their origin is not `origin`.

    Raises:
        SystemExit: names the first such task. Embeddings without a note (published scripts, earlier versions) are
            accepted.
    """
    for task in layout.embedded_tasks(embeddings, hidden):
        noted = read_note(task)
        if noted and (difference := difference_of(origin_in(noted, origin), origin)):
            variable, then, now = difference
            raise SystemExit(
                f"{variable}: {task} was embedded with {then}, not with {now} (see {SETTINGS} there); "
                f"choose another OUTPUT_DIR or NAME=..., or remove {embeddings} and its runs in "
                f"{layout.RUNS}"
            )


def origin_in(note: dict, default: Origin) -> Origin:
    """The origin in a note; what the note does not say is that of `default`, or what earlier versions made."""
    earlier = {"overlap": None} | ({"scene_pooling": None} if "scene_layout" in note else {})
    return default._replace(**earlier | {key: value for key, value in note.items() if key in Origin._fields})


def difference_of(then: Origin, now: Origin) -> tuple[str, str, str] | None:
    """The variable of extract_features.sh that differs, with its meaning then and now; None if nothing differs."""
    if then.module != now.module:
        return "CONFIG", then.module, now.module
    if then.sha256 and now.sha256:
        same_weights = then.sha256 == now.sha256
    else:
        same_weights = then.model == now.model
    if not same_weights:
        return "MODEL", then.weights(), now.weights()
    encoders = then.encoder or {}, now.encoder or {}
    for key in sorted(encoders[0].keys() & encoders[1].keys()):  # other versions may know other keys
        if encoders[0][key] != encoders[1][key]:
            return "CONFIG", f"{key} {encoders[0][key]}", f"{key} {encoders[1][key]}"
    if then.scene_layout != now.scene_layout:
        before, after = (f"layout {origin.scene_layout or 'of the module'}" for origin in (then, now))
        return "LAYOUT", before, after
    if (then.scene_pooling or "mean") != (now.scene_pooling or "mean"):
        return "POOLING", f"pooling {then.scene_pooling or 'mean'}", f"pooling {now.scene_pooling or 'mean'}"
    if (then.overlap or 0) != (now.overlap or 0):
        return "OVERLAP", f"an overlap of {then.overlap or 0:g}", f"an overlap of {now.overlap or 0:g}"
    return None
