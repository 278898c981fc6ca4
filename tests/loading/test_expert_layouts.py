"""LoRA on experts: whatever layout a file has, the same pairs are read, and no tensor of it is left out.

Files are written here from drawn pairs, by the loops that PEFT's source means: PEFT itself is asked in
tests/engines/test_expert_adapters.py."""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import BASE, refused, safetensors_bytes, write_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl import load_adapter
from refimpl.adapter import Adapter, LoraTensors, PeftConfig
from refimpl.adapter_slots import bind_adapter
from refimpl.commands.inspect import in_layers, short_name
from refimpl.config import Mlp, ModelConfig, Module, Moe, Stacked, module_name
from refimpl.digest import digest
from refimpl.engines.adapter_facts import read_facts
from refimpl.engines.adapter_limits import limits_of
from refimpl.errors import AdapterError, AdapterWarning
from refimpl.formats.convert import convert
from refimpl.formats.peft import save_adapter
from refimpl.tools.inspect import inspect

PREFIX = "base_model.model."
STACKS = (
    Stacked("mlp.experts.gate_up_proj", ("gate_proj", "up_proj")),
    Stacked("mlp.experts.down_proj", ("down_proj",)),
)
MIXTRAL = {
    "router": "block_sparse_moe.gate",
    "expert": "block_sparse_moe.experts",
    "gate_up": ("w1", "w3"),
    "down": "w2",
    "stacked": (Stacked("mlp.experts.gate_up_proj", ("w1", "w3")), Stacked("mlp.experts.down_proj", ("w2",))),
    "spellings": (("mlp.gate.weight", "block_sparse_moe.gate.weight"),),
}
Pairs = Mapping[Module, tuple[np.ndarray, np.ndarray]]


def base_of(experts: int = 3, d_model: int = 12, width: int = 5, **changes: Any) -> ModelConfig:
    """Two layers of experts."""
    moe = Moe(experts, 1, width, stacked=STACKS)
    return replace(BASE, hidden_size=d_model, moe=replace(moe, **changes))


@dataclass(frozen=True)
class Drawn:
    """A base and a pair for every projection of every expert; gate and up have one A, as a parameter of both has."""

    base: ModelConfig
    rank: int
    pairs: Pairs


def pairs_of(base: ModelConfig, rank: int, seed: int) -> Pairs:
    """Random pairs: the modules that one parameter holds share A."""
    rng, pairs = np.random.default_rng(seed), {}
    for layer in range(base.num_hidden_layers):
        for stack in base.moe.stacked:
            for expert in range(base.moe.experts):
                A = rng.standard_normal((rank, base.shape((layer, member(base, expert, stack.modules[0])))[1]))
                for name in stack.modules:
                    module = (layer, member(base, expert, name))
                    B = rng.standard_normal((base.shape(module)[0], rank))
                    pairs[module] = A.astype(np.float32), B.astype(np.float32)
    return pairs


def member(base: ModelConfig, expert: int, name: str) -> str:
    """An expert's module below the layer."""
    return f"{base.moe.expert}.{expert}.{name}"


@st.composite
def examples(draw: st.DrawFn) -> Drawn:
    """Any number of experts, ranks and widths; square ones too; halves behind each other and in turn."""
    interleaved, stored_in_out, mixtral = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    base = base_of(draw(st.integers(1, 4)), 12, draw(st.sampled_from([1, 5, 6, 12])), **(MIXTRAL if mixtral else {}))
    stacks = tuple(replace(stack, interleaved=interleaved, transposed=stored_in_out) for stack in base.moe.stacked)
    base = replace(base, moe=replace(base.moe, stacked=stacks))
    rank = draw(st.integers(1, 4))
    return Drawn(base, rank, pairs_of(base, rank, draw(st.integers(0, 999))))


def layout_1(example: Drawn) -> dict[str, np.ndarray]:
    """A layer for each expert."""
    return {
        f"{PREFIX}{module_name(module)}.lora_{half}.weight": x
        for module, pair in example.pairs.items()
        for half, x in zip("AB", pair, strict=True)
    }


def stacked_pair(example: Drawn, layer: int, stack: Stacked) -> tuple[np.ndarray, np.ndarray]:
    """[E, r, d_in] and [E, d_out, r] of one parameter, with the halves where the stack has them."""
    base, count = example.base, len(stack.modules)
    A, B = [], []
    for expert in range(base.moe.experts):
        halves = [example.pairs[layer, member(base, expert, name)] for name in stack.modules]
        rows = np.empty((count * len(halves[0][1]), example.rank), np.float32)
        for j, (_, half) in enumerate(halves):
            for i, row in enumerate(half):
                rows[i * count + j if stack.interleaved else j * len(half) + i] = row
        A.append(halves[0][0])
        B.append(rows)
    return np.array(A), np.array(B)


