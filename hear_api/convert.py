"""Make a model of this project from a checkpoint of SSAMBA or AuM, the bidirectional audio Mambas.

    audio-mamba convert CHECKPOINT --out FOLDER

SSAMBA: Shams et al. 2024, arXiv 2405.11831; AuM: Erol et al. 2024, arXiv 2406.03344. FOLDER is a saved model, as
`audio-mamba export` writes it. All weights of the encoder are kept, so the tokens are the same numbers for the same
spectrogram. The front end is not the same, see docs/embedding.md. The report names the weights that have no place here
(heads) and those that the checkpoint lacks (parts of our pretraining), which are random.
"""

import argparse
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from audio_mamba.hear_api.pretrained import save_pretrained
from audio_mamba.hear_api.runtime import RuntimeSSAST
from audio_mamba.hear_api.weights import WEIGHTS_NAME, read_safetensors
from audio_mamba.system.terminal import given_path, quiet_exit
from audio_mamba.training.checkpoint import CheckpointError, load_model_state, read_pickle

logger = logging.getLogger(__name__)

SIZES = {192: "tiny", 384: "small", 768: "base"}  # names of the archs by width
MELS = 128
NORM_EPSILON = 1e-5  # of mamba-ssm's RMSNorm
MEL_MIN_HZ = 20.0  # of Kaldi's mel bands; its other differences have no setting here, see docs/embedding.md

# Their names -> ours; the rest of a name, such as ".weight", stays. The first that fits counts.
PLACES = (
    (r"patch_embed\.proj", "patch_embed.proj"),
    (r"cls_token", "cls_token"),
    (r"mask_embed", "mask_token"),
    (r"layers\.(\d+)\.(mixer|norm)", r"blocks.\1.\2"),
    (r"norm_f", "encoder_norm"),
)
POSITIONS = ("pos_embed", "pos_embed.pos_embed")
IMAGE_SIZE = ("p_input_fdim", "p_input_tdim")  # of SSAMBA: mel bands and frames
NO_PLACE = ("head", "mlp_head", "cpredlayer", "gpredlayer")


