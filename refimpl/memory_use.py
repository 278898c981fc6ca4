"""Where the bytes of an engine's pools are: keys and values, adapters, free, or wasted."""

from dataclasses import dataclass

from .engine import Engine
from .plans import NO_BLOCK


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on the device, without the base model. What is reserved is one of the other four."""

    reserved: int
    kv: int  # keys and values of running requests and of cached prefixes, each block once
    adapters: int  # LoRA weights of the loaded adapters: A, B, biases and DoRA's gains, nothing else
    free: int  # blocks and slots that nothing is in
    wasted: int  # ends of blocks, ranks below the slot's: reserved for one owner who does not fill it

    @property
    def wasted_share(self) -> float:
        """What is wasted, as a share of all that is not free; 0 where nothing is."""
        filled = self.reserved - self.free
        return self.wasted / filled if filled else 0.0


def memory_use(engine: Engine) -> MemoryUse:
    """Count the bytes of an engine's pools as they are now, from its arrays, its tables and its slots."""
    cache, slots = engine.cache, engine.adapters.slots
    block = cache.memory.nbytes // cache.num_blocks
    _, cached, unused = cache.counts
    kv = cached * block + sum(_tokens_in_blocks(engine).values()) * (block // cache.block_size)
    adapters = sum(slots.nbytes(slot) for slot in slots.slots)
    free = unused * block + slots.free
    reserved = cache.memory.nbytes + slots.reserved
    return MemoryUse(reserved, kv, adapters, free, reserved - kv - adapters - free)


def _tokens_in_blocks(engine: Engine) -> dict[int, int]:
    """How many tokens of running requests each block holds; a block that several share counts once."""
    tokens: dict[int, int] = {}
    size = engine.cache.block_size
    for state in engine.running:
        for i, block in enumerate(state.table):
            if block != NO_BLOCK:
                tokens[block] = max(tokens.get(block, 0), min(size, max(0, state.computed - i * size)))
    return tokens