def flat(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[E r, d_in], the expert slow; [d_out, r E], the expert fast."""
    experts, rank, _ = A.shape
    columns = [B[expert, :, i] for i in range(rank) for expert in range(experts)]
    return np.concatenate(list(A)), np.stack(columns, axis=1)


def layout_2(example: Drawn, old: bool = False) -> dict[str, np.ndarray]:
    """A pair for a parameter, that of gate and up inside that of down; old: for the transpose, as PEFT 0.18 has it."""
    tensors = {}
    for layer in range(example.base.num_hidden_layers):
        for stack, inner in zip(example.base.moe.stacked, (".base_layer", ""), strict=True):
            A, B = stacked_pair(example, layer, stack)
            if old and not stack.transposed:
                A, B = B.transpose(0, 2, 1), A.transpose(0, 2, 1)
            for half, x in zip("AB", flat(A, B), strict=True):
                tensors[f"{PREFIX}model.layers.{layer}.mlp.experts{inner}.lora_{half}.weight"] = x
    return tensors


def layout_4(example: Drawn) -> dict[str, np.ndarray]:
    """The expert as the first axis of each projection."""
    base, tensors = example.base, {}
    for layer in range(base.num_hidden_layers):
        for name, theirs in zip((*base.moe.gate_up, base.moe.down), ("w1", "w3", "w2"), strict=True):
            for j, half in enumerate("AB"):
                pairs = [example.pairs[layer, member(base, expert, name)][j] for expert in range(base.moe.experts)]
                tensors[f"{PREFIX}model.layers.{layer}.mlp.experts.{theirs}.lora_{half}.weight"] = np.array(pairs)
    return tensors


TARGETS = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "experts.down_proj"]}
EXPERTS = {"target_modules": ["gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"], "target_parameters": None}


def load(folder: Path, base: ModelConfig) -> Adapter:
    """The adapter, whatever its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdapterWarning)
        return load_adapter(folder, base)


