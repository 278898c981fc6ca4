"""What is under test, vectors in and outputs out: an Ops (ours, the kernels', a mutant's) or an engine.

Steps are reached as the forward pass reaches them: ids are checked against the slots, the plan is made by the Ops' own
`lora_mapping`, `positions` and `slot_mapping`. Whole models and sequences go through refimpl/engines/ours.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ...adapter import Adapter
from ...arrays import Array, Precision
from ...checks import check_adapter_ids, check_attention, check_slots
from ...config import View
from ...engines.interface import Capabilities, Engine, EngineRequest, EngineResponse, Settings
from ...engines.ours import Ours
from ...errors import LoracleError
from ...loading.model_folder import load_model
from ...ops import Ops
from ...plans import AttentionMetadata, LoraMapping
from ...weights import Model
from ..cases.case import Run, do_step
from . import step_lora
from .step_kv import write_metadata
from .steps_json import from_about, request_id
from .vector import Vector

Outputs = Mapping[str, Array]
# vector, dtype -> what it computes; None: it has no such thing
SystemUnderTest = Callable[[Vector, str], "Outputs | None"]


class Refused(LoracleError):
    """What is under test would not compute this: right for an invalid vector, wrong for a valid one."""


class CannotRun(LoracleError):
    """An engine that did not start: it was asked nothing, and nothing is said of it. Exit 2."""


class OpsUnderTest:
    """`SystemUnderTest`, from a way to make an Ops; models and adapters are loaded once."""

    def __init__(self, make_ops: Callable[[], Ops], loaded: "LoadedModels | None" = None) -> None:
        self.make_ops, self.loaded = make_ops, loaded or LoadedModels()

    def __call__(self, v: Vector, dtype: str) -> Outputs | None:
        """What the Ops computes. Any exception of its own means that it refuses."""
        if v.kind == "lora":
            return lora(self.make_ops(), v, dtype)
        if v.kind == "kv_write":
            return kv_write(self.make_ops(), v, dtype)
        if v.kind == "attention":
            return attention(self.make_ops(), v, dtype)
        model, adapters = self.loaded.of(v, dtype)
        return EngineUnderTest(lambda: Ours(self.make_ops, model=model, adapters=adapters))(v, dtype)


class LoadedModels:
    """The base models and adapters of a set, read when they are first wanted."""

    def __init__(self) -> None:
        self._models: dict[tuple[Path, str], tuple[Model, dict[Path, Adapter]]] = {}

    def of(self, v: Vector, dtype: str) -> tuple[Model, dict[Path, Adapter]]:
        """The vector's base, and what was loaded for it so far."""
        folder = (v.folder / v.about["model"]).resolve()
        if (folder, dtype) not in self._models:
            self._models[folder, dtype] = load_model(folder, dtype), {}
        return self._models[folder, dtype]


# ---- single steps ---------------------------------------------------------------------------------------------------


def lora(ops: Ops, v: Vector, dtype: str) -> Outputs:
    """adapter_scale, bind_adapter, lora_mapping and lora_delta."""
    p = Precision("model", dtype)
    slots = step_lora.adapter_slots(v, p, ops.bind_adapter, ops.adapter_scale)
    check_adapter_ids(v.inputs["adapter_ids"], slots.slots)
    starts = v.inputs["query_starts"]
    first = starts[:-1]
    chosen = [
        [(int(i), float(weight)) for i, weight in zip(ids, weights, strict=True) if i >= 0]
        for ids, weights in zip(v.inputs["adapter_ids"][first], v.inputs["adapter_weights"][first], strict=True)
    ]
    ids, weights = ops.lora_mapping(chosen, np.diff(starts).tolist())
    y = v.inputs["y"].astype(p.compute)
    ops.lora_delta(y, v.inputs["x"].astype(p.compute), step_lora.MODULE, slots, LoraMapping.of(ids, weights), p)
    return {"y": y}


