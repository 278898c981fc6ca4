"""The requests of a recording of TensorRT-LLM: a folder that its recorder needs, and nothing else.

    requests.json   which batches, in which parts: record_tensorrt_llm.py reads it, and tensorrt_llm_recording.py judges
    model/  adapters/NAME/    Hugging Face and PEFT folders
    kernel.npz      vectors of the LoRA product, for its operator alone
    record_tensorrt_llm.py    the recorder itself: the folder can be copied as it is

The same requests come alone, together, permuted and all with one adapter: whatever the batch, the response to a request
must be the same but for rounding. All ranks of the main part are multiples of 8, so that any of them may share a batch;
one part breaks that rule on purpose (refimpl/tensorrt_llm/rank_alignment.py).
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
from ...engines import record_tensorrt_llm
from ...engines.interface import Capabilities
from ...engines.record_tensorrt_llm import VERSION
from ...errors import LoracleError
from ...formats.files import new_folder
from ...formats.hf import save_model
from ...formats.peft import save_adapter
from ...formats.trtllm_modules import OF_LLAMA
from ...loading.model_folder import base_folder, load_model
from ...synthetic.adapters import gain_of, random_adapter
from ...synthetic.models import random_model
from ...weights import Model
from ..cases.variety import random_config

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
SECONDS = (570.0, 150.0)  # for everything, and for a part that starts the engine
USER_SECONDS = (3600.0, 900.0)  # the same for a model of the user's own, which takes longer to load
ROWS = 700  # the most rows of logits in a recording: with a user's model, its room grows with these


def write_cases(
    folder: Path, model: str = "tiny", dtype: str = "float16", seed: int = 0, limit_bytes: int | None = None
) -> None:
    """Write the cases into a new folder.

    model: "tiny", "random" (small, drawn by the seed), or a Hugging Face folder, which is not copied: the recorder gets
    its location. limit_bytes: of the recording; without it 5 MB, or room for every row of a model of the user's own.
    LoracleError for a folder that exists already, or a dtype that TensorRT-LLM's LoRA does not have."""
    if dtype not in ("float16", "bfloat16"):
        raise LoracleError(f"dtype {dtype!r}: TensorRT-LLM's LoRA is float16 or bfloat16")
    rng = np.random.default_rng([seed, 5])
    with new_folder(folder) as scratch:
        base = write_model(scratch, model, dtype, rng)
        for name, config in ADAPTERS.items():
            adapter = random_adapter(base.config, config, name, rng, gain_of(base))
            save_adapter(adapter, scratch / "adapters" / name, dtype)
        vectors, arrays = kernel_vectors(rng)
        np.savez(scratch / "kernel.npz", **arrays)  # type: ignore[arg-type]
        synthetic = model in ("tiny", "random")
        seconds, part_seconds = SECONDS if synthetic else USER_SECONDS
        adapter_bytes = sum(file.stat().st_size for file in scratch.rglob("adapter_model*"))
        room = LIMIT_BYTES if synthetic else ROWS * 4 * base.config.vocab_size + adapter_bytes
        plan = {
            "version": VERSION,
            "model": model if synthetic else Path(model).name,
            "dtype": dtype,
            "seed": seed,
            "adapters": list(ADAPTERS),
            "modules": [OF_LLAMA[module].name for module in LAYER_MODULES],
            "max_rank": max(config.r for config in ADAPTERS.values()),
            "max_requests": 8,
            "max_length": 64,
            "limit_bytes": limit_bytes or room,
            "seconds": seconds,
            "parts": parts([group(base, rng) for _ in range(GROUPS)], rng, part_seconds),
            "kernel": vectors,
        }
        (scratch / "requests.json").write_text(json.dumps(plan, indent=1) + "\n", "utf-8")
        shutil.copyfile(record_tensorrt_llm.__file__, scratch / "record_tensorrt_llm.py")


def write_model(folder: Path, model: str, dtype: str, rng: np.random.Generator) -> Model:
    """Return the base, and write it into folder/model unless it is the user's own.

    It is written in the dtype of the recording: some engines go by the argument, others by the files."""
    if model == "random":
        base = random_model(random_config(rng, Capabilities()), rng, dtype)
    else:
        base = load_model(base_folder(model), dtype)
    if model in ("tiny", "random"):
        save_model(base, folder / "model")
    return base


Fields = dict[str, Any]  # of one request, as they stand in requests.json


def group(base: Model, rng: np.random.Generator) -> list[Fields]:
    """Return requests that go together. The base gets its neighbour's prompt: only the adapter tells them apart."""
    requests: list[Fields] = []
    for adapter in GROUP:
        length = int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))
        prompt = [int(t) for t in rng.integers(0, base.config.vocab_size, length)]
        if adapter is None and requests:
            prompt = requests[-1]["prompt_ids"]
        requests.append(request(prompt, adapter))
    return requests


