"""Known bugs of LoRA in engines that draw pictures, each as what it makes of a batch: another table, adapter or base.

    @bug("attention.out is not to_out.0: that module keeps the base's weights", needs="out")
    def out_not_loaded(model, requests):
        return model, with_lora(requests, without(r"\\.attention\\.to_out\\.0$")), NUMPY

Most of the text model's mutants show in pictures as well (zoo.py). Here are those that only such engines can have: of
their file formats, of modules that see one row for each picture, and of styles that are merged into the base while a
picture is drawn. README.md says which bug of which engine each one stands for.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...adapter import Adapter, LoraTensors
from ...adapter_slots import AdapterSlots, bind_adapter
from ...arrays import Array, Precision, rounded
from ...config import Module, module_name
from ...ops import NUMPY, Ops
from ...pictures import PictureModel, PictureRequest
from ...plans import Adapters, LoraMapping, lora_mapping
from ...weights import Linear

Setup = tuple[PictureModel, Sequence[PictureRequest], Ops]  # what the engine with the bug draws instead
Make = Callable[[PictureModel, Sequence[PictureRequest]], Setup]

# What a batch must have for a bug to show.
NEEDS = {
    "alphas": "an adapter whose modules have different scales",
    "weights": "two pictures with one adapter at different weights",
    "qkv": "an adapter on to_q, to_k and to_v",
    "out": "an adapter on to_out.0",
    "feed_forward": "an adapter on w1 and w3",
    "adaLN": "an adapter on adaLN_modulation or the time, and a picture without it behind one with it",
    "refiner": "an adapter on refiner layers",
    "outside": "an adapter on modules outside of the layers",
    "caption": "a caption whose length is no multiple of 32",
    "base after": "a picture without an adapter after one with an adapter",
}


@dataclass(frozen=True)
class PictureBug:
    """One bug. `make` returns what the engine that has it draws, in place of the model, the requests and NUMPY."""

    name: str
    what: str  # one line: what the engine does wrong
    links: tuple[str, ...]  # where it was; empty: synthetic
    needs: str  # one of NEEDS
    make: Make


_BUGS: dict[str, PictureBug] = {}


def bug(what: str, *links: str, needs: str) -> Callable[[Make], Make]:
    """List the function under this one."""

    def listed(make: Make) -> Make:
        assert needs in NEEDS and make.__name__ not in _BUGS
        _BUGS[make.__name__] = PictureBug(make.__name__, what, links, needs, make)
        return make

    return listed


def all_picture_bugs() -> Mapping[str, PictureBug]:
    """Every bug by its name, in the order of this file."""
    return dict(_BUGS)


GITHUB = "https://github.com/"


# ---- the scale, and where a file says it ----------------------------------------------------------------------------


@bug("every module gets the alpha / rank of the first one", needs="alphas")
def scale_of_the_first_module(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    def bind(adapter: Adapter, config: Any, scale: Any) -> Any:
        bound = bind_adapter(adapter, config, scale)
        first = next(iter(bound.lora.values())).scale
        return replace(bound, lora={module: replace(lora, scale=first) for module, lora in bound.lora.items()})

    return model, requests, replace(NUMPY, bind_adapter=bind)


# ---- weights of styles, and which picture has which -----------------------------------------------------------------


def mapped(change: Callable[[list[Adapters]], list[Adapters]]) -> Ops:
    """NUMPY over a plan in which each picture has other adapters."""
    return replace(NUMPY, lora_mapping=lambda adapters, lengths: lora_mapping(change(list(adapters)), lengths))


@bug(
    "an adapter that is loaded keeps the weight of its first request",
    GITHUB + "vllm-project/vllm-omni/issues/1420",
    GITHUB + "lucataco/cog-flux-dev-multi-lora/issues/7",
    needs="weights",
)
def first_weight_kept(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    first: dict[int, float] = {}

    def kept(each: list[Adapters]) -> list[Adapters]:
        return [[(slot, first.setdefault(slot, weight)) for slot, weight in adapters] for adapters in each]

    return model, requests, mapped(kept)


@bug("the pictures' rows at adaLN take the plan of the tokens: the first picture's adapter for all", needs="adaLN")
def time_rows_taken_for_tokens(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        if is_time(module):
            ids, weights = (x[:1].repeat(len(y), axis=0) for x in (mapping.adapter_ids, mapping.adapter_weights))
            mapping = LoraMapping.of(ids, weights)
        NUMPY.lora_delta(y, x, module, adapters, mapping, p)

    return model, requests, replace(NUMPY, lora_delta=delta)


# ---- modules that a loader misses or mixes up -----------------------------------------------------------------------


def is_time(module: Module) -> bool:
    """Whether a module sees one row for each picture."""
    return "adaLN" in module[1] or module[1].startswith("t_embedder")


def with_lora(requests: Sequence[PictureRequest], change: Callable[[dict], dict]) -> list[PictureRequest]:
    """The requests, their adapters loaded with other tensors: change(module -> tensors), once for each adapter."""
    changed: dict[int, Adapter] = {}

    def read(adapter: Adapter) -> Adapter:
        if id(adapter) not in changed:
            changed[id(adapter)] = replace(adapter, lora=change(dict(adapter.lora)))
        return changed[id(adapter)]

    return [replace(r, adapter=[(read(adapter), weight) for adapter, weight in r.adapters]) for r in requests]


def without(pattern: str) -> Callable[[dict], dict]:
    """Keep the modules whose dotted name has no such piece."""
    return lambda lora: {module: x for module, x in lora.items() if not re.search(pattern, module_name(module))}


@bug(
    "Z-Image's attention is one qkv there: to_q, to_k, to_v and to_out of a file are skipped with a warning",
    GITHUB + "Comfy-Org/ComfyUI/issues/11158",
    GITHUB + "ostris/ai-toolkit/issues/538",
    GITHUB + "Comfy-Org/ComfyUI/issues/11487",
    needs="qkv",
)
def attention_not_loaded(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    return model, with_lora(requests, without(r"\.attention\.")), NUMPY


@bug("attention.out is not to_out.0: that module keeps the base's weights", needs="out")
def out_not_loaded(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    return model, with_lora(requests, without(r"\.attention\.to_out\.0$")), NUMPY


@bug("adapters of adaLN_modulation and of the time are dropped", needs="adaLN")
def time_not_loaded(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    return model, with_lora(requests, without(r"adaLN|t_embedder")), NUMPY


@bug("only `layers` have LoRA: noise_refiner and context_refiner are not looked at", needs="refiner")
def refiners_not_loaded(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    return model, with_lora(requests, without(r"refiner")), NUMPY


@bug("modules outside of the layers, the embedders and the last layer, are dropped", needs="outside")
def outside_not_loaded(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    return model, with_lora(requests, without(r"embedder|final_layer")), NUMPY


@bug("the fused B of q, k and v is cut in the order k, q, v", needs="qkv")
def qkv_cut_in_another_order(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    return model, with_lora(requests, lambda lora: exchanged(lora, ".to_q", ".to_k")), NUMPY


@bug("w1 and w3, gate and up, are exchanged when the names are converted", needs="feed_forward")
def gate_and_up_exchanged(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    return model, with_lora(requests, lambda lora: exchanged(lora, ".w1", ".w3")), NUMPY


def exchanged(lora: dict[Module, LoraTensors], one: str, other: str) -> dict[Module, LoraTensors]:
    """The same tensors, those of the modules that end in `one` and in `other` the other way round."""
    names = {one: other, other: one}

    def renamed(module: Module) -> Module:
        ending = next((end for end in names if module[1].endswith(end)), None)
        return module if ending is None else (module[0], module[1].removesuffix(ending) + names[ending])

    return {renamed(module): tensors for module, tensors in lora.items()}


@bug(
    "A of the fused q, k and v, which all three share, is cut in three as B is; the rest of its rank is zero",
    GITHUB + "mflux-community/mflux/pull/459",
    needs="qkv",
)
def shared_A_cut(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    def cut(lora: dict[Module, LoraTensors]) -> dict[Module, LoraTensors]:
        return {module: part_of_A(module, tensors) for module, tensors in lora.items()}

    return model, with_lora(requests, cut), NUMPY


def part_of_A(module: Module, tensors: LoraTensors) -> LoraTensors:
    """Keep the third of A's rows that a cut leaves to q, to k or to v."""
    ending = module[1].rpartition(".to_")[2]
    if ending not in ("q", "k", "v"):
        return tensors
    rows = np.array_split(np.arange(len(tensors.A)), 3)["qkv".index(ending)]
    A = np.zeros_like(tensors.A)
    A[rows] = tensors.A[rows]
    return replace(tensors, A=A)


