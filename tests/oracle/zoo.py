"""A small case for each thing that a mutant may need, and what an Ops answers to it.

The plain case has nothing special: one layer, one head, two adapters of one rank, whole prompts in one batch. Each
other case is the plain one and what its name says, so that `needs` can be shown to be enough, and not too much.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from support.build import random_adapter, random_model

from refimpl import NUMPY, Engine, Model, Ops, Request, logits, trace
from refimpl.adapter import Adapter, LoraTensors
from refimpl.config import EMBED, LAYER_MODULES, LM_HEAD, LayerKind, Mla, Mlp, ModelConfig, Moe, Norms, Rope
from refimpl.oracle.bugs import IN_SEQUENCES

Rows = list[np.ndarray]
EMBEDDING, HEAD = (*LAYER_MODULES, "embed_tokens"), (*LAYER_MODULES, "lm_head")

CONFIG = ModelConfig(
    vocab_size=23,
    hidden_size=14,
    intermediate_size=19,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=4,
    max_position_embeddings=128,
)


@dataclass(frozen=True)
class Case:
    """A model, two adapters or more, and what is asked of them, in rounds: one engine serves them one after another."""

    model: Model
    pool: Sequence[Adapter]
    rounds: Sequence[Sequence[Request]] = ()
    options: dict | None = None  # of an Engine; None: one batch of whole prompts

    def responses(self, ops: Ops) -> Rows:
        """The logits, in the order in which they were computed. What a mutant makes of NaN and inf is no warning."""
        with np.errstate(all="ignore"):
            if self.options is None:
                return [row for requests in self.rounds for row in logits(self.model, requests, ops)]
            return served(Engine(self.model, ops, **self.options), self.rounds)


def served(engine: Engine, rounds: Sequence[Sequence[Request]], new: int = 3) -> Rows:
    """Every row of logits that the engine samples from, step by step."""
    found: Rows = []
    for requests in rounds:
        for request in requests:
            engine.add(request, new)
        while engine.busy:
            with trace("logits") as t:
                engine.step()
            found.append(np.array(t["logits"]))
    return found


def differ(got: Rows, expected: Rows) -> bool:
    """Another shape, or another number by more than rounding; NaN is another number."""
    return len(got) != len(expected) or any(
        a.shape != b.shape or not np.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(got, expected, strict=True)
    )


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length).tolist()


def pool_of(config: ModelConfig, ranks: Sequence[int] = (2, 2), **options: object) -> list[Adapter]:
    return [random_adapter(config, i, r, 3.0 + 4 * i, **options) for i, r in enumerate(ranks)]


def plain(config: ModelConfig = CONFIG, pool: Sequence[Adapter] | None = None, more: Sequence[Request] = ()) -> Case:
    """Both adapters and the base, one prompt long enough for three blocks, the first adapter a second time."""
    model, pool = random_model(config, 1), pool or pool_of(config)
    requests = [
        Request(prompt(1, 40), pool[0]),
        Request(prompt(2, 5), pool[1]),
        Request(prompt(3, 3)),
        Request(prompt(4, 7), pool[0]),
        *more,
    ]
    return Case(model, pool, [requests])


def with_(**changes: object) -> Case:
    """The plain case in a model of another shape."""
    return plain(replace(CONFIG, **changes))


def with_modules(modules: Sequence[str], **changes: object) -> Case:
    """The same, with adapters on these modules."""
    config = replace(CONFIG, **changes)
    return plain(config, pool_of(config, modules=modules))


def ranks(*ranks: int, **options: object) -> Case:
    return plain(pool=pool_of(CONFIG, ranks, **options))


def summing(*weights: float) -> Case:
    pool = pool_of(CONFIG)
    return plain(pool=pool, more=[Request(prompt(5, 4), list(zip(pool, weights, strict=False)))])


def three() -> Case:
    pool = pool_of(CONFIG, (2, 2, 2))
    return plain(pool=pool, more=[Request(prompt(5, 4), pool[2])])


def partial() -> Case:
    first, second = pool_of(CONFIG)
    return plain(pool=[first, replace(second, lora={s: w for s, w in second.lora.items() if s[1] != "v_proj"})])


def uneven_ranks() -> Case:
    first, second = pool_of(CONFIG)
    lora = dict(first.lora) | {s: w for s, w in random_adapter(CONFIG, 9, 5).lora.items() if s[1] == "v_proj"}
    return plain(pool=[replace(first, lora=lora), second])


def saving(modules: Sequence[tuple[int, str]], words: int) -> Case:
    """Both adapters bring these layers along, the first with more words."""
    pool = []
    for i, adapter in enumerate(pool_of(CONFIG)):
        rng, size = np.random.default_rng(i), (CONFIG.vocab_size + (words if i == 0 else 0), CONFIG.hidden_size)
        pool.append(replace(adapter, replaced={module: rng.standard_normal(size) for module in modules}))
    return plain(pool=pool, more=[Request([*prompt(5, 3), CONFIG.vocab_size + words - 1], pool[0])])


def own_biases() -> Case:
    first, second = pool_of(CONFIG)
    bias = {(0, "v_proj"): np.random.default_rng(0).standard_normal(CONFIG.shape("v_proj")[0])}
    return plain(pool=[replace(first, biases=bias), second])


def in_an_engine(**options: object) -> Case:
    """The plain case, served; neither blocks nor batches interfere."""
    case = plain()
    defaults = {"num_blocks": 64, "max_batch_tokens": 512, "prefix_caching": False}
    return replace(case, options=defaults | options)


def one_after_another() -> Case:
    """Slots for one adapter, room for old blocks: reloads under one name, with the same and other modules, prefixes
    that are shared by adapters, weights, scales and sums."""
    first, second = pool_of(CONFIG)
    renamed = replace(second, name=first.name)
    narrow = random_adapter(CONFIG, 7, 2, modules=("q_proj", "down_proj"), name="narrow")
    louder = replace(first, config=replace(first.config, lora_alpha=11.0))
    ids, tail = prompt(1, 9), prompt(2, 4)
    turns = [
        [Request(ids, first)],
        [Request(ids, renamed)],
        [Request(ids)],
        [Request(ids, narrow)],
        [Request(ids, louder)],
        [Request(ids, [(first, 0.5)])],
        [Request(ids, [(first, 0.5), (second, 1.0)])],
        [Request(ids, [(first, 0.5), (narrow, 1.0)])],
        [Request([*ids[:3], *tail, *ids[7:]], first)],
        [Request([*tail, *ids[4:]], first)],
        [Request([*ids[:2], ids[2] + 1 if ids[2] < 22 else 0, *ids[3:]], first)],
        [Request(ids, first), Request(tail, second), Request(tail, [(narrow, 1.0), (second, 1.0)])],
    ]
    return Case(
        random_model(CONFIG, 1), [first, second], turns, {"num_blocks": 200, "block_size": 3, "max_adapters": 2}
    )


def tied() -> Case:
    config = replace(CONFIG, tie_word_embeddings=True)
    return plain(config, pool_of(config, modules=EMBEDDING))


def latent(**options: object) -> Case:
    """Multi-head latent attention; whole prompts, or served with these options of an Engine."""
    mla = Mla(2, kv_lora_rank=6, qk_nope_head_dim=3, qk_rope_head_dim=2, v_head_dim=4)
    config = replace(
        CONFIG,
        mla=mla,
        qkv=mla.modules,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=5,
        rope=Rope(head_dim=2, interleaved=True),
    )
    case = plain(config, pool_of(config, modules=config.layer_modules))
    return replace(case, options={"num_blocks": 64, "prefix_caching": False, **options}) if options else case


# What other families have, and other kinds of adapters.


def experts(
    modules: Callable[[ModelConfig], Sequence[str]] = lambda config: LAYER_MODULES,
    scores: str = "softmax",
    **options: object,
) -> Case:
    """A layer of experts, with one that all tokens share, as in Qwen2-MoE: not renormalised."""
    shared = Mlp(("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"), "mlp.shared_expert.down_proj", 6)
    config = replace(CONFIG, moe=Moe(4, 2, 5, scores, shared=shared, shared_gate="mlp.shared_expert_gate"))
    return plain(config, pool_of(config, modules=(*modules(config), "o_proj"), **options))


def of_experts(config: ModelConfig) -> list[str]:
    return [name for i in range(config.moe.experts) for name in config.moe.mlp(i).modules]


def two_layers_one_slides() -> Case:
    kinds = LayerKind(window=3), LayerKind()
    return with_(num_hidden_layers=2, layers=kinds)


def longrope() -> Case:
    """Prompts of up to 7 tokens beside one of 40, around a boundary of 8; then the short ones without it."""
    rope = Rope(type="longrope", original_max_position_embeddings=8, short_factor=(1.0, 1.0), long_factor=(1.5, 7.0))
    case = with_(rope=rope)
    return replace(case, rounds=[*case.rounds, case.rounds[0][1:]])


def dora(**changes: object) -> Case:
    """Adapters whose every magnitude is near what the base's rows have."""
    config = replace(CONFIG, **changes)
    return plain(config, [with_dora(config, adapter) for adapter in pool_of(config)])


