"""What a recording asks of TensorRT-LLM: a folder that its recorder needs, and nothing else.

    requests.json   which batches, in which parts: record_tensorrt_llm.py reads it, and tensorrt_llm_recording.py judges
    model/  adapters/NAME/    Hugging Face and PEFT folders
    kernel.npz      vectors of the LoRA product, for its operator alone
    record_tensorrt_llm.py    the recorder itself: the folder can be copied as it is

The same requests come alone, together, permuted and all with one adapter: whatever the batch, an answer must be the
same but for rounding. All ranks of the main part are multiples of 8, so that any of them may share a batch; one part
breaks that rule on purpose (refimpl/tensorrt_llm/rank_alignment.py).
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...adapter import PeftConfig
from ...arrays import DTYPES, Array, rounded
from ...config import LAYER_MODULES
from ...engines.interface import Capabilities
from ...engines.record_tensorrt_llm import VERSION
from ...errors import LoracleError
from ...formats.files import new_folder
from ...formats.hf import save_model
from ...formats.peft import save_adapter
from ...formats.trtllm_modules import OF_LLAMA
from ...weights import Model, base_folder, load_model
from ..cases.synthetic import random_adapter, random_config, random_model

QKV = ("q_proj", "k_proj", "v_proj")

# alpha / r is never 1. The first three may share any batch; the others are for the part that breaks the rule.
ADAPTERS = {
    "eight": PeftConfig(8, 20.0, target_modules=LAYER_MODULES),
    "sixteen": PeftConfig(16, 24.0, use_rslora=True, target_modules=LAYER_MODULES),
    "partial": PeftConfig(8, 5.0, target_modules=("q_proj", "v_proj")),  # TensorRT-LLM adds a k_proj of zeros
    "five": PeftConfig(5, 8.0, target_modules=QKV),
    "twelve": PeftConfig(12, 30.0, target_modules=QKV),
}
GROUP = ("eight", None, "sixteen", "partial", "eight")  # the adapters of one group's requests
GROUPS, NEW, LENGTHS = 2, 3, (4, 7)  # batches, produced tokens, shortest and longest prompt
LIMIT_BYTES = 5_000_000  # of a recording of the embedded model
SECONDS = (
    570.0,
    150.0,
)  # for everything, and for a part that starts the engine; a model of the user's own takes longer
OWN_SECONDS = (3600.0, 900.0)
ROWS = 700  # that are recorded, no more


def write_cases(
    folder: Path, model: str = "tiny", dtype: str = "float16", seed: int = 0, limit_bytes: int | None = None
) -> None:
    """A new folder. model: "tiny", "random" (small, drawn by the seed), or a Hugging Face folder, which is not copied:
    the recorder is told where it is. limit_bytes: of the recording; without it 5 MB, or room for every row of a model
    of the user's own. LoracleError for a folder that is there already, or a dtype that TensorRT-LLM's LoRA has not."""
    if dtype not in ("float16", "bfloat16"):
        raise LoracleError(f"dtype {dtype!r}: TensorRT-LLM's LoRA is float16 or bfloat16")
    rng = np.random.default_rng([seed, 5])
    with new_folder(folder) as scratch:
        base = write_model(scratch, model, dtype, rng)
        for name, config in ADAPTERS.items():
            save_adapter(random_adapter(base, config, name, rng), scratch / "adapters" / name, dtype)
        vectors, arrays = kernel_vectors(rng)
        np.savez(scratch / "kernel.npz", **arrays)  # type: ignore[arg-type]
        own = model not in ("tiny", "random")
        whole, part = OWN_SECONDS if own else SECONDS
        room = ROWS * 4 * base.config.vocab_size + sum(f.stat().st_size for f in scratch.rglob("adapter_model*"))
        plan = {
            "version": VERSION,
            "model": model if model in ("tiny", "random") else Path(model).name,
            "dtype": dtype,
            "seed": seed,
            "adapters": list(ADAPTERS),
            "modules": [OF_LLAMA[m].name for m in LAYER_MODULES],
            "max_rank": max(c.r for c in ADAPTERS.values()),
            "max_requests": 8,
            "max_length": 64,
            "limit_bytes": limit_bytes or (room if own else LIMIT_BYTES),
            "seconds": whole,
            "parts": parts([group(base, rng) for _ in range(GROUPS)], rng, part),
            "kernel": vectors,
        }
        (scratch / "requests.json").write_text(json.dumps(plan, indent=1) + "\n", "utf-8")
        here = Path(__file__).parents[2] / "engines"
        shutil.copyfile(here / "record_tensorrt_llm.py", scratch / "record_tensorrt_llm.py")


def write_model(folder: Path, model: str, dtype: str, rng: np.random.Generator) -> Model:
    """The base, in folder/model unless it is the user's own; in the dtype that is asked for, whether an engine goes by
    what it is told or by what it finds."""
    if model == "random":
        base = random_model(random_config(rng, Capabilities()), rng, dtype)
    else:
        base = load_model(base_folder(model), dtype)
    if model in ("tiny", "random"):
        save_model(base, folder / "model")
    return base


Asked = dict[str, Any]


def group(base: Model, rng: np.random.Generator) -> list[Asked]:
    """Requests that go together. The base is asked the same as its neighbour: only the adapter tells them apart."""
    found: list[Asked] = []
    for adapter in GROUP:
        length = int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))
        prompt = [int(t) for t in rng.integers(0, base.config.vocab_size, length)]
        if adapter is None and found:
            prompt = found[-1]["prompt_ids"]
        found.append(asked(prompt, adapter))
    return found


def asked(prompt: Sequence[int], adapter: str | None) -> Asked:
    """One request."""
    return {"prompt_ids": list(prompt), "adapter": adapter, "max_new_tokens": NEW}


def case(name: str, relation: str, requests: Sequence[Asked], may_fail: bool = False) -> dict[str, Any]:
    """One batch. relation: what it is to the others."""
    return {"name": name, "relation": relation, "requests": list(requests), "may_fail": may_fail}


def parts(groups: Sequence[Sequence[Asked]], rng: np.random.Generator, seconds: float) -> list[dict[str, Any]]:
    """What runs in which process, the most telling first: the time may run out. seconds: for starting an engine and
    asking it."""
    alone = [
        case(f"alone-{g}-{i}", "alone", [r]) for g, requests in enumerate(groups[:1]) for i, r in enumerate(requests)
    ]
    together = [case(f"together-{g}", "together", r) for g, r in enumerate(groups)]
    permuted = [case(f"permuted-{g}", "permuted", shuffled(r, rng)) for g, r in enumerate(groups)]
    # All with one adapter: TensorRT-LLM takes another path through its kernels.
    uniform = [
        case(f"uniform-{g}", "uniform", [asked(r["prompt_ids"], "eight") for r in requests])
        for g, requests in enumerate(groups)
    ]
    again = case("again-0", "together", groups[0])
    five = [asked(r["prompt_ids"], "five") for r in groups[0][:2]]
    broken = [
        case("one-rank-5", "aligned", five),  # one adapter alone: no rule to break
        case("misaligned-0", "misaligned", [five[0], asked(five[1]["prompt_ids"], "eight")], may_fail=True),
        case("misaligned-1", "misaligned", [asked(five[0]["prompt_ids"], "twelve"), groups[0][1]], may_fail=True),
    ]
    off = {"LORA_USE_UNIFIED_GEMM": "OFF"}
    return [
        {"name": "versions", "kind": "facts", "env": {}, "seconds": 60.0},
        {"name": "kernel", "kind": "kernel", "env": {}, "seconds": 60.0},
        model_part("eager", seconds, [*together, *alone, *permuted, *uniform, again]),
        model_part("grouped", seconds, [*uniform, together[0]], env=off),
        model_part("graphs", seconds, [together[0], uniform[0], *alone[:2]], cuda_graphs=True),
        {"name": "kernel-grouped", "kind": "kernel", "env": off, "seconds": 60.0},
        model_part("misaligned", seconds, broken),
    ]


def model_part(
    name: str,
    seconds: float,
    cases: Sequence[Mapping[str, Any]],
    env: Mapping[str, str] | None = None,
    cuda_graphs: bool = False,
) -> dict[str, Any]:
    """A part that starts the engine."""
    return {
        "name": name,
        "kind": "model",
        "env": dict(env or {}),
        "seconds": seconds,
        "cuda_graphs": cuda_graphs,
        "cases": list(cases),
    }


def shuffled(requests: Sequence[Asked], rng: np.random.Generator) -> list[Asked]:
    """In another order; no request stays first."""
    order = [int(i) for i in rng.permutation(len(requests))]
    while order[0] == 0:
        order = [int(i) for i in rng.permutation(len(requests))]
    return [requests[i] for i in order]


# Vectors of the LoRA product, as torch.ops.trtllm.lora_grouped_gemm takes it.

CONTEXT, GENERATION = 0, 1  # request types


def vector(
    name: str,
    dtype: str,
    d_in: int,
    ranks: Sequence[Sequence[int]],
    requests: Sequence[tuple[int, int, int]],
    may_fail: bool = False,
) -> dict[str, Any]:
    """ranks: of each adapter in each module. requests: type, tokens, adapter; -1 is none."""
    return {
        "name": name,
        "dtype": dtype,
        "d_in": d_in,
        "d_outs": [64, 32, 32][: len(ranks)],
        "ranks": [list(r) for r in ranks],
        "requests": [{"type": t, "length": n, "adapter": a} for t, n, a in requests],
        "may_fail": may_fail,
    }


def kernel_vectors(rng: np.random.Generator) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """The vectors, and their arrays as 16-bit patterns: NAME.x, NAME.A.MODULE.ADAPTER, NAME.B.MODULE.ADAPTER."""
    prompts = [(CONTEXT, 3, 0), (CONTEXT, 1, -1), (CONTEXT, 2, 1), (CONTEXT, 2, 0)]
    decode = [(GENERATION, 1, a) for a in (1, 0, -1, 0)]
    one = [(CONTEXT, 3, 0), (CONTEXT, 2, 0)]
    found = [
        *(vector(f"mixed-{t}", t, 256, [[8, 16]], prompts) for t in ("float16", "bfloat16")),
        vector("sliced", "float16", 1024, [[8, 16]], prompts),  # K = 1024: each of the 16 slices has 64 columns
        vector("modules", "float16", 256, [[8, 16]] * 3, prompts),  # q, k and v in one call
        vector("decode", "float16", 256, [[8, 16]], decode),
        *(vector(f"one-adapter-{t}", t, 1024, [[8]], one) for t in ("float16", "bfloat16")),
        vector("rank-5-alone", "float16", 256, [[5]], one, may_fail=True),  # fails where the unified path is off
        vector("misaligned", "float16", 256, [[5, 8]], prompts, may_fail=True),
    ]
    arrays: dict[str, Array] = {}
    for v in found:
        tokens = sum(r["length"] for r in v["requests"])
        arrays[f"{v['name']}.x"] = bits(rng.standard_normal((tokens, v["d_in"])), v["dtype"])
        for m, (of_module, d_out) in enumerate(zip(v["ranks"], v["d_outs"], strict=True)):
            for a, r in enumerate(of_module):
                A = rng.standard_normal((r, v["d_in"])) / np.sqrt(v["d_in"])
                arrays[f"{v['name']}.A.{m}.{a}"] = bits(A, v["dtype"])
                arrays[f"{v['name']}.B.{m}.{a}"] = bits(rng.standard_normal((d_out, r)), v["dtype"])
    return found, arrays


def bits(x: Array, dtype: str) -> Array:
    """Rounded to a 16-bit type, as the pattern."""
    return rounded(x, dtype).astype(DTYPES[dtype]).view(np.uint16)
