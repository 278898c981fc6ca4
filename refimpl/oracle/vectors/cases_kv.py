"""What the vectors of the paged KV cache are about, one by one: blocks, windows, heads, and what has to be refused."""

from .step_kv import Spec

WRITES = (
    Spec(
        "prefill",
        "three requests of 7, 1 and 10 tokens: ragged, scattered blocks, the last ones not full",
        ("slots", "positions"),
        [(7, 7), (1, 1), (10, 10)],
    ),
    Spec(
        "decode", "one token each, at the start, inside and at the end of a block", ("slots",), [(5, 1), (7, 1), (8, 1)]
    ),
    Spec("one_token", "the first token of the only request", ("slots",), [(1, 1)]),
    Spec(
        "chunk",
        "the second chunk of a prompt, from the middle of a block over two boundaries",
        ("slots", "positions"),
        [(15, 9)],
    ),
    Spec("block_boundary", "a chunk that begins where a block begins", ("slots", "positions"), [(12, 4), (9, 1)]),
    Spec(
        "odd_block",
        "blocks of 3 tokens: shifts and masks do not divide by it",
        ("slots",),
        [(8, 8), (4, 1)],
        block_size=3,
    ),
    Spec(
        "block_of_16", "blocks of 16 tokens, MQA", ("slots",), [(18, 18), (17, 1)], kv_heads=1, block_size=16, spare=1
    ),
    Spec(
        "one_too_far", "a slot just past the end of the cache", ("range",), [(3, 3)], slots=(4, 5, 24), result="invalid"
    ),
    Spec(
        "slot_twice",
        "two tokens for one slot: the result would be chance",
        ("slots",),
        [(3, 3)],
        slots=(4, 5, 4),
        result="invalid",
    ),
    Spec(
        "padding",
        "slot -1, which engines give to padding: skipped, or refused; counted from the end it is another's key",
        ("range",),
        [(4, 4)],
        slots=(9, -1, 10, -1),
        result="acceptable",
    ),
)

READS = (
    Spec(
        "prefill",
        "causal, grouped heads, three ragged requests in scattered blocks",
        ("slots", "heads", "positions"),
        [(6, 6), (1, 1), (9, 9)],
    ),
    Spec("decode", "one token of each of four requests", ("slots", "heads"), [(5, 1), (12, 1), (1, 1), (8, 1)]),
    Spec("one_token", "a context of one: the answer is its value", ("slots", "heads"), [(1, 1)]),
    Spec("chunk", "the last 5 tokens of 14: each sees what stood before the chunk", ("positions",), [(14, 5), (7, 3)]),
    Spec("block_boundary", "contexts that end with a block, and one token later", ("slots",), [(8, 2), (9, 2), (4, 4)]),
    Spec("odd_block", "blocks of 3 tokens", ("slots",), [(8, 3), (10, 1)], block_size=3),
    Spec("mqa", "one key head for all", ("heads",), [(7, 3), (4, 1)], heads=5, kv_heads=1),
    Spec("mha", "a key head for each", ("heads",), [(7, 3), (4, 1)], heads=3, kv_heads=3),
    Spec(
        "window",
        "a sliding window of 5: contexts shorter, as long, one longer, and much longer than it",
        ("window", "slots"),
        [(4, 4), (5, 5), (6, 6), (13, 3)],
        window=5,
    ),
    Spec("window_decode", "the same while decoding", ("window",), [(5, 1), (6, 1), (7, 1), (16, 1)], window=5),
    Spec("window_of_one", "a token sees itself alone", ("window",), [(6, 6)], window=1),
    Spec(
        "window_at_a_block",
        "a window that begins where a block begins",
        ("window", "slots"),
        [(12, 4), (8, 1)],
        window=4,
    ),
    Spec(
        "window_slid",
        "the blocks that the window has passed are -1 in the table: read there and it is another's cache; an engine "
        "that keeps them may refuse",
        ("window", "range"),
        [(14, 2), (11, 1)],
        window=5,
        slid=True,
        result="acceptable",
    ),
    Spec(
        "long",
        "301 keys: more than one tile, and a rest",
        ("length", "slots"),
        [(301, 1)],
        heads=2,
        kv_heads=1,
        head_dim=8,
        block_size=16,
    ),
    Spec(
        "large_scores",
        "scores in the hundreds: exp overflows unless the largest is taken off",
        ("overflow",),
        [(9, 9)],
        size=60.0,
    ),
    Spec(
        "poisoned_rest",
        "whatever no token may see is NaN: the rest of a last block, and blocks of nobody",
        ("poison",),
        [(6, 6), (9, 1)],
        poison=True,
    ),
    Spec(
        "stray_block", "a block table that names a block past the end", ("range",), [(9, 2)], stray=99, result="invalid"
    ),
    Spec("too_short", "a context of 2 with 3 new tokens", ("positions",), [(2, 3)], result="invalid"),
)
