"""Write an encoder for other programs: a folder, a torch.export program, or an ONNX model.

    audio-mamba export --config NAME --weights PATH --out FOLDER|FILE.pt2|FILE.onnx

FOLDER gets the weights as safetensors and a config.json, which `hear_api.pretrained.from_pretrained` reads. FILE.pt2
(torch.export) and FILE.onnx hold the encoder for any batch size. With the paper's configs they map segments of
normalised log-mel [batch, 1, 200, 80] (frequency-first [batch, 1, 80, 200]) to features [batch, 50, width] in the
chosen layout. Both are checked against the encoder itself before they are kept. A .pt2 file of SSAM contains this
project's operators: `import audio_mamba.models` before you load it. For a fine-tuned classifier (--weights RUN of
finetune.py), FOLDER gets the weights and a config.json with the names of the classes, and FILE.pt2 maps segments to
calibrated probabilities [batch, classes]. ONNX has no operator for the selective scan, so
SSAM cannot be exported to it; SSAST and AxLSTM can.
"""

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audio_mamba.hear_api.classifier import AudioClassifier, copy_classifier, is_classifier, load_classifier
from audio_mamba.hear_api.command_line import add_weights_arguments
from audio_mamba.hear_api.pretrained import save_pretrained
from audio_mamba.hear_api.resolve import resolve
from audio_mamba.hear_api.runtime import RuntimeSSAST, build_runtime
from audio_mamba.hear_api.weights import WEIGHTS_NAME
from audio_mamba.models.classifier import probabilities
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.mamba import Mamba
from audio_mamba.models.precision import PRECISIONS
from audio_mamba.schema import LAYOUTS
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.system.terminal import given_path, quiet_exit

OWN_OPERATORS = "audio_mamba."  # their namespace
TOLERANCE = 1e-4  # of the check; features are of order 1


class ExportError(ValueError):
    """A model that cannot be exported as asked, or whose exported form gives different numbers."""


class _Features(nn.Module):
    def __init__(self, model: MaskedSpectrogramEncoder, layout: str):
        super().__init__()
        self.model: MaskedSpectrogramEncoder = model
        self.layout = layout

    def forward(self, segments: Tensor) -> Tensor:
        return self.model.forward_features(segments, self.layout)


class _Probabilities(nn.Module):
    def __init__(self, classifier: AudioClassifier):
        super().__init__()
        self.model: MaskedSpectrogramEncoder = classifier.model.encoder
        self.classifier, self.loss, self.temperature = classifier.model, classifier.loss, classifier.temperature

    def forward(self, segments: Tensor) -> Tensor:
        return probabilities(self.classifier(self.model.to_time_first(segments)), self.loss, self.temperature)


def export_classifier(classifier: AudioClassifier, out: Path) -> None:
    """Write `out`: a folder, or a .pt2 program. ExportError for another suffix, and for a failed check."""
    if out.suffix == "":
        copy_classifier(classifier.folder, out)
    elif out.suffix == ".pt2":
        _write(out, _program_bytes(_Probabilities(classifier).eval()))
    else:
        raise ExportError(f"--out {out}: a classifier is written as .pt2, or without a suffix for a folder")


def export(runtime: RuntimeSSAST, out: Path, layout: str = "bands", dtype: str = "float32") -> None:
    """Write `out` in the format of its suffix. ExportError for an unknown suffix and for a failed check."""
    makers = {".pt2": _program_bytes, ".onnx": _onnx_bytes}
    if out.suffix == "":
        save_pretrained(runtime, out, dtype)
    elif out.suffix in makers:
        _write(out, makers[out.suffix](_Features(runtime.model, layout).eval()))
    else:
        raise ExportError(f"--out {out}: write it as .pt2, .onnx, or without a suffix for a folder")


def _write(out: Path, content: bytes) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as file:
        file.write(content)


def _segments(model: MaskedSpectrogramEncoder, batch: int) -> Tensor:
    shape = (batch, model.in_chans, *model.img_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(batch))


def _program(module: _Features | _Probabilities) -> torch.export.ExportedProgram:
    example = _segments(module.model, 2)
    with _naming_encoder(module):
        return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)


