"""Requests that are too close to call, looked at again before a verdict is given.

By chance, one honest campaign in a hundred has a score beyond `pass_score` (DOUBT), and one in a million has one beyond
`fail_score` (FALSE_ALARM). What lies between the two may be either: noise that the few honest runs have not shown, or a
bug that is faint in this case. Three times as many honest runs tell the first. Other tokens in the same case tell the
second: a bug comes again, chance does not. If it comes again in none of AGAIN cases it was chance; once, and it stays
undecided; three such cases, this one among them, are chance in 1.7 campaigns of ten million (Poisson with mean DOUBT,
`no_chance`), and fail.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..engines.interface import EngineRequest
from .cases.case import Case, with_requests
from .cases.testbed import Testbed
from .engine_driver import EngineDriver
from .noise.ensemble import Member
from .noise.measure import ErrorRatios, measure
from .noise.verdict import Thresholds, Verdict, judge, no_chance, overall
from .reports.result import PlayedCase

AGAIN = 4  # cases with other tokens; larger: slower, and a faint bug is told from chance more often


class SecondLook:
    """Changes verdicts of played cases that are too close to call. members: three times as many honest runs."""

    def __init__(
        self, driver: EngineDriver, testbed: Testbed, members: Sequence[Member], thresholds: Thresholds
    ) -> None:
        self.driver, self.testbed, self.members, self.thresholds = driver, testbed, members, thresholds

    def at_all(self, played: Sequence[PlayedCase]) -> list[str]:
        """Judge the undecided cases again; return a line for each that was chance."""
        lines = []
        for one in played:
            if one.verdict == "undecided" and any(ratios.ratio.size for ratios in one.ratios):
                lines += self.at(one)
        self._together(played)
        return lines

    def at(self, one: PlayedCase) -> list[str]:
        """Judge with more honest runs, then ask the same of other tokens. What comes again in none of them was chance,
        and the returned line says so; what does stays undecided, or fails."""
        self._judge_with_more_runs(one)
        doubtful = [verdict for verdict in one.verdicts if self._is_close(verdict)]
        if not doubtful:
            return []
        fresh = self._verdicts_of_other_tokens(one)
        if overall(fresh) == "pass":
            one.verdicts = [_changed(verdict, "pass", doubtful) for verdict in one.verdicts]
            return [f"{one.case.name}: {doubtful[0].why}; not again in {AGAIN} cases like it"]
        if "fail" in fresh or no_chance(1 + fresh.count("undecided")):
            one.verdicts = [_changed(verdict, "fail", doubtful) for verdict in one.verdicts]
        return []

    def _judge_with_more_runs(self, one: PlayedCase) -> None:
        ratios = self._ratios(one.case, one)
        one.verdicts = [
            judge(ratio, self.thresholds) if self._is_close(verdict) else verdict
            for verdict, ratio in zip(one.verdicts, ratios, strict=True)
        ]

    def _verdicts_of_other_tokens(self, one: PlayedCase) -> list[str]:
        vocab = self.testbed.model.config.vocab_size
        cases = [with_other_tokens(one.case, vocab, seed) for seed in range(AGAIN)]
        return [
            overall([judge(ratios, self.thresholds).verdict for ratios in self._ratios(case, one)]) for case in cases
        ]

    def _together(self, played: Sequence[PlayedCase]) -> None:
        """Fail all that are still too close to call where there are too many of them for chance."""
        close = [one for one in played if any(self._is_close(verdict) for verdict in one.verdicts)]
        if not no_chance(len(close)):
            return
        why = f"; {len(close)} such cases in one campaign are no chance"
        for one in close:
            one.verdicts = [
                replace(verdict, verdict="fail", why=verdict.why + why) if self._is_close(verdict) else verdict
                for verdict in one.verdicts
            ]

    def _ratios(self, case: Case, like: PlayedCase) -> list[ErrorRatios]:
        return measure(case, self.driver.exchanges(case, like.settings), self.testbed, self.members)[0]

    def _is_close(self, verdict: Verdict) -> bool:
        """Is it undecided for its numbers, not because nothing could be shown?"""
        return verdict.verdict == "undecided" and not verdict.score <= self.thresholds.pass_score


def _changed(verdict: Verdict, to: str, doubtful: Sequence[Verdict]) -> Verdict:
    return replace(verdict, verdict=to) if verdict in doubtful else verdict


def with_other_tokens(case: Case, vocab: int, seed: int) -> Case:
    """Return the same case with every token exchanged for another: what was a common prefix still is one. Tokens that
    only an adapter's grown vocabulary has stay."""
    other = np.random.default_rng([seed, 11]).permutation(vocab)

    def exchanged(request: EngineRequest) -> EngineRequest:
        ids = (int(other[token]) if token < vocab else token for token in request.prompt_ids)
        return replace(request, prompt_ids=tuple(ids))

    return replace(case, name=f"{case.name}, retold {seed}", steps=with_requests(case.steps, exchanged))
