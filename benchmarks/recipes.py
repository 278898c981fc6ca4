"""How other engines test their LoRA, made again from what they published: would they have caught a mutant?

Each recipe is a function, mutant -> caught. What is copied is the recipe (shapes, numbers drawn, tolerance, what is
compared), not the code: the test's engine is this package with the mutant's Ops, and what it is compared
with is this package without. Where a doubt was left, it was settled for the recipe. A recipe that meets a mutant that
its test could not have run at all (an exception, which a crash would be) has caught it.

The recipes ask one batch of a fresh engine without a prefix cache; none has a sequence of loads, so that what goes
wrong in an engine's memory is out of their sight.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from refimpl import load_adapter, load_model, tiny
from refimpl.adapter import Adapter, LoraTensors, PeftConfig
from refimpl.adapter_slots import AdapterSlots
from refimpl.arrays import Array, Precision, rounded
from refimpl.config import LAYER_MODULES, ModelConfig, Module, Rope
from refimpl.engines.interface import EngineRequest, EngineResponse, Settings
from refimpl.engines.ours import Ours
from refimpl.ops import NUMPY, Ops
from refimpl.oracle.noise.readout import log_softmax
from refimpl.plans import LoraMapping
from refimpl.weights import Layer, Linear, Model

MakeOps = Callable[[], Ops]
Recipe = Callable[[MakeOps], bool]
NEW = 32  # tokens that the recipes of whole models produce


# One LoRA product.


@dataclass(frozen=True)
class Product:
    """What a test of a kernel hands to it: y += scale * B A x, for runs of tokens, each with its adapter."""

    x: Array  # [tokens, d_in]
    y: Array  # [tokens, d_out] of each module
    lora: Sequence[dict[str, LoraTensors]]  # of each slot, by module
    ids: Array  # [tokens, 1]
    scale: float
    config: ModelConfig  # whose modules have these widths

    def run(self, ops: Ops, p: Precision) -> dict[str, Array]:
        """The y of every module. The scale is handed over as it is: the test does not compute one."""
        slots = AdapterSlots(without_weights(self.config), p)
        for slot, tensors in enumerate(self.lora):
            adapter = Adapter(
                f"lora-{slot}",
                PeftConfig(r=min(len(w.A) for w in tensors.values()), lora_alpha=1.0),
                {(0, name): w for name, w in tensors.items()},
            )
            slots.put(slot, ops.bind_adapter(adapter, self.config, lambda *_: self.scale))
        weights = np.where(self.ids < 0, 0.0, 1.0)
        found = {}
        for name in self.lora[0]:
            module: Module = (0, name)
            found[name] = self.y.astype("float32")
            ops.lora_delta(found[name], self.x.astype("float32"), module, slots, LoraMapping.of(self.ids, weights), p)
        return found


def without_weights(config: ModelConfig) -> Model:
    """A base of zeros, which take no memory: a test of a kernel has none."""

    def zeros(*shape: int) -> Array:
        return np.broadcast_to(np.float32(0), shape)

    linears = {module: Linear(zeros(*config.shape(module))) for module in LAYER_MODULES}
    layer = Layer({name: zeros(config.hidden_size) for name in config.norms.names}, linears)
    embed = zeros(*config.shape("embed_tokens"))
    return Model(config, embed, (layer,), zeros(config.hidden_size), Linear(embed), dtype="float32")


def widths(d_in: int, d_out: int, head_dim: int = 0) -> ModelConfig:
    """One layer in which q, k, v, gate and up are [d_out, d_in]."""
    heads = d_out // (head_dim or d_out)
    return ModelConfig(8, d_in, d_out, 1, heads, heads, d_out // heads, rope=Rope())


@functools.cache
def drawn(products: Callable[[str], Iterator[Product]], p: Precision) -> list[tuple[Product, dict[str, Array]]]:
    """All products of a test in a type, drawn once, and what is right."""
    return [(product, product.run(NUMPY, p)) for product in products(p.dtype)]


def off(products: Callable[[str], Iterator[Product]], make: MakeOps, p: Precision, atol: float, rtol: float) -> bool:
    """Is any number of any product further off than allowed? A NaN is."""
    for product, expected in drawn(products, p):
        with np.errstate(all="ignore"):
            try:
                got = product.run(make(), p)
            except Exception:  # a test that crashes has failed
                return True
            for module, y in expected.items():
                if not np.all(np.abs(got[module] - y) <= atol + rtol * np.abs(y)):
                    return True
    return False


def vllm_kernels(make: MakeOps) -> bool:
    """vLLM, tests/lora/test_punica_ops.py (046d2b1) with tests/lora/utils.py (07b1349).

    shrink and expand on their own, float16 and bfloat16. x, A, B and y are torch.rand, in [0, 1); sequences are 128
    tokens, all alike; an adapter is randint(0, loras - 1), which leaves the last one out; scaling 0.5; rtol = atol =
    6e-2, or 1e-2 for shrink, whose sum is float32. Published: batches 1 to 32, 1 to 128 adapters, ranks 1 to 256,
    hidden size 2049, 1 to 3 slices; and some 300 sizes of TP shards at rank 32. Here a spread of these. With hidden
    2049 the kernel alone runs; with the sizes of shards, in doubt, what is done to weights at loading as well."""
    for dtype in ("float16", "bfloat16"):
        p = Precision("model", dtype)
        wide = replace(p, lora_rank="float32", lora_delta="float32", linear="float32")  # what shrink returns
        if off(_shrinks, make, wide, 1e-2, 1e-2) or off(_expands, make, p, 6e-2, 6e-2):
            return True
    return False


# batches, adapters, rank, hidden size, modules (the slices of a fused projection)
VLLM_SHAPES: Sequence[tuple[int, int, int, int, tuple[str, ...]]] = (
    (1, 1, 1, 2049, ("o_proj",)),
    (4, 8, 16, 2049, ("o_proj",)),
    (1, 8, 256, 2049, ("o_proj",)),
    (4, 4, 32, 128, ("q_proj", "k_proj", "v_proj")),
    (4, 4, 32, 256, ("gate_proj", "up_proj")),
)


def _shrinks(dtype: str) -> Iterator[Product]:
    for i, (batches, loras, rank, hidden, modules) in enumerate(VLLM_SHAPES):
        rng = np.random.default_rng([i, 0])
        random = lambda *shape: rounded(rng.random(shape, np.float32), dtype)  # noqa: E731, B023
        tokens = batches * 128
        lora = [
            {m: LoraTensors(random(rank, hidden), np.eye(rank, dtype="float32")) for m in modules} for _ in range(loras)
        ]
        config = _shape_of(modules, hidden, rank)
        yield Product(
            random(tokens, hidden), np.zeros((tokens, rank)), lora, _vllm_ids(rng, batches, loras), 0.5, config
        )


def _expands(dtype: str) -> Iterator[Product]:
    for i, (batches, loras, rank, hidden, modules) in enumerate(VLLM_SHAPES):
        rng = np.random.default_rng([i, 1])
        random = lambda *shape: rounded(rng.random(shape, np.float32), dtype)  # noqa: E731, B023
        tokens = batches * 128
        lora = [
            {m: LoraTensors(np.eye(rank, dtype="float32"), random(hidden, rank)) for m in modules} for _ in range(loras)
        ]
        config = _shape_of(modules, rank, hidden)
        x, y = random(tokens, rank), random(tokens, hidden)
        yield Product(x, y, lora, _vllm_ids(rng, batches, loras), 1.0, config)


def _shape_of(modules: Sequence[str], d_in: int, d_out: int) -> ModelConfig:
    if modules == ("o_proj",):  # [hidden_size, heads * head_dim]
        return ModelConfig(8, d_out, 8, 1, 1, 1, d_in)
    return widths(d_in, d_out, 16 if d_out % 16 == 0 else 0)


def _vllm_ids(rng: np.random.Generator, batches: int, loras: int) -> Array:
    chosen = rng.integers(0, loras - 1 if loras > 1 else 1, batches)
    return np.repeat(chosen, 128).astype(np.int32)[:, None]


def trtllm_op(make: MakeOps) -> bool:
    """TensorRT-LLM, tests/unittest/trt/functional/test_lora.py, test_ranks (5798d3b).

    One LoRA product in float16, hidden size 4096, a request of 32 tokens for each rank of a list, each with an adapter
    of its own; x, A and B are N(0, 1) * 0.1; no scale; what is compared is the product alone (y = 0), with atol 1e-2
    and NumPy's default rtol of 1e-7. All of the published lists of ranks, at full size."""
    return off(_trtllm_products, make, Precision("model", "float16"), 1e-2, 1e-7)


