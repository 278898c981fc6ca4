"""Adapter folders, one for each condition of refimpl/engines/adapter_facts.py that an engine can be asked about, and
what the right answer is. Written by us, without torch: the engines of test_adapter_limits.py are run on them."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from support.build import as_dora, random_adapter, random_model

import refimpl
from refimpl.adapter import Adapter, LoraTensors, TokenRows
from refimpl.config import EMBED, LM_HEAD, ModelConfig
from refimpl.formats.hf import save_model
from refimpl.formats.peft import save_adapter
from refimpl.synthetic.adapters import as_float32, with_own_layers
from refimpl.weights import Model

# vLLM serves heads of 32 channels at least on a CPU.
CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_ids=(2,),
)
TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)
PROMPT = [3, 41, 5, 92, 65, 35, 8, 9, 79, 32]
MODULES = ("q_proj", "v_proj", "down_proj")
GROWN = 4


@dataclass(frozen=True)
class Case:
    """A folder that has one thing, and the logits of PROMPT: `right`, where it is known, and `without` that thing."""

    base: Path
    folder: Path
    right: np.ndarray | None
    without: np.ndarray


class Builder:
    """The two bases, and cases of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models: dict[bool, Model] = {}
        for tied, config in ((False, CONFIG), (True, TIED)):
            save_model(random_model(config, 3, "float32"), self.base(tied))
            self.models[tied] = refimpl.load_model(self.base(tied), "float64")

    def base(self, tied: bool = False) -> Path:
        """The folder of a base."""
        return self.root / f"base-{'tied' if tied else 'untied'}"

    def logits(self, adapter: Adapter | None, tied: bool = False) -> np.ndarray:
        """Ours, in float64."""
        return refimpl.logits(self.models[tied], [refimpl.Request(PROMPT, adapter)])[0]

    def adapter(self, modules: tuple[str, ...] = MODULES, tied: bool = False, **changes: Any) -> Adapter:
        """A random one, whose numbers are float32's."""
        random = random_adapter(TIED if tied else CONFIG, 7, **{"r": 4, "alpha": 6.0, "modules": modules} | changes)
        lora = {
            module: LoraTensors(*(None if x is None else as_float32(x) for x in (one.A, one.B, one.bias)))
            for module, one in random.lora.items()
        }
        return dataclasses.replace(random, lora=lora)

    def case(self, name: str, adapter: Adapter, plain: Adapter | None, tied: bool = False) -> Case:
        """An adapter that we honour, and what it is without the thing."""
        save_adapter(adapter, self.root / name, "float32")
        return Case(self.base(tied), self.root / name, self.logits(adapter, tied), self.logits(plain, tied))

    def edited(self, name: str, right: np.ndarray | None, config: dict[str, Any]) -> Case:
        """A plain one, with keys added to its config."""
        plain = self.adapter()
        save_adapter(plain, self.root / name, "float32")
        file = self.root / name / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return Case(self.base(), self.root / name, right, self.logits(plain))


def plain(build: Builder) -> Case:
    return build.case("plain", build.adapter(), None)


def rslora(build: Builder) -> Case:
    one = build.adapter(use_rslora=True)
    return build.case("rslora", one, with_config(one, use_rslora=False))


def with_config(adapter: Adapter, **changes: Any) -> Adapter:
    """The same numbers under another config."""
    return dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, **changes))


def rank_pattern(build: Builder) -> Case:
    """q_proj has half of the rank, and so twice the scale; without it: the scale of the others."""
    narrow, rest = build.adapter(("q_proj",), r=2), build.adapter(("v_proj", "down_proj"))
    config = dataclasses.replace(rest.config, rank_pattern={"q_proj": 2}, target_modules=MODULES)
    adapter = dataclasses.replace(rest, config=config, lora={**narrow.lora, **rest.lora})
    weaker = dataclasses.replace(adapter, config=dataclasses.replace(config, alpha_pattern={"q_proj": 3.0}))
    return build.case("rank_pattern", adapter, weaker)


def alpha_pattern(build: Builder) -> Case:
    one = build.adapter(alpha_pattern={"v_proj": 17.0})
    return build.case("alpha_pattern", one, with_config(one, alpha_pattern={}))


def dora(build: Builder) -> Case:
    plain_one = build.adapter()
    random = as_dora(plain_one, build.models[False], 4)
    lora = {
        module: dataclasses.replace(one, magnitude=as_float32(one.magnitude)) for module, one in random.lora.items()
    }  # type: ignore[arg-type]
    return build.case("dora", dataclasses.replace(random, lora=lora), plain_one)


def lora_bias(build: Builder) -> Case:
    biased = build.adapter(lora_bias=True)
    lora = {module: dataclasses.replace(one, bias=None) for module, one in biased.lora.items()}
    config = dataclasses.replace(biased.config, lora_bias=False)
    return build.case("lora_bias", biased, dataclasses.replace(biased, config=config, lora=lora))


def bias(build: Builder) -> Case:
    """bias="all" of a base that has none: there is nothing to save, and nothing to change."""
    one = build.edited("bias", None, {"bias": "all"})
    return dataclasses.replace(one, right=one.without)


def whole_tables(build: Builder) -> Case:
    """modules_to_save: lm_head."""
    one = build.adapter()
    rng = np.random.default_rng(5)
    return build.case("whole_tables", with_own_layers(build.models[False], one, (LM_HEAD,), rng), one)


def grown_vocabulary(build: Builder) -> Case:
    one = build.adapter()
    rng = np.random.default_rng(5)
    grown = with_own_layers(build.models[False], one, (EMBED, LM_HEAD), rng, extra=GROWN)
    return build.case("grown_vocabulary", grown, one)


