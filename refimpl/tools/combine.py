"""Several adapters -> one: PEFT's add_weighted_adapter (tuners/lora/model.py, 0.21.2), and exact sums.

    the sum that is meant            D = sum_i f_i B_i A_i          f_i = w_i s_i: weight in the sum times scale
    cat                              A = [f_1 A_1; f_2 A_2; ...], B = [B_1 B_2 ...]: D itself, of the sum of the ranks
    sum                              the same without padding, and with a common factor left in the scale
    svd                              the nearest to D of rank r: B = U S, A = V^T of its r largest singular values
    linear, ties, dare_*, ...        A = sum_i sign(f_i) sqrt|f_i| A_i,  B = sum_i sqrt|f_i| B_i, each as
                                     task_arithmetic.py has it. Their product has cross terms B_i A_j in it.
    ties_svd, dare_*_svd, ...        the same done with s_i B_i A_i whole, then as svd

Everything is computed in float64. PEFT keeps the first adapter's use_rslora with lora_alpha = r, so that an rsLoRA
comes out sqrt(r) too strong (peft #3449); here the scale is 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..adapter import Adapter, LoraTensors
from ..adapter_slots import scale_of
from ..arrays import Array, widen
from ..config import Module, module_name
from ..errors import AdapterError
from .combined_config import combined_config
from .merged_weights import Terms
from .task_arithmetic import Prune, dropped, elected_mean, largest, weighted_sum

WITHOUT_CROSS_TERMS = ("sum", "cat", "svd")
PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
HOWS = (*WITHOUT_CROSS_TERMS, "linear", *PRUNING, *(f"{name}_svd" for name in PRUNING))


@dataclass(frozen=True)
class Recipe:
    """How adapters are combined, in the names of add_weighted_adapter."""

    how: str
    svd_rank: int | None = None  # of all that end on svd; None: the largest of the adapters
    density: float | None = None  # the share of numbers that stays, where some are pruned
    majority_sign_method: str = "total"  # of ties; or frequency
    svd_clamp: float | None = None  # the quantile at which U S and V are cut off
    seed: int = 0  # of dare's drops: numpy's default_rng, a number for each entry, in the order of `keep`


@dataclass(frozen=True, eq=False)
class Term:
    """One adapter in one module: A and B in float64, its weight and its scale."""

    number: int  # of the adapter
    A: Array
    B: Array
    weight: float
    scale: float

    @property
    def factor(self) -> float:
        """What B A is multiplied by in the sum."""
        return self.weight * self.scale


@dataclass(frozen=True, eq=False)
class Combined:
    """The adapter, and how far it is from the weighted sum of the others."""

    adapter: Adapter
    apart: float  # ||B A - D|| / ||D|| over all modules together (Frobenius); 0 for a sum of zeros
    worst: tuple[float, Module] | None  # the same of the module where it is largest
    highest_rank: int = 0  # that a module of it can have: what is asked for beyond it holds zeros


Keep = Callable[[tuple[int, ...]], Array]  # shape -> which numbers stay, drawn


def combine(terms: Terms, recipe: Recipe, name: str, keep: Keep | None = None) -> Combined:
    """Combine adapters; of one alone every way but sum is `linear`, as in PEFT.

    keep: draws what dare keeps: module after module (by layer and name), A before B, adapters as they were given.
    AdapterError, one line, for ranks that differ where they may not, and for anything that is not plain LoRA."""
    check_plain(terms)
    if len(terms) == 1 and recipe.how != "sum":
        recipe = Recipe("linear")
    keep = keep or drawn_by(recipe)
    rank = recipe.svd_rank or max(len(lora.A) for adapter, _ in terms for lora in adapter.lora.values())
    total_rank = sum(max(len(lora.A) for lora in adapter.lora.values()) for adapter, _ in terms)
    highest_rank = 0
    lora, scales, sizes = {}, {}, {}
    for module, parts in terms_by_module(terms).items():
        check_shapes(module, parts, recipe.how)
        ranks = sum(len(part.A) for part in parts) if recipe.how == "svd" else math.inf  # pruned, it has any rank
        highest_rank = max(highest_rank, int(min(parts[0].A.shape[1], parts[0].B.shape[0], ranks)))
        with np.errstate(all="ignore"):  # what is too large is refused below, in one line
            if recipe.how == "sum":
                A, B, scale = summed(parts)
            else:
                check_finite(terms, module, *(part.factor * part.A for part in parts))
                A, B = product_of(parts, recipe, total_rank if recipe.how == "cat" else rank, keep)
                scale = 1.0
            sizes[module] = squares(parts, A, B, scale)
        check_finite(terms, module, A, B, sizes[module])
        lora[module], scales[module] = LoraTensors(A, B), scale
    config = combined_config(terms, {module: (len(pair.A), scales[module]) for module, pair in lora.items()})
    return Combined(Adapter(name, config, lora), *distances(sizes), highest_rank)


def check_plain(terms: Terms) -> None:
    """Refuse what is more than A and B: PEFT drops or refuses it."""
    for adapter, _ in terms:
        more = {
            "DoRA": adapter.use_dora,
            "whole layers (modules_to_save)": bool(adapter.replaced),
            "biases": bool(adapter.biases),
            "rows of tokens (trainable_token_indices)": bool(adapter.tokens),
            "an invocation (alora_invocation_tokens)": bool(adapter.config.alora_invocation_tokens),
            "lora_bias": any(lora.bias is not None for lora in adapter.lora.values()),
        }
        if kinds := [what for what, has_it in more.items() if has_it]:
            raise AdapterError(f"adapter {adapter.name!r} has {' and '.join(kinds)}: only plain A and B are combined")


def check_finite(terms: Terms, module: Module, *arrays: Array | tuple[float, float]) -> None:
    """Refuse a sum that float64 cannot hold, by what is largest in it."""
    if not all(np.isfinite(x).all() for x in arrays):
        raise AdapterError(f"{too_large(terms)}: {module_name(module)} has numbers that float64 cannot hold")


def too_large(terms: Terms) -> str:
    """Say what is largest, in the adapter that adds most: its weight, its scale, or its numbers."""

    def size(x: float) -> float:
        return math.log(abs(x) or math.ulp(0.0))

    def factors(adapter: Adapter, weight: float) -> dict[str, float]:
        scale = max((scale_of(adapter.config, key, len(lora.A)) for key, lora in adapter.lora.items()), key=abs)
        pairs = [(widen(lora.A, "float64"), widen(lora.B, "float64")) for lora in adapter.lora.values()]
        numbers = max(float(np.abs(A).max() * np.abs(B).max()) for A, B in pairs)
        return {f"weight {weight:g}": size(weight), f"scale {scale:g}": size(scale), "product B A": size(numbers)}

    by_name = {adapter.name: factors(adapter, weight) for adapter, weight in terms}
    name = max(by_name, key=lambda name: sum(by_name[name].values()))
    return f"the {max(by_name[name], key=by_name[name].__getitem__)} of {name} is too large"


def terms_by_module(terms: Terms) -> dict[Module, list[Term]]:
    """Module -> those of the adapters that have it, in the order of the modules."""
    modules = sorted({module for adapter, _ in terms for module in adapter.lora})
    return {
        module: [
            Term(
                number,
                widen(adapter.lora[module].A, "float64"),
                widen(adapter.lora[module].B, "float64"),
                weight,
                scale_of(adapter.config, module, len(adapter.lora[module].A)),
            )
            for number, (adapter, weight) in enumerate(terms)
            if module in adapter.lora
        ]
        for module in modules
    }


def product_of(parts: Sequence[Term], recipe: Recipe, rank: int, keep: Keep) -> tuple[Array, Array]:
    """A and B of one module, whose product is multiplied by 1."""
    if recipe.how == "cat":
        return padded(*concatenated(parts), rank)
    if recipe.how == "svd":
        return padded(*clamped(*truncated(*concatenated(parts), rank), recipe.svd_clamp), rank)
    if recipe.how.endswith("_svd"):
        deltas = [part.scale * (part.B @ part.A) for part in parts]
        delta = mixed(deltas, [part.weight for part in parts], recipe, keep)
        outer, values, inner = np.linalg.svd(delta, full_matrices=False)
        return padded(*clamped(inner[:rank], outer[:, :rank] * values[:rank], recipe.svd_clamp), rank)
    roots = [math.sqrt(abs(part.factor)) for part in parts]
    signed = [root if part.factor >= 0 else -root for root, part in zip(roots, parts, strict=True)]
    A = mixed([part.A for part in parts], signed, recipe, keep)
    return A, mixed([part.B for part in parts], roots, recipe, keep)


def mixed(tensors: Sequence[Array], weights: Sequence[float], recipe: Recipe, keep: Keep) -> Array:
    """One tensor of several."""
    kind = recipe.how.removesuffix("_svd")
    if kind != "linear" and recipe.density is not None and recipe.density < 1:
        prune = random_pruner(recipe.density, keep) if kind.startswith("dare") else magnitude_pruner(recipe.density)
        tensors = [prune(number, x) for number, x in enumerate(tensors)]
    if kind.endswith("ties"):
        return elected_mean(tensors, weights, recipe.majority_sign_method)
    return weighted_sum(tensors, weights)


def magnitude_pruner(density: float) -> Prune:
    """The largest numbers of each stay."""
    return lambda number, x: largest(x, density)


def random_pruner(density: float, keep: Keep) -> Prune:
    """Random ones stay."""
    return lambda number, x: dropped(x, density, keep(x.shape))


def drawn_by(recipe: Recipe) -> Keep:
    """Each number stays with the probability `density`."""
    rng = np.random.default_rng(recipe.seed)
    return lambda shape: rng.random(shape) < (1.0 if recipe.density is None else recipe.density)


def concatenated(parts: Sequence[Term]) -> tuple[Array, Array]:
    """D as one product: the factors in A."""
    return np.vstack([part.factor * part.A for part in parts]), np.hstack([part.B for part in parts])


def summed(parts: Sequence[Term]) -> tuple[Array, Array, float]:
    """D as one product times the largest factor: of adapters with one factor not a bit of A and B is changed."""
    scale = max((part.factor for part in parts), key=abs) or 1.0
    A = np.vstack([part.A if part.factor == scale else part.factor / scale * part.A for part in parts])
    return A, np.hstack([part.B for part in parts]), scale


def truncated(A: Array, B: Array, rank: int) -> tuple[Array, Array]:
    """V^T and U S of the largest singular values of B A, which is never made: B = Q R, A^T = Q' R', so that B A =
    Q (R R'^T) Q'^T, and only the small matrix in the middle is decomposed."""
    columns, rows = np.linalg.qr(B), np.linalg.qr(A.T)
    outer, values, inner = np.linalg.svd(columns.R @ rows.R.T, full_matrices=False)
    return inner[:rank] @ rows.Q.T, columns.Q @ (outer[:, :rank] * values[:rank])


def clamped(A: Array, B: Array, quantile: float | None) -> tuple[Array, Array]:
    """Both cut off at plus and minus this quantile of their numbers."""
    if quantile is None:
        return A, B
    limit = np.quantile(np.concatenate([B.reshape(-1), A.reshape(-1)]), quantile)
    return np.clip(A, -limit, limit), np.clip(B, -limit, limit)


def padded(A: Array, B: Array, rank: int) -> tuple[Array, Array]:
    """Of this rank, with rows and columns of zeros where there are fewer."""
    missing = rank - len(A)
    return np.pad(A, ((0, missing), (0, 0))), np.pad(B, ((0, 0), (0, missing)))


def check_shapes(module: Module, parts: Sequence[Term], how: str) -> None:
    """Adapters are of one base, and where A and B are mixed on their own, of one rank."""
    first = parts[0]
    for part in parts[1:]:
        if (part.A.shape[1], part.B.shape[0]) != (first.A.shape[1], first.B.shape[0]):
            shapes = " and ".join(f"{[one.B.shape[0], one.A.shape[1]]}" for one in (first, part))
            raise AdapterError(f"{module_name(module)} is {shapes}: the adapters are of different bases")
        if len(part.A) != len(first.A) and how not in ("sum", "cat") and not how.endswith("svd"):
            ranks = f"{len(first.A)} and {len(part.A)}"
            raise AdapterError(
                f"{module_name(module)} has rank {ranks}: {how} adds A and B each on its own, and needs one rank; "
                "sum, cat and svd do not"
            )


def squares(parts: Sequence[Term], A: Array, B: Array, scale: float) -> tuple[float, float]:
    """||scale B A - D||^2 and ||D||^2 of one module, from the products of the small sides alone."""
    exact_A, exact_B = concatenated(parts)
    both_A, both_B = np.vstack([exact_A, -scale * A]), np.hstack([exact_B, B])
    return norm_squared(both_A, both_B), norm_squared(exact_A, exact_B)


def norm_squared(A: Array, B: Array) -> float:
    """||B A||^2 = sum of (B^T B) * (A A^T), entry by entry."""
    return max(float(np.sum((B.T @ B) * (A @ A.T))), 0.0)


def distances(sizes: Mapping[Module, tuple[float, float]]) -> tuple[float, tuple[float, Module] | None]:
    """How far all modules together are from D, and the one that is farthest."""
    apart, total = (sum(pair[i] for pair in sizes.values()) for i in (0, 1))
    each = [(math.sqrt(lost / size), module) for module, (lost, size) in sizes.items() if size]
    return (math.sqrt(apart / total) if total else 0.0), max(each, default=None)