@dataclass(frozen=True)
class Converted:
    """A checkpoint in the terms of this project.

    Attributes:
        kind: "SSAMBA" or "AuM".
        model: the section of a config, with `arch` and `model_args`.
        state: the weights by our names.
        left_out: names in the checkpoint that have no place.
    """

    kind: str
    model: dict[str, Any]
    state: dict[str, Tensor]
    left_out: list[str]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: a state dict as `torch.save` or safetensors store it, or the entry "model"
    or "state_dict" of a dict. Nothing in the file is run.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else than tensors.
    """
    path = Path(path)
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    for entry in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(entry), dict):
            state = state[entry]
    entries = state.items() if isinstance(state, dict) else ()
    if not entries or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entries):
        raise CheckpointError(f"{path} is not a state dict: it must hold tensors by name")
    return state


def convert(state: Mapping[str, Tensor], whole_sum: bool = False) -> Converted:
    """The weights of SSAMBA or AuM by our names, and the arguments of the encoder that they fit.

    Both put the spectrogram as [B, 1, mel, time] through their patch embedding and flatten the grid, so their tokens go
    through all time steps of a mel band before the next band. Ours are time-major with `token_order="frequency"`, which
    passes them to the blocks in that order, so the position table is reordered.

    What the weights do not say is as in the published training code:

    - Mixers with layers of their own for each direction (Vim's "v2") halve the sum of both (`if_devide_out`). Here the
      half is in `out_proj`, which is exact. Those with one convolution ("v1", AuM's "Fo-Bi") do not.
    - SSAMBA with LayerNorms has its blocks in pairs, see `models.ssamba`; with RMSNorms it has them in sequence.

    Args:
        state: of the checkpoint. With keys in `v.`, it is SSAMBA's, otherwise AuM's; `module.` before a key is ignored.
        whole_sum: no mixer halves the sum (`if_devide_out=False`).

    Raises:
        CheckpointError: a key has no known place, or what decides the encoder's arguments is missing or does not fit.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    kind = "SSAMBA" if any(name.startswith("v.") for name in state) else "AuM"
    state = {name.removeprefix("v."): value for name, value in state.items()}
    if empty := [name for name, value in state.items() if not value.numel()]:
        raise CheckpointError(f"{empty[0]} has no values, {list(state[empty[0]].shape)}")
    found: dict[str, Tensor] = {}
    left_out, unknown = [], []
    for name, value in state.items():
        if name.split(".")[0] in NO_PLACE:
            left_out.append(name)
        elif place := _place_of(name):
            if not value.is_floating_point():
                raise CheckpointError(f"{name} must be floating-point, got {value.dtype}")
            found[place] = value
        elif name not in (*POSITIONS, *IMAGE_SIZE):
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise CheckpointError(f"the converter knows no place for {', '.join(unknown[:3])}{more}")
    model_args = _model_args(kind, state)
    found["pos_embed"] = _reordered_positions(kind, state, model_args)
    if model_args["direction"] == "both" and not whole_sum:
        found |= {name: value / 2 for name, value in found.items() if name.endswith(".out_proj.weight")}
    prefix = "mamba_ssast"
    if kind == "SSAMBA" and not model_args["rms_norm"]:
        prefix, found = "ssamba", _second_blocks_turned(found)
    arch = f"{prefix}_{SIZES.get(model_args['embed_dim'], 'tiny')}"
    return Converted(kind, {"arch": arch, "model_args": model_args}, found, left_out)


def build(converted: Converted, source: str) -> tuple[RuntimeSSAST, list[str]]:
    """The converted model, and the names of weights that the checkpoint lacks, which are random.

    Raises:
        CheckpointError: a weight of the encoder is missing or has another shape; `source` is the file in the message.
    """
    front_end = {"n_mels": converted.model["model_args"]["img_size"][0], "mel_min_hz": MEL_MIN_HZ}
    config = ConfigDict({"model": converted.model, "front_end": front_end, "scene_layout": "bands"})
    runtime = RuntimeSSAST(config, None)
    own = runtime.model.state_dict()
    optional = [name for name in own if name == "mask_token" or name.startswith("pred.")]
    random = [name for name in optional if name not in converted.state]
    state = {name: value.to(own[name].dtype) if name in own else value for name, value in converted.state.items()}
    load_model_state(runtime.model, state | {name: own[name] for name in random}, source=source)
    return runtime, random


def _place_of(name: str) -> str | None:
    for pattern, place in PLACES:
        if re.match(rf"{pattern}(\.|$)", name):
            return re.sub(rf"^{pattern}", place, name)
    return None


def _model_args(kind: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of MambaSSAST, read off the shapes."""
    dim, channels, *patch_size = _take(state, "patch_embed.proj.weight", 4).shape  # [D, 1, p_m, p_t]
    a_log = _take(state, "layers.0.mixer.A_log", 2)  # [E, N]
    taps = _take(state, "layers.0.mixer.conv1d.weight", 3).shape[2]
    layers = {int(name.split(".")[1]) for name in state if re.match(r"layers\.\d+\.", name)}
    if layers != set(range(len(layers))):
        raise CheckpointError(f"its layers must be numbered from 0 without a gap, got {sorted(layers)[:9]} ...")
    if channels != 1:
        raise CheckpointError(f"patch_embed.proj.weight reads {channels} channels; a spectrogram has one")
    mels, frames = (int(_take(state, name, 0)) if name in state else None for name in IMAGE_SIZE)
    mels = MELS if mels is None else mels
    count, bands = _table(state).shape[1] - 1, mels // patch_size[0]
    if bands < 1 or mels % patch_size[0] or count < 1 or count % bands:
        raise CheckpointError(
            f"{count} positions of patches of {patch_size[0]} x {patch_size[1]} do not fill {mels} mel bands"
        )
    img_size = (mels, count // bands * patch_size[1])
    if frames not in (None, img_size[1]):
        raise CheckpointError(f"its positions are for {img_size[1]} frames, but p_input_tdim is {frames}")
    direction = "forward"
    if "layers.0.mixer.A_b_log" in state:
        direction = "both" if "layers.0.mixer.conv1d_b.weight" in state else "both_scans"
    return {
        "embed_dim": dim,
        "depth": len(layers),
        "img_size": img_size,
        "patch_size": tuple(patch_size),
        "frequency_first": True,
        "token_order": "frequency",
        "direction": direction,
        "cls_position": "first" if kind == "SSAMBA" else "middle",
        "ssm_kwargs": {"d_state": a_log.shape[1], "d_conv": taps, "expand": a_log.shape[0] // dim},
        "rms_norm": "layers.0.norm.bias" not in state,
        "same_final_norm": True,
        "norm_epsilon": NORM_EPSILON,
        "masked_positions": kind == "SSAMBA",
    }


def _take(state: Mapping[str, Tensor], name: str, dims: int) -> Tensor:
    if name not in state:
        raise CheckpointError(f"no {name}: not a checkpoint of SSAMBA or AuM")
    if state[name].dim() != dims:
        raise CheckpointError(f"{name} must have {dims} dimensions, got {list(state[name].shape)}")
    return state[name]


def _table(state: Mapping[str, Tensor]) -> Tensor:
    name = next((name for name in POSITIONS if name in state), POSITIONS[0])
    table = _take(state, name, 3)  # [1, 1 + L, D]
    if len(table) != 1:
        raise CheckpointError(f"{name} must be one table, got {list(table.shape)}")
    return table


def _reordered_positions(kind: str, state: Mapping[str, Tensor], model_args: Mapping[str, Any]) -> Tensor:
    """Their positions [1, 1 + L, D] in our order: the class token, then the patches, time-major."""
    table = _table(state)[0]
    bands = model_args["img_size"][0] // model_args["patch_size"][0]
    # AuM's module `pos_embed` has the class token first. A plain table is in the order of the sequence, as in Vim.
    row = 0 if kind == "SSAMBA" or POSITIONS[1] in state else (len(table) - 1) // 2
    patches = torch.cat([table[:row], table[row + 1 :]])  # [M'*T', D]
    patches = patches.unflatten(0, (bands, -1)).transpose(0, 1).flatten(0, 1)  # [T'*M', D]
    return torch.cat([table[row : row + 1], patches])[None]


def _second_blocks_turned(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with the two paths of every second block swapped: such a block on reversed tokens is the same."""
    turned = {}
    for name, value in found.items():
        match = re.fullmatch(r"(blocks\.\d*[13579]\.mixer)\.(conv1d|x_proj|dt_proj|A|D)(_b)?(_log)?(\.\w+)?", name)
        if match:
            mixer, layer, suffix, log, rest = (part or "" for part in match.groups())
            name = f"{mixer}.{layer}{'' if suffix else '_b'}{log}{rest}"
        turned[name] = value
    return turned


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.hear_api.convert") -> None:
    """The convert command."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=given_path, help="file of torch.save, or safetensors")
    parser.add_argument("--out", required=True, type=given_path, metavar="FOLDER", help="folder for the model")
    parser.add_argument(
        "--whole-sum",
        action="store_true",
        help="the checkpoint was trained with if_devide_out=False: its mixers sum both directions without halving",
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        converted = convert(read_state(args.checkpoint), args.whole_sum)
        runtime, random = build(converted, str(args.checkpoint))
        if (args.out / WEIGHTS_NAME).exists() and args.checkpoint.samefile(args.out / WEIGHTS_NAME):
            raise ValueError(f"{args.out} would replace {args.checkpoint}; choose another folder for the model")
        save_pretrained(runtime, args.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"convert: {error}")
    model_args = converted.model["model_args"]
    mels, frames = model_args["img_size"]
    logger.info(
        "%s as %s, %d blocks of width %d with direction %r, spectrograms of %d mel bands x %d frames -> %s",
        *(converted.kind, converted.model["arch"], model_args["depth"], model_args["embed_dim"]),
        *(model_args["direction"], mels, frames, args.out),
    )
    if converted.left_out:
        logger.info("left out, without a place here: %s", ", ".join(sorted(converted.left_out)))
    if random:
        logger.info("random, not in the checkpoint: %s", ", ".join(random))


if __name__ == "__main__":
    with quiet_exit():
        main()
