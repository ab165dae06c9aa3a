"""Judge encoders, checkpoints, layers and poolings: logistic regression on frozen embeddings of HEAR scene tasks.

    python -m experiments.judge TASKS_DIR --model ssam_tiny_free_audio --model logmel --features mean_std --out judge
    python -m experiments.judge TASKS_DIR $(printf -- "--model %s " RUN/checkpoints/*.pth)

Choices are made by the accuracy on validation clips; that on test clips is reported beside it. Every model is judged
with all `--features`. The first row is what the others are compared with. Scores are kept in the output
folder, so the same command with one more checkpoint judges that checkpoint alone. `curve.csv` has the scores of
checkpoints by the crops that they have seen.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from audio_mamba.data.labels import HEAR_METADATA
from audio_mamba.hear_api.probe.clips import Clips, read_clips
from audio_mamba.hear_api.probe.features import Model, find_models
from audio_mamba.hear_api.runtime import RuntimeSSAST, build_runtime
from experiments.judge import curve
from experiments.judge.embed import OUTPUT, Features, embeddings
from experiments.judge.kept import Kept
from experiments.judge.poolings import POOLINGS
from experiments.judge.scores import Choice, Judged, Scored, compare, score, summary, write


class Encoders:
    """The encoders of models, each built when it is first needed."""

    def __init__(self, device: str | None):
        self._device = device
        self._built: dict[str, RuntimeSSAST] = {}

    def of(self, model: Model) -> RuntimeSSAST | None:
        """None for log-mels."""
        if model.source is not None and model.name not in self._built:
            self._built[model.name] = build_runtime(model.source, device=self._device)
        return self._built.get(model.name)


def scores_of(model: Model, clips: Clips, features: list[Features], encoders: Encoders, kept: Kept) -> list[Scored]:
    """The scores of each of the features: those that are kept, and the others from one pass of the encoder."""
    scored = {chosen: kept.read(model, clips, chosen) for chosen in features}
    missing = [chosen for chosen, result in scored.items() if result is None]
    if missing:
        for chosen, rows in embeddings(encoders.of(model), clips.paths or [], missing, model.name).items():
            scored[chosen] = score(clips, rows)
            kept.write(model, clips, chosen, scored[chosen])
    return [result for result in scored.values() if result is not None]


def run(args: argparse.Namespace) -> str:
    """The command's work; returns the table of means, and the curve if a checkpoint says how much it has seen."""
    models = find_models(args.model)
    features = [Features.named(name) for name in dict.fromkeys(args.features or ["mean_std"])]
    folders = sorted(folder for folder in args.tasks_dir.iterdir() if (folder / HEAR_METADATA).is_file())
    names = [folder.name.rsplit("-v", 1)[0] for folder in folders]
    if not folders:
        raise ValueError(f"no tasks in {args.tasks_dir}")
    if absent := sorted(set(args.task or ()) - set(names)):
        raise ValueError(f"no such tasks in {args.tasks_dir}: {', '.join(absent)}")
    folders = [folder for name, folder in zip(names, folders) if not args.task or name in args.task]
    crops = {model.name: curve.crops_seen(model) for model in models}
    encoders, kept = Encoders(args.device), Kept(args.out / "kept")
    judged: list[Judged] = []
    for folder in tqdm(folders, desc="tasks", unit="task"):
        clips = read_clips(folder)
        choices: dict[Choice, Scored] = {}
        for model in models:
            # log-mels have no other layers
            of_model = features if model.source else [chosen for chosen in features if chosen.layers == OUTPUT]
            for chosen, scored in zip(of_model, scores_of(model, clips, of_model, encoders, kept), strict=True):
                choices[model.name, chosen.layers, chosen.pooling] = scored
        judged.append(compare(folder.name, clips, choices))
        write(args.out, judged)  # after each task, so that an interrupted run leaves what it has
        curve.write(args.out, judged, crops)
    return summary(judged) + curve.table(judged, crops)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("tasks_dir", metavar="TASKS_DIR", type=Path, help="folder of HEAR tasks, such as build.py makes")
    add(
        "--model",
        metavar="NAME",
        action="append",
        required=True,
        help="a model of list_models(), a path of weights, NAME:untrained, or logmel; several times to compare",
    )
    add(
        "--features",
        metavar="[LAYERS:]POOLING",
        action="append",
        help="how steps become embeddings: a pooling of the output, or of blocks by number, such as 6:mean or "
        f"6+output:mean_std; several times to compare (default: mean_std); poolings: {', '.join(POOLINGS)}",
    )
    add("--task", metavar="NAME", action="append", help="only this task (default: all in TASKS_DIR)")
    add("--device", help="torch device (default: a GPU if there is one)")
    add("--out", metavar="DIR", type=Path, default=Path("judge"), help="folder for the tables (default: %(default)s)")
    args = parser.parse_args(arguments)
    try:
        print(run(args))
    except (ValueError, OSError) as error:
        raise SystemExit(f"judge: {error}") from None


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
