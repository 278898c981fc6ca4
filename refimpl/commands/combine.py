"""loracle combine: several adapters into one adapter."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..config import module_name, short_name
from ..errors import AdapterError, RequestError
from ..formats.peft import save_adapter
from ..loading.config_file import load_config
from ..loading.conversion import all_finite, converted
from ..loading.model_folder import base_folder, load_model
from ..loading.peft_config import LARGEST_ALPHA
from ..tools.combine import HOWS, PRUNING, Combined, Recipe, combine, too_large
from ..tools.merged_weights import Terms
from ..tools.task_arithmetic import SIGNS
from .terms import read_terms, warn_of_weights

HELP = "write one adapter that is a weighted sum of others, exactly or as PEFT's add_weighted_adapter mixes them"
EXAMPLE = """  loracle combine ./a:0.7 ./b:0.3 --how sum --out ./a-b      exact: its rank is the sum of the ranks
  loracle combine ./a:0.7 ./b:0.3 --how svd --svd-rank 16 --out ./a-b
  loracle combine ./a:1 ./b:1 ./c:1 --how ties --density 0.2 --out ./abc"""
DTYPES = ("float32", "float16", "bfloat16", "float64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of combine."""
    parser.add_argument(
        "adapters",
        metavar="ADAPTER[:WEIGHT]",
        nargs="+",
        help="a PEFT or mlx-lm folder, or a GGUF file with --model; the weight may be negative, and is 1 where none is",
    )
    parser.add_argument(
        "--how",
        required=True,
        choices=HOWS,
        help="sum, cat: exact, of the sum of the ranks; svd: the nearest of a given rank; linear and the others mix A "
        "and B each on its own, and have cross terms, whose size is said; with _svd they mix the products",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder that is not there yet")
    parser.add_argument("--model", metavar="DIR|GGUF|tiny", help="the base that they are for: check them against it")
    parser.add_argument("--svd-rank", type=int, metavar="R", help="of svd and ..._svd (default: the largest rank)")
    parser.add_argument(
        "--svd-clamp", type=float, metavar="Q", help="of svd and ..._svd: cut A and B off at this quantile of both"
    )
    parser.add_argument(
        "--density", type=float, metavar="D", help="of ties, dare and magnitude_prune: the share of numbers that stays"
    )
    parser.add_argument(
        "--majority-sign-method",
        choices=SIGNS,
        help="of ties: a sign is elected by the sum (total, the default) or by count",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the numbers that dare drops (default 0)")
    parser.add_argument(
        "--dtype", default="float32", choices=DTYPES, help="of what is written (default float32; computed in float64)"
    )


def run(args: argparse.Namespace) -> int:
    """Return 0, and the folder is there."""
    recipe = read_recipe(args)
    base = load_config(base_folder(args.model)) if args.model else None
    model = (lambda: load_model(args.model)) if base else None
    terms = [(adapter, weight) for adapter, weight, _ in read_terms(args.adapters, base, model)]
    result = combine(terms, recipe, args.out.name)
    check_dtype(result, terms, args.dtype)
    save_adapter(result.adapter, args.out, args.dtype, config=base)
    warn_of_weights(terms)
    body = body_of(args, result, terms)
    if args.json:
        print(json.dumps(body))
    else:
        show(body)
    return 0


def check_dtype(result: Combined, terms: Terms, dtype: str) -> None:
    """Raise AdapterError for a sum with numbers that the dtype, or an alpha that no adapter may have."""
    for module, lora in result.adapter.lora.items():
        if not all(all_finite(converted(x, dtype)) for x in (lora.A, lora.B)):
            raise AdapterError(f"{too_large(terms)}: {module_name(module)} has numbers that {dtype} cannot hold")
    alphas = (result.adapter.config.lora_alpha, *result.adapter.config.alpha_pattern.values())
    if not all(abs(alpha) <= LARGEST_ALPHA for alpha in alphas):
        raise AdapterError(f"{too_large(terms)}: it makes a lora_alpha of {max(alphas, key=abs):g}, beyond float32")


def read_recipe(args: argparse.Namespace) -> Recipe:
    """Return what the options say. RequestError for one that the way does not use, lacks, or cannot have."""
    svd, prunes = args.how.endswith("svd"), args.how.removesuffix("_svd") in PRUNING
    uses = {
        "svd_rank": svd,
        "svd_clamp": svd,
        "density": prunes,
        "majority_sign_method": args.how.removesuffix("_svd").endswith("ties"),
        "seed": args.how.startswith("dare"),
    }
    given = {name: getattr(args, name) for name in uses if getattr(args, name) is not None}
    for name in given:
        if not uses[name]:
            raise RequestError(f"--{name.replace('_', '-')}: --how {args.how} has no use for it")
    if prunes and args.density is None:
        raise RequestError(f"--how {args.how} needs --density: the share of numbers that stays, between 0 and 1")
    if args.density is not None and not 0 < args.density <= 1:
        raise RequestError(f"--density {args.density:g}: it must be above 0, and 1 at most")
    if args.svd_rank is not None and args.svd_rank < 1:
        raise RequestError(f"--svd-rank {args.svd_rank}: it must be above 0")
    if args.svd_clamp is not None and not 0 <= args.svd_clamp <= 1:
        raise RequestError(f"--svd-clamp {args.svd_clamp:g}: a quantile lies between 0 and 1")
    if args.seed is not None and args.seed < 0:
        raise RequestError(f"--seed {args.seed}: it must not be negative")
    return Recipe(args.how, **given)


def body_of(args: argparse.Namespace, result: Combined, terms: Any) -> dict[str, Any]:
    """Return what --json prints."""
    ranks = sorted({len(lora.A) for lora in result.adapter.lora.values()})
    return {
        "target": str(args.out),
        "how": args.how,
        "adapters": [[adapter.name, weight] for adapter, weight in terms],
        "modules": len(result.adapter.lora),
        "ranks": ranks,
        "apart": result.apart,
        "worst": None if result.worst is None else [short_name(result.worst[1]), result.worst[0]],
        "notes": notes_of(args, result, len(terms)),
    }


def notes_of(args: argparse.Namespace, result: Combined, count: int) -> list[str]:
    """Return what its owner should know."""
    if count == 1 and args.how not in ("sum", "linear"):
        return [f"of one adapter {args.how} is linear, as in PEFT: its own A and B, times the weight"]
    if (args.svd_rank or 0) > result.highest_rank:
        most = result.highest_rank
        return [f"rank {most} holds all of it: of the {args.svd_rank} that were asked for the others are zeros"]
    if args.how in ("sum", "cat") or result.worst is None or result.apart < 1e-7:
        return []
    share, module = result.worst
    size = f"{result.apart:.2g} of the weighted sum (rms), most in {short_name(module)}: {share:.2g}"
    if args.how == "svd":
        return [f"what the rank cannot hold is {size}"]
    if args.how == "linear":
        return [f"the cross terms, B of one adapter times A of another, are {size}; sum and cat have none"]
    return [f"it differs from the weighted sum by {size}"]


def show(body: dict[str, Any]) -> None:
    """Print what was written."""
    parts = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in body["adapters"])
    *others, last = map(str, body["ranks"])
    ranks = f"{', '.join(others)} and {last}" if others else last
    print(f"{body['target']}: {parts} by {body['how']}, {body['modules']} modules of rank {ranks}")
    for note in body["notes"]:
        print(f"note: {note}")
