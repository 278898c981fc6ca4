"""PEFT folders written by hand -> Adapters: the right tensors at the right sites, or one line that says why not."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import BASE, LFS_POINTER, lora_name, lora_tensors, random, refused, safetensors_bytes, write_adapter
from support.build import random_model

from refimpl import Request, logits
from refimpl.adapter import Adapter
from refimpl.adapter_slots import AdapterSlots, bind_adapter
from refimpl.arrays import Precision
from refimpl.config import EMBED, LAYER_MODULES, LM_HEAD, ModelConfig
from refimpl.errors import AdapterError, AdapterWarning, RequestError
from refimpl.loading.adapter_folder import load_adapter

Q, DOWN = (0, "q_proj"), (1, "down_proj")
QA, QB = lora_name(Q, "lora_A.weight"), lora_name(Q, "lora_B.weight")
TIED = dataclasses.replace(BASE, tie_word_embeddings=True)
BIASED = dataclasses.replace(BASE, attention_bias=True, mlp_bias=True)
EVERYTHING = [*LAYER_MODULES, "embed_tokens", "lm_head"]


def table(rows: int = 13, seed: int = 50) -> np.ndarray:
    return random((rows, 12), seed)


def load(
    folder: Path, tensors: dict[str, np.ndarray] | None = None, base: ModelConfig = BASE, **changes: Any
) -> Adapter:
    """Write and load; what is only odd does not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdapterWarning)
        return load_adapter(write_adapter(folder, tensors, **changes), base)


def without(tensors: dict[str, np.ndarray], *pieces: str) -> dict[str, np.ndarray]:
    return {name: x for name, x in tensors.items() if not any(piece in name for piece in pieces)}


# --- what is honoured ---


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_every_linear_layer(tmp_path: Path, dtype: str) -> None:
    tensors = lora_tensors(dtype=dtype)
    adapter = load(tmp_path / "pirate", tensors)
    assert adapter.name == "pirate"
    assert adapter.config.lora_alpha == 7
    assert adapter.lora.keys() == {module for module in BASE.modules() if module[1] in LAYER_MODULES}
    for module, held in adapter.lora.items():
        for part, x in (("lora_A.weight", held.A), ("lora_B.weight", held.B)):
            assert x.dtype == tensors[QA].dtype
            assert np.array_equal(x, tensors[lora_name(module, part)])
            assert not x.flags.writeable
            assert x.flags.owndata  # a copy: what is digested stays what it was, whatever becomes of the file
    assert (adapter.replaced, adapter.biases) == ({}, {})


@pytest.mark.parametrize(("dtype", "shared"), [("float32", True), ("float16", False)])
def test_slots_hold_a_loaded_adapter_once(tmp_path: Path, dtype: str, shared: bool) -> None:
    """A in rows and B in columns, as products read them: what was loaded itself, or the float32 of a half type."""
    adapter, slots = load(tmp_path / "pirate", lora_tensors(dtype=dtype)), AdapterSlots(random_model(BASE), Precision())
    slots.put(0, bind_adapter(adapter, BASE))
    for module, tensors in adapter.lora.items():
        lora = slots.at(module)[0]
        assert lora.A.flags.c_contiguous and lora.B.flags.f_contiguous
        assert not lora.A.flags.writeable and not lora.B.flags.writeable
        assert (np.shares_memory(lora.A, tensors.A), np.shares_memory(lora.B, tensors.B)) == (shared, shared)


def magnitudes(tensors: dict[str, np.ndarray], ending: str = "") -> dict[str, np.ndarray]:
    """DoRA's, for every B among the tensors: one number for each of its rows."""
    vectors: dict[str, np.ndarray] = {}
    for name, x in tensors.items():
        module, _, part = name.partition(".lora_")
        if part in ("B.weight", "embedding_B"):
            vectors[f"{module}.lora_magnitude_vector{ending}"] = random((len(x),), len(vectors))
    return vectors


