"""loracle convert: an adapter from one format into another."""

import argparse
import dataclasses
import json
from pathlib import Path

from .. import tiny
from ..errors import AdapterError
from ..formats.convert import FORMATS, Conversion, convert
from ..formats.trtllm import ORDERS
from ..loading.adapter_folder import needs_weights
from ..loading.config_file import load_config
from ..loading.embedded import STYLES
from ..loading.model_folder import base_folder, load_model
from ..pictures.adapter_writer import PICTURE_FORMATS
from ..pictures.convert import convert_picture_adapter
from ..pictures.folder import load_picture_config

HELP = "write an adapter in another format: PEFT, TensorRT-LLM's pair of arrays, GGUF, mlx-lm; diffusers, kohya"
EXAMPLE = """  loracle convert ./my-adapter ./pair --to trtllm --dtype float16
  loracle convert ./pair ./my-adapter --to peft --model ./llama      the base has the widths of A and B
  loracle convert ./my-adapter ./my-adapter.gguf --to gguf --model ./llama      and its heads, for the order of rows
  loracle convert ./style.safetensors ./style --to diffusers --model ./z-image      a picture model's"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of convert."""
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a PEFT, mlx-lm or torchtune folder, one with model.lora_weights.npy, a GGUF or .nemo file; of pictures, "
        "a folder of diffusers or a .safetensors file; recognised",
    )
    parser.add_argument(
        "target", metavar="OUT", type=Path, help="a folder, or with gguf and kohya a file, that is not there yet"
    )
    parser.add_argument("--to", required=True, choices=(*FORMATS, *PICTURE_FORMATS), help="the format of OUT")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="of the numbers written (default: as they are)"
    )
    parser.add_argument(
        "--scale-order",
        default="convert",
        choices=ORDERS,
        help="how the scale is put into B: as hf_lora_convert.py does (default), as LoraManager does, or PEFT's own "
        "scale in every module, of which the other two know less (alpha_pattern, rank_pattern)",
    )
    parser.add_argument(
        "--model",
        metavar="DIR|GGUF|tiny",
        help="the base, whose layers and widths are then checked; a pair, a GGUF file or pictures need it",
    )
    parser.add_argument(
        "--leave-out",
        action="store_true",
        help="drop what the format cannot hold (biases, whole layers, embed_tokens, lm_head) instead of stopping",
    )


def run(args: argparse.Namespace) -> int:
    """Return 0, and the folder is there; what cannot be undone is said."""
    done = converted_picture(args) if args.to in PICTURE_FORMATS else converted(args)
    if args.json:
        print(json.dumps(dataclasses.asdict(done)))
        return 0
    kind = f"{done.was} {'file' if Path(done.source).is_file() else 'folder'}"
    print(f"{done.target}: {', '.join(done.files)}, from the {kind} {done.source}")
    for note in done.notes:
        print(f"note: {note}")
    return 0


def converted(args: argparse.Namespace) -> Conversion:
    """An adapter of text."""
    model = args.model or ("tiny" if args.source in tiny.VOICES else None)
    load = load_model if needs_weights(args.source) else load_config
    base = load(base_folder(model)) if model else None
    return convert(args.source, args.target, args.to, args.dtype, args.scale_order, base, args.leave_out)


def converted_picture(args: argparse.Namespace) -> Conversion:
    """An adapter of pictures."""
    model = args.model or ("tiny" if args.source in STYLES else None)
    if model is None:
        raise AdapterError(f"--to {args.to}: which modules the base has, only the base knows: give --model DIR")
    return convert_picture_adapter(args.source, args.target, args.to, load_picture_config(model), args.dtype)