def same(adapter: Adapter, pairs: Pairs) -> bool:
    """Whether the adapter has these pairs and no others, bit for bit."""
    return adapter.lora.keys() == pairs.keys() and all(
        np.array_equal(adapter.lora[module].A, A) and np.array_equal(adapter.lora[module].B, B)
        for module, (A, B) in pairs.items()
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@given(examples())
def test_all_layouts_are_one_adapter(folder: Path, example: Drawn) -> None:
    files = (
        (layout_1(example), EXPERTS),
        (layout_2(example), TARGETS | {"peft_version": "0.19.1"}),
        (layout_2(example, old=True), TARGETS | {"peft_version": "0.18.1"}),
        (layout_4(example), EXPERTS),
    )
    for tensors, config in files:
        adapter = load(write_adapter(folder, tensors, r=example.rank, **config), example.base)
        assert same(adapter, example.pairs)
        scales = {lora.scale for lora in bind_adapter(adapter, example.base).lora.values()}
        assert scales == {7 / example.rank}


@given(examples(), st.data())
def test_every_number_of_a_file_counts(folder: Path, example: Drawn, data: st.DataObject) -> None:
    """One number of one tensor changed is another adapter."""
    tensors, config = data.draw(
        st.sampled_from([(layout_1(example), EXPERTS), (layout_2(example), TARGETS), (layout_4(example), EXPERTS)])
    )
    config = config | {"r": example.rank, "peft_version": "0.20.0"}
    before = digest(bind_adapter(load(write_adapter(folder, tensors, **config), example.base), example.base))
    x = tensors[data.draw(st.sampled_from(sorted(tensors)))]
    x[tuple(data.draw(st.integers(0, size - 1)) for size in x.shape)] += 1
    after = digest(bind_adapter(load(write_adapter(folder, tensors, **config), example.base), example.base))
    assert before != after


def test_one_A_for_all_experts_and_one_B(tmp_path: Path) -> None:
    """Tinker's: A of gate and up is shared by all experts, and B of down."""
    base = base_of()
    example = Drawn(base, 2, pairs_of(base, 2, 1))
    tensors = layout_4(example)
    shared = {name: x[:1] for name, x in tensors.items() if re.search(r"w[13]\.lora_A|w2\.lora_B", name)}
    adapter = load(write_adapter(tmp_path, tensors | shared, r=2, **EXPERTS), base)
    assert np.array_equal(adapter.lora[1, "mlp.experts.2.up_proj"].A, example.pairs[1, "mlp.experts.0.up_proj"][0])
    assert np.array_equal(adapter.lora[0, "mlp.experts.1.down_proj"].B, example.pairs[0, "mlp.experts.0.down_proj"][1])
    assert np.array_equal(adapter.lora[1, "mlp.experts.2.up_proj"].B, example.pairs[1, "mlp.experts.2.up_proj"][1])


def test_halves_of_an_expert_share_memory(tmp_path: Path) -> None:
    base = base_of()
    adapter = load(write_adapter(tmp_path, layout_2(Drawn(base, 2, pairs_of(base, 2, 1))), r=2, **TARGETS), base)
    assert adapter.lora[0, "mlp.experts.1.gate_proj"].A is adapter.lora[0, "mlp.experts.1.up_proj"].A


SQUARE = base_of(width=12)  # d_in = d_out of down; gate and up together are 24 and 12


@pytest.mark.parametrize(
    ("version", "old"),
    [("0.17.1", True), ("0.18.0", True), ("0.18.1", True), ("0.19.0", False), ("0.21.2", False), ("1.0.0", False)],
)
def test_where_an_expert_is_square_the_version_tells(tmp_path: Path, version: str, old: bool) -> None:
    example = Drawn(SQUARE, 2, pairs_of(SQUARE, 2, 3))
    down = {name: x for name, x in layout_2(example, old).items() if "base_layer" not in name}
    config = {"r": 2, "target_modules": [], "target_parameters": ["down_proj"], "peft_version": version}
    adapter = load(write_adapter(tmp_path, down, **config), SQUARE)
    assert same(adapter, {module: pair for module, pair in example.pairs.items() if module[1].endswith("down_proj")})


@pytest.mark.parametrize("version", [None, "", "0.18.2.dev0@UNKNOWN", "0.19.0.dev0", "0.16.0", "git"])
def test_where_nothing_tells_it_is_refused(tmp_path: Path, version: str | None) -> None:
    down = layout_2(Drawn(SQUARE, 2, pairs_of(SQUARE, 2, 3)))
    down = {name: x for name, x in down.items() if "base_layer" not in name}
    config = {"r": 2, "target_modules": [], "target_parameters": ["down_proj"], "peft_version": version}
    with refused(AdapterError, "square", "peft_version", f"'{version or ''}'"):
        load_adapter(write_adapter(tmp_path, down, **config), SQUARE)


@pytest.mark.parametrize("old", [False, True])
def test_a_pair_that_is_not_square_tells_for_those_that_are(tmp_path: Path, old: bool) -> None:
    example = Drawn(SQUARE, 2, pairs_of(SQUARE, 2, 3))
    config = {"r": 2, "peft_version": None, **TARGETS}
    assert same(load(write_adapter(tmp_path, layout_2(example, old), **config), SQUARE), example.pairs)


def test_what_is_stored_in_out_was_never_the_other_way_round(tmp_path: Path) -> None:
    """gpt-oss: square, and yet no version is needed."""
    stacks = tuple(replace(stack, transposed=True, interleaved=True) for stack in STACKS)
    base = base_of(width=12, stacked=stacks)
    example = Drawn(base, 2, pairs_of(base, 2, 3))
    config = {"r": 2, "peft_version": None, **TARGETS}
    assert same(load(write_adapter(tmp_path, layout_2(example), **config), base), example.pairs)


def test_shapes_that_deny_the_version_are_read_with_a_warning(tmp_path: Path) -> None:
    base = base_of()
    example = Drawn(base, 2, pairs_of(base, 2, 3))
    path = write_adapter(tmp_path, layout_2(example, old=True), r=2, peft_version="0.21.2", **TARGETS)
    with pytest.warns(AdapterWarning, match=r"peft_version is '0.21.2', but .* PEFT 0.17 and 0.18"):
        assert same(load_adapter(path, base), example.pairs)


GATE_UP, DOWN = (f"{PREFIX}model.layers.1.mlp.experts{inner}.lora_" for inner in (".base_layer", ""))


def without(name: str) -> dict[str, Any]:
    return {name: None}


@pytest.mark.parametrize(
    ("changes", "config", "says"),
    [
        ({f"{GATE_UP}A.weight": np.ones((7, 12), np.float32)}, {}, ("[7, 12]", "[6, 12]", "rank 2", "3 experts")),
        ({f"{GATE_UP}B.weight": np.ones((9, 6), np.float32)}, {}, ("[9, 6]", "[10, 6]")),
        ({f"{DOWN}A.weight": np.ones((6, 5, 1), np.float32)}, {}, ("[6, 5, 1]", "[6, 5]")),
        ({}, {"r": 3}, ("[6, 12]", "[9, 12]", "rank 3")),
        (without(f"{DOWN}B.weight"), {}, ("lora_B is missing", f"{DOWN}A.weight")),
        (without(f"{GATE_UP}A.weight"), {}, ("lora_A is missing", f"{GATE_UP}B.weight")),
        ({}, {"target_parameters": None, "target_modules": ["q_proj"]}, ("target_parameters", "names none")),
        (
            {},
            {"target_parameters": ["mlp.experts.down_proj"]},
            ("one of 2 pairs", "names model.layers.0.mlp.experts.down_proj"),
        ),
        ({}, {"target_parameters": ["model.layers.0.mlp.experts.gate_up_proj", "down_proj"]}, ("model.layers.1.mlp",)),
        ({f"{GATE_UP}A.weight": np.full((6, 12), np.nan, np.float32)}, {}, ("NaN", f"{GATE_UP}A.weight")),
        ({f"{GATE_UP}B.bias": np.ones(10, np.float32)}, {}, ("lora_B.bias", "alone")),
        (
            {f"{PREFIX}model.layers.1.mlp.experts.base_layer.base_layer.lora_A.weight": np.ones((6, 12), np.float32)},
            {},
            ("base_layer.base_layer", "not supported"),
        ),
        (
            {f"{PREFIX}model.layers.1.mlp.experts.0.up_proj.lora_A.weight": np.ones((2, 12), np.float32)},
            {},
            ("model.layers.1.mlp.experts.0.up_proj", "are both for"),
        ),
        (
            {f"{PREFIX}model.layers.1.mlp.experts.3.up_proj.lora_A.weight": np.ones((2, 12), np.float32)},
            {},
            ("experts.3.up_proj", "not supported"),
        ),
        ({}, {"target_parameters": "mlp.experts.down_proj"}, ("target_parameters", "list of names")),
        ({}, {"use_dora": True}, ("use_dora with target_parameters: PEFT has DoRA on layers alone",)),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[0],
)
def test_broken_files_are_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], config: dict[str, Any], says: tuple[str, ...]
) -> None:
    base = base_of()
    tensors = layout_2(Drawn(base, 2, pairs_of(base, 2, 1))) | changes
    tensors = {name: x for name, x in tensors.items() if x is not None}
    with refused(AdapterError, *says):
        load_adapter(write_adapter(tmp_path, tensors, **{"r": 2, **TARGETS, **config}), base)