@pytest.mark.parametrize("ending", ["", ".weight"])  # as PEFT saves it, and as its layer calls it
def test_dora(tmp_path: Path, ending: str) -> None:
    plain = lora_tensors(modules=tuple(EVERYTHING))
    tensors = magnitudes(plain, ending)
    adapter = load(tmp_path, plain | tensors, target_modules=EVERYTHING, use_dora=True)
    assert adapter.config.use_dora and adapter.use_dora and not adapter.can_be_summed
    assert len(adapter.lora) == len(tensors) == 16
    for module, lora in adapter.lora.items():
        assert lora.magnitude is not None and not lora.magnitude.flags.writeable
        assert np.array_equal(lora.magnitude, tensors[lora_name(module, f"lora_magnitude_vector{ending}")])
    assert adapter.lora[EMBED].magnitude.shape == (12,)  # one for each channel
    assert adapter.lora[LM_HEAD].magnitude.shape == (13,)


QM = lora_name(Q, "lora_magnitude_vector")


@pytest.mark.parametrize(
    ("change", "use_dora", "says"),
    [
        (
            {QM: random((31,))},
            True,
            f"tensor {QM} has shape [31], adapter_config.json (rank 3) and the base make it [32]",
        ),
        ({QM: random((32, 1))}, True, "has shape [32, 1]"),
        ({QM: np.full(32, np.nan, "float32")}, True, f"tensor {QM} holds NaN or inf"),
        ({QM: ...}, True, "q_proj: use_dora is true, but lora_magnitude_vector is not there"),
        ({}, False, "q_proj: use_dora is false, but lora_magnitude_vector is there"),
        ({QM + ".weight": random((32,))}, True, "is there a second time"),
        ({QA: ..., QB: ...}, True, f"lora_A and lora_B is missing (there is {QM})"),
        ({}, "yes", "use_dora is 'yes': it must be true or false"),
    ],
)
def test_dora_that_is_not_whole(tmp_path: Path, change: dict[str, Any], use_dora: object, says: str) -> None:
    tensors = lora_tensors() | magnitudes(lora_tensors()) | change
    with refused(AdapterError, says):
        load(tmp_path, {name: x for name, x in tensors.items() if x is not ...}, use_dora=use_dora)


def test_dora_with_lora_bias_is_refused_as_in_peft(tmp_path: Path) -> None:
    with refused(AdapterError, "use_dora and lora_bias are both true, which PEFT does not support"):
        load(tmp_path, use_dora=True, lora_bias=True)


def test_dora_on_parameters_is_refused_as_in_peft(tmp_path: Path) -> None:
    with refused(AdapterError, "use_dora with target_parameters: PEFT has DoRA on layers alone"):
        load(tmp_path, use_dora=True, target_parameters=["mlp.experts.gate_up_proj"])


TABLE_ROWS, HEAD_ROWS = (lora_name(m, "token_adapter.trainable_tokens_delta") for m in (EMBED, LM_HEAD))


@pytest.mark.parametrize("base", [BASE, TIED])
@pytest.mark.parametrize("indices", [[3, 12], {"embed_tokens": [3, 12]}, {"model.embed_tokens": [3, 12]}])
def test_trainable_tokens(tmp_path: Path, base: ModelConfig, indices: Any) -> None:
    adapter = load(tmp_path, lora_tensors() | {TABLE_ROWS: table(2)}, base, trainable_token_indices=indices)
    assert adapter.tokens[EMBED].ids.tolist() == [3, 12] and not adapter.can_be_summed
    assert np.array_equal(adapter.tokens[EMBED].rows, table(2)) and not adapter.tokens[EMBED].rows.flags.writeable
    assert (LM_HEAD in adapter.tokens) == base.tie_word_embeddings
    assert adapter.tokens.get(LM_HEAD, adapter.tokens[EMBED]) is adapter.tokens[EMBED]


