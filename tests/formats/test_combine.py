"""`loracle combine`: the exact ways are the sum that is served, the others what their formulas say, one number after
another. tests/engines/test_combine.py compares each with PEFT."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from formats.test_merge import line_of, without_bias
from hypothesis import given
from hypothesis import strategies as st
from loading.folders import BASE, lora_name, lora_tensors, random, write_adapter
from support.build import Case, as_dora, cases, random_adapter, random_model

import refimpl
from refimpl import cli
from refimpl.adapter import Adapter, pattern_value
from refimpl.adapter_slots import scale_of
from refimpl.config import EMBED, LM_HEAD, Module, module_name
from refimpl.formats.peft import save_adapter
from refimpl.tools.combine import HOWS, PRUNING, Recipe, combine
from refimpl.tools.task_arithmetic import elected_mean, largest

Terms = list[tuple[Adapter, float]]


def deltas(adapter: Adapter) -> dict[Module, np.ndarray]:
    """scale B A of each module."""
    return {
        module: scale_of(adapter.config, module, len(lora.A)) * (lora.B.astype(float) @ lora.A.astype(float))
        for module, lora in adapter.lora.items()
    }


def weighted(terms: Terms) -> dict[Module, np.ndarray]:
    """The sum that is meant, module by module."""
    total: dict[Module, np.ndarray] = {}
    for adapter, weight in terms:
        for module, delta in deltas(adapter).items():
            total[module] = total.get(module, 0) + weight * delta
    return total


def of_one_rank(count: int = 2, r: int = 3) -> Terms:
    """Adapters of one rank on some modules each, the embedding among them, at scales that differ."""
    modules = (("q_proj", "up_proj", "embed_tokens"), ("q_proj", "up_proj", "embed_tokens", "down_proj"))
    adapters = [random_adapter(BASE, i, r=r, alpha=2 + 3 * i, modules=modules[min(i, 1)]) for i in range(count)]
    return list(zip(adapters, (0.7, -0.4, 1.5), strict=False))


@pytest.mark.parametrize("how", ["sum", "cat"])
@given(cases(max_adapters=3), st.lists(st.sampled_from([1.0, -0.5, 0.25, 3.0]), min_size=3, max_size=3))
def test_the_exact_ways_answer_as_the_sum_that_is_served(how: str, case: Case, weights: list[float]) -> None:
    terms = [(without_bias(adapter), weight) for adapter, weight in zip(case.pool, weights, strict=False)]
    ids = case.requests[0].prompt_ids
    result = combine(terms, Recipe(how), "sum")
    expected, row = (refimpl.logits(case.model, [refimpl.Request(ids, one)])[0] for one in (terms, result.adapter))
    assert np.abs(row - expected).max() <= 1e-11 * np.abs(expected).max()
    assert result.apart < 1e-7


def test_a_sum_of_adapters_with_one_scale_keeps_every_bit_and_no_padding() -> None:
    first = random_adapter(BASE, 1, r=3, alpha=6, modules=("q_proj", "up_proj"))
    second = random_adapter(BASE, 2, r=5, alpha=10, modules=("q_proj",))
    result = combine([(first, 0.3), (second, 0.3)], Recipe("sum"), "sum").adapter
    A = result.lora[0, "q_proj"].A
    assert A.tobytes() == first.lora[0, "q_proj"].A.tobytes() + second.lora[0, "q_proj"].A.tobytes()
    assert A.shape == (8, 12) and result.lora[0, "up_proj"].A.shape == (3, 12)
    assert scale_of(result.config, (0, "q_proj"), 8) == pytest.approx(0.6)
    cat = combine([(first, 0.3), (second, 0.3)], Recipe("cat"), "cat").adapter
    assert cat.lora[0, "up_proj"].A.shape == (8, 12) and not cat.lora[0, "up_proj"].A[3:].any()  # as PEFT pads it


@pytest.mark.parametrize("rank", [1, 2, 5, 6, 9])
def test_svd_is_the_nearest_of_its_rank(rank: int) -> None:
    """Against the decomposition of the whole matrix; from the sum of the ranks on it is exact."""
    terms = of_one_rank()
    result = combine(terms, Recipe("svd", svd_rank=rank), "svd")
    exact, products = weighted(terms), deltas(result.adapter)
    for module, delta in exact.items():
        outer, values, inner = np.linalg.svd(delta)
        assert np.abs(products[module] - (outer[:, :rank] * values[:rank]) @ inner[:rank]).max() < 1e-12 * values[0]
        B, A = result.adapter.lora[module].B, result.adapter.lora[module].A
        assert A.shape[0] == rank
        assert np.allclose(np.linalg.norm(B, axis=0)[: min(rank, 3)], values[: min(rank, 3)])  # B = U S, A = V^T
    lost = sum(np.sum((products[module] - delta) ** 2) for module, delta in exact.items())
    assert result.apart == pytest.approx(np.sqrt(lost / sum(np.sum(delta**2) for delta in exact.values())), abs=3e-8)
    assert (result.apart < 1e-7) == (rank >= 6)


def test_linear_has_the_cross_terms_that_are_said() -> None:
    terms = of_one_rank()
    result = combine(terms, Recipe("linear"), "linear")
    products, exact = deltas(result.adapter), weighted(terms)
    cross = {}
    for module, delta in products.items():
        parts = [
            (one.lora[module], weight * scale_of(one.config, module, 3)) for one, weight in terms if module in one.lora
        ]
        rest = np.zeros_like(delta)
        for (one, factor), (other, second) in itertools.permutations(parts, 2):
            rest = rest + np.sign(second) * np.sqrt(abs(factor * second)) * (one.B @ other.A)
        assert np.allclose(delta, exact[module] + rest)
        cross[module] = np.linalg.norm(rest) / np.linalg.norm(exact[module])
    assert not cross[0, "down_proj"]  # which only one of them has
    assert result.worst is not None and result.worst[0] == pytest.approx(max(cross.values()))
    assert cross[result.worst[1]] == max(cross.values()) > 0.1


@pytest.mark.parametrize("method", ["total", "frequency"])
def test_the_vote_on_signs_one_number_after_another(method: str) -> None:
    rng = np.random.default_rng(5)
    tensors = [np.round(rng.standard_normal((4, 5)), 1) * (rng.random((4, 5)) < 0.7) for _ in range(3)]
    weights = [0.5, -2.0, 1.5]
    mean = elected_mean(tensors, weights, method)
    for i, j in np.ndindex(4, 5):
        numbers = [float(x[i, j]) for x in tensors]
        vote = sum(numbers if method == "total" else map(np.sign, numbers))
        sign = 1 if vote >= 0 else -1
        chosen = [weight * x for weight, x in zip(weights, numbers, strict=True) if np.sign(x) == sign]
        assert mean[i, j] == pytest.approx(sum(chosen) / len(chosen) if chosen else 0)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.99, 1.0])
def test_the_largest_stay_and_of_equal_ones_the_first(density: float) -> None:
    x = np.array([[3.0, -1, 2, -3], [1, 1, -2, 0], [0, 5, -1, 1]])
    order = sorted(range(12), key=lambda i: (-abs(x.reshape(-1)[i]), i))[: int(density * 12)]
    expected = np.zeros(12)
    expected[order] = x.reshape(-1)[order]
    assert np.array_equal(largest(x, density), expected.reshape(x.shape))


def test_dare_keeps_its_share_and_its_mean_and_is_drawn_by_its_seed() -> None:
    adapter = random_adapter(BASE, 1, r=3, alpha=3, modules=("q_proj",))
    others = dataclasses.replace(adapter, lora={module: adapter.lora[module] for module in [(0, "q_proj")]})
    module, terms = (0, "q_proj"), [(others, 1.0), (others, 0.0)]
    draws = [
        combine(terms, Recipe("dare_linear", density=0.3, seed=seed), "dare").adapter.lora[module]
        for seed in range(400)
    ]
    A = np.array([lora.A for lora in draws])
    share = (A != 0).mean()
    assert abs(share - 0.3) < 5 * np.sqrt(0.3 * 0.7 / A.size)
    assert np.array_equal(A[A != 0], (np.broadcast_to(adapter.lora[module].A, A.shape) / 0.3)[A != 0])
    error = np.abs(A.mean(axis=0) - adapter.lora[module].A) / np.abs(adapter.lora[module].A)
    assert error.max() < 5 * np.sqrt(0.7 / 0.3 / 400)
    again = combine(terms, Recipe("dare_linear", density=0.3, seed=7), "dare").adapter.lora[module]
    assert np.array_equal(again.A, draws[7].A) and not np.array_equal(again.A, draws[8].A)


@pytest.mark.parametrize("how", HOWS)
def test_every_way_loads_again_with_scale_one_and_rslora_gone(tmp_path: Path, how: str) -> None:
    """The trap of peft 3449: alpha = r under rsLoRA would be a scale of sqrt(r)."""
    modules = {"a": ("q_proj", "v_proj"), "b": ("q_proj", "embed_tokens", "lm_head")}
    for seed, (name, chosen) in enumerate(modules.items()):
        save_adapter(random_adapter(BASE, seed, r=4, use_rslora=True, modules=chosen), tmp_path / name)
    density = ["--density", "0.5"] if how.removesuffix("_svd") in PRUNING else []
    argv = ["combine", f"{tmp_path / 'a'}:0.5", str(tmp_path / "b"), "--how", how, *density]
    assert cli.main([*argv, "--out", str(tmp_path / "out"), "--dtype", "float64"]) == 0
    written = refimpl.load_adapter(tmp_path / "out", BASE)
    assert not written.config.use_rslora
    terms = [(refimpl.load_adapter(tmp_path / name, BASE), weight) for name, weight in (("a", 0.5), ("b", 1.0))]
    combined = combine(terms, Recipe(how, density=0.5 if density else None), "out").adapter
    assert combined.lora.keys() == written.lora.keys() == weighted(terms).keys()
    for module, lora in combined.lora.items():
        assert np.array_equal(lora.A, written.lora[module].A) and np.array_equal(lora.B, written.lora[module].B)
        if how != "sum":
            assert scale_of(written.config, module, len(lora.A)) == 1


@pytest.mark.filterwarnings("ignore:.*the adapter covers 1 of the base's 2 layers")
def test_what_is_selected_stays_what_it_was(tmp_path: Path) -> None:
    """Lists become one list, regular expressions one; a list and an expression, or other layers, full names."""
    plain = random_adapter(BASE, 1, modules=("q_proj", "v_proj"))
    expression = dataclasses.replace(plain.config, target_modules=r".*\.(q|v)_proj")
    other = dataclasses.replace(plain, config=expression, name="other")
    first = {module: lora for module, lora in plain.lora.items() if module[0] == 0}
    layers = dataclasses.replace(plain.config, layers_to_transform=(0,))
    part = dataclasses.replace(plain, config=layers, lora=first, name="part")
    for terms, expected in (
        ([plain, random_adapter(BASE, 2, modules=("v_proj", "lm_head"))], ("q_proj", "v_proj", "lm_head")),
        ([other, other], r"(.*\.(q|v)_proj)"),
        ([plain, other], tuple(module_name((i, name)) for i in (0, 1) for name in ("q_proj", "v_proj"))),
        ([part, part], ("q_proj", "v_proj")),
        ([plain, part], tuple(module_name((i, name)) for i in (0, 1) for name in ("q_proj", "v_proj"))),
    ):
        result = combine([(one, 1.0) for one in terms], Recipe("sum"), "sum").adapter
        assert result.config.target_modules == expected
        save_adapter(result, tmp_path / str(len(list(tmp_path.iterdir()))))
        refimpl.load_adapter(tmp_path / str(len(list(tmp_path.iterdir())) - 1), BASE)


def test_ranks_and_alphas_of_a_pattern(tmp_path: Path) -> None:
    """PEFT loses rank_pattern in a combined adapter (peft 3737), whose tensors then do not fit its config."""
    tensors = lora_tensors(modules=("k_proj",), rank=2) | lora_tensors(modules=("q_proj",))
    changes = {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"q_proj": 5}}
    for name, factor in (("a", 1), ("b", -2)):
        write_adapter(tmp_path / name, {key: np.float32(factor) * x for key, x in tensors.items()}, **changes)
    terms = [(refimpl.load_adapter(tmp_path / name, BASE), 1.0) for name in ("a", "b")]
    for how in ("linear", "sum"):
        combined = combine(terms, Recipe(how), how).adapter
        save_adapter(combined, tmp_path / how)
        written = refimpl.load_adapter(tmp_path / how, BASE)
        for module, lora in written.lora.items():
            assert len(lora.A) == pattern_value(written.config.rank_pattern, module_name(module), written.config.r)
        if how == "sum":
            assert all(np.allclose(deltas(written)[module], delta) for module, delta in weighted(terms).items())


def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b")
    wide = dataclasses.replace(BASE, hidden_size=14)
    other = write_adapter(tmp_path / "other", lora_tensors(wide))
    ranks = write_adapter(tmp_path / "ranks", lora_tensors(rank=2), r=2)
    model = random_model(BASE)
    save_adapter(as_dora(random_adapter(BASE, 3), model, 4), tmp_path / "dora")
    save_adapter(random_adapter(BASE, 3, lora_bias=True), tmp_path / "biased")
    head = {lora_name(LM_HEAD, "weight"): random((13, 12), 3)}
    with_head = write_adapter(tmp_path / "whole", lora_tensors() | head, modules_to_save=["lm_head"])
    rows = {lora_name(EMBED, "token_adapter.trainable_tokens_delta"): random((1, 12), 9)}
    tokens = write_adapter(tmp_path / "tokens", lora_tensors() | rows, trainable_token_indices=[2])
    alpha, steep = (write_adapter(tmp_path / name, lora_alpha=x) for name, x in (("alpha", 1e300), ("steep", 3e30)))
    large = write_adapter(tmp_path / "large", {name: np.float32(1e30) * x for name, x in lora_tensors().items()})
    before, out = sorted(tmp_path.rglob("*")), ("--out", tmp_path / "out")
    mistakes = {
        (first, tmp_path / "dora", "--how", "cat", *out): "adapter 'dora' has DoRA: only plain A and B are combined",
        (first, with_head, "--how", "sum", *out): "adapter 'whole' has whole layers (modules_to_save)",
        (first, tokens, "--how", "sum", *out): "has rows of tokens (trainable_token_indices)",
        (first, tmp_path / "biased", "--how", "linear", *out): "adapter 'biased' has lora_bias",
        (first, ranks, "--how", "linear", *out): "has rank 3 and 2: linear adds A and B each on its own",
        (first, other, "--how", "sum", *out): "the adapters are of different bases",
        (first, second, "--how", "ties", *out): "--how ties needs --density",
        (first, second, "--how", "cat", "--density", "0.5", *out): "--density: --how cat has no use for it",
        (first, second, "--how", "ties", "--density", "1.5", *out): "--density 1.5: it must be above 0, and 1 at most",
        (first, second, "--how", "dare_ties", "--density", "nan", *out): "--density nan: it must be above 0",
        (first, alpha, "--how", "sum", *out): "alpha/adapter_config.json: lora_alpha is 1e+300: float32, which engines",
        (
            first,
            steep,
            "--how",
            "cat",
            "--dtype",
            "float16",
            *out,
        ): "the scale 1e+30 of steep is too large: model.layer",
        (
            first,
            large,
            "--how",
            "cat",
            "--dtype",
            "float16",
            *out,
        ): "the product B A of large is too large: model.layers.0.",
        (first, second, "--how", "svd", "--svd-rank", "0", *out): "--svd-rank 0: it must be above 0",
        (first, second, "--how", "svd", "--svd-clamp", "2", *out): "--svd-clamp 2: a quantile lies between 0 and 1",
        (
            first,
            second,
            "--how",
            "dare_ties",
            "--density",
            "0.5",
            "--seed",
            "-1",
            *out,
        ): "--seed -1: it must not be negative",
        (first, second, "--how", "slerp", *out): "invalid choice: 'slerp'",
        (first, second, *out): "the following arguments are required: --how",
        (f"{first}:inf", second, "--how", "sum", *out): "expected ADAPTER:WEIGHT with a finite number",
        (tmp_path / "none", second, "--how", "sum", *out): "none: is not there",
        (first, second, "--how", "sum", "--out", second): "is there already",
        (first, second, "--how", "sum", "--model", tmp_path / "no-base", *out): "no-base: is not a folder",
        (f"{first}:1e30", second, "--how", "cat", "--dtype", "float16", *out): "has numbers that float16 cannot hold",
        (f"{first}:1e300", second, "--how", "svd", *out): "the weight 1e+300 of a is too large: model.layers.0.",
        (f"{first}:1e300", second, "--how", "sum", *out): "the weight 1e+300 of a is too large: ",
        (f"{first}:-1e300", second, "--how", "linear", *out): "the weight -1e+300 of a is too large: ",
        (f"{first}:1e40", second, "--how", "sum", *out): "the weight 1e+40 of a is too large: it makes a lora_alpha",
        (
            first,
            f"{second}:1e40",
            "--how",
            "cat",
            *out,
        ): "of b is too large: model.layers.0.",
    }
    for argv, says in mistakes.items():
        assert says in line_of(capsys, "combine", *argv)
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_far_from_1_are_written_and_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 1e-300 and 1 the larger is the common scale: the other is 0 in every type of a file, and no error."""
    first, second = write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b")
    for weight, warned in (("1e9", True), ("1e-300", False)):
        out = tmp_path / weight
        assert cli.main(["combine", f"{first}:{weight}", str(second), "--how", "sum", "--out", str(out)]) == 0
        errors = capsys.readouterr().err
        assert errors.count("\n") == warned and ("the weight 1e+09 of a is far from 1" in errors) == warned
    expected = deltas(refimpl.load_adapter(second, BASE))
    written = deltas(refimpl.load_adapter(tmp_path / "1e-300", BASE))
    assert all(np.allclose(delta, expected[module], rtol=1e-6) for module, delta in written.items())


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = {name: x[::-1] for name, x in lora_tensors().items()}
    first, second = write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", turned)

    def said(how: str, *options: str) -> list[str]:
        assert (
            cli.main(["combine", f"{first}:0.5", str(second), "--how", how, "--out", str(tmp_path / how), *options])
            == 0
        )
        return capsys.readouterr().out.splitlines()

    assert said("sum") == [f"{tmp_path / 'sum'}: 0.5 a + b by sum, 14 modules of rank 6"]
    assert said("linear")[1].startswith("note: the cross terms, B of one adapter times A of another, are ")
    assert said("svd", "--svd-rank", "2")[1].startswith("note: what the rank cannot hold is ")
    high = "note: rank 6 holds all of it: of the 1000 that were asked for the others are zeros"
    assert said("svd", "--svd-rank", "1000", "--out", str(tmp_path / "high"))[1] == high
    assert said("ties", "--density", "0.5")[1].startswith("note: it differs from the weighted sum by ")
    body = json.loads("\n".join(said("dare_linear", "--density", "0.5", "--seed", "3", "--json")))
    assert (body["ranks"], body["adapters"]) == ([3], [["a", 0.5], ["b", 1.0]]) and body["apart"] > 0.1
    assert cli.main(["combine", str(first), "--how", "ties", "--density", "0.5", "--out", str(tmp_path / "one")]) == 0
    assert "note: of one adapter ties is linear" in capsys.readouterr().out
    alone = refimpl.load_adapter(tmp_path / "one", BASE)
    expected = deltas(refimpl.load_adapter(first, BASE))
    assert all(np.allclose(delta, expected[module], rtol=1e-5, atol=1e-6) for module, delta in deltas(alone).items())