def test_pairs_of_two_versions_are_refused(tmp_path: Path) -> None:
    base = base_of()
    example = Drawn(base, 2, pairs_of(base, 2, 1))
    new, old = layout_2(example), layout_2(example, old=True)
    tensors = {name: (old if "base_layer" in name else new)[name] for name in new}
    with refused(AdapterError, "no one PEFT wrote both", "base_layer"):
        load_adapter(write_adapter(tmp_path, tensors, r=2, **TARGETS), base)


def test_a_third_axis_that_is_no_expert_is_refused(tmp_path: Path) -> None:
    base = base_of()
    tensors = layout_4(Drawn(base, 2, pairs_of(base, 2, 1)))
    name = f"{PREFIX}model.layers.0.mlp.experts.w3.lora_B.weight"
    with refused(AdapterError, name, "[2, 5, 2]", "3 experts or 1"):
        load_adapter(write_adapter(tmp_path, tensors | {name: tensors[name][:2]}, r=2, **EXPERTS), base)


def test_experts_on_a_base_without_any(tmp_path: Path) -> None:
    base = base_of()
    for tensors in (layout_1(Drawn(base, 2, pairs_of(base, 2, 1))), layout_2(Drawn(base, 2, pairs_of(base, 2, 1)))):
        with refused(AdapterError, "all of its", "LoRA on experts (target_parameters), which the base has not"):
            load_adapter(write_adapter(tmp_path, tensors, r=2, **TARGETS), BASE)


def test_ranks_and_alphas_are_those_of_the_parameter(tmp_path: Path) -> None:
    """gate and up of rank 4 and their own alpha in one layer, down of the config's; rsLoRA with what the file says."""
    base = base_of()
    wide, narrow = Drawn(base, 4, pairs_of(base, 4, 1)), Drawn(base, 2, pairs_of(base, 2, 2))
    tensors = {name: layout_2(wide if "base_layer" in name else narrow)[name] for name in layout_2(wide)}
    patterns = {
        "rank_pattern": {r".*\.gate_up_proj": 4},
        "alpha_pattern": {"layers.1.mlp.experts.gate_up_proj": 11, "gate_proj": 99},  # gate_proj: of no parameter
    }
    adapter = load(write_adapter(tmp_path, tensors, r=2, use_rslora=True, **TARGETS, **patterns), base)
    scales = {module: lora.scale for module, lora in bind_adapter(adapter, base).lora.items()}
    assert scales[0, "mlp.experts.1.gate_proj"] == scales[0, "mlp.experts.0.up_proj"] == 7 / 2
    assert scales[1, "mlp.experts.1.gate_proj"] == scales[1, "mlp.experts.2.up_proj"] == 11 / 2
    assert scales[0, "mlp.experts.1.down_proj"] == 7 / np.sqrt(2)