def test_trainable_tokens_of_both_tables(tmp_path: Path) -> None:
    rows = {TABLE_ROWS: table(1), HEAD_ROWS: table(2, 51)}
    both = {"embed_tokens": [3], "lm_head": [5, 0]}
    for base in (BASE, TIED):  # tied, but with ids of their own: each has its tensor
        adapter = load(tmp_path, lora_tensors() | rows, base, trainable_token_indices=both)
        assert adapter.tokens[LM_HEAD].ids.tolist() == [5, 0]
    equal = {"embed_tokens": [3], "lm_head": [3]}  # tied, and with equal ids: one tensor for both
    adapter = load(tmp_path, lora_tensors() | {TABLE_ROWS: table(1)}, TIED, trainable_token_indices=equal)
    assert adapter.tokens[LM_HEAD] is adapter.tokens[EMBED]


@pytest.mark.parametrize(
    ("indices", "rows", "says"),
    [
        ([3, 12], {}, "names model.embed_tokens, but there are no rows for it"),
        ({"embed_tokens": [3], "lm_head": [3]}, {TABLE_ROWS: table(1)}, "names lm_head, but there are no rows for it"),
        (None, {TABLE_ROWS: table(2)}, f"tensor {TABLE_ROWS} is not for use: trainable_token_indices does not name"),
        ([3], {TABLE_ROWS: table(2)}, "has shape [2, 12], 1 tokens and the base make it [1, 12]"),
        ([3, 13], {TABLE_ROWS: table(2)}, "names token 13, outside of the vocabulary of 13"),
        ([3, 3], {TABLE_ROWS: table(2)}, "names a token twice"),
        ([3, -1], {TABLE_ROWS: table(2)}, "is [3, -1]: it must be a list of token ids"),
        ({"embed_tokens": 3}, {TABLE_ROWS: table(1)}, "it must be a list of token ids"),
        ("all", {TABLE_ROWS: table(1)}, "is 'all': it must be a list of token ids"),
        ({"wte": [3]}, {TABLE_ROWS: table(1)}, "names wte, which is neither embed_tokens nor lm_head"),
        ([3], {TABLE_ROWS: table(1), lora_name(EMBED, "weight"): table()}, "are both of one table"),
        ([3], {TABLE_ROWS: table(1, 0) * np.float32("nan")}, "holds NaN or inf"),
    ],
)
def test_trainable_tokens_that_do_not_belong_together(
    tmp_path: Path, indices: Any, rows: dict[str, np.ndarray], says: str
) -> None:
    with refused(AdapterError, says):
        load(tmp_path, lora_tensors() | rows, trainable_token_indices=indices)


def test_trainable_tokens_are_for_the_base_that_they_were_loaded_for(tmp_path: Path) -> None:
    adapter = load(tmp_path, lora_tensors() | {TABLE_ROWS: table(1)}, trainable_token_indices=[12])
    narrow = random_model(dataclasses.replace(BASE, vocab_size=12))
    with refused(RequestError, "is for another model: model.embed_tokens is [13, 12] here, [12, 12] there"):
        logits(narrow, [Request([1], adapter)])
    with refused(RequestError, "replaces rows of tokens: it can be neither summed nor weighted"):
        logits(random_model(BASE), [Request([1], [(adapter, 0.5)])])


def test_ensure_weight_tying_is_honoured_where_it_does_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, base=TIED, ensure_weight_tying=True).lora
    top = lora_tensors(modules=tuple(EVERYTHING))
    assert load(tmp_path, top, BASE, target_modules=EVERYTHING, ensure_weight_tying=True).lora
    with refused(AdapterError, "ensure_weight_tying makes one LoRA of", "and they differ"):
        load(tmp_path, top, TIED, target_modules=EVERYTHING, ensure_weight_tying=True)


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "model.embed_tokens"]])
def test_ensure_weight_tying_is_one_lora_for_both_tables(tmp_path: Path, targets: list[str]) -> None:
    """Both pairs are in the file, and target_modules names one of the tables, as PEFT writes it."""
    pairs = lora_tensors(modules=("embed_tokens", "lm_head"))
    A, B = (pairs[lora_name(EMBED, f"lora_embedding_{half}")] for half in "AB")
    pairs |= {lora_name(LM_HEAD, "lora_A.weight"): B.T.copy(), lora_name(LM_HEAD, "lora_B.weight"): A.T.copy()}
    adapter = load(tmp_path, pairs, TIED, target_modules=targets, ensure_weight_tying=True)
    assert adapter.lora.keys() == {EMBED, LM_HEAD}
    with refused(AdapterError, "target_modules does not select it"):
        load(tmp_path, pairs, BASE, target_modules=targets, ensure_weight_tying=True)