def request(prompt: Sequence[int], adapter: str | None) -> Fields:
    """Return the fields of one request."""
    return {"prompt_ids": list(prompt), "adapter": adapter, "max_new_tokens": NEW}


def case(name: str, relation: str, requests: Sequence[Fields], may_fail: bool = False) -> dict[str, Any]:
    """Return the fields of one batch. relation: which requests it groups (alone, together, permuted, ...)."""
    return {"name": name, "relation": relation, "requests": list(requests), "may_fail": may_fail}


def parts(groups: Sequence[Sequence[Fields]], rng: np.random.Generator, seconds: float) -> list[dict[str, Any]]:
    """Return what runs in which process, the most telling first: the time may run out.

    seconds: for starting an engine and serving a part's batches."""
    alone = [case(f"alone-0-{i}", "alone", [fields]) for i, fields in enumerate(groups[0])]
    together = [case(f"together-{i}", "together", requests) for i, requests in enumerate(groups)]
    permuted = [case(f"permuted-{i}", "permuted", shuffled(requests, rng)) for i, requests in enumerate(groups)]
    # All with one adapter: TensorRT-LLM takes another path through its kernels.
    uniform = [
        case(f"uniform-{i}", "uniform", [request(fields["prompt_ids"], "eight") for fields in requests])
        for i, requests in enumerate(groups)
    ]
    again = case("again-0", "together", groups[0])
    five = [request(fields["prompt_ids"], "five") for fields in groups[0][:2]]
    broken = [
        case("one-rank-5", "aligned", five),  # one adapter alone: no rule to break
        case("misaligned-0", "misaligned", [five[0], request(five[1]["prompt_ids"], "eight")], may_fail=True),
        case("misaligned-1", "misaligned", [request(five[0]["prompt_ids"], "twelve"), groups[0][1]], may_fail=True),
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
    """Return the fields of a part that starts the engine."""
    return {
        "name": name,
        "kind": "model",
        "env": dict(env or {}),
        "seconds": seconds,
        "cuda_graphs": cuda_graphs,
        "cases": list(cases),
    }


def shuffled(requests: Sequence[Fields], rng: np.random.Generator) -> list[Fields]:
    """Return them in another order; another request comes first."""
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
    """Return a vector's fields. ranks: of each adapter in each module. requests: type, tokens, adapter (-1: none)."""
    return {
        "name": name,
        "dtype": dtype,
        "d_in": d_in,
        "d_outs": [64, 32, 32][: len(ranks)],
        "ranks": [list(r) for r in ranks],
        "requests": [{"type": kind, "length": n, "adapter": adapter} for kind, n, adapter in requests],
        "may_fail": may_fail,
    }


def kernel_vectors(rng: np.random.Generator) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Return the vectors, and arrays as 16-bit patterns: NAME.x, NAME.A.MODULE.ADAPTER, NAME.B.MODULE.ADAPTER."""
    prompts = [(CONTEXT, 3, 0), (CONTEXT, 1, -1), (CONTEXT, 2, 1), (CONTEXT, 2, 0)]
    decode = [(GENERATION, 1, adapter) for adapter in (1, 0, -1, 0)]
    one = [(CONTEXT, 3, 0), (CONTEXT, 2, 0)]
    vectors = [
        *(vector(f"mixed-{t}", t, 256, [[8, 16]], prompts) for t in ("float16", "bfloat16")),
        vector("sliced", "float16", 1024, [[8, 16]], prompts),  # K = 1024: each of the 16 slices has 64 columns
        vector("modules", "float16", 256, [[8, 16]] * 3, prompts),  # q, k and v in one call
        vector("decode", "float16", 256, [[8, 16]], decode),
        *(vector(f"one-adapter-{t}", t, 1024, [[8]], one) for t in ("float16", "bfloat16")),
        vector("rank-5-alone", "float16", 256, [[5]], one, may_fail=True),  # fails where the unified path is off
        vector("misaligned", "float16", 256, [[5, 8]], prompts, may_fail=True),
    ]
    arrays: dict[str, Array] = {}
    for fields in vectors:
        name, dtype, d_in = fields["name"], fields["dtype"], fields["d_in"]
        tokens = sum(entry["length"] for entry in fields["requests"])
        arrays[f"{name}.x"] = bits(rng.standard_normal((tokens, d_in)), dtype)
        for module, (of_module, d_out) in enumerate(zip(fields["ranks"], fields["d_outs"], strict=True)):
            for adapter, r in enumerate(of_module):
                A = rng.standard_normal((r, d_in)) / np.sqrt(d_in)
                arrays[f"{name}.A.{module}.{adapter}"] = bits(A, dtype)
                arrays[f"{name}.B.{module}.{adapter}"] = bits(rng.standard_normal((d_out, r)), dtype)
    return vectors, arrays


def bits(x: Array, dtype: str) -> Array:
    """Return x rounded to a 16-bit type, as its bits."""
    return rounded(x, dtype).astype(DTYPES[dtype]).view(np.uint16)