def test_a_router_is_a_plain_pair(tmp_path: Path) -> None:
    """As a parameter, in the spelling of transformers 5, and as a layer in that of 4."""
    base = base_of(**MIXTRAL)
    A, B = np.ones((2, 12), np.float32), np.ones((3, 2), np.float32)
    for name, config in (
        ("mlp.gate", {"target_modules": [], "target_parameters": ["mlp.gate.weight"]}),
        ("block_sparse_moe.gate", {"target_modules": ["gate"]}),
    ):
        tensors = {
            f"{PREFIX}model.layers.{i}.{name}.lora_{h}.weight": x for i in (0, 1) for h, x in (("A", A), ("B", B))
        }
        adapter = load(
            write_adapter(tmp_path, tensors, r=2, alpha_pattern={"gate.weight": 3, "gate": 3}, **config), base
        )
        assert adapter.lora.keys() == {(0, "block_sparse_moe.gate"), (1, "block_sparse_moe.gate")}
        assert {lora.scale for lora in bind_adapter(adapter, base).lora.values()} == {1.5}


def test_the_weight_of_any_layer_can_be_a_parameter(tmp_path: Path) -> None:
    A, B = np.ones((2, 12), np.float32), np.ones((32, 2), np.float32)
    tensors = {
        f"{PREFIX}model.layers.{i}.self_attn.q_proj.lora_{h}.weight": x for i in (0, 1) for h, x in (("A", A), ("B", B))
    }
    config = {"target_modules": [], "target_parameters": ["q_proj.weight"], "rank_pattern": {"q_proj.weight": 2}}
    adapter = load(write_adapter(tmp_path, tensors, **config), BASE)
    assert bind_adapter(adapter, BASE).lora[0, "q_proj"].scale == 3.5
    save_adapter(adapter, tmp_path / "new", config=BASE)
    assert load(tmp_path / "new", BASE).config == adapter.config
    with refused(AdapterError, "q_proj.weight", "only the base knows"):
        save_adapter(adapter, tmp_path / "other")


