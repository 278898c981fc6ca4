"""Configurations with experts that hypothesis draws, against transformers in float64: the choice of experts first, with
its margin, then the logits; the base, and an adapter on any modules beside it in one batch."""

import tempfile
from pathlib import Path
from typing import Any

import hugging_face as hf
import pytest
import test_experts
from hypothesis import Phase, assume, event, given, settings
from hypothesis import strategies as st

import refimpl

T = hf.transformers
flags = st.booleans()
# A class without shared experts has an MLP of width 0 in their place.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


def some(draw: st.DrawFn, *values: Any) -> Any:
    """Draw one of these."""
    return draw(st.sampled_from(values))


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    """What every family has: often one expert, one for each token, or all of them for each."""
    kv_heads, group, layers = some(draw, 1, 2), some(draw, 1, 2, 3), draw(st.integers(1, 3))
    return {
        "vocab_size": 23,
        "hidden_size": kv_heads * group * some(draw, 4, 6),
        "intermediate_size": draw(st.integers(1, 12)),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "tie_word_embeddings": draw(flags),
        "pad_token_id": 0,
    }


def routed(draw: st.DrawFn, count: str, width: str | None = None, size: int = 1, kept: int = 1) -> dict[str, Any]:
    """The keys that say how many experts there are and how many each token goes through: of groups of a size so many
    as the kept ones hold. count and width: what the class calls them."""
    experts = draw(st.integers(1, 7)) if size == 1 else size
    keys = {count: experts, "num_experts_per_tok": some(draw, 1, experts * kept, draw(st.integers(1, experts * kept)))}
    return keys | ({width: draw(st.integers(1, 9))} if width else {})


@st.composite
def mixtral(draw: st.DrawFn) -> hf.Config:
    return T.MixtralConfig(**draw(sizes()), **routed(draw, "num_local_experts"), sliding_window=some(draw, None, 1, 4))


def qwen(draw: st.DrawFn) -> dict[str, Any]:
    """The keys of both classes of Qwen: some layers without experts, weights that sum to 1 or not."""
    keys = draw(sizes()) | routed(draw, "num_experts", "moe_intermediate_size")
    layers = range(keys["num_hidden_layers"])
    return keys | {
        "norm_topk_prob": draw(flags),
        "decoder_sparse_step": draw(st.integers(1, 2)) if len(layers) > 1 else 1,
        "mlp_only_layers": draw(st.lists(st.sampled_from(layers), unique=True, max_size=1)) if len(layers) > 2 else [],
    }


@st.composite
def qwen2_moe(draw: st.DrawFn) -> hf.Config:
    return T.Qwen2MoeConfig(**qwen(draw), shared_expert_intermediate_size=draw(st.integers(1, 9)), qkv_bias=draw(flags))


@st.composite
def qwen3_moe(draw: st.DrawFn) -> hf.Config:
    window = {"use_sliding_window": True, "sliding_window": draw(st.integers(1, 5))} if draw(flags) else {}
    return T.Qwen3MoeConfig(**qwen(draw), **window, head_dim=some(draw, 4, 10), attention_bias=draw(flags))


@st.composite
def granite(draw: st.DrawFn) -> hf.Config:
    """Any of the three classes: with an MLP for all tokens, or without."""
    keys = draw(sizes()) | routed(draw, "num_local_experts")
    keys |= {"attention_multiplier": 0.3, "residual_multiplier": some(draw, 0.4, 1.0), "logits_scaling": 6.0}
    keys |= {"embedding_multiplier": some(draw, 1.0, 2.5), "attention_bias": draw(flags)}
    shared = {"shared_intermediate_size": draw(st.integers(0, 9))}
    match some(draw, "plain", "shared", "hybrid"):
        case "plain":
            return T.GraniteMoeConfig(**keys)
        case "shared":
            return T.GraniteMoeSharedConfig(**keys, **shared)
    shared["shared_intermediate_size"] += 1
    kinds = ["full_attention"] * keys["num_hidden_layers"]
    mamba = {"mamba_n_heads": 1, "mamba_d_head": 2 * keys["hidden_size"]}
    rope = some(draw, "rope", None)
    return T.GraniteMoeHybridConfig(**keys, **shared, **mamba, layer_types=kinds, position_embedding_type=rope)


def grouped(draw: st.DrawFn, classes: int = 2) -> dict[str, Any]:
    """Experts in groups, of which some are kept, and none, one or two that every token goes through."""
    number, size = some(draw, 1, 2, 3), draw(st.integers(classes, 3))
    kept = draw(st.integers(1, number))
    top_k = some(draw, 1, kept * size, draw(st.integers(1, kept * size)))
    return {
        "n_routed_experts": number * size,
        "num_experts_per_tok": top_k,
        "n_group": number,
        "topk_group": kept,
        "n_shared_experts": draw(st.integers(0, 2)),
        "moe_intermediate_size": draw(st.integers(1, 9)),
        "routed_scaling_factor": some(draw, 1.0, 1.8),
        "norm_topk_prob": draw(flags),
    }


