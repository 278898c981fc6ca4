"""The verdicts on all requests of a campaign, by what its own cases say honest noise is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from .noise.verdict import Thresholds, judge, learn_thresholds
from .reports.result import PlayedCase

WITHOUT_EFFECT = "no adapter changes what it shows by more than noise, so that an engine without any would be right"


def judge_all(played: Sequence[PlayedCase]) -> Thresholds:
    """Learn what honest looks like from all cases, and judge each request by it.

    A case that passes while in none of its requests the adapter moved a row by as much as fails one is undecided:
    an engine without any LoRA would have answered the same."""
    thresholds = learn_thresholds([ratios for one in played for ratios in one.ratios])
    for one in played:
        one.verdicts = [judge(ratios, thresholds) for ratios in one.ratios]
        blind = [
            verdict
            for ratios, verdict in one.requests
            if verdict.verdict == "pass" and ratios.adapter_effect < thresholds.ratio
        ]
        if blind and len(blind) == len(one.verdicts):
            one.verdicts = [replace(verdict, verdict="undecided", why=WITHOUT_EFFECT) for verdict in one.verdicts]
    return thresholds


def why_undecided(played: Sequence[PlayedCase]) -> list[str]:
    """Return a line for each reason for which cases are undecided, with how many these are."""
    reasons = Counter(
        next(verdict.why for verdict in one.verdicts if verdict.verdict == "undecided")
        for one in played
        if one.verdict == "undecided"
    )
    return [
        f"{n} of {len(played)} cases {'are' if n > 1 else 'is'} undecided: {why}" for why, n in reasons.most_common()
    ]