# ---- captions -------------------------------------------------------------------------------------------------------


@bug("captions are filled up with zeros, not with the token that was learnt for it", needs="caption")
def caption_filled_with_zeros(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    zeros = np.zeros_like(model.vectors["cap_pad_token"])
    return replace(model, vectors={**model.vectors, "cap_pad_token": zeros}), requests, NUMPY


# ---- styles that are merged into the base ---------------------------------------------------------------------------


@bug(
    "a style is merged into float16 weights and subtracted again: what later pictures get is not the base",
    GITHUB + "huggingface/diffusers/issues/5313",
    GITHUB + "huggingface/diffusers/pull/4473",
    GITHUB + "leejet/stable-diffusion.cpp/pull/590",
    needs="base after",
)
def unmerged_with_rounding(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    bound = [(bind_adapter(x, model.config), weight) for r in requests for x, weight in r.adapters]  # type: ignore[arg-type]

    def after(module: Module, linear: Linear) -> Linear:
        weight = rounded(linear.weight, "float16")
        for adapter, factor in bound:
            if module in adapter.lora:
                lora = adapter.lora[module]
                delta = (factor * lora.scale * (lora.B @ lora.A)).astype(weight.dtype)
                weight = rounded(rounded(weight + delta, "float16") - delta, "float16")
        touched = any(module in adapter.lora for adapter, _ in bound)
        return replace(linear, weight=weight) if touched else linear

    linears = {module: after(module, linear) for module, linear in model.linears.items()}
    return replace(model, linears=linears), requests, NUMPY


@bug(
    "a picture that asks for no style is drawn with the last one that was set",
    GITHUB + "leejet/stable-diffusion.cpp/pull/1307",
    needs="base after",
)
def never_unmerged(model: PictureModel, requests: Sequence[PictureRequest]) -> Setup:
    def left_behind(each: list[Adapters]) -> list[Adapters]:
        last: Adapters = []
        result = []
        for adapters in each:
            last = adapters or last
            result.append(last)
        return result

    return model, requests, mapped(left_behind)