def test_experts_that_target_modules_names_and_no_tensor_has(tmp_path: Path) -> None:
    """A warning if there is none at all, as transformers 5 trains; with some of them, the others were lost."""
    base = base_of()
    example = Drawn(base, 2, pairs_of(base, 2, 1))
    attention = {
        f"{PREFIX}model.layers.{i}.self_attn.q_proj.lora_{h}.weight": np.ones(shape, np.float32)
        for i in (0, 1)
        for h, shape in (("A", (2, 12)), ("B", (32, 2)))
    }
    config = {"r": 2, "target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}
    with pytest.warns(AdapterWarning, match=r"target_modules selects the experts, but .* transformers 5"):
        load_adapter(write_adapter(tmp_path, attention, **config), base)
    some = {name: x for name, x in layout_1(example).items() if "experts.2." not in name}
    with refused(AdapterError, "selects model.layers.0.mlp.experts.2.gate_proj", "no tensors"):
        load_adapter(write_adapter(tmp_path, some | attention, **config), base)


def test_only_some_experts(tmp_path: Path) -> None:
    """Named one by one: the others are the base's. PEFT's file of it has zeros for them."""
    base = base_of()
    pairs = {module: pair for module, pair in pairs_of(base, 2, 1).items() if "experts.1." in module[1]}
    names = [module_name(module) for module in pairs]
    tensors = layout_1(Drawn(base, 2, pairs))
    adapter = load(write_adapter(tmp_path / "some", tensors, r=2, target_modules=names), base)
    assert same(adapter, pairs)
    save_adapter(adapter, tmp_path / "saved", config=base)
    saved = load(tmp_path / "saved", base)
    for module, lora in saved.lora.items():
        assert np.array_equal(lora.B, pairs[module][1]) if module in pairs else not lora.B.any()


@settings(max_examples=20)
@given(examples(), st.booleans())
def test_what_is_saved_is_layout_2(folder: Path, example: Drawn, use_rslora: bool) -> None:
    """As it lay in the file; from layout 1 the same, with one A for both halves; and once more the same bytes."""
    config = {"r": example.rank, "use_rslora": use_rslora}
    for tensors, targets in ((layout_2(example), TARGETS | {"peft_version": "0.19.1"}), (layout_1(example), EXPERTS)):
        adapter = load(write_adapter(folder, tensors, **config, **targets), example.base)
        files = save_twice(adapter, example.base, folder)
        assert files[0] == files[1]
        saved = load(folder / "new", example.base)
        assert same(saved, example.pairs)
        assert saved.config.peft_version == "" and json.loads(files[0][0])["peft_version"] == "0.19.0"
        if targets != EXPERTS:
            assert saved.config == adapter.config


def save_twice(adapter: Adapter, base: ModelConfig, folder: Path) -> list[tuple[str, bytes]]:
    """The two files of the adapter saved, and saved again from there."""
    files = []
    for name in ("new", "newer"):
        for file in (folder / name).glob("*"):
            file.unlink()
        if (folder / name).exists():
            (folder / name).rmdir()
        save_adapter(adapter, folder / name, config=base)
        adapter = load(folder / name, base)
        config, tensors = (folder / name / file for file in ("adapter_config.json", "adapter_model.safetensors"))
        files.append((config.read_text(), tensors.read_bytes()))
    return files


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 99))
def test_gate_and_up_with_an_A_of_their_own(
    folder: Path, gate_rank: int, up_rank: int, use_rslora: bool, interleaved: bool, seed: int
) -> None:
    """B gets two blocks: the delta of every module is the same, and so is its scale."""
    base = base_of(stacked=tuple(replace(stack, interleaved=interleaved) for stack in STACKS))
    rng, lora = np.random.default_rng(seed), {}
    for layer in range(2):
        for expert in range(3):
            for name, rank in (("gate_proj", gate_rank), ("up_proj", up_rank)):
                A, B = rng.standard_normal((rank, 12)), rng.standard_normal((5, rank))
                lora[layer, f"mlp.experts.{expert}.{name}"] = LoraTensors(A, B)
    alpha = {"up_proj": 6.0 * (np.sqrt(up_rank / gate_rank) if use_rslora else up_rank / gate_rank)}
    config = PeftConfig(gate_rank, 6.0, use_rslora, {"up_proj": up_rank}, alpha, ("gate_proj", "up_proj"))
    adapter = Adapter("own", config, lora)
    scales = {one.scale for one in bind_adapter(adapter, base).lora.values()}
    if len(scales) > 1:  # equal but for the last bit
        with refused(AdapterError, "different scales"):
            save_adapter(adapter, folder / "never", config=base)
        return
    save_twice(adapter, base, folder)
    saved = bind_adapter(load(folder / "new", base), base)
    for module, before in bind_adapter(adapter, base).lora.items():
        after = saved.lora[module]
        expected = before.scale * before.B @ before.A
        np.testing.assert_allclose(after.scale * after.B @ after.A, expected, rtol=1e-13, atol=1e-13)


