"""Multi-head latent attention for the tests: models, as Hypothesis draws them, and the formulas of DeepSeek-V2 a second
time, without a cache, a batch or adapters."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from refimpl import Model, Request
from refimpl.adapter import Adapter
from refimpl.config import Mla, ModelConfig, Rope
from refimpl.mla_config import KV_NORM, Q_NORM
from support.build import Case, as_dora, random_adapter, random_model
from support.dense import apply, normed, wave_numbers

Q_MODULES = ("q_proj", "q_a_proj", "q_b_proj")
OTHERS = ("kv_a_proj_with_mqa", "o_proj", "gate_proj", "down_proj", "embed_tokens", "lm_head")


def latent_config(heads: int, mla: Mla, layers: int = 2, interleaved: bool = True, hidden: int = 11) -> ModelConfig:
    """A small model with this attention, whose score scale is not 1/sqrt(head_dim)."""
    return ModelConfig(
        vocab_size=23,
        hidden_size=hidden,
        intermediate_size=14,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=mla.qk_head_dim,
        rms_norm_eps=1e-4,
        rope=Rope(5e3, head_dim=mla.qk_rope_head_dim, interleaved=interleaved),
        max_position_embeddings=256,
        eos_token_ids=(1,),
        mla=mla,
        qkv=mla.modules,
        attention_scale=1.3 * mla.qk_head_dim**-0.5,
    )


@st.composite
def latent_configs(draw: st.DrawFn) -> ModelConfig:
    """Values wider than keys and narrower, queries with a latent and without, one head and several."""
    heads = draw(st.integers(1, 3))
    widths = [draw(st.sampled_from(sizes)) for sizes in ([3, 8], [1, 5], [2, 4], [2, 9])]
    mla = Mla(heads, *widths, q_lora_rank=draw(st.sampled_from([None, 1, 6])))
    return latent_config(heads, mla, draw(st.integers(1, 3)), draw(st.booleans()), draw(st.sampled_from([5, 11])))


@st.composite
def latent_adapters(draw: st.DrawFn, model: Model, count: int) -> list[Adapter]:
    """Adapters with kv_b_proj and without, of rank 1 and more, some with a bias of lora_B, some as DoRA."""
    config, pool = model.config, []
    q = [name for name in Q_MODULES if name in config.qkv]
    for i in range(count):
        modules = draw(st.lists(st.sampled_from([*q, *OTHERS]), unique=True, min_size=1))
        r, latent = draw(st.sampled_from([1, 2, 5])), i == 0 or draw(st.booleans())
        adapter = random_adapter(
            config,
            1000 * draw(st.integers(0, 50)) + i,
            r,
            r * draw(st.sampled_from([0.5, 3.0, -1.5])),
            draw(st.booleans()) and r > 1,
            [*modules, *["kv_b_proj"] * latent],
            lora_bias=draw(st.booleans()),
        )
        pool.append(as_dora(adapter, model, i) if draw(st.integers(0, 3)) == 3 else adapter)
    return pool


@st.composite
def latent_cases(draw: st.DrawFn) -> Case:
    """The base, each adapter, some of them twice, and a weighted sum where that may be, in one ragged batch."""
    model = random_model(draw(latent_configs()), draw(st.integers(0, 99)))
    pool = draw(latent_adapters(model, draw(st.integers(1, 3))))
    chosen: list = [None, *pool, draw(st.sampled_from(pool))]
    plain = [adapter for adapter in pool if adapter.can_be_summed]
    if plain:
        chosen.append([(plain[0], -0.5), *[(adapter, 0.75) for adapter in plain[1:]]])
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    prefix = rng.integers(0, 23, 4).tolist()  # shared, so that an engine finds it again
    prompts = [[*prefix, *rng.integers(0, 23, draw(st.integers(0, 6))).tolist()] for _ in chosen]
    order = draw(st.permutations(list(zip(prompts, chosen, strict=True))))
    return Case(model, pool, [Request(prompt, adapter, stop_ids=()) for prompt, adapter in order])


def dense_latent_logits(model: Model, token_ids: Sequence[int]) -> np.ndarray:
    """Logits of every token of one sequence: [len, vocab]."""
    config, mla = model.config, model.config.mla
    x, n = model.embed_tokens[token_ids], len(token_ids)
    for layer in model.layers:
        linears, norms = layer.linears, layer.norms
        h = normed(x, norms["input_layernorm"], config.rms_norm_eps)
        if mla.q_lora_rank is None:
            q = apply(linears["q_proj"], h)
        else:
            q = apply(linears["q_b_proj"], normed(apply(linears["q_a_proj"], h), norms[Q_NORM], 1e-6))
        q = q.reshape(n, mla.heads, -1)
        both = apply(linears["kv_a_proj_with_mqa"], h)
        latent = normed(both[:, : mla.kv_lora_rank], norms[KV_NORM], 1e-6)
        kv = apply(linears["kv_b_proj"], latent).reshape(n, mla.heads, -1)
        key_turned = turned(both[:, None, mla.kv_lora_rank :], config.rope)[:, 0]
        heads = []
        for i in range(mla.heads):
            still, turning = (
                q[:, i, : mla.qk_nope_head_dim],
                turned(q[:, i : i + 1, mla.qk_nope_head_dim :], config.rope),
            )
            scores = still @ kv[:, i, : mla.qk_nope_head_dim].T + turning[:, 0] @ key_turned.T
            scores = np.where(np.tri(n, dtype=bool), config.attention_scale * scores, -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ kv[:, i, mla.qk_nope_head_dim :])
        x = x + apply(linears["o_proj"], np.concatenate(heads, axis=1))
        h = normed(x, norms["post_attention_layernorm"], config.rms_norm_eps)
        gate = apply(linears["gate_proj"], h)
        x = x + apply(linears["down_proj"], gate / (1 + np.exp(-gate)) * apply(linears["up_proj"], h))
    return apply(model.lm_head, normed(x, model.norm, config.rms_norm_eps))


def turned(x: np.ndarray, rope: Rope) -> np.ndarray:
    """Pairs of channels as complex numbers, times e^(i angle); as pairs (2i, 2i + 1), or (i, i + half)."""
    n, half = x.shape[0], x.shape[-1] // 2
    turns = x[..., 0::2] + 1j * x[..., 1::2] if rope.interleaved else x[..., :half] + 1j * x[..., half:]
    turns = turns * np.exp(1j * np.outer(np.arange(n), wave_numbers(rope, 2 * half)))[:, None, :]
    return np.concatenate([turns.real, turns.imag], axis=-1)


def without(adapter: Adapter, name: str) -> Adapter:
    """The same adapter with no LoRA on modules of this name."""
    return replace(adapter, lora={module: x for module, x in adapter.lora.items() if module[1] != name})
