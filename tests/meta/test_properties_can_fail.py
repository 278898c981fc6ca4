"""A test that cannot fail shows nothing: each property is run over a table with a real bug in it, and must fail.

One row per property, with the bugs that it must find. A property without a row is an error too.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutants import table
from properties.test_batching import (
    check_base_rows_do_not_feel_adapters,
    check_batch_equals_alone,
    check_order_does_not_matter,
)
from properties.test_definition import (
    check_adapters_differ,
    check_the_base_is_the_dense_model,
    check_unmerged_equals_merged,
    check_zero_b_is_the_base,
)
from properties.test_dora import (
    check_dora_does_not_leak,
    check_dora_is_the_stretched_base,
    check_dora_while_serving,
    dora_cases,
)
from properties.test_half_types import (
    check_attention_is_within_a_unit_of_each_probability,
    check_every_point_is_applied,
    check_exact_sums_give_the_same_bits,
    check_stored_halves_are_those_numbers,
    check_the_whole_model_rounds_the_same,
    check_what_is_traced_is_representable,
)
from properties.test_lora_delta import (
    calls,
    check_adds_the_formula,
    check_modules_are_kept_apart,
    check_rank_padding_is_invisible,
    check_rows_without_adapter_keep_their_bits,
    check_weights_are_linear,
)
from properties.test_machine import check_an_engine_in_use
from properties.test_mla import check_merged
from properties.test_paging import (
    check_block_size_does_not_matter,
    check_chunks_do_not_matter,
    check_physical_blocks_do_not_matter,
)
from properties.test_reuse import (
    check_few_adapter_slots_are_enough,
    check_preemption_cannot_be_seen,
    check_prefix_hit_equals_miss,
    check_sampled_tokens_are_a_requests_own,
    reuses,
)
from properties.test_whole_layers import (
    check_replaced_layers_are_swapped_in,
    check_replaced_layers_do_not_leak,
    check_replaced_layers_while_serving,
    replacing_cases,
)
from support.build import cases, configs
from support.experts import expert_cases
from support.latent import latent_cases

from refimpl import Ops

CASE = {"case": cases()}
EXPERTS = {"case": expert_cases()}
LATENT = {"case": latent_cases()}
REUSE = {"case": reuses()}
DORA = {"case": dora_cases()}
WHOLE = {"case": replacing_cases()}
CALL = {"call": calls()}
SEED = {"seed": st.integers(0, 99)}
DTYPE = {"dtype": st.sampled_from(["bfloat16", "float16"])}

STOP_AT_THE_FIRST = {
    "max_examples": 40,
    "phases": [Phase.generate],
    "report_multiple_bugs": False,
    "suppress_health_check": list(HealthCheck),
}

Row = tuple[Callable, Mapping[str, st.SearchStrategy], tuple[str, ...]]
TABLE: list[Row] = [
    (
        check_unmerged_equals_merged,
        CASE,
        (
            "rslora_ignored",
            "alpha_for_alpha_over_r",
            "alpha_pattern_ignored",
            "lora_bias_unscaled",
            "first_layer_everywhere",
            "up_takes_the_delta_of_gate",
        ),
    ),
    (
        check_the_base_is_the_dense_model,
        CASE,
        ("window_off_by[1]", "query_heads_interleaved", "k_and_v_swapped"),
    ),
    (check_merged, LATENT, ("rslora_ignored", "alpha_for_alpha_over_r")),
    (check_adapters_differ, CASE, ("adapters_ignored",)),
    (check_zero_b_is_the_base, CASE, ("sums_in_float32",)),
    (
        check_batch_equals_alone,
        CASE,
        ("ids_not_repeated_per_token", "sorted_and_never_put_back", "scale_of_the_last_adapter"),
    ),
    (
        check_unmerged_equals_merged,
        EXPERTS,
        ("experts_lora_dropped", "only_the_last_expert", "renormalised_the_other_way", "rslora_ignored"),
    ),
    (check_batch_equals_alone, EXPERTS, ("everyone_goes_where_the_first_does", "sorted_and_never_put_back")),
    (check_order_does_not_matter, CASE | SEED, ("scale_of_the_last_adapter", "last_slot_skipped")),
    (check_base_rows_do_not_feel_adapters, CASE, ("no_adapter_is_the_last_one", "sums_in_float32")),
    (
        check_chunks_do_not_matter,
        CASE | {"chunk": st.sampled_from([1, 2, 3, 5])},
        ("decode_at_zero", "chunk_restarts"),
    ),
    (
        check_block_size_does_not_matter,
        CASE | {"block_size": st.sampled_from([1, 2, 3, 5, 8])},
        ("slots_off_by_one_block", "blocks_of_sixteen"),
    ),
    (check_physical_blocks_do_not_matter, CASE | SEED, ("block_table_ignored",)),
    (
        check_prefix_hit_equals_miss,
        REUSE,
        ("key_without_adapter", "key_without_weight", "key_without_parent", "decode_at_zero"),
    ),
    (
        check_preemption_cannot_be_seen,
        REUSE | {"spare": st.integers(0, 3), "prefix_caching": st.booleans()},
        ("block_in_use_evicted", "chunk_restarts"),
    ),
    (
        check_sampled_tokens_are_a_requests_own,
        REUSE | {"chunk": st.sampled_from([1, 4, 64])},
        ("first_row_for_last",),
    ),
    (check_few_adapter_slots_are_enough, REUSE, ("bound_by_name", "victim_in_use")),
    (
        check_adds_the_formula,
        CALL,
        ("weights_ignored", "last_slot_skipped", "odd_rank_cut", "alpha_pattern_ignored", "rslora_ignored"),
    ),
    (check_rows_without_adapter_keep_their_bits, CALL, ("no_adapter_is_the_last_one", "sums_in_float32")),
    (check_rank_padding_is_invisible, CALL | {"extra": st.integers(1, 6)}, ("odd_rank_cut",)),
    (
        check_weights_are_linear,
        CALL | {"a": st.sampled_from([0.5, -3.0]), "b": st.sampled_from([0.25, -1.0])},
        ("weights_ignored",),
    ),
    (check_modules_are_kept_apart, CALL, ("up_takes_the_delta_of_gate",)),
    (check_replaced_layers_are_swapped_in, WHOLE, ("saved_lm_head_and_biases_dropped",)),
    (check_replaced_layers_do_not_leak, WHOLE, ("none_is_slot_zero",)),
    (check_replaced_layers_while_serving, WHOLE, ("chunk_restarts", "slots_off_by_one_block")),
    (
        check_dora_is_the_stretched_base,
        DORA,
        (
            "dora_magnitude_dropped",
            "dora_stretches_the_bias",
            "dora_stretches_the_delta_alone",
            "length_of_the_base_alone",
        ),
    ),
    (check_dora_does_not_leak, DORA, ("no_adapter_is_the_last_one",)),
    (check_dora_while_serving, DORA, ("key_without_magnitude", "slots_off_by_one_block")),
    (check_exact_sums_give_the_same_bits, SEED | DTYPE, ("rank_not_rounded", "always_bfloat16", "kv_not_rounded")),
    (
        check_attention_is_within_a_unit_of_each_probability,
        SEED | DTYPE | {"window": st.sampled_from([None, 1, 4])},
        ("probabilities_not_rounded", "window_off_by[1]"),
    ),
    (check_the_whole_model_rounds_the_same, CASE | DTYPE, ("rank_not_rounded", "always_bfloat16")),
    (check_every_point_is_applied, {"point": st.just("kv")}, ("kv_not_rounded",)),
    (check_what_is_traced_is_representable, DTYPE, ("attention_not_rounded",)),
    (check_stored_halves_are_those_numbers, {"config": configs()} | SEED, ("bfloat16_read_as_float16",)),
    (check_an_engine_in_use, {}, ("key_without_adapter", "victim_in_use", "decode_at_zero", "bound_by_name")),
]


@pytest.mark.parametrize(
    ("check", "drawn", "mutant"),
    [
        pytest.param(check, drawn, mutant, id=f"{check.__name__.removeprefix('check_')}-{mutant}")
        for check, drawn, found in TABLE
        for mutant in found
    ],
)
def test_the_property_fails_on_a_real_bug(check: Callable, drawn: Mapping[str, st.SearchStrategy], mutant: str) -> None:
    ops = table(mutant)
    with pytest.raises(AssertionError):
        if drawn:
            under_hypothesis(check, ops, drawn)
        else:
            check(ops, **STOP_AT_THE_FIRST)


def under_hypothesis(check: Callable, ops: Ops, drawn: Mapping[str, st.SearchStrategy]) -> None:
    """The property as the real test runs it, but it stops at the first example that fails."""

    @settings(**STOP_AT_THE_FIRST)
    @given(**drawn)
    def run(**arguments: object) -> None:
        check(ops, **arguments)

    run()


def test_every_property_has_a_row() -> None:
    files = (Path(__file__).parent.parent / "properties").glob("test_*.py")
    modules = [importlib.import_module(f"properties.{file.stem}") for file in files]
    properties = {name for module in modules for name in vars(module) if name.startswith("check_")}
    assert properties == {check.__name__ for check, _, _ in TABLE}