def test_what_has_no_form_in_peft_is_refused(tmp_path: Path) -> None:
    base = base_of()
    pairs = pairs_of(base, 2, 1)
    lora = {module: LoraTensors(A, B) for module, (A, B) in pairs.items()}
    module = (1, "mlp.experts.2.down_proj")
    wider = LoraTensors(np.ones((3, 5), np.float32), np.ones((12, 3), np.float32))
    targets = ("gate_proj", "up_proj", "down_proj")
    cases = {
        "rank 2 and .* rank 3": Adapter("a", PeftConfig(2, 7.0, target_modules=targets), lora | {module: wider}),
        "different scales": Adapter(
            "a", PeftConfig(2, 7.0, target_modules=targets, alpha_pattern={"experts.2.down_proj": 3.0}), lora
        ),
        "DoRA on .*experts": Adapter(
            "a",
            PeftConfig(2, 7.0, target_modules=targets, use_dora=True),
            {module: replace(one, magnitude=np.ones(len(one.B), np.float32)) for module, one in lora.items()},
        ),
        "float32 and float64": Adapter(
            "a",
            PeftConfig(2, 7.0, target_modules=targets),
            lora | {module: LoraTensors(np.ones((2, 5)), np.ones((12, 2)))},
        ),
    }
    for says, adapter in cases.items():
        with pytest.raises(AdapterError, match=says):
            save_adapter(adapter, tmp_path / "never", config=base)
    with refused(AdapterError, "model.layers.0.mlp.experts.0.gate_proj", "which the base has not"):
        save_adapter(Adapter("a", PeftConfig(2, 7.0), lora), tmp_path / "never", config=BASE)
    with refused(AdapterError, "only the base knows"):
        save_adapter(Adapter("a", PeftConfig(2, 7.0, target_modules=targets), lora), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_shared_expert_is_saved_where_peft_does_not_take_it_for_an_expert(tmp_path: Path) -> None:
    """PEFT 0.21 turns gate_proj in target_modules into the experts' parameter: peft issue 3711."""
    shared = Mlp(("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"), "mlp.shared_expert.down_proj", 7)
    base = base_of(shared=shared, shared_gate="mlp.shared_expert_gate")
    lora = {
        (i, name): LoraTensors(np.ones((2, d_in), np.float32), np.ones((d_out, 2), np.float32))
        for i in (0, 1)
        for name in (*shared.modules, "q_proj")
        for d_out, d_in in [base.shape((i, name))]
    }
    config = PeftConfig(
        2, 7.0, target_modules=("shared_expert.gate_proj", "up_proj", "q_proj"), alpha_pattern={"up_proj": 3.0}
    )
    save_adapter(Adapter("a", config, lora), tmp_path / "new", config=base)
    data = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert data["target_modules"] == ["q_proj"]
    assert sorted(data["target_parameters"]) == [f"{name}.weight" for name in sorted(shared.modules)]
    saved = load(tmp_path / "new", base)
    assert saved.lora.keys() == lora.keys()
    scales = {name: one.scale for (_, name), one in bind_adapter(saved, base).lora.items()}
    assert scales == {**dict.fromkeys(lora_names(lora), 3.5), "mlp.shared_expert.up_proj": 1.5}


def lora_names(lora: Mapping[Module, LoraTensors]) -> list[str]:
    return [name for _, name in lora]


def test_inspect_shows_experts_with_and_without_the_base(tmp_path: Path) -> None:
    base = base_of()
    path = write_adapter(tmp_path, layout_2(Drawn(base, 2, pairs_of(base, 2, 1))), r=2, **TARGETS)
    alone = inspect(path)
    assert alone.ok
    shown = {report.module: (report.shapes, report.rank, report.scale) for report in alone.modules}
    assert shown["model.layers.1.mlp.experts.gate_up_proj"] == ({"A": [3, 2, 12], "B": [3, 10, 2]}, 2, 3.5)
    assert shown["model.layers.0.mlp.experts.down_proj"] == ({"A": [3, 2, 5], "B": [3, 12, 2]}, 2, 3.5)
    against = inspect(path, base)
    assert against.ok
    assert {report.module for report in against.modules} == {module_name(module) for module in pairs_of(base, 2, 1)}
    assert {(report.rank, report.scale) for report in against.modules} == {(2, 3.5)}
    assert against.parameters == alone.parameters  # gate and up share A
    assert in_layers([report for report in against.modules if report.module.endswith("up_proj")]) == "2 x 3"
    assert {short_name(report.module) for report in against.modules} == {
        "experts.gate_proj",
        "experts.up_proj",
        "experts.down_proj",
    }


def test_convert_needs_the_base(tmp_path: Path) -> None:
    base = base_of()
    example = Drawn(base, 2, pairs_of(base, 2, 1))
    for name, tensors, config in (("2", layout_2(example), TARGETS), ("1", layout_1(example), EXPERTS)):
        path = write_adapter(tmp_path / name, tensors, r=2, **config)
        with refused(AdapterError, "only the base knows", "--model DIR"):
            convert(path, tmp_path / "never", "peft")
        convert(path, tmp_path / f"{name} saved", "peft", base=base)
        assert same(load(tmp_path / f"{name} saved", base), example.pairs)
        for form in ("mlx", "trtllm", "gguf"):
            way_out = "reads experts from the PEFT folder itself" if form == "trtllm" else ""
            with refused(AdapterError, "LoRA on model.layers.0.mlp.experts.0.", way_out):
                convert(path, tmp_path / "never", form, base=base)
    assert not (tmp_path / "never").exists()


def test_experts_as_unsloth_calls_those_of_gpt_oss_are_named(tmp_path: Path) -> None:
    base = base_of()
    shapes = {"gate_up_projs": (2 * 5, 12), "down_projs": (12, 5)}
    tensors = {
        f"{PREFIX}model.layers.0.mlp.experts.{name}.2.lora_{half}.weight": np.ones(shape, np.float32)
        for name, (d_out, d_in) in shapes.items()
        for half, shape in (("A", (2, d_in)), ("B", (d_out, 2)))
    }
    path = write_adapter(tmp_path, tensors, r=2, target_modules=[f"{name}.2" for name in shapes])
    with refused(AdapterError, "Unsloth's gpt-oss, with a layer for each expert: call gate_up_projs.7 experts.7."):
        load(path, base)


@pytest.mark.parametrize("stack", ["switch_mlp", "experts"])
@pytest.mark.parametrize("changes", [{}, MIXTRAL], ids=["qwen", "mixtral"])
def test_all_experts_of_a_layer_as_mlx_lm_saves_them(tmp_path: Path, stack: str, changes: dict[str, Any]) -> None:
    """LoRASwitchLinear: A [experts, r, d_in], B [experts, d_out, r], of modules with one name in every family."""
    base = base_of(**changes)
    example, parent = Drawn(base, 2, pairs_of(base, 2, 1)), base.moe.expert.rpartition(".")[0]
    tensors = {}
    for layer in range(base.num_hidden_layers):
        theirs = ("gate_proj", "up_proj", "down_proj")
        for name, ours in zip(theirs, (*base.moe.gate_up, base.moe.down), strict=True):
            each = [example.pairs[layer, member(base, expert, ours)] for expert in range(3)]
            path = f"model.layers.{layer}.{parent}.{stack}.{name}"
            tensors |= {
                f"{path}.lora_{half}": np.stack(x) for half, x in zip("ab", zip(*each, strict=True), strict=True)
            }
    folder = write_mlx(tmp_path, tensors)
    with pytest.warns(AdapterWarning, match="has no keys: old versions of mlx-lm ignore"):
        assert same(load_adapter(folder, base), example.pairs)
    assert any("only the base knows: give --model DIR" in problem for problem in inspect(folder).problems)
    write_mlx(tmp_path, tensors, keys=[f"{parent}.{stack}.{name}" for name in ("gate_proj", "up_proj", "down_proj")])
    assert same(load(folder, base), example.pairs)
    write_mlx(tmp_path, tensors, keys=["self_attn.q_proj"])
    with refused(AdapterError, "is ignored by mlx-lm: keys are ['self_attn.q_proj']"):
        load_adapter(folder, base)
    with refused(AdapterError, "it must have 3 axes, of which the first is 4 experts"):
        write_mlx(tmp_path, tensors)
        load_adapter(folder, base_of(4, **changes))


def write_mlx(folder: Path, tensors: dict[str, np.ndarray], **parameters: Any) -> Path:
    """A folder of mlx-lm."""
    (folder / "adapters.safetensors").write_bytes(safetensors_bytes(tensors))
    parameters = {"rank": 2, "scale": 2.0, "dropout": 0.0} | parameters
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_the_rank_that_an_engine_must_allow_is_that_of_an_expert(tmp_path: Path) -> None:
    base = base_of()
    example = Drawn(base, 2, pairs_of(base, 2, 1))
    for number, (tensors, config) in enumerate(
        ((layout_1(example), EXPERTS), (layout_2(example), TARGETS), (layout_4(example), EXPERTS))
    ):
        path = write_adapter(tmp_path / str(number), tensors, r=2, **config)
        for against in (None, base):
            assert {*read_facts(path, against, 8).ranks.values()} == {2}


def test_what_peft_does_with_them_is_in_its_table(tmp_path: Path) -> None:
    """tests/engines/test_expert_adapters.py sees each of it."""
    gated = Mlp(("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"), "mlp.shared_expert.down_proj", 7)
    plain, beside = base_of(), base_of(shared=gated, shared_gate="mlp.shared_expert_gate")
    example = Drawn(plain, 2, pairs_of(plain, 2, 1))
    layers = write_adapter(tmp_path / "layers", layout_1(example), r=2, **EXPERTS)
    stable = write_adapter(tmp_path / "stable", layout_1(example), r=2, use_rslora=True, **EXPERTS)
    packed = write_adapter(tmp_path / "packed", layout_2(example), r=2, use_rslora=True, **TARGETS)
    for path, base, expected in (
        (layers, plain, []),
        (layers, beside, ["ignores"]),
        (stable, plain, ["changes"]),
        (stable, beside, ["changes", "ignores"]),
        (packed, beside, ["rejects"]),
    ):
        assert [hit.does for hit in limits_of(path, "peft", base)] == expected


@pytest.mark.parametrize("module", [13, 14, 15, 16])  # moe_h_to_4h, moe_4h_to_h, moe_gate, moe_router
def test_experts_in_tensorrt_llms_arrays_are_refused_by_name(tmp_path: Path, module: int) -> None:
    np.save(tmp_path / "model.lora_weights.npy", np.ones((1, 1, 100), np.float32))
    np.save(tmp_path / "model.lora_config.npy", np.array([[[module, 0, 2]]], np.int32))
    with refused(AdapterError, "moe_", "LoRA on experts is not read from arrays"):
        convert(tmp_path, tmp_path / "never", "peft", base=base_of())
