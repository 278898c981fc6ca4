"""Mixtures of experts as Hypothesis draws them, and what they compute, a second time: one token and one expert after
another, from the papers and not from refimpl."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from refimpl.config import EMBED, LM_HEAD, Groups, LayerKind, Mlp, ModelConfig, Moe
from refimpl.weights import Layer

from .build import Case, configs, random_adapter, random_model, requests


@st.composite
def mixtures(draw: st.DrawFn) -> Moe:
    """Any mixture of experts, in groups or not; top_k up to all that may be chosen."""
    number, size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    kept = draw(st.integers(1, number))
    groups = draw(st.sampled_from([None, Groups(number, kept, draw(st.integers(1, size)))]))
    top_k = draw(st.integers(1, size * (kept if groups else number)))
    scores = draw(st.sampled_from(["softmax", "softmax_of_chosen", "sigmoid"]))
    shared = draw(st.sampled_from([None, Mlp(("mlp.shared.gate", "mlp.shared.up"), "mlp.shared.down", 6)]))
    return Moe(
        number * size,
        top_k,
        draw(st.sampled_from([3, 9])),
        scores,
        renormalise=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5])),
        groups=groups,
        bias=draw(st.booleans()),
        correction=draw(st.sampled_from([None, "mlp.gate.correction"])),
        shared=shared,
        shared_gate=draw(st.sampled_from([None, "mlp.shared_gate"])) if shared else None,
    )


@st.composite
def expert_configs(draw: st.DrawFn) -> ModelConfig:
    """A small Llama with experts in every layer, or in some."""
    config = replace(draw(configs(max_layers=2)), moe=draw(mixtures()))
    if draw(st.booleans()):
        kind = config.kind(0)
        first = LayerKind(kind.window, kind.rope, sparse=False)
        config = replace(config, layers=(first, kind), num_hidden_layers=2)
    return config


@st.composite
def expert_cases(draw: st.DrawFn) -> Case:
    """A model with experts, adapters on any of its modules, and one ragged batch."""
    config = draw(expert_configs())
    model, seed, pool = random_model(config, draw(st.integers(0, 1000))), draw(st.integers(0, 1000)), []
    for i in range(draw(st.integers(1, 3))):
        kinds = draw(st.lists(st.sampled_from(["router", "experts", "shared", "attention", "ends"]), min_size=1))
        r = draw(st.sampled_from([1, 2, 5]))
        alpha, rslora = r * draw(st.sampled_from([0.5, 3.0, -1.5])), draw(st.booleans())
        pool.append(random_adapter(config, 10 * seed + i, r, alpha, rslora, modules=modules_of(config, kinds)))
    return Case(model, pool, draw(requests(config, pool, max_len=6)))


def modules_of(config: ModelConfig, kinds: list[str]) -> list[str]:
    """The names of the modules of these kinds, and always of o_proj: no adapter is on nothing."""
    moe = config.moe
    assert moe is not None
    names = {
        "router": [moe.router],
        "experts": [name for i in range(0, moe.experts, 2) for name in moe.mlp(i).modules],
        "shared": [*(moe.shared.modules if moe.shared else ()), *filter(None, [moe.shared_gate])],
        "attention": ["q_proj", "v_proj"],
        "ends": [EMBED[1], LM_HEAD[1]],
    }
    return ["o_proj", *dict.fromkeys(name for kind in kinds for name in names[kind])]


def mixed(config: ModelConfig, layer: Layer, h: np.ndarray) -> np.ndarray:
    """What a layer of experts computes of these vectors."""
    moe = config.moe
    assert moe is not None
    return np.stack([of_token(moe, layer, x) for x in h])


def of_token(moe: Moe, layer: Layer, x: np.ndarray) -> np.ndarray:
    """One token's: the sum over its experts, best first."""
    logits = product(layer, moe.router, x)
    positive = np.exp(logits - max(logits))
    scores = {
        "softmax": positive / sum(positive),
        "sigmoid": 1 / (1 + np.exp(-logits)),
        "softmax_of_chosen": logits,
    }[moe.scores]
    wanted = scores + (layer.vectors[moe.correction] if moe.correction else 0)
    open_to_all = set(range(moe.experts))
    if moe.groups:
        members = np.array_split(np.arange(moe.experts), moe.groups.number)
        worth = [sum(sorted(wanted[group])[-moe.groups.best :]) for group in members]
        best = sorted(range(len(members)), key=lambda i: worth[i])[-moe.groups.kept :]
        open_to_all = {expert for i in best for expert in members[i].tolist()}
    chosen = sorted(open_to_all, key=lambda i: wanted[i])[-moe.top_k :]
    shares = scores[chosen] if moe.scores != "softmax_of_chosen" else positive[chosen] / sum(positive[chosen])
    if moe.renormalise:
        shares = shares / sum(shares)
    y = sum(share * moe.scale * mlp(layer, f"{moe.expert}.{i}.", x) for i, share in zip(chosen, shares, strict=True))
    if moe.shared:
        gate = 1 / (1 + np.exp(-product(layer, moe.shared_gate, x))) if moe.shared_gate else 1
        first, second = (product(layer, name, x) for name in moe.shared.gate_up)
        y = y + gate * product(layer, moe.shared.down, first / (1 + np.exp(-first)) * second)
    return y


def mlp(layer: Layer, parent: str, x: np.ndarray) -> np.ndarray:
    """One gated MLP."""
    gate = product(layer, f"{parent}gate_proj", x)
    return product(layer, f"{parent}down_proj", gate / (1 + np.exp(-gate)) * product(layer, f"{parent}up_proj", x))


def product(layer: Layer, name: str, x: np.ndarray) -> np.ndarray:
    """W x + b."""
    linear = layer.linears[name]
    return linear.weight @ x + (0 if linear.bias is None else linear.bias)
