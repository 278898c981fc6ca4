"""A campaign on a base with multi-head latent attention: an honest engine passes, and the LoRA of kv_b_proj that
is lost is named."""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zoo
from safetensors.numpy import save_file
from support.build import random_adapter
from support.campaign import named
from support.latent import latent_config

from refimpl import Ops, logits
from refimpl.config import EMBED, LM_HEAD, Mla, module_name
from refimpl.engines.ours import Ours
from refimpl.loading.model_folder import load_model
from refimpl.ops import ABSORBED
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.cases.testbed import Testbed, save_adapters
from refimpl.oracle.reports.result import CampaignSettings, Result
from refimpl.synthetic.models import random_model

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

SHAPE = Mla(4, kv_lora_rank=12, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8, q_lora_rank=10)


@functools.cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@functools.cache
def latent_testbed() -> Testbed:
    """A DeepSeek-V3 with two dense layers, and three adapters: two on all modules, one on all but kv_b_proj."""
    root = Path(_root().name)
    model = random_model(latent_config(4, SHAPE, hidden=20), np.random.default_rng(3), "float32")
    folder = root / "base"
    folder.mkdir()
    config = model.config
    keys = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_key_value_heads": SHAPE.heads,
        "first_k_dense_replace": config.num_hidden_layers,
        "rope_theta": config.rope.theta,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        keys[name] = getattr(config, name)
    keys |= {"rms_norm_eps": config.rms_norm_eps, "max_position_embeddings": config.max_position_embeddings}
    for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "q_lora_rank"):
        keys[name] = getattr(SHAPE, name)
    (folder / "config.json").write_text(json.dumps(keys))
    tensors = {"model.norm.weight": model.norm}
    tensors |= {f"{module_name(module)}.weight": model.linear(module).weight for module in config.modules()}
    for i, layer in enumerate(model.layers):
        tensors |= {f"model.layers.{i}.{name}.weight": weight for name, weight in layer.norms.items()}
    assert f"{module_name(EMBED)}.weight" in tensors and f"{module_name(LM_HEAD)}.weight" in tensors
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors")
    others = [name for name in config.layer_modules if name != "kv_b_proj"]
    pool = [random_adapter(config, i, 2 + i, 5.0, modules=config.layer_modules) for i in (1, 2)]
    paths = save_adapters([*pool, random_adapter(config, 3, modules=others)], root / "adapters", "float32")
    return Testbed.load(folder, load_model(folder, "float32"), paths)


def campaign(tmp_path: Path, make: Callable[[], Ops], **changes: int) -> Result:
    settings = CampaignSettings(**{"cases": 2, "sequences": 0, "below": False} | changes)
    return Campaign(lambda: Ours(make), latent_testbed(), settings, tmp_path).run()


def test_an_honest_engine_that_absorbs_passes(tmp_path: Path) -> None:
    assert campaign(tmp_path, lambda: ABSORBED, sequences=1).verdict == "pass"


@pytest.mark.parametrize("name", ["latent_delta_on_keys_only", "latent_delta_not_on_the_context"])
def test_a_lost_delta_of_kv_b_proj_is_named(tmp_path: Path, name: str) -> None:
    result = campaign(tmp_path, all_mutants()[name].make)
    assert result.verdict == "fail" and named(result)[0] == name
    reason = "no cause was fitted: that needs gradients, and here a base with multi-head latent attention has none"
    assert reason in result.diagnostics


def test_every_mutant_answers_here_as_well() -> None:
    """With numbers for every token of every request, whatever it does."""
    case, expected = zoo.case("kv_b_proj LoRA"), zoo.truth("kv_b_proj LoRA")
    for bug, mutant in all_mutants().items():
        with np.errstate(all="ignore"):
            rows = logits(case.model, case.rounds[0], mutant.make())
        assert [row.shape for row in rows] == [row.shape for row in expected], bug
