"""adapter_config.json -> a PeftConfig; and which modules and values its patterns mean, exactly as in PEFT."""

import os
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from ..adapter import ENDING, PeftConfig
from .diagnostics import Diagnostics, shown
from .json_file import LARGEST, Keys, is_integer, is_number, read_json
from .peft_keys import RESTORED_INIT, as_lora, check_other_keys, is_lora, note_oddities
from .wrapped_names import spellings

LARGEST_ALPHA = 3.4028234663852886e38  # the largest float32: engines multiply by alpha / r in it

T = TypeVar("T")
CONFIG_FILE = "adapter_config.json"
HEADS = ("classifier", "score")  # peft/peft_model.py, PeftModelForSequenceClassification


# PEFT puts the names of a config into these regular expressions.
AROUND = r"(^|.*\.){}($|\..*)"  # modules_to_save: peft/tuners/tuners_utils.py, check_target_module_exists
LAYER = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."  # layers_pattern: likewise
ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."
WHOLE = "{}"  # target_modules and exclude_modules, where they are one string: fullmatch


def selects(config: PeftConfig, module: str) -> bool:
    """Whether PEFT puts a LoRA on the module of this dotted name.

    peft/tuners/tuners_utils.py, check_target_module_exists and _maybe_include_all_linear_layers.
    """
    if any(_named(config.exclude_modules, name) for name in spellings(module)) or is_saved(config, module):
        return False
    return any(_targets(config, name) for name in spellings(module))


def _targets(config: PeftConfig, module: str) -> bool:
    target = config.target_modules
    if isinstance(target, str):
        if target.lower() == "all-linear":
            return not module.endswith(("lm_head", "embed_tokens"))
        return re.fullmatch(target, module) is not None
    if module in target:
        return True  # a full name is not restricted by layers_to_transform
    if not _named(target, module):
        return False
    if not config.layers_to_transform:
        return True
    patterns = [LAYER.replace("{}", name) for name in config.layers_pattern] or [ANY_LAYER]
    matches = (re.match(pattern, module) for pattern in patterns)
    return any(int(match["idx"]) in config.layers_to_transform for match in list(filter(None, matches))[:1])


def is_saved(config: PeftConfig, module: str) -> bool:
    """Whether modules_to_save replaces the module, or one around it, whole. Such a module gets no LoRA."""
    return any(re.match(AROUND.replace("{}", name), module) for name in config.modules_to_save)


