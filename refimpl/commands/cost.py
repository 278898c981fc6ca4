"""loracle cost: what serving many adapters takes in bytes, flops, launches and time at least, in three ways."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ..arrays import DTYPES
from ..bench import cost
from ..bench.cost import Device, Ranks, Step
from ..bench.devices import GPUS, THIS, this_device
from ..bench.launches import PRODUCT, launches
from ..config import EMBED, LM_HEAD, ModelConfig
from ..errors import LoracleError, RequestError
from ..loading.config_file import load_config
from ..loading.model_folder import base_folder
from ..loading.suggestion import did_you_mean
from ..tools.units import human_bytes, human_number, human_seconds

HELP = "say what many adapters cost: bytes, flops, launches, and the least time on a GPU"
EXAMPLE = """  loracle cost --model ./llama --adapters 50 --rank 16 --requests 64 --gpu h100 --gpu l4
  (arithmetic from config.json and data sheets; --gpu this measures this machine first)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of cost."""
    parser.add_argument(
        "--model", default="tiny", metavar="DIR|tiny", help="a folder with a config.json; no weights are read"
    )
    parser.add_argument("--adapters", type=int, default=16, metavar="N", help="loaded adapters (default 16)")
    parser.add_argument("--rank", type=int, default=16, metavar="R", help="of each of them (default 16)")
    parser.add_argument("--targets", metavar="NAMES", help="the modules that they change (default: all linear layers)")
    parser.add_argument("--requests", type=int, default=16, metavar="B", help="requests of one step (default 16)")
    parser.add_argument(
        "--distinct", type=int, metavar="D", help="different adapters among them (default: as many as there can be)"
    )
    parser.add_argument(
        "--context", type=int, metavar="T", help="tokens of each request (default 512, or as many as fit)"
    )
    parser.add_argument(
        "--gpu",
        action="append",
        metavar="NAME",
        help=f"{', '.join(GPUS)}: from the data sheet; {THIS} (default): this machine, measured; again for more",
    )
    parser.add_argument("--dtype", default="bfloat16", help="float32, float16 or bfloat16 (default)")


def run(args: argparse.Namespace) -> int:
    """Print one table, or the same as JSON."""
    config = load_config(base_folder(args.model))
    check(args, config)
    distinct = min(args.adapters, args.requests) if args.distinct is None else args.distinct
    context = min(512, config.max_position_embeddings) if args.context is None else args.context
    ranks = ranks_of(config, args.rank, args.targets)
    devices = devices_of(args.gpu or [THIS], args.dtype)
    body = report(config, ranks, args.adapters, Step(args.requests, 1, context, distinct), devices, args.dtype)
    body = {"model": args.model, "dtype": args.dtype, "rank": args.rank} | body
    print(json.dumps(body) if args.json else text(body))
    return 0


def check(args: argparse.Namespace, config: ModelConfig) -> None:
    """RequestError for a number that cannot be."""
    for option in ("adapters", "rank", "requests", "context", "distinct"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise RequestError(f"--{option} {value}: it must be above 0")
    most = min(args.adapters, args.requests)
    if args.distinct is not None and args.distinct > most:
        raise RequestError(
            f"--distinct {args.distinct}: {args.requests} requests of {args.adapters} adapters use {most} at most"
        )
    if args.context is not None and args.context > config.max_position_embeddings:
        raise RequestError(f"--context {args.context}: this model has {config.max_position_embeddings} positions")
    if args.dtype not in DTYPES:
        raise RequestError(f"--dtype {args.dtype}: known are {', '.join(DTYPES)}{did_you_mean(args.dtype, DTYPES)}")


def ranks_of(config: ModelConfig, rank: int, targets: str | None) -> Ranks:
    """Return the rank of each module that an adapter changes. RequestError for a module that the model has not."""
    inner = {name: name.rpartition(".")[2] for name in config.layer_modules}  # of all experts at once
    modules = tuple(dict.fromkeys((*inner.values(), EMBED[1], LM_HEAD[1])))
    names = tuple(inner.values()) if targets is None else targets.split(",")
    for name in names:
        if name not in modules:
            raise RequestError(f"--targets {name}: this model has {', '.join(modules)}{did_you_mean(name, modules)}")
    return {module: rank for module in config.modules() if module[1].rpartition(".")[2] in names}


def devices_of(names: Sequence[str], dtype: str) -> list[Device]:
    """Return the devices of these names. RequestError for one that there is not, or that has no such type."""
    choices = (*GPUS, THIS)
    for name in names:
        if name not in choices:
            raise RequestError(f"--gpu {name}: known are {', '.join(choices)}{did_you_mean(name, choices)}")
        if name != THIS and dtype not in GPUS[name].peaks:
            raise RequestError(f"--dtype {dtype}: {name} has {', '.join(GPUS[name].peaks)} here")
    return [this_device(dtype) if name == THIS else GPUS[name] for name in dict.fromkeys(names)]


def report(
    config: ModelConfig, ranks: Ranks, loaded: int, decode: Step, devices: Sequence[Device], dtype: str
) -> dict[str, Any]:
    """Return everything that is printed, for machines: bytes, flops, seconds, and where one way overtakes another."""
    size, cached = DTYPES[dtype].itemsize, decode.requests * decode.context
    prefill = Step(decode.requests, decode.context, decode.context, decode.adapters)
    rows = [
        {
            "step": name,
            "way": way,
            "memory_bytes": cost.memory(config, ranks, way, loaded, cached, size),
            "bytes": cost.total(config, ranks, way, step, size).bytes,
            "flops": cost.total(config, ranks, way, step, size).flops,
            "seconds": {each.name: cost.seconds(config, ranks, way, step, each, dtype, size) for each in devices},
        }
        for name, step in (("decode", decode), ("prefill", prefill))
        for way in cost.WAYS
    ]
    kernels, why = launches_of(config, ranks, decode, dtype)
    return {
        "base": {"parameters": cost.base_parameters(config), "bytes": size * cost.base_parameters(config)},
        "adapter": {
            "modules": sorted({name for _, name in ranks}),
            "parameters": cost.adapter_parameters(config, ranks),
            "bytes": size * cost.adapter_parameters(config, ranks),
        },
        "loaded": loaded,
        "requests": decode.requests,
        "distinct": decode.adapters,
        "context": decode.context,
        "kv_bytes": size * cached * cost.kv_parameters(config),
        "rows": rows,
        "launches": kernels,
        "no_launches": why,
        "as_large_as_the_base": cost.as_large_as_the_base(config, ranks),
        "devices": {each.name: overtaking(config, ranks, decode, each, dtype, size) for each in devices},
    }


def launches_of(
    config: ModelConfig, ranks: Ranks, step: Step, dtype: str
) -> tuple[dict[str, dict[str, int]], str | None]:
    """Return the launches of a decode step in each way, or why the kernels cannot take it."""
    ways = {}
    try:
        for way in cost.WAYS:
            ways[way] = dict[str, int]()
            for count, each in cost.passes(way, step):
                for kernel, number in launches(config, ranks, each, dtype).items():
                    ways[way][kernel] = ways[way].get(kernel, 0) + count * number
    except LoracleError as error:
        return {}, str(error)
    return ways, None


def overtaking(
    config: ModelConfig, ranks: Ranks, decode: Step, device: Device, dtype: str, size: int
) -> dict[str, Any]:
    """Return what a device is, what fits on it, and where one way overtakes another there."""
    cached = decode.requests * decode.context
    return {
        "source": device.source,
        "bandwidth": device.bandwidth,
        "peak": device.peaks[dtype],
        "memory_bytes": device.memory,
        "base_fits": cost.memory(config, ranks, "batched", 0, cached, size) <= device.memory,
        "batched_from": {
            way: cost.batched_from(config, ranks, decode, device, dtype, size, way) for way in cost.WAYS[:2]
        },
        "merged_from_tokens": cost.merged_from(config, ranks, device, dtype, size),
        "that_fit": {way: cost.that_fit(config, ranks, way, device, cached, size) for way in ("merged", "batched")},
    }


# ---- for people -----------------------------------------------------------------------------------------------------


def text(body: dict[str, Any]) -> str:
    """Return the report as lines: what is served, the table, and what follows from it."""
    return "\n".join([*heading(body), "", *table(body), "", *conclusions(body), "", *sources(body)])


def heading(body: dict[str, Any]) -> list[str]:
    """Return what is served."""
    base, adapter, dtype = body["base"], body["adapter"], body["dtype"]
    return [
        f"base      {human_number(base['parameters'])} numbers, {human_bytes(base['bytes'])} in {dtype}",
        f"adapter   rank {body['rank']} on {', '.join(adapter['modules'])}:",
        f"          {human_number(adapter['parameters'])} numbers, {human_bytes(adapter['bytes'])}; "
        f"{body['loaded']:,} are loaded",
        f"requests  {body['requests']:,} of {body['context']:,} tokens, with {body['distinct']:,} different adapters; "
        f"keys and values {human_bytes(body['kv_bytes'])}",
    ]


def table(body: dict[str, Any]) -> list[str]:
    """Return one line for each step and way."""
    names = list(body["devices"])
    lines = [f"{'':26}{'memory':>10}{'moved':>10}{'flop':>10}{'launches':>10}" + "".join(f"{n:>11}" for n in names)]
    for row in body["rows"]:
        kernels = body["launches"].get(row["way"]) if row["step"] == "decode" else None
        cells = (
            human_bytes(row["memory_bytes"]),
            human_bytes(row["bytes"]),
            human_number(row["flops"]),
            f"{sum(kernels.values()):,}" if kernels else "",
        )
        times = "".join(f"{human_seconds(row['seconds'][name]):>11}" for name in names)
        lines.append(f"{row['step']:8}{row['way']:18}" + "".join(f"{cell:>10}" for cell in cells) + times)
    return lines


def conclusions(body: dict[str, Any]) -> list[str]:
    """Return where one way overtakes another, one line for each device, and what was counted."""
    lines = []
    for name, device in body["devices"].items():
        merged, alone = (
            "never" if count is None else f"from {count:,} adapters on" for count in device["batched_from"].values()
        )
        fit, longer = device["that_fit"], device["merged_from_tokens"]
        few = f" (not {body['loaded']:,})" if body["loaded"] > fit["batched"] else ""
        base = f"{fit['batched']:,} adapters{few} and the base" if device["base_fits"] else "no base"
        copies = f"{fit['merged']:,} merged {'copy' if fit['merged'] == 1 else 'copies'}"
        lines += [
            f"{name}: decode: a batch overtakes merged copies {merged}, one after another {alone}",
            f"{'':{len(name)}}  prefill: a merged copy is no slower for prompts from {longer:,} tokens on",
            f"{'':{len(name)}}  beside the keys and values fit {base}, or {copies}",
        ]
    count = body["as_large_as_the_base"]
    times = body["adapter"]["bytes"] / body["base"]["bytes"]
    alone = f"one adapter is {times:,.3g} times as large as the base"
    lines.append(f"{count:,} adapters are as large as the base" if count > 1 else alone)
    if body["no_launches"]:
        return [*lines, f"launches: none ({body['no_launches']})"]
    batched = body["launches"]["batched"]
    ours = sum(batched.values()) - batched[PRODUCT]
    return [*lines, f"launches of a batch: {ours:,} of our kernels, {batched[PRODUCT]:,} products of the base"]


def sources(body: dict[str, Any]) -> list[str]:
    """Return where each device's figures are from."""
    return [
        "The times are what bandwidth and peak allow: arithmetic, no measurement, and without launches.",
        *(
            f"{name}: {device['bandwidth'] / 1e9:,.4g} GB/s, {human_number(device['peak'])} flop/s; {device['source']}"
            for name, device in body["devices"].items()
        ),
    ]
