"""Vectors of sequences: what engines that serve for a while once got wrong, up to the request that shows it.

A prompt of two pieces has 32 tokens before its own end: blocks of up to 16 tokens are found again.
"""

from .cases_logits import loads, run
from .specs import Prompt, Scene, Step, Wanted

LONG = Prompt(3, (0, 1))
FOUND = {"prefix_caching": True}
TIGHT = {"max_adapters": 2}


def asked(*names: str | None, prompt: Prompt = LONG, new: int = 1) -> Step:
    """One batch in which everybody asks the same."""
    return run(*(Wanted(name, prompt, new) for name in names))


SCENES = (
    Scene(
        "prefix_hit",
        "the same prompt again for the same adapter: its keys and values are found, and right",
        ("positions", "slots"),
        [*loads("six"), asked("six"), asked("six"), asked("six", prompt=Prompt(4, (0, 1), "other"), new=3)],
        settings=FOUND,
        pieces=2,
    ),
    Scene(
        "prefix_across_adapters",
        "the same prompt for one adapter after another, and for the base: nobody's keys are another's",
        ("prefix",),
        [*loads("six", "three"), asked("six"), asked("three"), asked(None), asked("six"), asked("three", None)],
        settings=FOUND,
        pieces=2,
    ),
    Scene(
        "prefix_of_the_base",
        "the base first, then adapters",
        ("prefix",),
        [*loads("partial", "three"), asked(None), asked("partial"), asked(None), asked("three")],
        settings=FOUND,
        pieces=2,
    ),
    Scene(
        "prefix_same_tensors",
        "two adapters with the very same A and B and another alpha",
        ("prefix", "scale"),
        [*loads("six", "six_louder"), asked("six"), asked("six_louder"), asked("six")],
        settings=FOUND,
        pieces=2,
    ),
    Scene(
        "prefix_same_name",
        "an adapter is loaded again under its name with other weights, and the same prompt is asked",
        ("prefix", "stale"),
        [
            ("load", ("voice", "six")),
            asked("voice"),
            ("load", ("voice", "three")),
            asked("voice"),
            ("unload", "voice"),
            ("load", ("voice", "partial")),
            asked("voice"),
        ],
        settings=FOUND,
        pieces=2,
    ),
    Scene(
        "prefix_weights",
        "sums of the same adapters with other weights, and other adapters with the same first one",
        ("prefix", "weights"),
        [
            *loads("six", "three", "partial"),
            run(Wanted(None, LONG, adapter_weights=(("six", 1.0), ("three", 0.5)))),
            run(Wanted(None, LONG, adapter_weights=(("six", 1.0), ("three", -1.0)))),
            run(Wanted(None, LONG, adapter_weights=(("six", 1.0), ("partial", 0.5)))),
            run(Wanted(None, LONG, adapter_weights=(("six", 0.5),))),
            run(Wanted("six", LONG)),
        ],
        settings=FOUND,
        requires=("sums",),
        result="acceptable",
        pieces=2,
    ),
    Scene(
        "prefix_depth",
        "the same block of tokens at another depth, and after another block",
        ("prefix_depth",),
        [
            *loads("six"),
            asked("six", prompt=Prompt(3, (0, 1))),
            asked("six", prompt=Prompt(3, (1, 1))),
            asked("six", prompt=Prompt(3, (0, 0))),
            asked("six", prompt=Prompt(3, (2, 1))),
        ],
        settings=FOUND,
        pieces=3,
    ),
    Scene(
        "prefix_nearly",
        "a block that differs from a known one in its last token alone",
        ("prefix_depth",),
        [*loads("six"), asked("six", prompt=Prompt(3, (0, 1))), asked("six", prompt=Prompt(3, (0, 2)))],
        settings=FOUND,
        pieces=3,
        nearly=(1, 2),
    ),
    Scene(
        "prefix_chunked",
        "prefixes that are found by prompts computed 20 tokens at a time, and decoding after them",
        ("positions", "prefix", "slots"),
        [
            *loads("six", "three"),
            asked("six"),
            asked("three"),
            run(Wanted("six", Prompt(5, (0, 1, 2)), 3), Wanted("three", Prompt(4, (0, 2)), 3)),
        ],
        settings=FOUND | {"chunk": 20},
        requires=("chunked_prefill",),
        pieces=3,
    ),
    Scene(
        "reload",
        "other weights under a name that is in use, without prefix caching; then the first ones again",
        ("stale",),
        [
            ("load", ("voice", "six")),
            asked("voice", None, prompt=Prompt(8)),
            ("load", ("voice", "three")),
            asked("voice", None, prompt=Prompt(8)),
            ("load", ("voice", "six")),
            asked("voice", prompt=Prompt(8)),
        ],
    ),
    Scene(
        "reload_same_shape",
        "other weights of the very same shapes under a name that is in use: a buffer could be filled in part",
        ("stale",),
        [
            ("load", ("voice", "partial")),
            asked("voice", prompt=Prompt(8)),
            ("load", ("voice", "partial_too")),
            asked("voice", None, prompt=Prompt(8)),
        ],
    ),
    Scene(
        "reload_partial",
        "an adapter that has two modules comes into the slot of one that had them all",
        ("stale", "not_applied"),
        [
            ("load", ("voice", "six")),
            asked("voice", prompt=Prompt(8)),
            ("unload", "voice"),
            ("load", ("other", "partial")),
            asked("other", None, prompt=Prompt(8)),
        ],
        settings={"max_adapters": 1},
    ),
    Scene(
        "evict",
        "four adapters where two have room, in turn and back again",
        ("evict", "stale"),
        [
            *loads("six", "three", "partial", "patterns"),
            asked("six", "three", prompt=Prompt(6)),
            asked("partial", None, prompt=Prompt(6)),
            asked("six", "patterns", prompt=Prompt(6)),
            asked("three", prompt=Prompt(6)),
            asked("six", "partial", prompt=Prompt(6)),
        ],
        settings=TIGHT,
        requires=("evict",),
    ),
    Scene(
        "evict_waiting",
        "one batch that asks for more adapters than have room: some wait, nobody loses its weights while it runs",
        ("evict", "identity"),
        [
            *loads("six", "three", "partial", "patterns"),
            run(
                Wanted("six", Prompt(5), 4),
                Wanted("three", Prompt(6), 2),
                Wanted("partial", Prompt(4), 2),
                Wanted("patterns", Prompt(7), 3),
                Wanted(None, Prompt(3), 2),
            ),
        ],
        settings=TIGHT,
        requires=("evict",),
    ),
    Scene(
        "arrivals",
        "requests that come while others decode; one is cancelled, and its neighbours do not notice",
        ("slots", "positions", "identity"),
        [
            *loads("six", "three"),
            run(
                Wanted("six", Prompt(6), 5),
                Wanted(None, Prompt(9), 5, cancel_after=2),
                Wanted("three", Prompt(7), 4, arrival_step=1),
                Wanted("six", Prompt(3), 3, arrival_step=3),
            ),
            run(Wanted("three", Prompt(12), 2), Wanted(None, Prompt(5), 2)),
        ],
        requires=("arrivals", "cancel"),
    ),
    Scene(
        "preempt",
        "so little room for keys and values that requests are preempted, and known blocks thrown out",
        ("slots", "positions"),
        [
            *loads("six", "three"),
            run(Wanted("six", Prompt(14), 4), Wanted("three", Prompt(15), 4), Wanted(None, Prompt(13), 4)),
            run(Wanted("three", Prompt(20), 2), Wanted("six", Prompt(18), 2)),
        ],
        settings={"kv_tokens": 48, "prefix_caching": True},
        requires=("preempt",),
    ),
)