def tokens(build: Builder) -> Case:
    one = build.adapter()
    ids = [PROMPT[0], PROMPT[-1], 50]
    rows = as_float32(np.random.default_rng(6).standard_normal((3, 64)))
    config = dataclasses.replace(one.config, trainable_token_indices={"embed_tokens": tuple(ids)})
    changed = dataclasses.replace(one, config=config, tokens={EMBED: TokenRows(np.array(ids, np.int32), rows)})
    return build.case("tokens", changed, one)


def lora_on_embed_tokens(build: Builder) -> Case:
    both = build.adapter((*MODULES, "embed_tokens"))
    return build.case("lora_on_embed_tokens", both, only(both, lambda module: module != EMBED))


def lora_on_lm_head(build: Builder, name: str = "lora_on_lm_head") -> Case:
    both = build.adapter((*MODULES, "lm_head"))
    return build.case(name, both, only(both, lambda module: module != LM_HEAD))


def lora_on_a_tied_head(build: Builder) -> Case:
    both = build.adapter((*MODULES, "lm_head"), tied=True)
    return build.case("lora_on_a_tied_head", both, only(both, lambda module: module != LM_HEAD), tied=True)


def only(adapter: Adapter, chosen: Callable[[tuple[int, str]], bool]) -> Adapter:
    """The adapter on some of its modules."""
    return dataclasses.replace(adapter, lora={module: one for module, one in adapter.lora.items() if chosen(module)})


def base_copies(build: Builder) -> Case:
    """The copy of lm_head that PEFT saves beside a LoRA on it: other numbers than the base's, as after a training."""
    one = lora_on_lm_head(build, "base_copies")
    name, file = "base_model.model.lm_head.base_layer.weight", one.folder / "adapter_model.safetensors"
    copy = np.random.default_rng(8).standard_normal((96, 64)).astype(np.float32)
    save_file(load_file(file) | {name: copy}, file)
    assert one.right is not None
    return Case(one.base, one.folder, build.logits(refimpl.load_adapter(one.folder, CONFIG)), one.right)


def base_changed(build: Builder) -> Case:
    """PiSSA, unconverted: the base that it belongs to is not this one."""
    return build.edited("base_changed", None, {"init_lora_weights": "pissa"})


def alora_invocation_tokens(build: Builder) -> Case:
    """The invocation is not in the prompt: it is the base's to answer."""
    return build.edited("alora_invocation_tokens", build.logits(None), {"alora_invocation_tokens": [60, 61]})


def layer_replication(build: Builder) -> Case:
    """Both layers are the base's first."""
    return build.edited("layer_replication", None, {"layer_replication": [[0, 1], [0, 1]]})


def use_bdlora(build: Builder) -> Case:
    """Of one block: that is plain LoRA."""
    one = build.edited("use_bdlora", None, {"use_bdlora": {"nblocks": 1, "match_strict": False}})
    return dataclasses.replace(one, right=one.without)


def use_qalora(build: Builder) -> Case:
    return build.edited("use_qalora", None, {"use_qalora": True})


def other_keys(build: Builder) -> Case:
    return build.edited("other_keys", None, {"gain_of_tomorrow": 3.5})


def other_files(build: Builder) -> Case:
    """New rows for the last ids."""
    one = build.edited("other_files", None, {})
    rows = {"input_embeddings": np.ones((2, 64), np.float32), "output_embeddings": np.ones((2, 64), np.float32)}
    save_file(rows, one.folder / "new_embeddings.safetensors")
    (one.folder / "added_tokens.json").write_text(json.dumps({"<a>": 96, "<b>": 97}))
    return one


def other_prefix(build: Builder) -> Case:
    """torch.compile's, in every name."""
    one = build.case("other_prefix", build.adapter(), None)
    file, prefix = one.folder / "adapter_model.safetensors", "base_model.model."
    save_file({name.replace(prefix, f"{prefix}_orig_mod."): x for name, x in load_file(file).items()}, file)
    return one


def rank_above(build: Builder) -> Case:
    """Above vLLM's default of 16."""
    return build.case("rank_above", build.adapter(r=20, alpha=20.0), None)


def v_without_q(build: Builder) -> Case:
    return build.case("v_without_q", build.adapter(("v_proj",)), None)


def q_without_v(build: Builder) -> Case:
    return build.case("q_without_v", build.adapter(("q_proj",)), None)


CASES: dict[str, Callable[[Builder], Case]] = {
    build.__name__: build
    for build in (
        *(plain, rslora, rank_pattern, alpha_pattern, dora, lora_bias, bias, whole_tables, grown_vocabulary, tokens),
        *(lora_on_embed_tokens, lora_on_lm_head, lora_on_a_tied_head, base_copies, base_changed, other_prefix),
        *(alora_invocation_tokens, layer_replication, use_bdlora, use_qalora, other_keys, other_files, rank_above),
        *(v_without_q, q_without_v),
    )
}


def observed(case: Case, run: Callable[[Case], np.ndarray]) -> str:
    """What an engine does with a case: takes (the right numbers), ignores, changes (other ones), or rejects.

    Where the right numbers are not known: ignores, or changes."""
    try:
        rows = run(case)
    except Exception as error:
        print(f"rejects: {' '.join(str(error).split())[:300]}")
        return "rejects"
    for verdict, expected in (("takes", case.right), ("ignores", case.without)):
        if expected is not None and rows.shape == expected.shape and close(rows, expected):
            return verdict
    return "changes"


def close(rows: np.ndarray, expected: np.ndarray) -> bool:
    """Equal as log-probabilities, to float32."""
    difference = log_softmax(rows) - log_softmax(expected)
    return bool(np.abs(difference).max() < 1e-3)


def log_softmax(rows: np.ndarray) -> np.ndarray:
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
