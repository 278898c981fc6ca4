"""The text model's mutants in pictures: which of them act there, and why the others cannot.

Both models add LoRA through the same steps, so that a bug of those steps is a bug of both. What a picture model does
not have, or a batch of pictures cannot ask for, no bug of it can show.
"""

from ..bugs import IN_SEQUENCES, NEEDS, NEEDS_OF_FAMILIES, Mutant, all_mutants

# Whole classes that are about what a picture model does not have.
CLASSES = {
    "C": "no adapter is loaded or evicted while a batch is drawn",
    "D": "there is no prefix cache",
    "H": "there is no KV cache, no decoding and no window",
}
# They look for modules by the text model's names, or for its way to cut a fused one.
TEXT_MODULES = frozenset(
    (
        *("alpha_of_the_first_module", "qkv_interleaved", "A_read_transposed", "B_read_transposed"),
        *("qkv_split_at_hidden_size", "qkv_cut_in_one_piece", "gate_up_cut_in_one_piece", "gate_and_up_swapped"),
        *("k_and_v_deltas_swapped", "up_at_a_wrong_offset", "qk_rows_as_pairs", "qkv_share_one_A"),
        *("up_takes_the_delta_of_gate", "q_delta_after_rope", "o_delta_after_the_mlp", "shard_of_B_lost"),
        *("shard_of_A_lost", "row_parallel_delta_on_every_rank", "replicated_kv_sliced", "kv_sliced_as_query_heads"),
        *("lora_bias_on_every_rank", "attention_only", "mlp_only"),
    )
)
# They go by the positions of tokens in a text.
POSITIONS = frozenset(("adapter_lost_after_8_tokens",))
# A picture has one row at the modules of the time, and is taken for a request in decode there.
ONE_ROW = frozenset(("adapter_not_in_the_decode_graph",))
# What a text request has and a picture does not.
TEXT_NEEDS = frozenset(
    (
        *("embed_tokens LoRA", "lm_head LoRA", "tied embedding", "modules_to_save", "base biases", "decode", "chunks"),
        *("grown vocabulary", "several key heads", "GQA", "window", "another block size", "scattered blocks"),
        *(*IN_SEQUENCES, *NEEDS_OF_FAMILIES),
    )
)


def cannot_show(mutant: Mutant) -> str | None:
    """Why no batch of pictures shows this mutant; None: one that has what it `needs` does."""
    if mutant.family in CLASSES:
        return CLASSES[mutant.family]
    if mutant.name in TEXT_MODULES or mutant.name.startswith(("not_applied_to[", "skipped[")):
        return "it acts on modules of the text model"
    if mutant.name in POSITIONS:
        return "patches have no position in a text"
    if mutant.needs in TEXT_NEEDS and mutant.name not in ONE_ROW:
        return f"it needs {NEEDS[mutant.needs]}"
    return None


def zoo_mutants() -> dict[str, Mutant]:
    """The text model's mutants that act on pictures, by name."""
    return {name: mutant for name, mutant in all_mutants().items() if cannot_show(mutant) is None}
