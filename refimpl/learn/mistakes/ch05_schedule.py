"""Wrong schedules: each was seen in an engine, or is easy to write."""

from collections.abc import Iterable, Sequence

from ..exercise import Mistake


def greedy(missing: Iterable[int], budget: int) -> list[int]:
    tokens = []
    for n in missing:
        tokens.append(min(n, budget))
        budget -= tokens[-1]
    return tokens


def whole_prompts_only(missing: Sequence[int], budget: int) -> list[int]:
    tokens = []
    for n in missing:
        tokens.append(n if n <= budget else 0)
        budget -= tokens[-1]
    return tokens


def whole_prompts_then_nobody(missing: Sequence[int], budget: int) -> list[int]:
    tokens = []
    for n in missing:
        budget -= n
        tokens.append(n if budget >= 0 else 0)
    return tokens


def equal_shares(missing: Sequence[int], budget: int) -> list[int]:
    return [min(n, budget // len(missing)) for n in missing]


def budget_for_each(missing: Sequence[int], budget: int) -> list[int]:
    return [min(n, budget) for n in missing]


def no_budget(missing: Sequence[int], budget: int) -> list[int]:
    return list(missing)


def budget_tested_before(missing: Sequence[int], budget: int) -> list[int]:
    tokens: list[int] = []
    for n in missing:
        tokens.append(n if sum(tokens) < budget else 0)
    return tokens


def below_zero(missing: Sequence[int], budget: int) -> list[int]:
    return [min(n, budget - sum(missing[:i])) for i, n in enumerate(missing)]


def the_last_token_of_the_budget(missing: Sequence[int], budget: int) -> list[int]:
    return greedy(missing, budget - 1)


def shortest_first(missing: Sequence[int], budget: int) -> list[int]:
    order = sorted(range(len(missing)), key=lambda i: missing[i])
    tokens = dict(zip(order, greedy((missing[i] for i in order), budget), strict=True))
    return [tokens[i] for i in range(len(missing))]


def newest_first(missing: Sequence[int], budget: int) -> list[int]:
    return greedy(missing[::-1], budget)[::-1]


def one_token_each(missing: Sequence[int], budget: int) -> list[int]:
    return greedy([1] * len(missing), budget)


def in_turn(missing: Sequence[int], budget: int) -> list[int]:
    tokens = [0] * len(missing)
    while sum(tokens) < min(budget, sum(missing)):
        for i, n in enumerate(missing):
            if tokens[i] < n and sum(tokens) < budget:
                tokens[i] += 1
    return tokens


def what_is_still_missing(missing: Sequence[int], budget: int) -> list[int]:
    return [n - tokens for n, tokens in zip(missing, greedy(missing, budget), strict=True)]


def only_those_who_get_some(missing: Sequence[int], budget: int) -> list[int]:
    return [tokens for tokens in greedy(missing, budget) if tokens]


OVER_THE_BUDGET = (
    "https://github.com/sgl-project/sglang/pull/30743",
    "https://github.com/PaddlePaddle/FastDeploy/pull/7438",
)
DECODE_STOPS = (
    "https://github.com/sgl-project/sglang/issues/32549",
    "https://github.com/ROCm/ATOM/pull/1835",
)
MISTAKES = (
    Mistake(
        "whole_prompts_only",
        "a prompt that is longer than the budget will never fit as a whole: compute a part of it.",
        whole_prompts_only,
        ("https://github.com/vllm-project/vllm-metal/pull/200", "https://github.com/vllm-project/vllm/pull/55130"),
    ),
    Mistake(
        "whole_prompts_then_nobody",
        "one prompt that does not fit as a whole keeps everybody behind it waiting, in this step and in all others.",
        whole_prompts_then_nobody,
        ("https://github.com/vllm-project/vllm-metal/pull/200",),
    ),
    Mistake(
        "equal_shares",
        "a share that is rounded down may be 0 for all, and what one does not need is lost to the others.",
        equal_shares,
        ("https://github.com/sgl-project/sglang/issues/35537",),
    ),
    Mistake(
        "budget_for_each",
        "the budget is that of the whole step, and not of each request.",
        budget_for_each,
        OVER_THE_BUDGET,
    ),
    Mistake(
        "no_budget",
        "a step that computes all that is missing has no budget.",
        no_budget,
        OVER_THE_BUDGET,
    ),
    Mistake(
        "budget_tested_before",
        "it is asked whether the budget is used up, and not whether what comes now still fits.",
        budget_tested_before,
        OVER_THE_BUDGET,
    ),
    Mistake(
        "below_zero",
        "what is left of the budget becomes negative, and then somebody gets less than no token.",
        below_zero,
        ("https://github.com/PaddlePaddle/FastDeploy/pull/7439",),
    ),
    Mistake(
        "the_last_token_of_the_budget",
        "the last token of the budget is one, too.",
        the_last_token_of_the_budget,
    ),
    Mistake(
        "shortest_first",
        "short requests are served sooner, and a long one may wait for ever: first come, first served.",
        shortest_first,
    ),
    Mistake(
        "newest_first",
        "who is in the middle of a sentence waits for everybody who comes.",
        newest_first,
        DECODE_STOPS,
    ),
    Mistake(
        "one_token_each",
        "a prompt is computed in as large a part as there is room for, and not token by token.",
        one_token_each,
    ),
    Mistake(
        "in_turn",
        "sharing token by token sounds fair, and it is not what was promised: first come, first served.",
        in_turn,
    ),
    Mistake(
        "what_is_still_missing",
        "that is what is still missing after the step, and not what the step computes.",
        what_is_still_missing,
    ),
    Mistake(
        "only_those_who_get_some",
        "who gets nothing is in the list as well, with a 0: else the numbers are those of others.",
        only_those_who_get_some,
    ),
)