def test_a_copy_of_the_bases_tables_is_no_change(tmp_path: Path) -> None:
    """PEFT saves it beside a LoRA on them. Not the base's, or of modules_to_save, it stays a layer of its own."""
    model = random_model(BASE, dtype="float32")
    pairs = lora_tensors(modules=("embed_tokens", "q_proj"))
    copies = {lora_name(EMBED, "base_layer.weight"): model.embed_tokens}
    copies[lora_name(LM_HEAD, "weight")] = model.lm_head.weight
    targets = ["embed_tokens", "q_proj"]
    folder = write_adapter(tmp_path / "same", pairs | copies, target_modules=targets)
    same, by_config = load_adapter(folder, model), load_adapter(folder, BASE)
    assert same.can_be_summed and not same.replaced and set(by_config.replaced) == {EMBED, LM_HEAD}
    one, half = (logits(model, [Request([1, 2], [(same, weight)])])[0] for weight in (1.0, 0.5))
    assert np.array_equal(one, logits(model, [Request([1, 2], by_config)])[0]) and not np.array_equal(one, half)
    other = copies | {lora_name(EMBED, "base_layer.weight"): np.nextafter(model.embed_tokens, np.float32(9))}
    assert load_adapter(write_adapter(tmp_path / "other", pairs | other, target_modules=targets), model).replaced
    own = lora_tensors(modules=("q_proj",)) | {lora_name(EMBED, "weight"): model.embed_tokens}
    saved = write_adapter(tmp_path / "saved", own, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    assert set(load_adapter(saved, model).replaced) == {EMBED}


def test_the_name_is_the_callers_or_the_folders(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x")
    assert load_adapter(folder, BASE).name == "x"
    assert load_adapter(folder, BASE, name="bard").name == "bard"
    assert load_adapter(str(folder), BASE) is not load_adapter(str(folder), BASE)


def test_a_rank_for_each_module(tmp_path: Path) -> None:
    tensors = lora_tensors() | {QA: random((5, 12)), QB: random((32, 5))}
    adapter = load(tmp_path, tensors, rank_pattern={r"0\.self_attn\.q_proj": 5})
    assert adapter.lora[Q].A.shape == (5, 12)
    assert adapter.lora[1, "q_proj"].A.shape == (3, 12)


def test_embeddings_and_head(tmp_path: Path) -> None:
    tensors = lora_tensors(modules=tuple(EVERYTHING))
    for base in (BASE, TIED):
        adapter = load(tmp_path, tensors, base, target_modules=EVERYTHING)
        assert (adapter.lora[EMBED].A.shape, adapter.lora[EMBED].B.shape) == ((3, 13), (12, 3))
        assert (adapter.lora[LM_HEAD].A.shape, adapter.lora[LM_HEAD].B.shape) == ((3, 12), (13, 3))
        assert adapter.replaced == {}
    renamed = {name.replace("embedding_A", "embedding_A.weight"): x for name, x in tensors.items()}
    assert load(tmp_path, renamed, target_modules=EVERYTHING).lora[EMBED].A.shape == (3, 13)


def test_modules_to_save(tmp_path: Path) -> None:
    saved = {lora_name(EMBED, "weight"): table(), lora_name(LM_HEAD, "weight"): table(seed=51)}
    for base in (BASE, TIED):
        adapter = load(tmp_path, lora_tensors() | saved, base, modules_to_save=["lm_head", "embed_tokens", "score"])
        assert np.array_equal(adapter.replaced[EMBED], table())
        assert np.array_equal(adapter.replaced[LM_HEAD], table(seed=51))
        assert not adapter.replaced[LM_HEAD].flags.writeable
    for module, name in ((EMBED, "embed_tokens"), (LM_HEAD, "lm_head")):
        one = {lora_name(module, "weight"): table()}
        for base in (BASE, TIED):  # a layer of its own, also where the base ties the two
            assert load(tmp_path, lora_tensors() | one, base, modules_to_save=[name]).replaced.keys() == {module}


def test_a_grown_vocabulary(tmp_path: Path) -> None:
    saved = {lora_name(EMBED, "weight"): table(16), lora_name(LM_HEAD, "weight"): table(16, 51)}
    adapter = load(tmp_path, lora_tensors() | saved, modules_to_save=["lm_head", "embed_tokens"])
    assert (len(adapter.replaced[EMBED]), len(adapter.replaced[LM_HEAD])) == (16, 16)
    assert load(tmp_path, lora_tensors() | saved).replaced.keys() == {EMBED, LM_HEAD}  # save_embedding_layers

    grown = dataclasses.replace(BASE, vocab_size=16)
    copies = {lora_name(EMBED, "base_layer.weight"): table(16), lora_name(LM_HEAD, "base_layer.weight"): table(16, 51)}
    tensors = lora_tensors(grown, modules=tuple(EVERYTHING)) | copies
    adapter = load(tmp_path, tensors, target_modules=EVERYTHING)
    assert adapter.lora[EMBED].A.shape == (3, 16)
    assert adapter.lora[LM_HEAD].B.shape == (16, 3)
    assert adapter.replaced.keys() == {EMBED, LM_HEAD}


def test_a_copy_of_a_tied_table_is_both_tables(tmp_path: Path) -> None:
    tensors = lora_tensors(modules=(*LAYER_MODULES, "embed_tokens")) | {lora_name(EMBED, "base_layer.weight"): table()}
    target = [*LAYER_MODULES, "embed_tokens"]
    assert load(tmp_path, tensors, BASE, target_modules=target).replaced.keys() == {EMBED}
    adapter = load(tmp_path, tensors, TIED, target_modules=target)
    assert adapter.replaced[LM_HEAD] is adapter.replaced[EMBED]


@pytest.mark.parametrize("part", ["bias", "base_layer.bias"])
def test_biases(tmp_path: Path, part: str) -> None:
    tensors = lora_tensors() | {lora_name(Q, part): random((32,), 9), lora_name(DOWN, part): random((12,), 9)}
    adapter = load(tmp_path, tensors, BIASED, bias="all")
    assert adapter.biases.keys() == {Q, DOWN}
    assert np.array_equal(adapter.biases[Q], random((32,), 9))


def test_the_bias_of_lora_b(tmp_path: Path) -> None:
    tensors = lora_tensors(modules=("q_proj",))
    biases = {lora_name((i, "q_proj"), "lora_B.bias"): random((32,), i) for i in range(2)}
    adapter = load(tmp_path, tensors | biases, target_modules=["q_proj"], lora_bias=True)
    assert np.array_equal(adapter.lora[1, "q_proj"].bias, random((32,), 1))
    with refused(AdapterError, "lora_bias is true, but lora_B.bias is not there", "and 1 more: loracle inspect"):
        load(tmp_path, tensors, target_modules=["q_proj"], lora_bias=True)
    with refused(AdapterError, "lora_bias is false, but lora_B.bias is there"):
        load(tmp_path, tensors | biases, target_modules=["q_proj"])


@pytest.mark.parametrize(
    ("changes", "modules"),
    [
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, {(1, "q_proj")}),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}, {Q}),
        ({"target_modules": r".*\.0\.self_attn\.q_proj"}, {Q}),
        ({"target_modules": ["model.layers.0.self_attn.q_proj"]}, {Q}),
        ({"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj", "layers.1.self_attn.q_proj"]}, {Q}),
        ({"target_modules": "all-linear", "exclude_modules": r".*(mlp|[kvo]_proj|\.1\.).*"}, {Q}),
    ],
)
def test_a_choice_of_modules(tmp_path: Path, changes: dict[str, Any], modules: set) -> None:
    chosen = {lora_name(module, part) for module in modules for part in ("lora_A.weight", "lora_B.weight")}
    tensors = {name: x for name, x in lora_tensors().items() if name in chosen}
    assert load(tmp_path, tensors, **changes).lora.keys() == modules
    with refused(AdapterError, "target_modules does not select it"):
        load(tmp_path, lora_tensors(), **changes)