TRTLLM_RANKS = ((1,), (2,), (4,), (2, 4), (8,), (16,), (8, 16), (1, 2, 4), (1, 2, 4, 8, 16))


def _trtllm_products(dtype: str) -> Iterator[Product]:
    hidden, length = 4096, 32
    for i, ranks in enumerate(TRTLLM_RANKS):
        rng = np.random.default_rng([i, 2])
        normal = lambda *shape: rounded(0.1 * rng.standard_normal(shape, np.float32), dtype)  # noqa: E731, B023
        lora = [{"q_proj": LoraTensors(normal(r, hidden), normal(hidden, r))} for r in ranks]
        ids = np.repeat(np.arange(len(ranks)), length).astype(np.int32)[:, None]
        tokens = length * len(ranks)
        yield Product(normal(tokens, hidden), np.zeros((tokens, hidden)), lora, ids, 1.0, widths(hidden, hidden, 128))


# A whole model: the embedded one and its four voices, in float16, beside "HF": the same rounded as transformers does.

PROMPTS = tiny.DEMO_PROMPTS
HF = Precision("transformers", "float16")


@functools.cache
def base() -> Model:
    """In float16."""
    return load_model("tiny", "float16")


@functools.cache
def voices() -> dict[str, Adapter]:
    """By name."""
    return {name: load_adapter(path, base().config, name) for name, path in tiny.VOICES.items()}


