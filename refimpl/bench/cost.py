"""What serving many adapters costs, by arithmetic: bytes, flops, and the time that a device needs for them at least.

Three ways to serve a step in which R requests use D different adapters:

    merged               D models, W + scale B A each, one after another: the base's bytes D times, no LoRA
    one after another    one base, a pass for each adapter: the base's bytes D times, and each adapter's once
    batched              one pass for all: the base's bytes once, and each adapter's once

    time of a pass  =  max(bytes / bandwidth, flops / peak)           (roofline: Williams, Waterman & Patterson 2009)

Counted is what cannot be avoided. Bytes: each weight that a pass uses read once, each key and value that it sees read
once, the new ones written; what goes from one step of a layer to the next is taken to stay in caches. Flops: products
alone, 2 for each multiplication with its addition; norms, rotations and softmax are left out. So a time here is a
floor: no engine is faster, and launches, which no data sheet prices, come on top (launches.py counts them). But for one
thing: the last layer's queries are counted of all tokens, as model.forward has them, and those of the last would do.
"""

import bisect
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from ..arrays import ceil_div
from ..config import EMBED, LM_HEAD, ModelConfig, Module

Ranks = Mapping[Module, int]  # the modules that an adapter changes, and its rank in each
LONGEST = 1 << 24  # tokens of a prompt: longer ones are not looked at
WAYS = ("merged", "one after another", "batched")


@dataclass(frozen=True)
class Step:
    """One step of an engine: every request computes `tokens` new tokens, the last of `context` tokens that it has."""

    requests: int
    tokens: int  # 1: decode; context: a whole prefill
    context: int
    adapters: int  # different ones among the requests, each of which has one; 0: the base alone, or a merged model

    @property
    def rows(self) -> int:
        """New tokens of all requests."""
        return self.requests * self.tokens


