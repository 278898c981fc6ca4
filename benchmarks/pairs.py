"""Which two features, and which two modules, do the questions of `loracle check` put side by side?

    python benchmarks/pairs.py [--seeds 40]

An engine that forgets one feature where another is present, or takes one module's rank, scale or presence for
another's, can be seen only by a campaign that asks a request in which it matters. This draws campaigns of the default
length (50 batches, 30 sequences), seed by seed, with the code that draws them, asks nobody, and counts in how many of
them each pair occurs in a request that counts. Results: benchmarks/results/pairs.json and pairs.md.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, combinations_with_replacement
from pathlib import Path

import numpy as np

from refimpl import tiny
from refimpl.adapter import Adapter, pattern_value
from refimpl.adapter_slots import scale_of
from refimpl.config import EMBED, LAYER_MODULES, LM_HEAD, module_name
from refimpl.engines.function import CAPABILITIES as OF_A_FUNCTION
from refimpl.engines.interface import FEATURES as ALL_FEATURES
from refimpl.engines.interface import Capabilities, EngineRequest
from refimpl.engines.ours import CAPABILITIES
from refimpl.loading.model_folder import base_folder, load_model
from refimpl.oracle.bases import shares
from refimpl.oracle.cases import scenarios
from refimpl.oracle.cases.batches import draw_batch
from refimpl.oracle.cases.case import Case, keys_of, loaded_before, requests_of
from refimpl.oracle.cases.testbed import Testbed, drawn_adapters, drawn_model
from refimpl.oracle.cases.variety import KINDS
from refimpl.oracle.check import ADAPTERS
from refimpl.oracle.reports.result import CampaignSettings
from refimpl.weights import Model

RESULTS = Path(__file__).parent / "results"
BY_DEFAULT = 50, 30  # batches and sequences of `loracle check`
WAYS = ("rank", "scale", "presence")
LOW = 0.6  # a share below this is named in the page
MODULES = (*LAYER_MODULES, EMBED[1], LM_HEAD[1])
ASKED = {
    "random bases, an engine that can do everything": ("random", CAPABILITIES),
    "random bases, a function that declares nothing": ("random", OF_A_FUNCTION),
    "a given base (the embedded one), an engine that can do everything": ("tiny", CAPABILITIES),
}
# What no request can have, and why.
NEVER = {
    frozenset(pair): why
    for why, pairs in {
        "a whole head or embedding stands in LoRA's place": [
            *combinations(("modules_to_save", "grown_vocabulary"), 2),
            *((whole, "LoRA on lm_head") for whole in ("modules_to_save", "grown_vocabulary")),
            ("grown_vocabulary", "LoRA on embed_tokens"),
        ],
        "only plain LoRA can be summed": [("sum", what) for what in ("modules_to_save", "grown_vocabulary", "biases")],
        "PEFT has no lora_bias on an embedding": [("lora_bias", "LoRA on embed_tokens")],
        "a Mistral has no biases, a Llama no window": [("window", "base with biases"), ("window", "biases")],
        "PEFT restricts LoRA to layers, or puts it on an end": [
            ("some layers", f"LoRA on {end}") for end in ("embed_tokens", "lm_head")
        ],
    }.items()
    for pair in pairs
}
OF_ADAPTERS = ("rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "some layers", "rank above 16",
               "LoRA on embed_tokens", "LoRA on lm_head", "modules_to_save", "grown_vocabulary", "biases")  # fmt: skip
OF_BASES = ("tied head", "window", "base with biases", "rope scaled", "wide residual")
OF_BATCHES = ("sum", "another rank beside it", "its prompt for another beside it", "its adapter again beside it",
              "decode", "first asked before")  # fmt: skip
FEATURES = (*OF_ADAPTERS, *OF_BASES, *OF_BATCHES)


def features_of(adapter: Adapter, testbed: Testbed) -> set[str]:
    """Return what this adapter has, as far as it changes a number."""
    config, names = adapter.config, {module: module_name(module) for module in adapter.lora}
    layers = {layer for layer, _ in adapter.lora if layer >= 0}
    modules = {name for layer, name in adapter.lora if layer >= 0}
    present = {
        "rslora": config.use_rslora and any(len(lora.A) > 1 for lora in adapter.lora.values()),
        "rank_pattern": any(len(lora.A) != config.r for lora in adapter.lora.values()),
        "alpha_pattern": any(pattern_value(config.alpha_pattern, name, None) for name in names.values()),
        "lora_bias": any(lora.bias is not None for lora in adapter.lora.values()),
        "partial": modules < set(testbed.model.config.layer_modules),
        "some layers": len(layers) < testbed.model.config.num_hidden_layers,
        "rank above 16": any(len(lora.A) > 16 for lora in adapter.lora.values()),
        "LoRA on embed_tokens": EMBED in adapter.lora,
        "LoRA on lm_head": LM_HEAD in adapter.lora,
        "modules_to_save": bool(adapter.replaced) and EMBED not in adapter.replaced,
        "grown_vocabulary": EMBED in adapter.replaced,
        "biases": bool(adapter.biases),
    }
    return {name for name, there in present.items() if there}


def features_of_base(model: Model) -> set[str]:
    """Return what the base has."""
    config = model.config
    present = {
        "tied head": config.tie_word_embeddings,
        "window": config.sliding_window is not None,
        "base with biases": any(config.has_bias(name) for name in config.layer_modules),
        "rope scaled": config.rope.type != "default",
        "wide residual": config.hidden_size != config.num_attention_heads * config.head_dim,
    }
    return {name for name, there in present.items() if there}


def features_beside(request: EngineRequest, index: int, batch: Sequence[EngineRequest], bed: Testbed) -> set[str]:
    """Return what a request's batch has, a batch in which every adapter has its own name."""
    others = [other for i, other in enumerate(batch) if i != index]

    def rank(one: EngineRequest) -> set[int]:
        return {bed.adapters[name].config.r for name, _ in one.adapters}

    present = {
        "another rank beside it": any(rank(other) - rank(request) for other in others),
        "its prompt for another beside it": any(
            other.prompt_ids == request.prompt_ids and other.adapters != request.adapters for other in others
        ),
        "its adapter again beside it": any(
            dict(other.adapters).keys() & dict(request.adapters).keys() for other in others
        ),
    }
    return {name for name, there in present.items() if there}


