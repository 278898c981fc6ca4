"""Adapter slots of one size, reserved before the first adapter comes: vLLM's, held against pages (unified_pool.py).

    slot 0, rank 2 of at most 8      A [8, d_in]  ##......     B [d_out, 8]  ##......      #: numbers of the adapter
    slot 1, rank 8                                ########                   ########      .: reserved, and wasted
    slot 2, empty                                 ........                   ........

vLLM keeps lora_a_stacked [max_loras, 1, max_lora_rank, d_in] for every layer that it can adapt (vllm/lora/layers), so
that its kernels find slot i without a table. A higher rank, or another layer, is refused.
"""

from collections.abc import Collection
from dataclasses import replace

from .adapter_cache import AdapterCache
from .adapter_slots import AdapterSlots, BoundAdapter, LoraWeights
from .arrays import Array, Precision, device_namespace
from .config import EMBED, Module, module_name
from .errors import AdapterError, LoracleError
from .kv_cache import KVCache
from .ops import Ops
from .weights import Model


class FixedSlots(AdapterSlots):
    """AdapterSlots for `capacity` adapters of a rank up to max_rank, in the modules of these names (None: in all)."""

    def __init__(
        self, model: Model, p: Precision, capacity: int, max_rank: int, modules: Collection[str] | None = None
    ) -> None:
        super().__init__(model, p)
        self.capacity, self.max_rank = capacity, max_rank
        xp = device_namespace(model.device)
        self.stacked: dict[Module, tuple[Array, Array, Array]] = {}  # A, B and bias of every slot
        for module in model.config.modules():
            if modules is not None and module[1] not in modules:
                continue
            d_out, d_in = model.config.shape(module)[:: -1 if module == EMBED else 1]  # A looks up token ids there
            self.stacked[module] = (
                xp.zeros((capacity, max_rank, d_in), p.compute),
                xp.zeros((capacity, d_out, max_rank), p.compute),
                xp.zeros((capacity, d_out), p.compute),
            )

    def put(self, slot: int, bound: BoundAdapter) -> None:
        """Copy an adapter into its slot. AdapterError for what does not fit into any slot, and for DoRA."""
        ready, _ = self.prepared(bound)
        for module, lora in ready.items():
            self._check(module, lora)
        super().put(slot, replace(bound, lora={}))
        for module, lora in ready.items():
            A, B, bias = (stack[slot] for stack in self.stacked[module])
            A[: len(lora.A)], B[:, : len(lora.A)] = lora.A, lora.B
            A[len(lora.A) :], B[:, len(lora.A) :] = 0, 0  # what the slot held before
            bias[...] = 0 if lora.bias is None else lora.bias
            views = replace(lora, A=A[: len(lora.A)], B=B[:, : len(lora.A)], bias=None if lora.bias is None else bias)
            self._lora.setdefault(module, {})[slot] = views

    @property
    def reserved(self) -> int:
        """The memory of all slots, full or empty, in bytes."""
        return sum(stack.nbytes for stacks in self.stacked.values() for stack in stacks)

    @property
    def free(self) -> int:
        """The memory of the empty slots, in bytes."""
        return self.reserved // self.capacity * (self.capacity - len(self.slots))

    def _check(self, module: Module, lora: LoraWeights) -> None:
        shape, name = (lora.B.shape[0], lora.A.shape[1]), module_name(module)
        if module not in self.stacked:
            raise AdapterError(f"{name}: the slots have no room for this module")
        if lora.dora is not None:
            raise AdapterError(f"{name}: fixed slots hold no DoRA, as vLLM's do not")
        if len(lora.A) > self.max_rank:
            raise AdapterError(f"{name}: rank {len(lora.A)} is greater than max_rank {self.max_rank}")
        A, B, _ = self.stacked[module]
        if shape != (B.shape[1], A.shape[2]):
            raise AdapterError(
                f"{name}: the adapter maps {shape[1]} to {shape[0]}, the slots {A.shape[2]} to {B.shape[1]}"
            )


class FixedPool:
    """A KV cache and fixed slots beside it: Engine(model, pool=partial(FixedPool, max_rank=64), max_adapters=8)."""

    def __init__(
        self,
        model: Model,
        p: Precision,
        ops: Ops,
        num_blocks: int = 512,
        block_size: int = 16,
        capacity: int | None = None,
        max_rank: int = 16,
        modules: Collection[str] | None = None,
    ) -> None:
        if capacity is None:
            raise LoracleError(
                "fixed slots are reserved before the first adapter comes: max_adapters must say how many"
            )
        self.cache = KVCache(
            model.config, num_blocks, block_size, p, model.device, ops.select_victim, ops.latent.kv_shape
        )
        self.adapters = AdapterCache(model, p, ops, capacity)
        self.adapters.slots = FixedSlots(model, p, capacity, max_rank, modules)