def kv_write(ops: Ops, v: Vector, dtype: str) -> Outputs:
    """positions and slot_mapping, where the vector has block tables, and write_kv."""
    p = Precision("model", dtype)
    k_cache, v_cache = (v.inputs[name].astype(p.compute) for name in ("k_cache", "v_cache"))
    slots = v.inputs["slots"]
    if "block_tables" in v.inputs:
        starts = v.inputs["query_starts"]
        counts = np.diff(starts)
        positions = ops.positions((v.inputs["context_lens"] - counts).tolist(), counts.tolist())
        slots = ops.slot_mapping(v.inputs["block_tables"], positions, starts, k_cache.shape[1])
    metadata = write_metadata(np.asarray(slots, np.int32), *k_cache.shape[:2])
    check_slots(metadata)
    ops.write_kv(k_cache, v_cache, v.inputs["k"].astype(p.compute), v.inputs["v"].astype(p.compute), metadata, p)
    return {"k_cache": k_cache, "v_cache": v_cache}


def attention(ops: Ops, v: Vector, dtype: str) -> Outputs:
    """attention."""
    p = Precision("model", dtype)
    q, k_cache, v_cache = (v.inputs[name].astype(p.compute) for name in ("q", "k_cache", "v_cache"))
    starts, contexts, tables = (v.inputs[name] for name in ("query_starts", "context_lens", "block_tables"))
    blocks, block_size = k_cache.shape[:2]
    window = v.about["window"]
    metadata = AttentionMetadata.of(starts, contexts, tables, np.zeros(0, np.int32), blocks, block_size)
    check_attention(metadata, len(q), window)
    return {"out": ops.attention(q, k_cache, v_cache, metadata, View(window), p)}


# ---- whole models ---------------------------------------------------------------------------------------------------


class EngineUnderTest:
    """`SystemUnderTest`, from a way to make an engine (refimpl/engines/interface.py).

    A fresh one for each vector, and none for what it declares that it cannot do."""

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self.make_engine = make_engine

    def __call__(self, v: Vector, dtype: str) -> Outputs | None:
        """The logits of every request, from the first row on that the engine shows."""
        if v.kind not in ("logits", "sequence"):
            return None
        engine = self.make_engine()
        if lacking(v, dtype, engine.capabilities):
            return None
        try:
            return self._outputs(engine, v, dtype)
        finally:
            engine.close()

    def _outputs(self, engine: Engine, v: Vector, dtype: str) -> Outputs:
        folder = v.folder.resolve()
        try:
            engine.start(Settings((folder / v.about["model"]).resolve(), dtype, **v.about["settings"]))
        except LoracleError as error:
            raise CannotRun(f"{v.id}: {error}") from None
        paths = {name: (folder / path).resolve() for name, path in v.about["adapters"].items()}
        outputs: dict[str, Array] = {}
        run = 0
        for step in from_about(v).steps:
            responses = do_step(engine, step, paths)
            if isinstance(step, Run):
                for i, (request, response) in enumerate(zip(step.requests, responses, strict=True)):
                    outputs |= _outputs_of(request_id(run, i), request, response)
                run += 1
        return outputs


def _outputs_of(name: str, request: EngineRequest, response: EngineResponse) -> dict[str, Array]:
    """Return what a request's response shows, by the names of a vector's outputs; of a cancelled request nothing."""
    if response.error:
        raise Refused(response.error)
    if request.cancel_after is not None:
        return {}
    readouts = {"logits": response.logits, "logprobs": response.logprobs}
    outputs = {f"{name}.{readout}": rows for readout, rows in readouts.items() if rows is not None}
    if request.max_new_tokens > 1:
        outputs[f"{name}.token_ids"] = np.asarray(response.token_ids, np.int32)
    return outputs


# The feature that an engine declares for what a vector requires, where it is not the same word.
FEATURE_OF = {"grown_vocabulary": "modules_to_save", "base_biases": "modules_to_save"}


def lacking(v: Vector, dtype: str, can: Capabilities) -> list[str]:
    """What the engine would need for the vector and does not have."""
    has = {*can.features, *can.operations, *can.modules}
    missing = [name for name in v.requires if FEATURE_OF.get(name, name) not in has]
    missing += [] if can.readout in ("logits", "logprobs") else ["logits or logprobs"]
    missing += ["prefix_cache"] if v.about["settings"]["prefix_caching"] and "prefix_cache" not in has else []
    return missing + ([] if dtype in can.dtypes else [dtype])
