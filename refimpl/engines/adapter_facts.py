"""What an adapter folder has in it that engines differ on: each a condition with a name, which a row of
engines/adapter_limits/ asks for.

They are read from the config and the header of the tensors as they lie there, so that a folder which Loracle itself
refuses can be asked about as well.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..loading.adapter_folder import WEIGHTS_FILE
from ..loading.diagnostics import Diagnostics, shown
from ..loading.gguf_file import is_gguf
from ..loading.json_file import read_json
from ..loading.mlx_adapter import is_mlx
from ..loading.peft_config import CONFIG_FILE
from ..loading.peft_keys import HARMLESS, HONOURED, PLAIN_INIT
from ..loading.peft_parameters import UNPLACED
from ..loading.safetensors_file import open_safetensors

LORA = re.compile(r"(.+?)\.lora_(?:embedding_)?([AB])(?:\.weight)?")
OF_ALL_EXPERTS = re.compile(rf"\.({UNPLACED.pattern})(\.base_layer)?$")
EXPERT_LAYER = re.compile(r"\.experts\.\d+\.")
TABLES = ("embed_tokens", "lm_head")
OTHER_FILES = ("new_embeddings.safetensors", "added_tokens.json")
# Keys that mean something to PEFT and are no plain LoRA: each of the first has a condition of its own.
KEYS = ("alora_invocation_tokens", "layer_replication", "target_parameters", "use_qalora", "use_bdlora")
CONFIGS = tuple(f"{kind}_config" for kind in ("arrow", "corda", "kasa", "lora_ga", "megatron", "monteclora", "velora"))


@dataclass(frozen=True)
class Facts:
    """What a folder says of itself, without being loaded."""

    kind: str  # peft, mlx or gguf
    config: Mapping[str, Any] = field(default_factory=dict)  # adapter_config.json
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of the tensors, by their names in the file
    files: frozenset[str] = frozenset()
    base: ModelConfig | None = None
    max_rank: int | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each module, by the name that its lora_A has in the file."""
        matches = ((LORA.fullmatch(name), shape) for name, shape in self.shapes.items())
        return {match[1]: self.rank(match[1], shape) for match, shape in matches if match and match[2] == "A" and shape}

    def rank(self, name: str, shape: tuple[int, ...]) -> int:
        """The rank of an A of this shape; of one for all experts (peft_experts.py) that of each."""
        if not OF_ALL_EXPERTS.search(name):
            return shape[0]
        if len(shape) == 3:
            return shape[1]
        r = self.config.get("r")
        experts = self.base.moe.experts if self.base and self.base.moe else 1
        return shape[0] // experts if experts > 1 else r if isinstance(r, int) else shape[0]

    def ending(self, *endings: str) -> list[str]:
        """The tensors whose names end so."""
        return sorted(name for name in self.shapes if name.endswith(endings))


def read_facts(folder: Path, base: ModelConfig | None, max_rank: int | None) -> Facts:
    """Look at a folder or file. What is damaged in it is inspect's to say: here it has no facts."""
    if is_gguf(folder) or is_mlx(folder):
        return Facts("gguf" if is_gguf(folder) else "mlx", base=base, max_rank=max_rank)
    diagnostics = Diagnostics()
    config = read_json(folder / CONFIG_FILE, diagnostics) or {}
    opened = open_safetensors(folder / WEIGHTS_FILE, diagnostics)
    files = frozenset(file.name for file in folder.glob("*"))
    return Facts("peft", config, opened.shapes if opened else {}, files, base, max_rank)


Condition = Callable[[Facts], str]  # what of the adapter it is, in words; "" if it is not there


def of_key(key: str) -> Condition:
    """A key of the config that is set."""
    return lambda facts: f"{key} {shown(facts.config[key])}" if facts.config.get(key) else ""


def counted(names: list[str], what: str) -> str:
    """The first of some tensors, and how many there are."""
    return f"{what}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""


def whole_tables(facts: Facts) -> str:
    """embed_tokens or lm_head as a whole, not a copy beside a LoRA."""
    return counted(facts.ending(*(f"{table}.weight" for table in TABLES)), "a whole table")


def grown_vocabulary(facts: Facts) -> str:
    """A whole table with more rows than the base has."""
    tables = facts.ending(*(f"{table}{part}.weight" for table in TABLES for part in ("", ".base_layer")))
    rows = [facts.shapes[name][0] for name in tables if facts.shapes[name]]
    if facts.base is None or not rows or max(rows) <= facts.base.vocab_size:
        return ""
    return f"a vocabulary of {max(rows)} rows, the base has {facts.base.vocab_size}"


def lora_on(table: str) -> Condition:
    """LoRA on a table of the vocabulary."""
    return lambda facts: f"LoRA on {table}" if any(name.endswith(f".{table}") for name in facts.ranks) else ""


