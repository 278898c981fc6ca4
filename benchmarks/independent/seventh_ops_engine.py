"""This package's own engine, in order of arrival and in chunks, with a field of its Ops exchanged by BUG=l01 ... l08."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from refimpl import NUMPY, Ops, Request, load_adapter, load_model
from refimpl.adapter_slots import AdapterSlots, BoundAdapter, bind_adapter
from refimpl.arrays import Precision
from refimpl.engines.ours import Observed
from refimpl.kv_cache import write_kv
from refimpl.lora import lora_delta
from refimpl.plans import LoraMapping, lora_mapping

BUG = os.environ.get("BUG", "")


def folded(adapter, config, scale) -> BoundAdapter:  # noqa: ANN001
    """The scale goes into B when the adapter is bound, and the kernel multiplies by it once more."""
    bound = bind_adapter(adapter, config, scale)
    lora = {
        module: replace(w, B=w.B * w.scale, bias=None if w.bias is None else w.bias * w.scale)
        for module, w in bound.lora.items()
    }
    return replace(bound, lora=lora)


def crossed(adapter, config, scale) -> BoundAdapter:  # noqa: ANN001
    """w1 and w3: what the file calls gate goes to up, and up to gate."""
    bound = bind_adapter(adapter, config, scale)
    other = {"mlp.gate_proj": "mlp.up_proj", "mlp.up_proj": "mlp.gate_proj"}
    other |= {name.removeprefix("mlp."): to.removeprefix("mlp.") for name, to in other.items()}
    return replace(bound, lora={(layer, other.get(name, name)): w for (layer, name), w in bound.lora.items()})


def without_keys(adapter, config, scale) -> BoundAdapter:  # noqa: ANN001
    """The name map of the fused projection has q and v only."""
    bound = bind_adapter(adapter, config, scale)
    return replace(bound, lora={m: w for m, w in bound.lora.items() if not m[1].endswith("k_proj")})


def twice(bound: BoundAdapter) -> BoundAdapter:
    """Two ranks with a whole delta each, before the sum over the ranks of a row-parallel product."""
    ends = ("o_proj", "down_proj")
    return replace(
        bound, lora={m: replace(w, scale=2 * w.scale) if m[1].endswith(ends) else w for m, w in bound.lora.items()}
    )


def shifted(per_request: Sequence, lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The request of a token, looked up among where they start: on the wrong side of an edge."""
    ids, weights = lora_mapping(per_request, [1] * len(lengths))
    starts = np.cumsum([0, *lengths[:-1]])
    owner = np.maximum(np.searchsorted(starts, np.arange(sum(lengths)), side="left") - 1, 0)
    return ids[owner], weights[owner]


def eight_bits(k_cache, v_cache, k, v, metadata, p: Precision) -> None:  # noqa: ANN001
    """Keys and values as float8 e4m3 has them: three bits of mantissa, and no scale."""

    def narrow(x: np.ndarray) -> np.ndarray:
        mantissa, exponent = np.frexp(x)
        return np.ldexp(np.rint(mantissa * 16) / 16, exponent).astype(x.dtype)

    write_kv(k_cache, v_cache, narrow(k), narrow(v), metadata, p)


def make_uncleared() -> Callable[..., None]:
    """The rank-r workspace of a launch is zeroed once, and each segment adds to its first rows."""

    def delta(y, x, module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:  # noqa: ANN001
        work = np.zeros((len(y), 256), p.compute)

        def shrink(rows: np.ndarray, A: np.ndarray) -> np.ndarray:
            here = work[: len(rows), : len(A)]
            here += A[:, rows].T if rows.dtype.kind in "iu" else rows @ A.T
            return here.copy()

        lora_delta(y, x, module, adapters, mapping, p, shrink=shrink)

    return delta


def make_reused() -> Callable[..., None]:
    """The rows gathered for q, k and v serve for the next product of the block that is as wide: o_proj."""
    gathered: dict[int, np.ndarray] = {}

    def delta(y, x, module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:  # noqa: ANN001
        layer, name = module
        if name.endswith("q_proj"):
            gathered[layer] = x
        if name.endswith("o_proj") and layer in gathered and gathered[layer].shape == x.shape:
            x = gathered[layer]
        lora_delta(y, x, module, adapters, mapping, p)

    return delta


BUGS: dict[str, Callable[[], Ops]] = {
    "": lambda: NUMPY,
    "l01": lambda: replace(NUMPY, shard_adapter=twice),
    "l02": lambda: replace(NUMPY, lora_mapping=shifted),
    "l03": lambda: replace(NUMPY, lora_delta=make_reused()),
    "l04": lambda: replace(NUMPY, bind_adapter=folded),
    "l05": lambda: replace(NUMPY, write_kv=eight_bits),
    "l06": lambda: replace(
        NUMPY, adapter_scale=lambda alpha, r, use_rslora: alpha / r**0.5, bind_adapter=without_keys
    ),
    "l07": lambda: replace(NUMPY, lora_delta=make_uncleared()),
    "l08": lambda: replace(NUMPY, bind_adapter=crossed),
}  # fmt: skip
if BUG not in BUGS:
    raise ImportError(f"seventh_ops_engine has no bug {BUG!r}")

SERVERS: dict[str, tuple] = {}


def serve(model_dir: str, requests: list[dict]) -> list[dict]:
    """Answer all requests, greedily. A prefix from the cache has no rows: such a request shows its produced tokens."""
    if model_dir not in SERVERS:
        SERVERS.clear()
        model = load_model(Path(model_dir), "float32")
        server = Observed(model, BUGS[BUG](), num_blocks=256, block_size=8, max_batch_tokens=32, max_running=8,
                          max_adapters=4)  # fmt: skip
        server.arrival = True
        SERVERS[model_dir] = (server, {})
    server, loaded = SERVERS[model_dir]
    ids = []
    for request in requests:
        folders = request.get("adapters") or ([(request["adapter_dir"], 1.0)] if request.get("adapter_dir") else [])
        pairs = []
        for folder, weight in folders:
            key = (folder, (Path(folder) / "adapter_model.safetensors").stat().st_mtime_ns,
                   (Path(folder) / "adapter_config.json").stat().st_mtime_ns)  # fmt: skip
            if key not in loaded:
                loaded[key] = load_adapter(Path(folder), server.model)
            pairs.append((loaded[key], weight))
        ids.append(server.add(Request(request["prompt_ids"], pairs or None, request["max_new_tokens"], stop_ids=())))
    produced: dict[int, list[int]] = {i: [] for i in ids}
    while server.busy:
        for token in server.step():
            produced[token.request_id].append(token.token_id)
    answers = []
    for request, i in zip(requests, ids, strict=True):
        rows = server.rows.pop(i)
        last = len(request["prompt_ids"]) + request["max_new_tokens"] - 1
        first = 0 if min(rows) == 0 else last - request["max_new_tokens"]
        answers.append({"logits": np.stack([rows[p] for p in range(first, last)]), "token_ids": produced[i]})
    return answers


serve.capabilities = {  # type: ignore[attr-defined]
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "sums",
                 "rope_scaling"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head",
                "embed_tokens"],
    "operations": ["load", "unload", "reload", "prefix_cache"],
}  # fmt: skip
serve.reset = SERVERS.clear  # type: ignore[attr-defined]
