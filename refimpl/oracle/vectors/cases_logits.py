"""Vectors of one batch through a whole model: what is loaded, and every row of logits that comes back."""

from ..cases.case import Load, Run
from .whole_model import Prompt, RequestSpec, Spec, request

# Bugs that any adapter in any batch shows.
ANY = ("scale", "identity", "none", "not_applied", "layout")


def loads(*names: str) -> list[Load]:
    """Adapters under their own names."""
    return [Load(name, name) for name in names]


def run(*requests: RequestSpec) -> Run:
    """One batch."""
    return Run(requests)


SAME = Prompt(6, key="same")

SPECS = (
    Spec(
        "mixed",
        "five adapters and the base in one batch: mixed ranks, rsLoRA, ragged prompts, two of them the same",
        (*ANY, "rslora", "last_slot", "slots", "heads", "positions"),
        [
            *loads("six", "three", "patterns", "partial", "rank_one"),
            run(
                request("six", Prompt(9)),
                request(None, SAME),
                request("three", SAME),
                request("rank_one", Prompt(4)),
                request("patterns", Prompt(7)),
                request("partial", Prompt(5)),
                request(None, Prompt(3)),
            ),
        ],
        settings={"max_adapters": 5},
    ),
    Spec(
        "decode",
        "four tokens each, over block boundaries, requests of different lengths side by side",
        ("positions", "slots", "identity", "not_applied"),
        [
            *loads("six", "three", "patterns"),
            run(
                request("six", Prompt(6), 4),
                request(None, Prompt(7), 4),
                request("three", Prompt(14), 4),
                request("patterns", Prompt(2), 4),
            ),
        ],
    ),
    Spec(
        "one_adapter",
        "everybody asks for the same adapter, in the last of three slots",
        ("last_slot", "scale", "length"),
        [
            *loads("three", "partial", "six"),
            run(request("six", Prompt(3)), request("six", Prompt(11)), request("six", Prompt(2))),
        ],
    ),
    Spec(
        "one_token",
        "one request, one token",
        ("scale", "not_applied"),
        [*loads("three", "six"), run(request("six", Prompt(1)))],
    ),
    Spec(
        "partial",
        "adapters that leave most modules alone, beside one that has them all",
        ("not_applied", "identity"),
        [
            *loads("six", "partial", "rank_one"),
            run(
                request("partial", Prompt(6)),
                request("six", Prompt(4)),
                request("rank_one", Prompt(8)),
                request(None, Prompt(3)),
            ),
        ],
    ),
    Spec(
        "patterns",
        "rank_pattern and alpha_pattern; an engine without them has to refuse",
        ("patterns", "rank"),
        [*loads("patterns"), run(request("patterns", Prompt(8)), request(None, Prompt(3)))],
        requires=("rank_pattern", "alpha_pattern"),
        result="acceptable",
    ),
    Spec(
        "bias",
        "lora_bias; an engine without it has to refuse",
        ("bias_scale", "not_applied", "layout"),
        [
            *loads("bias", "six"),
            run(request("bias", Prompt(6)), request("six", Prompt(3)), request(None, Prompt(2))),
        ],
        requires=("lora_bias",),
        result="acceptable",
    ),
    Spec(
        "sums",
        "requests that sum adapters with weights; an engine without that has to refuse",
        ("weights",),
        [
            *loads("six", "three", "partial"),
            run(
                request(None, Prompt(6), adapter_weights=(("six", 0.5), ("three", -1.25))),
                request("six", Prompt(4)),
                request(None, Prompt(5), adapter_weights=(("partial", 2.0),)),
                request(None, Prompt(3)),
                request(None, Prompt(4), adapter_weights=(("three", 1.0), ("partial", 1.5))),
            ),
        ],
        requires=("sums",),
        result="acceptable",
    ),
    Spec(
        "head",
        "LoRA on the lm_head; an engine without it has to refuse",
        ("not_applied", "identity"),
        [
            *loads("head", "six"),
            run(
                request("six", Prompt(3)),
                request("head", Prompt(5)),
                request(None, Prompt(4)),
                request("head", Prompt(2)),
            ),
        ],
        requires=("lm_head",),
        result="acceptable",
    ),
    Spec(
        "head_decode",
        "the same while decoding, where each request has one row in the lm_head",
        ("identity",),
        [
            *loads("head", "six"),
            run(request("six", Prompt(3), 3), request("head", Prompt(5), 3), request(None, Prompt(2), 3)),
        ],
        requires=("lm_head",),
        result="acceptable",
    ),
    Spec(
        "embedding",
        "LoRA on an embedding that is the head as well: the head stays the base's, as in PEFT",
        ("not_applied",),
        [*loads("embedding"), run(request("embedding", Prompt(7)), request(None, Prompt(4)))],
        model="tied",
        requires=("embed_tokens",),
        result="acceptable",
    ),
    Spec(
        "saved",
        "modules_to_save: adapters that bring a whole embedding, or head, of their own along",
        ("not_applied", "identity"),
        [
            *loads("saved", "saved_head", "six"),
            run(
                request("saved_head", Prompt(4)),
                request("saved", Prompt(6)),
                request(None, Prompt(3)),
                request("six", Prompt(2)),
            ),
        ],
        requires=("modules_to_save",),
        result="acceptable",
    ),
    Spec(
        "grown",
        "an adapter that adds words to the vocabulary, and a prompt that has two of them",
        ("not_applied",),
        [
            *loads("grown", "six"),
            run(request("six", Prompt(3)), request("grown", Prompt(3, (-73, -76))), request(None, Prompt(3))),
        ],
        requires=("modules_to_save", "grown_vocabulary"),
        result="acceptable",
    ),
    Spec(
        "base_biases",
        'bias="all": an adapter that brings the biases of base layers along',
        ("not_applied",),
        [*loads("biases"), run(request("biases", Prompt(6)), request(None, Prompt(4)))],
        model="tied",
        requires=("base_biases",),
        result="acceptable",
    ),
    Spec(
        "window",
        "a sliding window of 6; prompts shorter, as long, one longer, and more than twice as long",
        ("window", "layout", "rslora"),
        [
            *loads("seven", "four"),
            run(
                request("seven", Prompt(5)),
                request("four", Prompt(6)),
                request(None, Prompt(7)),
                request("seven", Prompt(14)),
            ),
        ],
        model="mistral",
        requires=("window",),
    ),
    Spec(
        "window_decode",
        "decoding past the end of the window, and past the end of a block",
        ("window", "positions", "slots"),
        [
            *loads("seven", "four"),
            run(request("four", Prompt(4), 4), request(None, Prompt(7), 4), request("seven", Prompt(15), 3)),
        ],
        model="mistral",
        requires=("window",),
    ),
    Spec(
        "chunked",
        "prompts that are computed 5 tokens at a time, in one batch with others",
        ("positions", "slots"),
        [
            *loads("six", "three"),
            run(request("six", Prompt(13)), request("three", Prompt(11)), request(None, Prompt(2))),
        ],
        settings={"chunk": 5},
        requires=("chunked_prefill",),
    ),
    Spec(
        "unknown_adapter",
        "a name that nothing was loaded under: the base's answer would be a lie",
        ("range", "not_applied"),
        [*loads("six"), run(request("three", Prompt(3)))],
        result="invalid",
    ),
    Spec(
        "wrong_base",
        "an adapter that was made for a model of other widths",
        ("layout", "not_applied"),
        [*loads("wrong_base"), run(request("wrong_base", Prompt(3)))],
        result="invalid",
    ),
    Spec(
        "wrong_rank",
        "an adapter whose config says rank 4, where its tensors have 5",
        ("layout", "rank"),
        [*loads("wrong_rank"), run(request("wrong_rank", Prompt(3)))],
        result="invalid",
    ),
    Spec(
        "token_too_large",
        "a prompt with token 72, where the vocabulary ends at 71",
        ("range",),
        [*loads("six"), run(request("six", Prompt(2, (-73,))))],
        result="invalid",
    ),
)
