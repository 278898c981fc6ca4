"""`loracle combine` against PEFT's add_weighted_adapter, A and B number by number, in float64.

PEFT makes its weights of A and B as tensors of the default type: float64 in here. What dare drops is drawn by PEFT, and
given to ours. Singular vectors are unique but for their sign: of svd the products are compared."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import hugging_face as hf
import numpy as np
import pytest
from test_families import SIZES

import refimpl
from refimpl.adapter import Adapter
from refimpl.adapter_slots import scale_of
from refimpl.config import EMBED, LM_HEAD, Module
from refimpl.tools.combine import Recipe, clamped, combine

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is the local path"),
    pytest.mark.filterwarnings("ignore:The density 1"),
]

torch = hf.torch
WEIGHTS = {"first": 0.7, "second": -0.4, "third": 1.5}
PRUNED = {"density": 0.4}
# How, what else is given to both, and whether the ranks may differ.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cat": ("cat", {}),
    "svd": ("svd", {}),
    "svd of rank 2": ("svd", {"svd_rank": 2}),
    "svd of rank 9": ("svd", {"svd_rank": 9}),
    "linear": ("linear", {}),
    "ties": ("ties", PRUNED),
    "ties by count": ("ties", {**PRUNED, "majority_sign_method": "frequency"}),
    "ties of all": ("ties", {"density": 1.0}),
    "dare_linear": ("dare_linear", PRUNED),
    "dare_ties": ("dare_ties", PRUNED),
    "magnitude_prune": ("magnitude_prune", PRUNED),
    "ties_svd": ("ties_svd", PRUNED),
    "ties_svd by count": ("ties_svd", {**PRUNED, "majority_sign_method": "frequency", "svd_rank": 2}),
    "dare_linear_svd": ("dare_linear_svd", PRUNED),
    "dare_ties_svd": ("dare_ties_svd", PRUNED),
    "magnitude_prune_svd": ("magnitude_prune_svd", {**PRUNED, "svd_rank": 5}),
}
TARGETS = {"first": ["q_proj", "down_proj"], "second": ["q_proj", "embed_tokens"], "third": ["q_proj", "lm_head"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three adapters on some modules in common, of one rank, or with -wide of three; -rs are rsLoRA."""
    folder = tmp_path_factory.mktemp("combine")
    hf.write_model(hf.transformers.LlamaConfig(**SIZES | {"num_hidden_layers": 2}), folder / "base", seed=1)
    for seed, (name, targets) in enumerate(TARGETS.items()):
        for ending, changes in {"": {}, "-wide": {"r": 2 + 2 * seed}, "-rs": {"use_rslora": True}}.items():
            spec = hf.peft.LoraConfig(**{"r": 4, "lora_alpha": 3 + seed, "target_modules": targets} | changes)
            hf.write_adapter(folder / "base", spec, folder / f"{name}{ending}", seed, copies=False)
    return folder


def theirs(folder: Path, ending: str, how: str, options: dict[str, Any]) -> tuple[Any, list[np.ndarray]]:
    """PEFT's model with the combined adapter, and every mask that it drew."""
    model = hf.load_exact(folder / "base", {name: folder / f"{name}{ending}" for name in WEIGHTS})
    masks: list[np.ndarray] = []
    bernoulli = torch.bernoulli

    def recorded(x: Any) -> Any:
        mask = bernoulli(x)
        masks.append(hf.to_numpy(mask) > 0)
        return mask

    with hf.float64_throughout(), mock.patch.object(torch, "bernoulli", recorded), hf.quiet():
        torch.manual_seed(3)
        model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "combined", combination_type=how, **options)
    return model, masks


def layers(model: Any) -> Iterator[tuple[Module, Any]]:
    """Module and layer of PEFT, in the order in which it walks them."""
    for name, layer in model.named_modules():
        if isinstance(layer, hf.peft.tuners.lora.LoraLayer):
            parts = name.split(".")
            outer = {"embed_tokens": EMBED, "lm_head": LM_HEAD}
            yield outer.get(parts[-1]) or (int(parts[parts.index("layers") + 1]), parts[-1]), layer