@dataclass(frozen=True)
class Work:
    """What one or more passes read, write and multiply."""

    base_bytes: int = 0
    adapter_bytes: int = 0
    kv_bytes: int = 0
    base_flops: int = 0
    lora_flops: int = 0
    attention_flops: int = 0

    @property
    def bytes(self) -> int:
        """All that moves."""
        return self.base_bytes + self.adapter_bytes + self.kv_bytes

    @property
    def flops(self) -> int:
        """All that is multiplied and added."""
        return self.base_flops + self.lora_flops + self.attention_flops

    def __add__(self, other: "Work") -> "Work":
        return Work(*(one + another for one, another in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, count: int) -> "Work":
        return Work(*(count * each for each in astuple(self)))


@dataclass(frozen=True)
class Device:
    """What a device can do at best. `source`: the data sheet, or how it was measured."""

    name: str
    memory: int  # bytes
    bandwidth: float  # bytes a second
    peaks: Mapping[str, float]  # flops a second of a product of this type, dense, with float32 sums
    source: str

    def seconds(self, work: Work, dtype: str) -> float:
        """The roofline: a pass takes as long as its bytes, or as its flops."""
        return max(work.bytes / self.bandwidth, work.flops / self.peaks[dtype])


# ---- what lies in memory --------------------------------------------------------------------------------------------


def parameters(config: ModelConfig, module: Module) -> int:
    """Numbers of one module of the base: its weight, and its bias if it has one."""
    d_out, d_in = config.shape(module)
    return d_out * d_in + (d_out if config.has_bias(module[1]) else 0)


def norm_parameters(config: ModelConfig) -> int:
    """Numbers of all norms, the last one included."""
    layers = range(config.num_hidden_layers)
    ends = config.hidden_size + config.hidden_size_per_layer_input
    widths = ends + sum(config.norm_width(name, i) for i in layers for name in config.norms_of(i))
    return 2 * widths if config.norms.bias else widths


def base_parameters(config: ModelConfig) -> int:
    """Numbers of the base. A head that is tied to the embedding lies in memory once."""
    tied = parameters(config, LM_HEAD) if config.tie_word_embeddings else 0
    vectors = sum(sum(config.vectors_of(i).values()) for i in range(config.num_hidden_layers))
    rest = norm_parameters(config) + vectors + config.vocab_size_per_layer_input * config.layer_inputs_width
    return sum(parameters(config, module) for module in config.modules()) + rest - tied


def adapter_parameters(config: ModelConfig, ranks: Ranks) -> int:
    """Numbers of one adapter: A [r, d_in] and B [d_out, r] of each module."""
    return sum(r * sum(config.shape(module)) for module, r in ranks.items())


def kv_parameters(config: ModelConfig) -> int:
    """Numbers that one token keeps in the KV cache: a key and a value for each head of each layer."""
    return sum(sum(config.kv_shape(layer).numbers) for layer in config.kv_layers)


def memory(config: ModelConfig, ranks: Ranks, way: str, loaded: int, cached_tokens: int, size: int) -> int:
    """Bytes of `loaded` adapters ready to serve, and a KV cache. Merged, each of them is a whole model."""
    base, adapter = base_parameters(config), adapter_parameters(config, ranks)
    weights = loaded * base if way == "merged" else base + loaded * adapter
    return size * (weights + cached_tokens * kv_parameters(config))


# ---- what a pass does -----------------------------------------------------------------------------------------------


def work(config: ModelConfig, ranks: Ranks, step: Step, size: int) -> Work:
    """Bytes and flops of one pass over all requests of a step; `size` is that of a number in memory.

    Of experts, tokens are taken to be spread evenly, in the order of the adapters: all are as busy as can be."""
    return base_work(config, step, size) + lora_work(config, ranks, step, size) + attention_work(config, step, size)


def tokens_of(config: ModelConfig, module: Module, step: Step) -> int:
    """How many tokens of each request a module is applied to: all new ones, or the last, which gets logits."""
    return 1 if config.for_logits_alone(module) else step.tokens


def rows_of(config: ModelConfig, module: Module, step: Step) -> int:
    """How many rows a module is applied to: these tokens of all requests; in an expert its share of them, each of
    which goes through top_k."""
    rows = step.requests * tokens_of(config, module, step)
    if config.moe is None or (expert := config.moe.expert_of(module[1])) is None:
        return rows
    few, more = divmod(rows * config.moe.top_k, config.moe.experts)
    return few + (expert < more)


def base_work(config: ModelConfig, step: Step, size: int) -> Work:
    """Each weight once; of the embedding one row for each token. A product of n rows is 2 n d_out d_in flops."""
    products = [module for module in config.modules() if module != EMBED and rows_of(config, module, step)]
    read = sum(parameters(config, module) for module in products) + norm_parameters(config)
    flops = sum(2 * rows_of(config, module, step) * math.prod(config.shape(module)) for module in products)
    looked_up = config.hidden_size + config.layer_inputs_width
    return Work(base_bytes=size * (read + step.rows * looked_up), base_flops=flops)


def lora_work(config: ModelConfig, ranks: Ranks, step: Step, size: int) -> Work:
    """A and B of each adapter once, and 2 n r (d_in + d_out) flops. At the embedding A's columns are looked up.

    Experts of one layer are taken to have one rank: which of them an adapter's tokens go through is not said."""
    read = flops = 0
    for module, r in ranks.items() if step.adapters else ():
        d_out, d_in = config.shape(module)
        if module == EMBED:  # its table is [vocab, d_model]: what comes in is as wide as the vocabulary
            read += r * step.rows + step.adapters * r * d_in
            flops += 2 * step.rows * r * d_in
        else:
            read += readers(config, module, step) * r * (d_in + d_out)
            flops += 2 * rows_of(config, module, step) * r * (d_in + d_out)
    return Work(adapter_bytes=size * read, lora_flops=flops)


def readers(config: ModelConfig, module: Module, step: Step) -> int:
    """How many adapters a module's rows have: all of a step's, and in an expert its share of all pairs of an adapter
    and an expert, of which each of the adapter's tokens makes top_k at most."""
    if config.moe is None or (expert := config.moe.expert_of(module[1])) is None:
        return step.adapters
    few, more = divmod(step.requests, step.adapters)
    counts = [more, step.adapters - more]
    pairs_each = tokens_of(config, module, step) * config.moe.top_k
    reached = [min(config.moe.experts, requests * pairs_each) for requests in (few + 1, few)]
    pairs = sum(count * each for count, each in zip(counts, reached, strict=True))
    return pairs // config.moe.experts + (expert < pairs % config.moe.experts)


def attention_work(config: ModelConfig, step: Step, size: int) -> Work:
    """Keys and values written once and read once for each request; q k^T and p v are 2 flops a pair for each
    channel of a key and of a value."""
    moved = flops = 0
    for layer in range(config.num_hidden_layers):
        shape, kind = config.kv_shape(layer), config.kind(layer)
        window = kind.window or step.context
        written = step.tokens if kind.kv_from is None else 0
        moved += sum(shape.numbers) * (written + min(step.context, step.tokens + window - 1))
        flops += 2 * config.num_attention_heads * (shape.key + shape.value) * visible(step.tokens, step.context, window)
    return Work(kv_bytes=size * step.requests * moved, attention_flops=step.requests * flops)


def visible(tokens: int, context: int, window: int) -> int:
    """How many (query, key) pairs the last `tokens` of `context` tokens have: each sees itself and what is before it.

    At most `window` keys; of those that see fewer, each sees one less than its successor."""
    full = min(tokens, max(0, context - window))
    rest = tokens - full
    return full * window + rest * (context - full) - rest * (rest - 1) // 2


# ---- the three ways -------------------------------------------------------------------------------------------------


def passes(way: str, step: Step) -> list[tuple[int, Step]]:
    """(how many, pass) for each kind of pass that serves the step. Requests are spread over the adapters evenly."""
    if way == "batched" or not step.adapters:
        return [(1, step)]
    few, more = divmod(step.requests, step.adapters)
    inside = 0 if way == "merged" else 1
    shares = ((more, few + 1), (step.adapters - more, few))
    return [(count, Step(share, step.tokens, step.context, inside)) for count, share in shares if count and share]


def total(config: ModelConfig, ranks: Ranks, way: str, step: Step, size: int) -> Work:
    """Bytes and flops of a step, served in one of the WAYS."""
    return sum((work(config, ranks, each, size) * count for count, each in passes(way, step)), Work())


def seconds(config: ModelConfig, ranks: Ranks, way: str, step: Step, device: Device, dtype: str, size: int) -> float:
    """The time that the device needs for it at least."""
    return sum(count * device.seconds(work(config, ranks, each, size), dtype) for count, each in passes(way, step))


# ---- where one way overtakes another --------------------------------------------------------------------------------


def batched_from(
    config: ModelConfig, ranks: Ranks, step: Step, device: Device, dtype: str, size: int, other: str
) -> int | None:
    """The fewest different adapters among the requests of this step with which `batched` is faster than `other`.

    None: with no number of them. One adapter never is: merged has nothing to add, and one pass is one pass."""
    for adapters in range(1, step.requests + 1):
        each = Step(step.requests, step.tokens, step.context, adapters)
        batched, alone = (seconds(config, ranks, way, each, device, dtype, size) for way in ("batched", other))
        if batched < alone:
            return adapters
    return None


def merged_from(config: ModelConfig, ranks: Ranks, device: Device, dtype: str, size: int) -> int:
    """How long a prompt must be so that a merged copy prefills it no slower than its share of a large batch.

    The copy's weights are read for this prompt alone; in a batch that is limited by its products, the prompt's share is
    its flops, those of LoRA included. About W / bandwidth * peak / (f + a), f and a the flops of one token in the base
    and in its adapter. The flops grow faster than the bytes, so there is one such length, and bisection finds it."""

    def merged_is_no_slower(tokens: int) -> bool:
        copy, share = (work(config, ranks, Step(1, tokens, tokens, adapters), size) for adapters in (0, 1))
        return device.seconds(copy, dtype) <= share.flops / device.peaks[dtype]

    return bisect.bisect_left(range(1, LONGEST), True, key=merged_is_no_slower) + 1


def as_large_as_the_base(config: ModelConfig, ranks: Ranks) -> int:
    """So many adapters are as many bytes as the base: with them in one decode step, a batch reads twice as much."""
    return ceil_div(base_parameters(config), adapter_parameters(config, ranks))


def that_fit(config: ModelConfig, ranks: Ranks, way: str, device: Device, cached_tokens: int, size: int) -> int:
    """How many adapters (merged: copies of the model) fit beside a KV cache of so many tokens. 0: not even the base."""
    first, second = (memory(config, ranks, way, loaded, cached_tokens, size) for loaded in (0, 1))
    return max(0, int(device.memory - first) // (second - first))