@contextmanager
def _naming_encoder(module: _Features | _Probabilities) -> Iterator[None]:
    """Around torch's exporters, whose errors depend on the encoder: ExportError with its class and the first line."""
    try:
        yield
    except Exception as error:
        first = next(filter(None, str(error).splitlines()), type(error).__name__)
        raise ExportError(f"torch cannot export {type(module.model).__name__}: {first}") from error


@torch.no_grad()
def _program_bytes(module: _Features | _Probabilities) -> bytes:
    file = io.BytesIO()  # torch aborts the process if it cannot write to a path
    torch.export.save(_program(module), file)
    file.seek(0)
    _check(module, torch.export.load(file).module())
    return file.getvalue()


@torch.no_grad()
def _onnx_bytes(module: _Features) -> bytes:
    if any(isinstance(part, Mamba) for part in module.model.modules()):
        raise ExportError("ONNX has no operator for the selective scan of SSAM; export it as .pt2, or export an SSAST")
    try:
        import onnx  # noqa: F401 - torch's exporter needs both
        import onnxscript  # noqa: F401
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise ExportError(f"ONNX needs onnx and onnxscript, which the extra [export] has: {error}") from error
    program = _program(module)
    if own := sorted({str(node.target) for node in program.graph.nodes if str(node.target).startswith(OWN_OPERATORS)}):
        raise ExportError(f"ONNX has no operator for {own[0]}, which the encoder uses; export it as .pt2")
    with _naming_encoder(module):
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["segments"], output_names=["features"]
        )
    assert exported is not None  # with dynamo=True
    evaluator: Any = ReferenceEvaluator(exported.model_proto)
    _check(module, lambda segments: torch.from_numpy(evaluator.run(None, {"segments": segments.numpy()})[0]))
    return exported.model_proto.SerializeToString()


def _check(module: _Features | _Probabilities, exported: Callable[[Tensor], Tensor]) -> None:
    for batch in (1, 3):
        segments = _segments(module.model, batch)
        difference = (module(segments) - exported(segments)).abs().max().item()
        if not difference < TOLERANCE:
            raise ExportError(f"the exported program differs from the encoder by {difference:.2g} at batch {batch}")


def _refuse_choices(args: argparse.Namespace) -> None:
    """ExportError for an option that does not apply to a classifier, or to the format of --out."""
    if args.weights and is_classifier(args.weights):
        for name in ("config", "layout", "dtype"):
            if value := getattr(args, name):
                raise ExportError(f"--{name} {value}: {args.weights} is a classifier, which is exported as it is")
    if args.layout and not args.out.suffix:
        raise ExportError(f"--layout {args.layout}: it applies to .pt2 and .onnx only; a folder has no features")
    if args.dtype and args.out.suffix:
        raise ExportError(f"--dtype {args.dtype}: it applies to a folder only, but --out is {args.out}")


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.hear_api.export") -> None:
    """The export command."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_weights_arguments(parser)
    parser.add_argument("--out", required=True, type=given_path, metavar="PATH", help="folder, .pt2 or .onnx")
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="layout of the features in .pt2 and .onnx (default: bands, true time order)",
    )
    parser.add_argument(
        "--dtype",
        choices=PRECISIONS,
        help="precision of the weights in a folder (default: float32; float16 halves the size)",
    )
    args = parser.parse_args(arguments)
    try:
        _refuse_choices(args)
        if args.out.suffix:
            print("export: tracing the encoder, which may take a minute", file=sys.stderr)
        if args.weights and is_classifier(args.weights):
            classifier = load_classifier(args.weights, "cpu", precision="float32")
            export_classifier(classifier, args.out)
            print(f"{classifier.folder} -> {args.out}")
            return
        source = resolve(args.config, args.weights)
        if source.weights and (there := args.out / WEIGHTS_NAME).exists() and there.samefile(source.weights):
            raise ExportError(f"--out {args.out} is the model itself; choose another folder")
        runtime = build_runtime(source, device="cpu")
        export(runtime, args.out, args.layout or "bands", args.dtype or "float32")
    except (ValueError, OSError) as error:
        raise SystemExit(f"export: {error}")
    print(f"{source.label} -> {args.out}")


if __name__ == "__main__":
    with quiet_exit():
        main()