# --- what is odd ---


@pytest.mark.parametrize(
    ("tensors", "changes", "says"),
    [
        (
            without(lora_tensors(), "layers.0"),
            {"target_modules": r".*layers\.1\..*_proj"},
            "covers 1 of the base's 2 layers",
        ),
        (
            lora_tensors(),
            {"target_modules": [*LAYER_MODULES, "c_attn", "proj"]},
            r"\['c_attn', 'proj'\] name no linear layer",
        ),
        (lora_tensors(), {"alpha_pattern": {"c_attn": 3}}, r"alpha_pattern: \['c_attn'\] match no linear layer"),
        (lora_tensors(), {"bias": "lora_only"}, "bias is 'lora_only', but there is no bias tensor"),
        ({n: 0 * x if "lora_B" in n else x for n, x in lora_tensors().items()}, {}, "every B is zero"),
        (lora_tensors(), {"inference_mode": False}, "inference_mode is false"),
    ],
)
def test_warnings(tmp_path: Path, tensors: dict[str, np.ndarray], changes: dict[str, Any], says: str) -> None:
    with pytest.warns(AdapterWarning, match=says) as caught:
        load_adapter(write_adapter(tmp_path, tensors, **changes), BASE)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_layers_that_the_config_names_are_no_surprise(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, without(lora_tensors(), "layers.0"), layers_to_transform=[1])
    assert {layer for layer, _ in load_adapter(folder, BASE).lora} == {1}  # a warning would be an error here


