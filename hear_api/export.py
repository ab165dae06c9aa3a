"""Write an encoder for other programs: a folder, a torch.export program, or ONNX.

    python -m hear_api.export --config NAME --weights DIR --out FOLDER|FILE.pt2|FILE.onnx

FOLDER gets safetensors and a config json (`hear_api.pretrained.from_pretrained` reads it). FILE.pt2 is a torch.export
program, and FILE.onnx an ONNX model, of the encoder: normalised log-mel units [batch, 1, 200, 80] (or frequency-first
[batch, 1, 80, 200]) -> features [batch, 50, width] in the layout asked for, for any batch. Both are checked against the
encoder itself before they are kept. A program of SSAM keeps this project's operators, so that whoever loads it must
`import models` first; ONNX has none for the selective scan, so it is for SSAST.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from audio_mamba.hear_api.command_line import add_weights_arguments
from audio_mamba.hear_api.pretrained import save_pretrained
from audio_mamba.hear_api.resolve import resolve
from audio_mamba.hear_api.runtime import RuntimeSSAST, build_runtime
from audio_mamba.models.encoder import LAYOUTS
from audio_mamba.models.precision import PRECISIONS

TOLERANCE = 1e-4  # of the check, at features of order 1


class ExportError(ValueError):
    """A model that cannot be exported as asked, or whose exported form gives other numbers."""


class _Features(nn.Module):
    def __init__(self, model: nn.Module, layout: str):
        super().__init__()
        self.model, self.layout = model, layout

    def forward(self, units: Tensor) -> Tensor:
        return self.model.forward_features(units, self.layout)


def export(runtime: RuntimeSSAST, out: Path, layout: str = "bands", dtype: str = "float32") -> None:
    """Write `out` in the form that its suffix names. ExportError for an unknown suffix and for a failed check."""
    writers = {".pt2": _write_program, ".onnx": _write_onnx}
    if out.suffix == "":
        save_pretrained(runtime, out, dtype)
    elif out.suffix in writers:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f"{out.stem}.tmp{out.suffix}")
        try:
            with torch.no_grad():
                writers[out.suffix](_Features(runtime.model, layout).eval(), _units(runtime.model, 2), temporary)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    else:
        raise ExportError(f"--out {out}: write it as .pt2, .onnx, or without a suffix for a folder")


def _units(model: nn.Module, batch: int) -> Tensor:
    return torch.randn(batch, model.in_chans, *model.img_size, generator=torch.Generator().manual_seed(batch))


def _program(module: _Features, example: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)


def _write_program(module: _Features, example: Tensor, path: Path) -> None:
    torch.export.save(_program(module, example), path)
    loaded = torch.export.load(path).module()
    _check(module, loaded)


def _write_onnx(module: _Features, example: Tensor, path: Path) -> None:
    if module.model.causal:
        raise ExportError("ONNX has no operator for the selective scan of SSAM; export it as .pt2, or an SSAST")
    try:
        import onnx  # noqa: F401 - torch's exporter needs both
        import onnxscript  # noqa: F401
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise ExportError(f"ONNX needs the packages onnx and onnxscript (requirements-dev.txt): {error}") from error
    torch.onnx.export(
        _program(module, example), dynamo=True, verbose=False, input_names=["units"], output_names=["features"]
    ).save(str(path))
    evaluator = ReferenceEvaluator(str(path))
    _check(module, lambda units: torch.from_numpy(evaluator.run(None, {"units": units.numpy()})[0]))


def _check(module: _Features, exported) -> None:
    for batch in (1, 3):
        units = _units(module.model, batch)
        difference = (module(units) - exported(units)).abs().max().item()
        if not difference < TOLERANCE:
            raise ExportError(f"the exported program differs from the encoder by {difference:.2g} at batch {batch}")


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.hear_api.export") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_weights_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="PATH", help="folder, .pt2 or .onnx")
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="bands",
        help="of the features of .pt2 and .onnx (default: bands, true time order)",
    )
    parser.add_argument(
        "--dtype",
        choices=PRECISIONS,
        default="float32",
        help="of the weights in a folder (default: float32; float16 halves it)",
    )
    args = parser.parse_args(arguments)
    try:
        source = resolve(args.config, args.weights)
        runtime = build_runtime(source, device="cpu")
        export(runtime, args.out, args.layout, args.dtype)
    except (ValueError, OSError) as error:
        raise SystemExit(f"export: {error}")
    print(f"{source.label} -> {args.out}")


if __name__ == "__main__":
    main()