def module_pairs(adapter: Adapter) -> Iterator[tuple[str, str, str]]:
    """Yield (first module, second, in what they differ) of every two modules of one layer, or of the ends."""
    facts = {}
    for name in MODULES:
        module = next((module for module in adapter.lora if module[1] == name), None)
        if module is not None:
            r = len(adapter.lora[module].A)
            facts[name] = r, scale_of(adapter.config, module, r)
    for first, second in combinations(MODULES, 2):
        if (first in facts) != (second in facts):
            yield first, second, "presence"
        elif first in facts:
            if facts[first][0] != facts[second][0]:
                yield first, second, "rank"
            if not np.isclose(facts[first][1], facts[second][1]):
                yield first, second, "scale"


def campaign(model: str, capabilities: Capabilities, seed: int, voices: Testbed | None) -> tuple[set, set]:
    """Return the pairs of features and of modules that one campaign asks."""
    pairs: set[frozenset[str]] = set()
    modules: set[tuple[str, str, str]] = set()
    settings = CampaignSettings(*BY_DEFAULT, seed)
    parts = shares(settings, ()) if model == "random" else [(settings, "")]
    for share, _ in parts:
        bed = testbed(model, capabilities, share.seed, voices)
        base = features_of_base(bed.model)
        of_key = {key: features_of(adapter, bed) for key, adapter in bed.adapters.items()}
        asked: set[str] = set()
        for case in cases(bed, capabilities, share):
            seen: set[tuple[str, ...]] = set()
            for run, index, request, meaning in requests_of(case, loaded_before(case, bed)):
                keys = [key for key, _ in keys_of(request, meaning)]
                if not keys or request.cancel_after is not None:
                    continue
                has = base.union(*(of_key[key] for key in keys))
                has |= features_beside(request, index, case.runs[run].requests, bed) if case.stateless else set()
                has |= {"sum"} if len(keys) > 1 else set()
                has |= {"decode"} if request.max_new_tokens > 1 else set()
                has |= {"first asked before"} if request.prompt_ids in seen else set()
                seen.add(request.prompt_ids)
                pairs |= {frozenset(pair) for pair in combinations_with_replacement(sorted(has), 2)}
                asked |= set(keys)
        modules |= {pair for key in asked for pair in module_pairs(bed.adapters[key])}
    return pairs, modules


def testbed(model: str, capabilities: Capabilities, seed: int, voices: Testbed | None) -> Testbed:
    """Return what `build` would draw, in no folder."""
    rng = np.random.default_rng([seed, 4])
    base = voices.model if voices else drawn_model(rng, capabilities, seed, "float32")
    adapters = dict(voices.adapters) if voices else {}
    drawn = drawn_adapters(base, rng, capabilities, KINDS if model == "random" else ADAPTERS)
    adapters |= {adapter.name: adapter for adapter in drawn}
    return Testbed(Path(), base, base, {key: Path(key) for key in adapters}, adapters)


def cases(bed: Testbed, capabilities: Capabilities, share: CampaignSettings) -> Iterator[Case]:
    """Yield the questions of one base, as a campaign draws them."""
    for i in range(share.cases):
        yield draw_batch(bed, capabilities, np.random.default_rng([share.seed, i, 1]), f"batch {i}")
    variants = scenarios.variants(bed, capabilities) if {"load", "prefix_cache"} & capabilities.operations else []
    for number, how in enumerate(variants):
        for i in range(number, share.sequences, len(variants)):
            yield scenarios.draw_sequence(bed, capabilities, share.seed, i, how)