# --- what is refused ---

WITH_NAN = lora_tensors()
WITH_NAN[QB][0, 0] = np.nan


@pytest.mark.parametrize(
    ("tensors", "changes", "says"),
    [
        (without(lora_tensors(), QA), {}, "module model.layers.0.self_attn.q_proj: lora_A is missing"),
        (without(lora_tensors(), QB), {}, "module model.layers.0.self_attn.q_proj: lora_B is missing"),
        (
            without(lora_tensors(), QA, QB),
            {},
            "target_modules selects model.layers.0.self_attn.q_proj, but there are no",
        ),
        (without(lora_tensors(), "layers.1"), {}, "target_modules selects model.layers.1.self_attn.q_proj"),
        ({}, {}, "has no tensors at all: a process of ZeRO-3"),
        ({}, {"target_modules": []}, "has no tensors at all"),
        (
            lora_tensors(),
            {"r": 4},
            f"tensor {QA} has shape [3, 12], adapter_config.json (rank 4) and the base make it [4, 12]",
        ),
        (lora_tensors(), {"rank_pattern": {"q_proj": 2}}, f"tensor {QA} has shape [3, 12]"),
        (lora_tensors() | {QB: random((32, 4))}, {}, f"tensor {QB} has shape [32, 4]"),
        (lora_tensors() | {QA: random((12, 3)), QB: random((3, 32))}, {}, f"tensor {QA} has shape [12, 3]"),
        (lora_tensors() | {QA: random((36,))}, {}, f"tensor {QA} has shape [36]"),
        (lora_tensors() | {QA: random((3, 13))}, {}, f"tensor {QA} has shape [3, 13]"),
        (lora_tensors() | {QB: random((16, 3))}, {}, f"tensor {QB} has shape [16, 3]"),
        (WITH_NAN, {}, f"tensor {QB} holds NaN or inf"),
        (lora_tensors() | {QA: np.zeros((3, 12), np.int8)}, {}, f"tensor {QA} has dtype I8"),
        (
            lora_tensors(),
            {"target_modules": ["q_proj"]},
            "k_proj.lora_A.weight is not for use: target_modules does not",
        ),
        (lora_tensors(), {"layers_to_transform": [0]}, "layers.1.self_attn.q_proj.lora_A.weight is not for use"),
        (lora_tensors(), {"exclude_modules": ["o_proj"]}, "o_proj.lora_A.weight is not for use"),
        (
            lora_tensors(dataclasses.replace(BASE, num_hidden_layers=3)),
            {},
            "made for a base with 3 layers and hidden size 12; this one has 2 and 12 (tensor base_model.",
        ),
        (
            lora_tensors(dataclasses.replace(BASE, hidden_size=16)),
            {},
            "made for a base with 2 layers and hidden size 16; this one has 2 and 12 (tensor base_model.",
        ),
        (lora_tensors(), {"modules_to_save": ["lm_head"]}, "modules_to_save 'lm_head': there is no tensor for lm_head"),
        (
            lora_tensors(),
            {"modules_to_save": ["norm"]},
            "modules_to_save 'norm': model.layers.0.input_layernorm cannot be replaced",
        ),
        (
            lora_tensors(),
            {"modules_to_save": ["up_proj"]},
            "up_proj.lora_A.weight is not for use: modules_to_save replaces",
        ),
        (
            lora_tensors(modules=tuple(EVERYTHING)) | {lora_name(EMBED, "weight"): table()},
            {"target_modules": EVERYTHING, "modules_to_save": ["embed_tokens"]},
            "model.embed_tokens.lora_embedding_A is not for use: modules_to_save replaces it",
        ),
        (
            lora_tensors() | {lora_name(EMBED, "weight"): table(16)},
            {"modules_to_save": ["embed_tokens"]},
            "embed_tokens has 16 rows and lm_head 13",
        ),
        (
            lora_tensors() | {lora_name(LM_HEAD, "weight"): table(12)},
            {"modules_to_save": ["lm_head"]},
            "tensor base_model.model.lm_head.weight has shape [12, 12], the base makes it [13 or more, 12]",
        ),
        (lora_tensors() | {lora_name(LM_HEAD, "weight"): random((13,))}, {}, "has shape [13], the base makes it"),
        (lora_tensors() | {lora_name(LM_HEAD, "weight"): random(())}, {}, "has shape [], the base makes it"),
        (lora_tensors() | {lora_name(EMBED, "base_layer.weight"): table()}, {}, "the base of a LoRA that is not there"),
        (lora_tensors() | {lora_name(Q, "bias"): random((32,))}, {}, "but bias is 'none'"),
        (lora_tensors() | {lora_name(Q, "bias"): random((32,))}, {"bias": "all"}, "q_proj of the base has no bias"),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, tensors: dict[str, np.ndarray], changes: dict[str, Any], says: str
) -> None:
    with refused(AdapterError, says, str(tmp_path)):
        load(tmp_path, tensors, **changes)


def test_one_problem_is_reported_as_one(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"holds NaN or inf$"):
        load(tmp_path, WITH_NAN)


def test_biases_that_do_not_fit(tmp_path: Path) -> None:
    with refused(AdapterError, "has shape [31], the base's is [32]"):
        load(tmp_path, lora_tensors() | {lora_name(Q, "bias"): random((31,))}, BIASED, bias="all")
    both = {lora_name(Q, "bias"): random((32,)), lora_name(Q, "base_layer.bias"): random((32,))}
    with refused(AdapterError, "is there a second time"):
        load(tmp_path, lora_tensors() | both, BIASED, bias="all")


def test_two_values_for_one_tied_table(tmp_path: Path) -> None:
    copies = {lora_name(EMBED, "weight"): table(), lora_name(LM_HEAD, "weight"): table()}
    assert load(tmp_path, lora_tensors() | copies, TIED).replaced.keys() == {EMBED, LM_HEAD}
    copies[lora_name(LM_HEAD, "weight")] = table(seed=51)
    with refused(AdapterError, "differ, and the base ties the two"):
        load(tmp_path, lora_tensors() | copies, TIED)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "use save_pretrained"),
        ("base_model.model.model.layers.0.mlp.up_proj.token_adapter.trainable_tokens_delta", "no such module"),
        ("base_model.model.lm_head.modules_to_save.weight", "use save_pretrained"),
        ("base_model.model.lm_head.original_module.weight", "should not have saved"),
        ("base_model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight", "a vision tower"),
        (
            "base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight",
            "LoRA on experts (target_parameters), which",
        ),
        ("base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight", "fused into one"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight", "no such module or parameter"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_embedding_A", "no such module or parameter"),
        ("base_model.model.model.embed_tokens.lora_A.weight", "no such module or parameter"),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.weight",
            "it is a whole parameter, and of those only embed_tokens",
        ),
        ("base_model.model.model.norm.weight", "it is a whole parameter, and of those only embed_tokens"),
        ("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", "no such module or parameter"),
        ("base_model.model.model.layers.99999999999999999999.mlp.up_proj.lora_A.weight", "the base has 2"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "does not begin with base_model.model."),
        ("lora_unet_down_blocks_0.lora_down.weight", "a kohya (sd-scripts) file"),
        ("unet.down_blocks.0.attn1.to_q.lora.down.weight", "a diffusers file"),
        ("", "does not begin with"),
    ],
)
def test_tensors_of_something_else(tmp_path: Path, name: str, says: str) -> None:
    with refused(AdapterError, f"tensor {name} [2, 2] is not supported", says):
        load(tmp_path, lora_tensors() | {name: random((2, 2))})


