"""Vectors of sequences: what engines that serve for a while once got wrong, up to the request that shows it.

A prompt of two pieces has 32 tokens before its own end: blocks of up to 16 tokens are found again.
"""

from ..cases.case import Load, Run, Unload
from .cases_logits import loads, run
from .whole_model import Prompt, Spec, request

LONG = Prompt(3, (0, 1))
FOUND = {"prefix_caching": True}
TIGHT = {"max_adapters": 2}


def same_request(*names: str | None, prompt: Prompt = LONG, new: int = 1) -> Run:
    """One batch in which everybody asks the same."""
    return run(*(request(name, prompt, new) for name in names))


SPECS = (
    Spec(
        "prefix_hit",
        "the same prompt again for the same adapter: its keys and values are found, and right",
        ("positions", "slots"),
        [
            *loads("six"),
            same_request("six"),
            same_request("six"),
            same_request("six", prompt=Prompt(4, (0, 1), "other"), new=3),
        ],
        settings=FOUND,
        pieces=2,
    ),
    Spec(
        "prefix_across_adapters",
        "the same prompt for one adapter after another, and for the base: nobody's keys are another's",
        ("prefix",),
        [
            *loads("six", "three"),
            same_request("six"),
            same_request("three"),
            same_request(None),
            same_request("six"),
            same_request("three", None),
        ],
        settings=FOUND,
        pieces=2,
    ),
    Spec(
        "prefix_of_the_base",
        "the base first, then adapters",
        ("prefix",),
        [
            *loads("partial", "three"),
            same_request(None),
            same_request("partial"),
            same_request(None),
            same_request("three"),
        ],
        settings=FOUND,
        pieces=2,
    ),
    Spec(
        "prefix_same_tensors",
        "two adapters with the very same A and B and another alpha",
        ("prefix", "scale"),
        [*loads("six", "six_louder"), same_request("six"), same_request("six_louder"), same_request("six")],
        settings=FOUND,
        pieces=2,
    ),
    Spec(
        "prefix_same_name",
        "an adapter is loaded again under its name with other weights, and the same prompt is asked",
        ("prefix", "stale"),
        [
            Load("voice", "six"),
            same_request("voice"),
            Load("voice", "three"),
            same_request("voice"),
            Unload("voice"),
            Load("voice", "partial"),
            same_request("voice"),
        ],
        settings=FOUND,
        pieces=2,
    ),
    Spec(
        "prefix_weights",
        "sums of the same adapters with other weights, and other adapters with the same first one",
        ("prefix", "weights"),
        [
            *loads("six", "three", "partial"),
            run(request(None, LONG, adapter_weights=(("six", 1.0), ("three", 0.5)))),
            run(request(None, LONG, adapter_weights=(("six", 1.0), ("three", -1.0)))),
            run(request(None, LONG, adapter_weights=(("six", 1.0), ("partial", 0.5)))),
            run(request(None, LONG, adapter_weights=(("six", 0.5),))),
            run(request("six", LONG)),
        ],
        settings=FOUND,
        requires=("sums",),
        result="acceptable",
        pieces=2,
    ),
    Spec(
        "prefix_depth",
        "the same block of tokens at another depth, and after another block",
        ("prefix_depth",),
        [
            *loads("six"),
            same_request("six", prompt=Prompt(3, (0, 1))),
            same_request("six", prompt=Prompt(3, (1, 1))),
            same_request("six", prompt=Prompt(3, (0, 0))),
            same_request("six", prompt=Prompt(3, (2, 1))),
        ],
        settings=FOUND,
        pieces=3,
    ),
    Spec(
        "prefix_nearly",
        "a block that differs from a known one in its last token alone",
        ("prefix_depth",),
        [*loads("six"), same_request("six", prompt=Prompt(3, (0, 1))), same_request("six", prompt=Prompt(3, (0, 2)))],
        settings=FOUND,
        pieces=3,
        nearly=(1, 2),
    ),
    Spec(
        "prefix_chunked",
        "prefixes that are found by prompts computed 20 tokens at a time, and decoding after them",
        ("positions", "prefix", "slots"),
        [
            *loads("six", "three"),
            same_request("six"),
            same_request("three"),
            run(request("six", Prompt(5, (0, 1, 2)), 3), request("three", Prompt(4, (0, 2)), 3)),
        ],
        settings=FOUND | {"chunk": 20},
        requires=("chunked_prefill",),
        pieces=3,
    ),
    Spec(
        "reload",
        "other weights under a name that is in use, without prefix caching; then the first ones again",
        ("stale",),
        [
            Load("voice", "six"),
            same_request("voice", None, prompt=Prompt(8)),
            Load("voice", "three"),
            same_request("voice", None, prompt=Prompt(8)),
            Load("voice", "six"),
            same_request("voice", prompt=Prompt(8)),
        ],
    ),
    Spec(
        "reload_same_shape",
        "other weights of the very same shapes under a name that is in use: a buffer could be filled in part",
        ("stale",),
        [
            Load("voice", "partial"),
            same_request("voice", prompt=Prompt(8)),
            Load("voice", "partial_too"),
            same_request("voice", None, prompt=Prompt(8)),
        ],
    ),
    Spec(
        "reload_partial",
        "an adapter that has two modules comes into the slot of one that had them all",
        ("stale", "not_applied"),
        [
            Load("voice", "six"),
            same_request("voice", prompt=Prompt(8)),
            Unload("voice"),
            Load("other", "partial"),
            same_request("other", None, prompt=Prompt(8)),
        ],
        settings={"max_adapters": 1},
    ),
    Spec(
        "evict",
        "four adapters where two have room, in turn and back again",
        ("evict", "stale"),
        [
            *loads("six", "three", "partial", "patterns"),
            same_request("six", "three", prompt=Prompt(6)),
            same_request("partial", None, prompt=Prompt(6)),
            same_request("six", "patterns", prompt=Prompt(6)),
            same_request("three", prompt=Prompt(6)),
            same_request("six", "partial", prompt=Prompt(6)),
        ],
        settings=TIGHT,
        requires=("evict",),
    ),
    Spec(
        "evict_waiting",
        "one batch that asks for more adapters than have room: some wait, nobody loses its weights while it runs",
        ("evict", "identity"),
        [
            *loads("six", "three", "partial", "patterns"),
            run(
                request("six", Prompt(5), 4),
                request("three", Prompt(6), 2),
                request("partial", Prompt(4), 2),
                request("patterns", Prompt(7), 3),
                request(None, Prompt(3), 2),
            ),
        ],
        settings=TIGHT,
        requires=("evict",),
    ),
    Spec(
        "arrivals",
        "requests that come while others decode; one is cancelled, and its neighbours do not notice",
        ("slots", "positions", "identity"),
        [
            *loads("six", "three"),
            run(
                request("six", Prompt(6), 5),
                request(None, Prompt(9), 5, cancel_after=2),
                request("three", Prompt(7), 4, arrival_step=1),
                request("six", Prompt(3), 3, arrival_step=3),
            ),
            run(request("three", Prompt(12), 2), request(None, Prompt(5), 2)),
        ],
        requires=("arrivals", "cancel"),
    ),
    Spec(
        "preempt",
        "so little room for keys and values that requests are preempted, and known blocks thrown out",
        ("slots", "positions"),
        [
            *loads("six", "three"),
            run(request("six", Prompt(14), 4), request("three", Prompt(15), 4), request(None, Prompt(13), 4)),
            run(request("three", Prompt(20), 2), request("six", Prompt(18), 2)),
        ],
        settings={"kv_tokens": 48, "prefix_caching": True},
        requires=("preempt",),
    ),
)