def tied_head(facts: Facts) -> str:
    """LoRA on the head of a base that has no tensor for it."""
    tied = facts.base is not None and facts.base.tie_word_embeddings
    return "LoRA on lm_head of a base that ties it to embed_tokens" if tied and lora_on("lm_head")(facts) else ""


def rank_above(facts: Facts) -> str:
    """A rank above the engine's largest."""
    largest = max(facts.ranks.values(), default=0)
    return f"rank {largest}, above {facts.max_rank}" if facts.max_rank and largest > facts.max_rank else ""


def base_changed(facts: Facts) -> str:
    """An initialisation that took something away from the base (PiSSA, OLoRA, ...), not converted."""
    init = facts.config.get("init_lora_weights")
    plain = init is None or any(init == one and type(init) is type(one) for one in PLAIN_INIT)
    return "" if plain else f"init_lora_weights {shown(init)}, which changes the base"


def other_prefix(facts: Facts) -> str:
    """Names that no PEFT wrote: torch.compile's, FSDP's, ..."""
    names = [
        name
        for name in sorted(facts.shapes)
        if not name.startswith("base_model.model.") or "_orig_mod." in name or "_fsdp_wrapped_module." in name
    ]
    return counted(names, "names that PEFT does not write")


def other_keys(facts: Facts) -> str:
    """A key that is none of PEFT's LoraConfig as it is known here, and that is set."""
    of_peft = {*HONOURED, *HARMLESS, *KEYS, *CONFIGS}
    names = sorted(key for key, value in facts.config.items() if key not in of_peft and value)
    return f"{'keys' if len(names) > 1 else 'a key'} that PEFT has not ({', '.join(names)})" if names else ""


def without(module: str, others: tuple[str, ...]) -> Condition:
    """LoRA on one of q, k and v, and not on another."""

    def condition(facts: Facts) -> str:
        layers = {(name.rpartition(".")[0], name.rpartition(".")[2]) for name in facts.ranks}
        alone = [parent for parent, name in layers if name in others and (parent, module) not in layers]
        return f"{' or '.join(others)} without {module}" if alone else ""

    return condition


def on_expert_layers(facts: Facts) -> str:
    """LoRA on each expert by itself, as transformers 4 has experts."""
    return counted([name for name in sorted(facts.ranks) if EXPERT_LAYER.search(name)], "LoRAs on an expert by itself")


def rslora_on_expert_layers(facts: Facts) -> str:
    """The same with rsLoRA."""
    return f"rsLoRA, {layers}" if facts.config.get("use_rslora") and (layers := on_expert_layers(facts)) else ""


def experts_beside_a_gated_one(facts: Facts) -> str:
    """The same on a base with one more expert for every token, multiplied by a gate (Qwen2-MoE)."""
    moe = facts.base.moe if facts.base else None
    return on_expert_layers(facts) if moe and moe.shared_gate else ""


CONDITIONS: dict[str, Condition] = {
    "not_peft": lambda facts: "" if facts.kind == "peft" else f"a {facts.kind} adapter",
    "any_peft": lambda facts: "a PEFT folder" if facts.kind == "peft" else "",
    "not_lora": lambda facts: of_key("peft_type")(facts) if facts.config.get("peft_type", "LORA") != "LORA" else "",
    "rslora": of_key("use_rslora"),
    "rank_pattern": of_key("rank_pattern"),
    "alpha_pattern": of_key("alpha_pattern"),
    "dora": of_key("use_dora"),
    "lora_bias": of_key("lora_bias"),
    "bias": lambda facts: of_key("bias")(facts) if facts.config.get("bias", "none") != "none" else "",
    "bias_tensors": lambda facts: counted([name for name in facts.ending(".bias") if "lora_" not in name], "biases"),
    "modules_to_save": of_key("modules_to_save"),
    "whole_tables": whole_tables,
    "base_copies": lambda facts: counted(facts.ending(".base_layer.weight"), "copies of the base"),
    "grown_vocabulary": grown_vocabulary,
    "tokens": of_key("trainable_token_indices"),
    "lora_on_embed_tokens": lora_on("embed_tokens"),
    "lora_on_lm_head": lora_on("lm_head"),
    "lora_on_a_tied_head": tied_head,
    "base_changed": base_changed,
    **{key: of_key(key) for key in KEYS},
    "on_expert_layers": on_expert_layers,
    "rslora_on_expert_layers": rslora_on_expert_layers,
    "experts_beside_a_gated_one": experts_beside_a_gated_one,
    "other_prefix": other_prefix,
    "other_keys": other_keys,
    "other_files": lambda facts: " and ".join(name for name in OTHER_FILES if name in facts.files),
    "rank_above": rank_above,
    "v_without_q": without("q_proj", ("k_proj", "v_proj")),
    "q_without_v": without("v_proj", ("q_proj",)),
}
