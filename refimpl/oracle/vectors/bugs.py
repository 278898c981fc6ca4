"""What vectors are made against: each a way to be wrong, and which mutants of refimpl/oracle/bugs/ are wrong so."""

from dataclasses import dataclass
from typing import Any

from ..bugs import all_mutants


@dataclass(frozen=True)
class Bug:
    """One way in which engines were wrong. No links: made up."""

    family: str  # the class letter
    what: str
    links: tuple[str, ...] = ()
    mutants: tuple[str, ...] = ()  # by name; none: no Ops can be wrong so


def _of(what: str, *names: str) -> Bug:
    """Return the bug of these mutants: of the first one's class, with the links of all."""
    mutants = [all_mutants()[name] for name in names]
    links = dict.fromkeys(link for mutant in mutants for link in mutant.links)
    return Bug(mutants[0].family, what, tuple(links), names)


BUGS = {
    "scale": _of(
        "alpha in place of alpha / r, or the scale left out: unseen where alpha equals r",
        "alpha_for_alpha_over_r",
        "scale_is_one",
    ),
    "rslora": _of("alpha / r, although the adapter says alpha / sqrt(r)", "rslora_ignored"),
    "patterns": _of("rank_pattern or alpha_pattern dropped", "rank_pattern_ignored", "alpha_pattern_ignored"),
    "bias_scale": _of("the bias of lora_B not scaled", "lora_bias_unscaled"),
    "weights": _of("the weights of summed adapters lost", "weight_replaces_the_scale", "weights_ignored"),
    "identity": _of(
        "a token gets another request's adapter",
        "ids_not_repeated_per_token",
        "lm_head_rows_shifted",
        "first_row_for_last",
        "second_rank_has_slot_zero",
    ),
    "none": _of("a row without adapter is not left alone", "none_is_slot_zero", "no_adapter_is_the_last_one"),
    "last_slot": _of("the last slot is never used, in the engine or in its tests", "last_slot_skipped"),
    "range": Bug("B", "an id that names no adapter is served", ("https://github.com/huggingface/peft/pull/2090",)),
    "stale": _of(
        "old weights after a name or a slot is used again",
        "bound_by_name",
        "slot_keeps_its_first_weights",
        "reload_keeps_B",
        "slot_not_cleared",
    ),
    "evict": _of("a request without its weights after an eviction", "victim_in_use", "refilled_slot_is_base"),
    "prefix": _of("keys and values of a prefix shared across adapters", "key_without_adapter", "key_by_name"),
    "prefix_depth": _of(
        "a block is found although what stood before it was another text",
        "key_of_the_first_block",
        "key_without_the_last_token",
        "key_without_parent",
    ),
    "layout": _of(
        "rank or widths taken from elsewhere than the tensors; square layers hide it",
        "rank_cut_to_the_config",
        "qkv_interleaved",
        "A_read_transposed",
        "B_read_transposed",
    ),
    "not_applied": _of(
        "an adapter, or a part of it, silently left out",
        "adapters_ignored",
        "not_applied_to[q_proj]",
        "skipped[embed_tokens]",
        "skipped[lm_head]",
        "lora_bias_dropped",
    ),
    "rank": _of("wrong for some ranks", "rank_cut[16]", "nan_at_rank_8", "odd_rank_cut", "last_rank_lost"),
    "length": _of(
        "the end of a long sum left out, or a count of tokens",
        "last_input_lost",
        "split_k_part_lost",
        "last_token_lost",
        "token_tail_lost",
        "adapter_lost_after_8_tokens",
    ),
    "poison": _of(
        "0 times NaN: memory that nobody wrote takes part",
        "base_counted_twice",
        "padding_not_cleared",
        "unused_slots_are_nan",
    ),
    "slots": _of(
        "keys and values at another place than where they are read",
        "slots_off_by_one_block",
        "block_table_ignored",
        "stale_slot_seen",
        "written_one_slot_early",
        "k_and_v_swapped",
    ),
    "window": _of("the edge of the sliding window", "window_off_by[1]", "window_off_by[-1]"),
    "positions": _of("positions that start anew", "decode_at_zero", "positions_restart_after_a_hit", "chunk_restarts"),
    "heads": _of("query heads with another head's keys", "query_heads_interleaved"),
    "overflow": Bug(
        "H", "softmax without its largest score taken off", ("https://github.com/openvinotoolkit/openvino/pull/34809",)
    ),
}


def described(key: str) -> dict[str, Any]:
    """As it stands in a manifest."""
    bug = BUGS[key]
    return {"bug": key, "class": bug.family, "what": bug.what, "links": list(bug.links)}