def measured(seeds: int) -> dict:
    """Return the shares of campaigns, of every pair, for each kind of campaign."""
    data: dict = {}
    for what, (model, capabilities) in ASKED.items():
        voices = voices_of() if model == "tiny" else None
        pairs, modules = Counter(), Counter()  # type: ignore[var-annotated]
        for seed in range(seeds):
            of_features, of_modules = campaign(model, capabilities, 4 * seed, voices)
            pairs.update(of_features)
            modules.update(of_modules)
        data[what] = {
            "features": {" + ".join(sorted(pair)): count / seeds for pair, count in pairs.items()},
            "modules": {
                f"{first}, {second}": {way: modules[first, second, way] / seeds for way in WAYS}
                for first, second in combinations([m for m in MODULES if m in capabilities.modules], 2)
            },
        }
        print(what, "done", flush=True)
    return data


def voices_of() -> Testbed:
    """Return the embedded base with the two voices that a campaign on it takes along."""
    folder = base_folder("tiny")
    return Testbed.load(folder, load_model(folder, "float32"), dict(list(tiny.VOICES.items())[:2]))


def page(data: dict, seeds: int) -> str:
    """Return pairs.md."""
    lines = [
        "# Which two features, and which two modules, a default campaign puts side by side",
        "",
        f"Made by `python benchmarks/pairs.py`: the share, in percent, of {seeds} campaigns of the default length (50",
        "batches, 30 sequences) in which some request that counts has both. Nothing is asked; the drawing code is that",
        "of `loracle check`. A dash: no request can have both.",
        "",
    ]
    for what, shares_of in data.items():
        lines += [f"## {what[0].upper()}{what[1:]}", ""]
        lines += feature_table(what, shares_of["features"])
        lines += ["", "Modules: in rank / in scale / one of the two is there alone", ""]
        lines += module_table(shares_of["modules"])
        lines.append("")
    lines += ["## What no request can have", ""]
    lines += [f"- {' + '.join(sorted(pair))}: {why}" for pair, why in NEVER.items()]
    return "\n".join(lines) + "\n"


def possible(what: str) -> list[str]:
    """Return the features that such a campaign can have at all."""
    model, capabilities = ASKED[what]
    can = capabilities.features
    needs = {
        "some layers": "partial", "sum": "sums", "base with biases": "biases", "rope scaled": "rope_scaling",
        "another rank beside it": "mixed_ranks", **{name: name for name in FEATURES if name in ALL_FEATURES},
    }  # fmt: skip
    names = [name for name in FEATURES if needs.get(name, name) in can or name not in needs]
    names = [name for name in names if not name.startswith("LoRA on") or name.split()[-1] in capabilities.modules]
    if model == "tiny":  # it is what it is
        names = [name for name in names if name not in (*OF_BASES, "biases")]
    return names


def feature_table(what: str, shares_of: dict[str, float]) -> list[str]:
    """Return the lower half of the table, the features numbered."""
    names = possible(what)
    lines = ["| | " + " | ".join(str(i + 1) for i in range(len(names))) + " |"]
    lines.append("|---|" + "---:|" * len(names))
    for i, name in enumerate(names):
        cells = []
        for other in names[: i + 1]:
            pair = frozenset((name, other))
            share = shares_of.get(" + ".join(sorted(pair)) if len(pair) > 1 else name, 0.0)
            cells.append("-" if pair in NEVER else f"**{100 * share:.0f}**" if share < LOW else f"{100 * share:.0f}")
        lines.append(f"| {i + 1} {name} | " + " | ".join(cells) + " |" + " |" * (len(names) - i - 1))
    return lines


def module_table(shares_of: dict[str, dict[str, float]]) -> list[str]:
    """Return the lower half of the table of modules."""
    names = [name for name in MODULES if any(name in pair.split(", ") for pair in shares_of)]
    lines = ["| | " + " | ".join(names[:-1]) + " |", "|---|" + "---:|" * (len(names) - 1)]
    for i, name in enumerate(names[1:], 1):
        cells = []
        for other in names[:i]:
            ways = shares_of[f"{other}, {name}"]
            cells.append(" / ".join(f"**{100 * x:.0f}**" if x < LOW else f"{100 * x:.0f}" for x in ways.values()))
        lines.append(f"| {name} | " + " | ".join(cells) + " |" + " |" * (len(names) - 1 - i))
    return lines


def low(data: dict) -> list[str]:
    """Return what is below LOW, in words."""
    found = []
    for what, shares_of in data.items():
        for first, second in combinations_with_replacement(possible(what), 2):
            pair = frozenset((first, second))
            share = shares_of["features"].get(" + ".join(sorted(pair)) if len(pair) > 1 else first, 0.0)
            if pair not in NEVER and share < LOW:
                found.append(f"{what}: {first} + {second}: {share:.0%}")
        for names, ways in shares_of["modules"].items():
            found += [f"{what}: {names}: {way} {share:.0%}" for way, share in ways.items() if share < LOW]
    return found


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    args = parser.parse_args()
    data = measured(args.seeds)
    RESULTS.joinpath("pairs.json").write_text(
        json.dumps({"seeds": args.seeds, "shares": data}, indent=1) + "\n", "utf-8"
    )
    RESULTS.joinpath("pairs.md").write_text(page(data, args.seeds), "utf-8")
    print("\n".join(low(data)) or f"every pair is in {LOW:.0%} of the campaigns or more")


if __name__ == "__main__":
    main()