@st.composite
def glm4_moe(draw: st.DrawFn) -> hf.Config:
    keys = draw(sizes()) | grouped(draw)
    keys |= {"use_qk_norm": draw(flags), "attention_bias": draw(flags), "head_dim": some(draw, 4, 8)}
    return T.Glm4MoeConfig(**keys, first_k_dense_replace=draw(st.integers(0, keys["num_hidden_layers"] - 1)))


@st.composite
def gpt_oss(draw: st.DrawFn) -> hf.Config:
    keys = draw(sizes()) | routed(draw, "num_local_experts")
    kinds = st.sampled_from(["sliding_attention", "full_attention"])
    keys["layer_types"] = draw(st.lists(kinds, min_size=keys["num_hidden_layers"], max_size=keys["num_hidden_layers"]))
    keys |= {"swiglu_limit": some(draw, 0.5, 7.0), "attention_bias": draw(flags), "head_dim": some(draw, 4, 6)}
    return T.GptOssConfig(**keys, sliding_window=draw(st.integers(1, 5)))


def latent(draw: st.DrawFn) -> dict[str, Any]:
    """The keys of a model with latent attention."""
    keys = draw(sizes())
    return keys | {
        "num_key_value_heads": keys["num_attention_heads"],
        "kv_lora_rank": some(draw, 4, 8),
        "q_lora_rank": some(draw, None, 1, 7),
        "qk_nope_head_dim": some(draw, 2, 6),
        "qk_rope_head_dim": some(draw, 2, 4),
        "v_head_dim": some(draw, 1, 5),
    }


@st.composite
def deepseek_v2(draw: st.DrawFn) -> hf.Config:
    keys = latent(draw) | grouped(draw, 1) | {"norm_topk_prob": False}
    keys["topk_method"] = "group_limited_greedy" if draw(flags) else "greedy"
    return T.DeepseekV2Config(**keys, first_k_dense_replace=draw(st.integers(0, keys["num_hidden_layers"] - 1)))


@st.composite
def deepseek_v3(draw: st.DrawFn) -> hf.Config:
    keys = latent(draw) | grouped(draw)
    if draw(flags):
        return T.DeepseekV3Config(**keys, first_k_dense_replace=draw(st.integers(0, keys["num_hidden_layers"] - 1)))
    kinds = draw(st.permutations(["sparse", "dense", "sparse"]))[: keys["num_hidden_layers"]]
    return T.Glm4MoeLiteConfig(**keys, mlp_layer_types=kinds if "sparse" in kinds else ["sparse"])


FAMILIES = {
    "mixtral": mixtral(),
    "qwen2_moe": qwen2_moe(),
    "qwen3_moe": qwen3_moe(),
    "granite": granite(),
    "glm4_moe": glm4_moe(),
    "gpt_oss": gpt_oss(),
    "deepseek_v2": deepseek_v2(),
    "deepseek_v3": deepseek_v3(),
}
prompts = st.lists(st.lists(st.integers(1, 22), min_size=1, max_size=9), min_size=2, max_size=3)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # slow to shrink
@given(data=st.data(), prompts=prompts, seed=st.integers(0, 2**16))
def test_any_configuration_equals_transformers(
    family: str, data: st.DataObject, prompts: list[list[int]], seed: int
) -> None:
    config = data.draw(FAMILIES[family])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = test_experts.write_base(folder / "base", config, seed)
        read = refimpl.load_model(base).config
        assume(read.moe is not None)  # its layers may all be dense
        inner = [module for module in read.modules() if module[0] >= 0]
        chosen = data.draw(st.sampled_from(["everything", "experts", "some"]))
        kinds = test_experts.lora_kinds(read)
        modules = kinds[chosen] if chosen in kinds else data.draw(st.lists(st.sampled_from(inner), min_size=1))
        adapter = test_experts.random_adapter(read, seed, list(dict.fromkeys(modules)), r=data.draw(st.integers(1, 3)))
        merged = test_experts.write_merged(base, adapter, folder / "merged")
        requests = [refimpl.Request(prompt, adapter if i else None) for i, prompt in enumerate(prompts)]
        alone, adapted = test_experts.theirs(base, prompts[:1]), test_experts.theirs(merged, prompts[1:])
        expected = (alone[0] + adapted[0], alone[1] + adapted[1])
        for experts in expected[1]:
            for ids in experts:
                event(f"an expert without a token: {len(set(ids.flat)) < read.moe.experts}")
        test_experts.assert_same(expected, test_experts.ours(base, requests))
