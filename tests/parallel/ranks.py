"""What the tests of several ranks share: models that can be cut, every kind of adapter, and the logits of all ranks."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from support.build import as_dora, random_adapter, random_model

from refimpl import Request
from refimpl.adapter import Adapter, TokenRows
from refimpl.config import EMBED, LM_HEAD, ModelConfig, Norms
from refimpl.model import logits
from refimpl.ops import NUMPY, Ops
from refimpl.parallel.backend import parallel
from refimpl.parallel.communicator import Communicator, Counting
from refimpl.parallel.layout import Layout
from refimpl.parallel.mutants import Mutant
from refimpl.parallel.shards import shard_model
from refimpl.parallel.threads import on_threads
from refimpl.synthetic.adapters import with_own_biases, with_own_layers
from refimpl.weights import Model

OLMO2 = Norms(
    attention_in=None,
    q="self_attn.q_norm",
    k="self_attn.k_norm",
    whole_projection=True,
    attention_out="post_attention_layernorm",
    mlp_in=None,
    mlp_out="post_feedforward_layernorm",
)


def small(**changes: object) -> ModelConfig:
    """A Llama that 1, 2, 4, 6 and 12 ranks can share; there are 2 key heads, and the vocabulary divides by none."""
    fields: dict = {
        "vocab_size": 23,
        "hidden_size": 10,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "attention_bias": True,
        "mlp_bias": True,
    }
    return ModelConfig(**(fields | changes))


FAMILIES = {
    "llama": small(),
    "three key heads": small(num_key_value_heads=3),
    "phi: fused modules": small(qkv=("qkv_proj",), gate_up=("gate_up_proj",)),
    "glm: gate and up are one": small(gate_up=("gate_up_proj",)),
    "granite 4: names of its own": small(gate_up=("input_linear",), down="output_linear", logits_scaling=3.0),
    "qwen 3: a norm over each head": small(norms=Norms(q="self_attn.q_norm", k="self_attn.k_norm")),
    "olmo 2: a norm over all heads": small(norms=OLMO2),
    "starcoder 2: LayerNorm, and no gate": small(
        norms=Norms(centred=True, bias=True), gate_up=("c_fc",), down="c_proj", biased=("c_fc", "c_proj")
    ),
    "nemotron: no gate": small(gate_up=("up_proj",), activation="relu2"),
    "cohere 2: attention and MLP beside each other": small(parallel=True, norms=Norms(centred=True, mlp_in=None)),
    "gemma 2: soft-caps, tied": small(tie_word_embeddings=True, attention_softcap=2.0, logits_softcap=3.0),
}


def every_kind(model: Model, seed: int = 0) -> dict[str, Adapter]:
    """One adapter of each kind, on every module that its kind can be on."""
    config, rng = model.config, np.random.default_rng([seed, 5])
    inner, everywhere = config.layer_modules, (*config.layer_modules, "embed_tokens", "lm_head")
    plain = random_adapter(config, seed + 1, r=5, modules=everywhere, lora_bias=True, name="plain")
    ids = np.array([1, 7, config.vocab_size - 1])
    rows = {module: TokenRows(ids, rng.standard_normal((3, config.hidden_size))) for module in (EMBED, LM_HEAD)}
    return {
        "plain": plain,
        "rank 1": random_adapter(config, seed + 2, r=1, use_rslora=True, modules=everywhere, name="rank 1"),
        "DoRA": as_dora(random_adapter(config, seed + 3, modules=everywhere, name="DoRA"), model, seed),
        "whole layers": with_own_layers(
            model, random_adapter(config, seed + 4, modules=inner, name="whole layers"), [EMBED, LM_HEAD], rng, extra=3
        ),
        "biases": with_own_biases(model, random_adapter(config, seed + 5, modules=inner, name="biases"), rng),
        "tokens": replace(random_adapter(config, seed + 6, modules=inner, name="tokens"), tokens=rows),
    }


def mixed_batch(model: Model, adapters: dict[str, Adapter], seed: int = 0) -> list[Request]:
    """The base, a weighted sum, and every adapter alone, the added tokens of one that has some included."""
    rng, vocab = np.random.default_rng([seed, 9]), model.config.vocab_size
    batch = [
        Request([1, 7, vocab - 1, 5]),
        Request([3, 3, vocab - 1], [(adapters["plain"], 0.5), (adapters["rank 1"], 2.0)]),
    ]
    for name, adapter in adapters.items():
        ids = rng.integers(0, vocab, 1 + len(batch) % 5).tolist()
        batch.append(Request([*ids, vocab + 1] if name == "whole layers" else ids, adapter))
    return batch


def on_ranks(
    model: Model,
    size: int,
    function: Callable[[Model, Ops], object],
    ops: Ops = NUMPY,
    fully_sharded: bool = False,
    mutant: Mutant | None = None,
    counters: list[Counting] | None = None,
) -> list:
    """What function(part of the model, backend) returns on each rank, all of them threads; with a mutant's bug."""

    def one(communicator: Communicator) -> object:
        counting = Counting(communicator)
        if counters is not None:
            counters.append(counting)
        layout = Layout(model.config, communicator.rank, size)
        part = shard_model(model, layout)
        if mutant is not None and mutant.part is not None:
            part = mutant.part(part, model, layout)
        step = parallel(layout, part, counting, ops, fully_sharded)
        return function(part, step if mutant is None or mutant.ops is None else mutant.ops(step, layout, counting))

    return on_threads(size, one)


def logits_of(requests: Sequence[Request]) -> Callable[[Model, Ops], list[np.ndarray]]:
    """The logits of these requests, as a function for on_ranks."""
    return lambda model, ops: logits(model, requests, ops)


def model_of(config: ModelConfig, seed: int = 0) -> Model:
    """The synthetic model of this seed, in float64."""
    return random_model(config, seed)