def with_dora(config: ModelConfig, adapter: Adapter) -> Adapter:
    lora = {module: LoraTensors(x.A, x.B, x.bias, np.linspace(0.5, 2, len(x.B))) for module, x in adapter.lora.items()}
    return replace(adapter, config=replace(adapter.config, use_dora=True), lora=lora)


def alora_pool() -> list[Adapter]:
    return [
        replace(adapter, config=replace(adapter.config, alora_invocation_tokens=(21, 22)))
        for adapter in pool_of(CONFIG)
    ]


def alora() -> Case:
    """A prompt that has the invocation twice."""
    pool = alora_pool()
    return plain(pool=pool, more=[Request([3, 21, 22, 5, 6, 21, 22, 7, 8], pool[0])])


def alora_in_sequence() -> Case:
    """The invocation stands in the middle of a block of four; the adapter comes first, then the base."""
    pool, ids = alora_pool(), [3, 4, 5, 6, 7, 21, 22, 8, 9, 10, 11, 12, 13]
    turns = [[Request(ids, pool[0])], [Request(ids)]]
    return Case(random_model(CONFIG, 1), pool, turns, {"num_blocks": 64, "block_size": 4})


CASES: dict[str, Callable[[], Case]] = {
    "batch": plain,
    "sum": lambda: summing(0.5, -2.0),
    "weight": lambda: summing(0.5),
    "three adapters": three,
    "other modules": partial,
    "rslora": lambda: ranks(2, 2, use_rslora=True),
    "alpha_pattern": lambda: ranks(2, 2, alpha_pattern={"q_proj": 9.0}),
    "rank_pattern": uneven_ranks,
    "mixed ranks": lambda: ranks(2, 4),
    "rank 8": lambda: ranks(8, 8),
    "rank over 8": lambda: ranks(12, 12),
    "rank over 16": lambda: ranks(18, 18),
    "odd rank": lambda: ranks(3, 3),
    "lora_bias": lambda: ranks(2, 2, lora_bias=True),
    "embed_tokens LoRA": lambda: ranks(2, 2, modules=EMBEDDING),
    "lm_head LoRA": lambda: ranks(2, 2, modules=HEAD),
    "tied embedding": tied,
    "modules_to_save": lambda: saving([EMBED, LM_HEAD], 0),
    "base biases": own_biases,
    "grown vocabulary": lambda: saving([EMBED, LM_HEAD], 2),
    "two layers": lambda: with_(num_hidden_layers=2),
    "several key heads": lambda: with_(num_attention_heads=2, num_key_value_heads=2),
    "GQA": lambda: with_(num_attention_heads=4, num_key_value_heads=2),
    "square layers": lambda: with_(head_dim=14),
    "window": lambda: with_(sliding_window=3),
    "kv_b_proj LoRA": latent,
    "kv_b_proj LoRA in steps": lambda: latent(max_batch_tokens=4),
    "experts": experts,
    "experts LoRA": lambda: experts(of_experts),
    "experts rsLoRA": lambda: experts(of_experts, use_rslora=True),
    "router LoRA": lambda: experts(lambda config: [config.moe.router], "sigmoid"),
    "shared expert LoRA": lambda: experts(lambda config: config.moe.shared.modules),
    "gated shared expert LoRA": lambda: experts(lambda config: config.moe.shared.modules),
    "multiplied embedding LoRA": lambda: with_modules(EMBEDDING, embedding_multiplier=3.7),
    "capped logits LoRA": lambda: with_modules(HEAD, logits_softcap=5.0),
    "norms of q and k": lambda: with_(norms=Norms(q="self_attn.q_norm", k="self_attn.k_norm")),
    "sinks": lambda: with_(sinks=True),
    "sliding and full layers": two_layers_one_slides,
    "longrope": longrope,
    "DoRA": dora,
    "DoRA on a bias": lambda: dora(attention_bias=True),
    "aLoRA": alora,
    "aLoRA in sequence": alora_in_sequence,
    "lm_head LoRA on a prompt": lambda: ranks(2, 2, modules=HEAD),
    "decode": in_an_engine,
    "chunks": lambda: in_an_engine(max_batch_tokens=4),
    "another block size": lambda: in_an_engine(block_size=4),
    "scattered blocks": lambda: in_an_engine(block_size=3),
    **dict.fromkeys(IN_SEQUENCES, one_after_another),
}


@functools.cache
def case(needs: str) -> Case:
    return CASES[needs]()


@functools.cache
def truth(needs: str) -> Rows:
    return case(needs).responses(NUMPY)