def pair(layer: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A and B of one adapter in PEFT's layer."""
    if name in layer.lora_embedding_A:
        return hf.to_numpy(layer.lora_embedding_A[name].detach()), hf.to_numpy(layer.lora_embedding_B[name].detach())
    return hf.to_numpy(layer.lora_A[name].weight.detach()), hf.to_numpy(layer.lora_B[name].weight.detach())


def in_our_order(model: Any, masks: list[np.ndarray], svd: bool) -> Callable[[tuple[int, ...]], np.ndarray]:
    """PEFT's masks, which it drew module after module in its order, in ours. Of an embedding, whose delta PEFT holds
    transposed, turned."""
    by_module: dict[Module, list[np.ndarray]] = {}
    queue = iter(masks)
    for module, layer in layers(model):
        count = sum(name in layer.lora_A or name in layer.lora_embedding_A for name in WEIGHTS)
        draws = [next(queue) for _ in range(count if svd else 2 * count)]
        by_module[module] = [mask.T for mask in draws] if svd and module == EMBED else draws
    assert next(queue, None) is None
    ordered = iter([mask for module in sorted(by_module) for mask in by_module[module]])

    def keep(shape: tuple[int, ...]) -> np.ndarray:
        mask = next(ordered)
        assert mask.shape == shape
        return mask

    return keep


def ours(folder: Path, ending: str, recipe: Recipe, keep: Any = None) -> Adapter:
    """Our combined adapter, of the same folders."""
    config = refimpl.load_model(folder / "base").config
    terms = [(refimpl.load_adapter(folder / f"{name}{ending}", config), weight) for name, weight in WEIGHTS.items()]
    return combine(terms, recipe, "combined", keep).adapter


def compare(model: Any, adapter: Adapter, products: bool, scale: float = 1.0) -> None:
    """Every A and B, or their products; and the scale that PEFT multiplies them by."""
    assert {module for module, _ in layers(model)} == adapter.lora.keys()
    for module, layer in layers(model):
        A, B = pair(layer, "combined")
        lora = adapter.lora[module]
        assert (A.shape, B.shape) == (lora.A.shape, lora.B.shape)
        assert layer.scaling["combined"] == pytest.approx(scale)
        assert scale_of(adapter.config, module, len(lora.A)) == 1
        for expected, got in [(B @ A, lora.B @ lora.A)] if products else [(A, lora.A), (B, lora.B)]:
            assert np.abs(got - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES)
def test_a_and_b_are_those_of_peft(folder: Path, case: str) -> None:
    how, options = CASES[case]
    model, masks = theirs(folder, "", how, options)
    assert bool(masks) == how.startswith("dare")
    svd = how.endswith("svd")
    keep = in_our_order(model, masks, svd) if masks else None
    compare(model, ours(folder, "", Recipe(how, **options), keep), products=svd)


@pytest.mark.parametrize("how", ["cat", "svd", "ties_svd"])
def test_ranks_that_differ(folder: Path, how: str) -> None:
    options = PRUNED if "ties" in how else {}
    model, _ = theirs(folder, "-wide", how, options)
    compare(model, ours(folder, "-wide", Recipe(how, **options)), products=how != "cat")


@pytest.mark.parametrize("quantile", [0.95, 0.6])
def test_svd_cut_off_at_a_quantile(folder: Path, quantile: float) -> None:
    """The quantile is of numbers with their signs, which a decomposition does not fix: PEFT's own are cut off by us."""
    (plain, _), (cut, _) = (theirs(folder, "", "svd", {"svd_clamp": limit}) for limit in (None, quantile))
    for (_, layer), (_, expected) in zip(layers(plain), layers(cut), strict=True):
        for got, one in zip(clamped(*pair(layer, "combined"), quantile), pair(expected, "combined"), strict=True):
            assert np.array_equal(got, one)


@pytest.mark.parametrize("how", ["linear", "cat", "svd"])
def test_the_trap_of_rslora(folder: Path, how: str) -> None:
    """PEFT makes the same A and B of rsLoRA adapters, and then multiplies them by sqrt(r): peft #3449."""
    model, _ = theirs(folder, "-rs", how, {})
    adapter = ours(folder, "-rs", Recipe(how))
    rank = next(len(lora.A) for lora in adapter.lora.values())
    compare(model, adapter, products=how == "svd", scale=np.sqrt(rank))


def test_the_sum_is_what_peft_adds_when_adapters_are_active_together(folder: Path) -> None:
    model = hf.load_exact(folder / "base", {name: folder / f"{name}-wide" for name in WEIGHTS})
    adapter = ours(folder, "-wide", Recipe("sum"))
    for module, layer in layers(model):
        total: Any = 0
        for name, weight in WEIGHTS.items():
            if name in layer.scaling and (name in layer.lora_A or name in layer.lora_embedding_A):
                A, B = pair(layer, name)
                total = total + weight * layer.scaling[name] * (B @ A)
        lora = adapter.lora[module]
        product = scale_of(adapter.config, module, len(lora.A)) * (lora.B @ lora.A)
        assert np.abs(product - total).max() <= 1e-12 * np.abs(total).max()
