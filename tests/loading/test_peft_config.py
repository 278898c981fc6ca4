"""adapter_config.json: PEFT's own matching, and a word for every key that is not honoured."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import BASE, adapter_json
from hypothesis import given
from hypothesis import strategies as st

from refimpl.adapter import PeftConfig, pattern_value
from refimpl.config import module_name
from refimpl.loading.diagnostics import Diagnostics
from refimpl.loading.peft_config import is_saved, read_peft_config, selects
from refimpl.loading.peft_keys import HARMLESS, HONOURED

NAN, INF = float("nan"), float("inf")


def read(folder: Path, **changes: Any) -> tuple[PeftConfig | None, Diagnostics]:
    (folder / "adapter_config.json").write_text(json.dumps(adapter_json(**changes)))
    found = Diagnostics()
    return read_peft_config(folder, found), found


def test_the_whole_of_a_plain_config(tmp_path: Path) -> None:
    config, found = read(tmp_path, target_modules=["q_proj", "v_proj"])
    assert config == PeftConfig(3, 7.0, target_modules=("q_proj", "v_proj"))
    assert (found.problems, found.warnings) == ([], [])


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"r": 1000}, "r", 1000),
        ({"lora_alpha": 0.5}, "lora_alpha", 0.5),
        ({"lora_alpha": 16.0}, "lora_alpha", 16.0),
        ({"use_rslora": True}, "use_rslora", True),
        ({"use_rslora": None}, "use_rslora", False),
        ({"use_rslora": ...}, "use_rslora", False),
        ({"rank_pattern": {"q_proj": 5}}, "rank_pattern", {"q_proj": 5}),
        ({"rank_pattern": None, "alpha_pattern": None}, "rank_pattern", {}),
        ({"alpha_pattern": {r"layers\.0\..*": 2.5}}, "alpha_pattern", {r"layers\.0\..*": 2.5}),
        ({"target_modules": r".*\.(q|v)_proj"}, "target_modules", r".*\.(q|v)_proj"),
        ({"target_modules": "all-linear"}, "target_modules", "all-linear"),
        ({"exclude_modules": ["lm_head"]}, "exclude_modules", ("lm_head",)),
        ({"exclude_modules": ".*vision.*"}, "exclude_modules", ".*vision.*"),
        ({"layers_to_transform": 1}, "layers_to_transform", (1,)),
        ({"layers_to_transform": [0, 1], "layers_pattern": "layers"}, "layers_pattern", ("layers",)),
        ({"layers_to_transform": []}, "layers_to_transform", ()),
        ({"modules_to_save": ["lm_head", "lm_head", "score"]}, "modules_to_save", ("lm_head", "score")),
        ({"modules_to_save": []}, "modules_to_save", ()),
        ({"bias": "all"}, "bias", "all"),
        ({"lora_bias": True}, "lora_bias", True),
        ({"target_modules": "(?i).*Q_PROJ"}, "target_modules", "(?i).*Q_PROJ"),
        ({"target_modules": ["q_proj", "to_out[0", "(?P<idx>"]}, "target_modules", ("q_proj", "to_out[0", "(?P<idx>")),
        ({"target_modules": "[[a]q_proj"}, "target_modules", "[[a]q_proj"),
        ({"init_lora_weights": "gaussian"}, "r", 3),
        ({"init_lora_weights": False}, "r", 3),
        ({"init_lora_weights": ...}, "r", 3),
        ({"fan_in_fan_out": None}, "r", 3),
        ({"not_yet_invented": None, "another": {}, "third": False, "fourth": [], "fifth": ""}, "r", 3),
    ],
)
def test_what_is_honoured(tmp_path: Path, changes: dict[str, Any], field: str, value: object) -> None:
    config, found = read(tmp_path, **changes)
    assert not found.problems
    assert not found.warnings
    assert getattr(config, field) == value


@pytest.mark.parametrize("value", [0, 0.1, "text", [1], {"any": 1}, True])
@pytest.mark.parametrize("key", sorted(HARMLESS))
def test_harmless_keys_may_say_anything(tmp_path: Path, key: str, value: object) -> None:
    config, found = read(tmp_path, **{key: value})
    assert config is not None
    assert not found.problems


UNSUPPORTED = """megatron_config enable_lora
    arrow_config
    monteclora_config kasa_config not_yet_invented task domain"""


@pytest.mark.parametrize("key", UNSUPPORTED.split())
def test_keys_that_are_not_supported_are_refused_by_name(tmp_path: Path, key: str) -> None:
    for value in (True, [1, 2], {"a": 1}, "text", 3):
        config, found = read(tmp_path, **{key: value})
        assert config is None
        assert f"{key} is {value!r}, which is not supported" in found.problems[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA and VERA are supported"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"peft_type": 3}, "peft_type is 3"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16'"),
        ({"init_lora_weights": "corda"}, "save it with PEFT's path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"init_lora_weights": 1}, "init_lora_weights is 1"),
        ({"r": 0}, "r is 0"),
        ({"r": -4}, "r is -4"),
        ({"r": "8"}, "r is '8'"),
        ({"r": 8.0}, "r is 8.0"),
        ({"r": True}, "r is True"),
        ({"r": ...}, "r is missing"),
        ({"r": 10**400}, "r is "),
        ({"lora_alpha": ...}, "lora_alpha is None"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": NAN}, "lora_alpha is nan"),
        ({"lora_alpha": INF}, "lora_alpha is inf"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_alpha": 10**400}, "lora_alpha is "),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is {'q_proj': 0}: it must map names to ranks"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj']"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern: '(' is not a regular expression"),
        ({"alpha_pattern": {"q_proj": NAN}}, "alpha_pattern is {'q_proj': nan}"),
        ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern"),
        ({"target_modules": ...}, "target_modules is missing"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"target_modules": "("}, "target_modules: '(' is not a regular expression"),
        ({"target_modules": ["q_proj", 3]}, "target_modules is ['q_proj', 3]"),
        ({"target_modules": {"q_proj": 1}}, "target_modules is {'q_proj': 1}"),
        ({"exclude_modules": "["}, "exclude_modules: '['"),
        ({"exclude_modules": 3}, "exclude_modules is 3"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform is ['1']"),
        ({"layers_to_transform": -1}, "layers_to_transform is -1"),
        ({"layers_to_transform": True}, "layers_to_transform is True"),
        ({"layers_to_transform": [0], "layers_pattern": "("}, "layers_pattern: '('"),
        ({"layers_to_transform": [0], "layers_pattern": ["(?P<idx>h)"]}, "layers_pattern: '(?P<idx>h)'"),
        ({"rank_pattern": {"q_proj": 2**31}}, "rank_pattern"),
        ({"layers_pattern": "layers"}, "layers_pattern is given, but layers_to_transform is not"),
        ({"layers_to_transform": [0], "target_modules": ".*"}, "need target_modules to be a list of names"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'"),
        ({"modules_to_save": ["("]}, "modules_to_save: '('"),
        ({"bias": "some"}, "bias is 'some'"),
        ({"bias": None}, "bias is None"),
        ({"lora_bias": "x"}, "lora_bias is 'x'"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    config, found = read(tmp_path, **changes)
    assert config is None
    assert says in found.problems[0]
    assert found.problems[0].startswith(str(tmp_path / "adapter_config.json"))
    assert len(found.problems[0].splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"lora_parameters": {"rank": 8, "scale": 20.0}, "num_layers": 16}, "an MLX-LM adapter"),
        ({"fine_tune_type": "lora", "num_layers": 16}, "an MLX-LM adapter"),
        ({"lora_rank": 16, "framework": "tunix"}, "a tunix or qwix"),
        ({"config": {"architecture": "lora"}, "version": "adapters.1.0.1"}, "an AdapterHub adapter"),
        ({"base_model": "some/base"}, "no peft_type"),
        ({}, "no peft_type"),
    ],
)
def test_other_programs_files_are_named(tmp_path: Path, data: dict[str, Any], says: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(data))
    found = Diagnostics()
    assert read_peft_config(tmp_path, found) is None
    assert says in found.problems[0]
    assert len(found.problems) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": ...}, "peft_type is missing"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is set"),
        ({"inference_mode": False}, "inference_mode is false"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type is 'SEQ_2_SEQ_LM'"),
        ({"base_model_name_or_path": ""}, "base_model_name_or_path is empty"),
        ({"base_model_name_or_path": "/home/me/model"}, "local path '/home/me/model'"),
        ({"base_model_name_or_path": r"C:\models\x"}, "local path"),
        ({"base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit"}, "quantised base"),
        ({"target_modules": ["q_proj", "q_proj"]}, "target_modules has duplicates"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": -8}, "lora_alpha is -8"),
    ],
)
def test_what_is_odd_is_said(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    config, found = read(tmp_path, **changes)
    assert config is not None
    assert not found.problems
    assert len(found.warnings) == 1
    assert says in found.warnings[0]


def test_a_base_that_is_on_this_machine_is_nothing_odd(tmp_path: Path) -> None:
    _, diagnostics = read(tmp_path, base_model_name_or_path=str(tmp_path))
    assert not diagnostics.warnings


def test_every_problem_is_collected(tmp_path: Path) -> None:
    _, found = read(
        tmp_path, r=0, lora_alpha="x", alora_invocation_tokens="x", bias="b", target_modules=None, kasa_config={"a": 1}
    )
    assert len(found.problems) == 6


def test_the_tables_do_not_overlap() -> None:
    assert not HONOURED & HARMLESS.keys()


# --- PEFT's matching, against PEFT ---

MODULES = [
    *map(module_name, BASE.modules()),
    "model.layers.11.self_attn.q_proj",
    "model.layers.1.mlp.q_proj",
]
NAMES = ["q_proj", "proj", "self_attn.q_proj", "lm_head", "embed_tokens", "1.self_attn.q_proj", "mlp", "model.layers.0"]
NAMES += ["model.layers.1.self_attn.q_proj", "mlp.down_proj", "head", "layers", "model"]
NAMES += [r".*\.q_proj", r"layers\.1\..*", r"[qk]_proj", r".*", r"^lm_head", "a|lm_head", "{}"]


@given(
    st.lists(st.sampled_from(NAMES), max_size=4, unique=True),
    st.sampled_from(MODULES),
)
def test_patterns_match_as_in_peft(names: list[str], module: str) -> None:
    other = pytest.importorskip("peft.utils.other", reason="the matching of names is compared with PEFT's")
    pattern = {name: i for i, name in enumerate(names)}
    assert pattern_value(pattern, module, -1) == pattern.get(other.get_pattern_key(pattern.keys(), module), -1)


def test_the_first_pattern_that_matches_wins() -> None:
    pattern = {r"layers\.1\..*": 5, "q_proj": 6}
    assert pattern_value(pattern, "model.layers.1.self_attn.q_proj", 3) == 5
    assert pattern_value(pattern, "model.layers.11.self_attn.q_proj", 3) == 6
    assert pattern_value({"proj": 6}, "model.layers.11.self_attn.q_proj", 3) == 3


names = st.lists(st.sampled_from(NAMES), max_size=3, unique=True)
numbers = st.one_of(st.none(), st.integers(0, 2), st.lists(st.integers(0, 11), max_size=2))
patterns = st.one_of(st.none(), st.sampled_from(["layers", "mlp", "model.layers"]), st.just(["h", "layers"]))


@given(
    st.one_of(names, st.sampled_from(NAMES)),
    st.one_of(st.none(), names, st.sampled_from(NAMES)),
    names,
    numbers,
    patterns,
)
def test_modules_are_selected_as_in_peft(
    target: list[str] | str,
    exclude: list[str] | str | None,
    saved: list[str],
    layers: int | list[int] | None,
    pattern: Any,
) -> None:
    tuners_utils = pytest.importorskip("peft.tuners.tuners_utils", reason="the selection is compared with PEFT's")
    if isinstance(target, str) or layers is None or layers == []:
        layers = pattern = None
    theirs = type("Config", (), {"target_modules": target, "target_parameters": None, "exclude_modules": exclude,
                  "modules_to_save": saved, "layers_to_transform": layers, "layers_pattern": pattern})  # fmt: skip
    ours = PeftConfig(
        r=1,
        lora_alpha=1.0,
        target_modules=target if isinstance(target, str) else tuple(target),
        exclude_modules=exclude if isinstance(exclude, str) else tuple(exclude or ()),
        modules_to_save=tuple(saved),
        layers_to_transform=None if layers is None else tuple(layers) if isinstance(layers, list) else (layers,),
        layers_pattern=() if pattern is None else (pattern,) if isinstance(pattern, str) else tuple(pattern),
    )
    for module in MODULES:
        assert selects(ours, module) == bool(tuners_utils.check_target_module_exists(theirs, module)), module


def test_all_linear_is_all_but_the_head() -> None:
    config = PeftConfig(1, 1.0, target_modules="All-Linear")
    assert [module for module in MODULES[:16] if not selects(config, module)] == ["model.embed_tokens", "lm_head"]
    assert is_saved(PeftConfig(1, 1.0, modules_to_save=("mlp",)), "model.layers.0.mlp.up_proj")