def test_folders_that_are_no_adapter(tmp_path: Path) -> None:
    with refused(AdapterError, "nowhere: is not there"):
        load_adapter(tmp_path / "nowhere", BASE)
    with refused(AdapterError, "has no adapter_config.json"):
        load_adapter(tmp_path, BASE)
    outer = write_adapter(tmp_path / "outer" / "default").parent
    with refused(AdapterError, "these folders in it have: default"):
        load_adapter(outer, BASE)
    folder = write_adapter(tmp_path / "x")
    with refused(AdapterError, "is a file; give the folder"):
        load_adapter(folder / "adapter_model.safetensors", BASE)
    (folder / "adapter_config.json").rename(folder / "config.json")
    with refused(AdapterError, "without it the scale (lora_alpha) is unknown"):
        load_adapter(folder, BASE)


def test_files_that_are_not_themselves(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path)
    weights = folder / "adapter_model.safetensors"
    for raw, says in ((LFS_POINTER, "Git LFS pointer"), (b"", "0 bytes"), (b"{}", "2 bytes")):
        weights.write_bytes(raw)
        with refused(AdapterError, f"{weights}: ", says):
            load_adapter(folder, BASE)
    weights.write_bytes(safetensors_bytes(lora_tensors())[:-5])
    with refused(AdapterError, "is truncated"):
        load_adapter(folder, BASE)
    weights.unlink()
    with refused(AdapterError, "has no adapter_model.safetensors"):
        load_adapter(folder, BASE)
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04never read")
    with refused(
        AdapterError, "it is a pickle, which can run code, and is not read; convert it", "save_pretrained(NEW)"
    ):
        load_adapter(folder, BASE)
    (folder / "adapter_config.json").write_bytes(LFS_POINTER)
    with refused(AdapterError, "has adapter_model.bin but no"):
        load_adapter(folder, BASE)
    write_adapter(folder)
    (folder / "adapter_config.json").write_bytes(LFS_POINTER)
    with refused(AdapterError, "adapter_config.json: is a Git LFS pointer"):
        load_adapter(folder, BASE)


def test_warnings_as_errors_load_nothing(tmp_path: Path) -> None:
    with pytest.raises(AdapterWarning), warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(write_adapter(tmp_path, inference_mode=False), BASE)