def _named(names: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_peft_config(folder: Path, diagnostics: Diagnostics) -> PeftConfig | None:
    """The PeftConfig of a folder, or None with every problem noted."""
    file, before = folder / CONFIG_FILE, len(diagnostics.problems)
    data = read_json(file, diagnostics)
    config = None if data is None else parse_peft_config(file, as_lora(data), diagnostics)
    return config if len(diagnostics.problems) == before else None


def parse_peft_config(file: Path, data: dict[str, Any], diagnostics: Diagnostics) -> PeftConfig | None:
    """The PeftConfig of a LoraConfig's JSON, which `file` holds, or None with every problem noted."""
    before = len(diagnostics.problems)
    if not is_lora(file, data, diagnostics):
        return None
    keys = Keys(file, data, diagnostics)
    check_other_keys(keys)
    note_oddities(keys)
    config = PeftConfig(
        r=keys.integer("r"),
        lora_alpha=_alpha(keys),
        use_rslora=keys.flag("use_rslora"),
        rank_pattern=_pattern(keys, "rank_pattern", lambda n: is_integer(n) and 1 <= n <= LARGEST, "ranks"),
        alpha_pattern=_pattern(keys, "alpha_pattern", _is_alpha, "numbers that float32 can hold"),
        target_modules=_names(keys, "target_modules", WHOLE),
        target_parameters=_as_tuple(_names(keys, "target_parameters")),
        exclude_modules=_names(keys, "exclude_modules", WHOLE),
        layers_to_transform=_layers(keys),
        layers_pattern=_as_tuple(_names(keys, "layers_pattern", LAYER, LAYER)),
        modules_to_save=_saved(keys),
        bias=_bias(keys),
        lora_bias=keys.flag("lora_bias"),
        use_dora=keys.flag("use_dora"),
        trainable_token_indices=_token_indices(keys),
        ensure_weight_tying=keys.flag("ensure_weight_tying"),
        base_model_name_or_path=name if isinstance(name := data.get("base_model_name_or_path"), str) else None,
        layer_replication=_runs(keys),
        init_lora_weights=_restored_init(keys),
        alora_invocation_tokens=_invocation(keys),
        peft_version=str(data.get("peft_version") or "") if data.get("target_parameters") else "",
    )
    _check_together(keys, config)
    return config if len(diagnostics.problems) == before else None


def _alpha(keys: Keys) -> float:
    alpha = keys.data.get("lora_alpha")
    if not is_number(alpha):
        keys.diagnostics.problem(keys.file, f"lora_alpha is {shown(alpha)}: it must be a finite number")
        return 1.0
    if not _is_alpha(alpha):
        keys.diagnostics.problem(
            keys.file, f"lora_alpha is {alpha:g}: float32, which engines multiply in, ends at 3.4e38"
        )
        return 1.0
    if alpha <= 0:  # type: ignore[operator]
        keys.diagnostics.warn(keys.file, f"lora_alpha is {alpha}: the adapter is switched off, or subtracted")
    return float(alpha)  # type: ignore[arg-type]


def _is_alpha(value: object) -> bool:
    return is_number(value) and abs(value) <= LARGEST_ALPHA  # type: ignore[arg-type]


def _pattern(keys: Keys, key: str, valid: Callable[[Any], bool], expected: str) -> dict[str, Any]:
    """rank_pattern or alpha_pattern."""
    value = keys.data.get(key) or {}
    if not isinstance(value, dict) or not all(valid(n) for n in value.values()):
        keys.diagnostics.problem(keys.file, f"{key} is {shown(value)}: it must map names to {expected}")
        return {}
    return value if _compile(keys, key, value, ENDING) else {}


def _names(keys: Keys, key: str, in_string: str | None = None, in_list: str | None = None) -> tuple[str, ...] | str:
    """A list of names, or one string where `in_string` says what it is put into. Duplicates are dropped."""
    value = keys.data.get(key) or []
    if isinstance(value, str) and in_string:
        return value if _compile(keys, key, [value], in_string) else ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        expected = "a list of names" + (" or a regular expression" if in_string else "")
        keys.diagnostics.problem(keys.file, f"{key} is {shown(value)}: it must be {expected}")
        return ()
    if len(set(value)) < len(value) and key == "target_modules":
        keys.diagnostics.warn(keys.file, f"{key} has duplicates: {shown(value)}")
    return tuple(dict.fromkeys(value)) if not in_list or _compile(keys, key, value, in_list) else ()


def _as_tuple(names: tuple[str, ...] | str) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _compile(keys: Keys, key: str, names: Iterable[str], template: str) -> bool:
    """Whether each makes a regular expression of the template."""
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # "possible nested set": it means what it means today
                re.compile(template.replace("{}", name))
        except (re.error, OverflowError, RecursionError) as error:
            keys.diagnostics.problem(keys.file, f"{key}: {shown(name)} is not a regular expression ({error})")
            return False
    return True


def _layers(keys: Keys) -> tuple[int, ...] | None:
    value = keys.data.get("layers_to_transform")
    if value is None:
        return None
    layers = value if isinstance(value, list) else [value]
    if not all(is_integer(n) and n >= 0 for n in layers):
        keys.diagnostics.problem(keys.file, f"layers_to_transform is {shown(value)}: it must be layer numbers")
        return None
    return tuple(layers)


def _saved(keys: Keys) -> tuple[str, ...]:
    """modules_to_save; of a classifier with the heads that PEFT adds, though it did not always write them down."""
    names = _as_tuple(_names(keys, "modules_to_save", in_list=AROUND))
    added = HEADS if keys.data.get("task_type") == "SEQ_CLS" else ()
    return tuple(dict.fromkeys([*names, *added]))


def _bias(keys: Keys) -> str:
    bias = keys.data.get("bias", "none")
    if bias not in ("none", "all", "lora_only"):
        keys.diagnostics.problem(keys.file, f"bias is {shown(bias)}: it must be 'none', 'all' or 'lora_only'")
        return "none"
    return bias


def _token_indices(keys: Keys) -> dict[str, tuple[int, ...]]:
    """trainable_token_indices: the ids by the name of their table; a list alone is of embed_tokens."""
    key = "trainable_token_indices"
    value = keys.data.get(key) or {}
    tables = value if isinstance(value, dict) else {"embed_tokens": value}
    for ids in tables.values():
        if not isinstance(ids, list) or not ids or not all(is_integer(i) and i >= 0 for i in ids):
            expected = "token ids, or a list of them for each table by its name"
            keys.diagnostics.problem(keys.file, f"{key} is {shown(value)}: it must be a list of {expected}")
            return {}
        if len(set(ids)) < len(ids):
            keys.diagnostics.problem(keys.file, f"{key} names a token twice: {shown(ids)}")
            return {}
    return {name: tuple(ids) for name, ids in tables.items()}


def _runs(keys: Keys) -> tuple[tuple[int, int], ...]:
    """layer_replication: runs of layers, each a pair of the first and one past the last."""
    value = keys.data.get("layer_replication") or []
    pairs = isinstance(value, list) and all(isinstance(run, list) and len(run) == 2 for run in value)
    if not pairs or not all(is_integer(i) and 0 <= i <= LARGEST for run in value for i in run):
        keys.diagnostics.problem(keys.file, f"layer_replication is {shown(value)}: it must be pairs of layer numbers")
        return ()
    return tuple((start, stop) for start, stop in value)


def replication_of(folder: Path) -> tuple[tuple[int, int], ...]:
    """Return layer_replication of an adapter's folder; () where there is none, or nothing that can be read."""
    file, unheard = folder / CONFIG_FILE, Diagnostics()
    data = read_json(file, unheard) if os.path.isfile(file) else None
    return _runs(Keys(file, data, unheard)) if data else ()


def _restored_init(keys: Keys) -> str | None:
    """init_lora_weights where it took a part out of the base."""
    init = keys.data.get("init_lora_weights")
    return init if init in RESTORED_INIT else None


def _invocation(keys: Keys) -> tuple[int, ...]:
    """alora_invocation_tokens; an empty list is none, as in PEFT (tuners/lora/variants.py)."""
    key = "alora_invocation_tokens"
    value = keys.data.get(key) or []
    if value == [] and keys.data.get(key) is not None:
        keys.diagnostics.warn(keys.file, f"{key} is empty: it acts on every token, as plain LoRA does")
    if not isinstance(value, list) or not all(is_integer(i) and i >= 0 for i in value):
        keys.diagnostics.problem(keys.file, f"{key} is {shown(value)}: it must be a list of token ids")
        return ()
    return tuple(value)


def _check_together(keys: Keys, config: PeftConfig) -> None:
    """Keys that PEFT refuses in combination (peft/tuners/lora/config.py, __post_init__)."""
    if isinstance(config.target_modules, str) and (config.layers_to_transform is not None or config.layers_pattern):
        keys.diagnostics.problem(
            keys.file, "layers_to_transform and layers_pattern need target_modules to be a list of names"
        )
    if config.layers_pattern and not config.layers_to_transform:
        keys.diagnostics.problem(keys.file, "layers_pattern is given, but layers_to_transform is not")
    for key in ("lora_bias", "alora_invocation_tokens", "target_parameters"):
        if config.init_lora_weights and getattr(config, key):
            both = f"init_lora_weights {config.init_lora_weights!r} and {key} are both given"
            keys.diagnostics.problem(keys.file, f"{both}: PEFT does not support the one with the other")
    if config.use_dora and config.lora_bias:
        keys.diagnostics.problem(keys.file, "use_dora and lora_bias are both true, which PEFT does not support")
    if config.use_dora and config.target_parameters:
        keys.diagnostics.problem(keys.file, "use_dora with target_parameters: PEFT has DoRA on layers alone")
    others = ("modules_to_save", "trainable_token_indices", "target_parameters", "use_dora")
    given = [key for key in others if getattr(config, key)] + ["bias"] * (config.bias != "none")
    for key in given if config.alora_invocation_tokens else ():
        why = "change the rows before the invocation, too" if key != "use_dora" else "are no pair that PEFT supports"
        keys.diagnostics.problem(keys.file, f"alora_invocation_tokens and {key} are both given: they {why}")
    if keys.data.get("target_modules") is None and not config.target_parameters:
        keys.diagnostics.problem(
            keys.file, "target_modules is missing: it must be a list of names or a regular expression"
        )