@functools.cache
def prompt_ids(i: int) -> tuple[int, ...]:
    """The tokens of one prompt."""
    return tuple(base().tokenizer.encode(PROMPTS[i]))


Requests = tuple[tuple[int, str | None], ...]  # which prompt, which voice


@functools.lru_cache(maxsize=2)  # two recipes look at the same batch
def answers(make: MakeOps, asked: Requests, precision: Precision | None = None) -> list[EngineResponse]:
    """Every row of logits, and 32 greedy tokens, of requests that are served together by a fresh engine."""
    engine = Ours(make, precision, base(), {tiny.VOICES[name]: voice for name, voice in voices().items()})
    engine.start(Settings(tiny.base_path(), "float16", max_adapters=len(voices()), max_requests=len(asked)))
    for name, path in tiny.VOICES.items():
        engine.load(name, path)
    with np.errstate(all="ignore"):
        return engine.run([EngineRequest(prompt_ids(i), name, NEW) for i, name in asked])


@functools.cache
def by_hf(asked: Requests) -> list[EngineResponse]:
    """What every recipe compares with: each request on its own."""
    return [answers(lambda: NUMPY, (one,), HF)[0] for one in asked]


def whole_model(differs: Callable[[EngineResponse, EngineResponse], bool], asked: Requests) -> Recipe:
    """A recipe that serves this batch, and compares each answer with HF's."""

    def caught(make: MakeOps) -> bool:
        try:
            got = answers(make, asked)
        except Exception:  # a test that crashes has failed
            return True
        return any(differs(a, b) for a, b in zip(got, by_hf(asked), strict=True))

    return caught


def _by_token(answer: EngineResponse) -> Array:
    """Log-probabilities [rows, vocab]."""
    assert answer.logits is not None
    return log_softmax(answer.logits.astype(np.float64))


def _not_close(ours: EngineResponse, hf: EngineResponse) -> bool:
    """At the first token that differs, is either one's missing from the other's five best?"""
    start = len(_by_token(hf)) - NEW
    a, b = _by_token(ours)[-NEW:], _by_token(hf)[start:]
    for i, (mine, other) in enumerate(zip(ours.token_ids, hf.token_ids, strict=True)):
        if mine != other:
            return mine not in np.argsort(-b[i])[:5] or other not in np.argsort(-a[i])[:5]
    return False


def _a_tenth_off(ours: EngineResponse, hf: EngineResponse) -> bool:
    """Is any of the five largest log-probabilities of any row 0.1 or more from HF's, the largest beside the largest?"""
    a, b = (-np.sort(-_by_token(x), axis=1)[:, :5] for x in (ours, hf))
    return a.shape != b.shape or not np.all(np.abs(a - b) < 1e-1)


def _other_text(ours: EngineResponse, hf: EngineResponse) -> bool:
    return ours.token_ids != hf.token_ids


EVERYONE: tuple[str | None, ...] = (None, *tiny.VOICES)

MIXED: Requests = tuple((i, name) for name in EVERYONE for i in range(3))

vllm_logprobs = whole_model(_not_close, MIXED)
vllm_logprobs.__doc__ = """vLLM, check_logprobs_close in tests/models/utils.py (002b4cf), as its tests against HF do.

Three prompts for the base and for each of four adapters, in one batch (its own tests ask one adapter at a time, and see
less); 32 greedy tokens and the five best of each place. Up to the first token that differs nothing is compared; there
each one's token must be among the other's five best; what comes after is not looked at."""

sglang_logprobs = whole_model(_a_tenth_off, tuple((i, list(tiny.VOICES)[i % 4]) for i in range(5)))
sglang_logprobs.__doc__ = """SGLang, test/registered/lora/test_lora_hf_sgl_logprob_diff.py (003dff9).

Five prompts in one batch, the adapters in turn; float16; radix cache off; 32 tokens. The five largest log-probabilities
of every place of prompt and answer, each less than 0.1 from HF's; texts are reported, not compared."""

greedy_text = whole_model(_other_text, MIXED)
greedy_text.__doc__ = """What users do: greedy text, 32 tokens, must be HF's.

The same batch."""

RECIPES: dict[str, Recipe] = {
    "vLLM: kernels, 6e-2": vllm_kernels,
    "vLLM: check_logprobs_close": vllm_logprobs,
    "SGLang: log-probabilities, 0.1": sglang_logprobs,
    "TensorRT-LLM: one product, 1e-2": trtllm_op,
    "greedy text": greedy_text,
}
