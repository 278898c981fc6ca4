"""Requests that are too close to call, looked at again before a verdict is given.

By chance, one honest campaign in a hundred has a score beyond `pass_score` (DOUBT), and one in a million has one beyond
`fail_score` (FALSE_ALARM). What lies between the two may be either: noise that the few honest runs have not shown, or a
bug that is faint in this case. Three times as many honest runs tell the first, and how they are spread in each row.
Other tokens in the same case tell the second: a bug comes again, chance does not. If it comes again in none of AGAIN
cases it was chance; once, and it stays undecided; three such cases, this one among them, are chance in 1.7 campaigns of
ten million (Poisson with mean DOUBT, `no_chance`), and fail.

The odds rest on the few honest runs, which in a row of a loud adapter may all be small: where errors have one
direction, one number is their size. They rest on the engine's base rows as well, and llama.cpp's are finer than ours
by a third, its rows with a loud adapter as coarse. So what fails narrowly is looked at too, unless something fails
clearly, and a second look takes the engine for a little noisier than the noisiest honest run (`COARSER`).
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
# Scores up to this times fail_score fail narrowly; larger: more bugs are looked at again. A right llama.cpp had 1.45,
# and more in another run, in a row whose honest errors have one direction: five such numbers may all be small.
NARROW = 3.0
# Beside more honest runs, scores from this times fail_score on are no chance, even if they do not come again with other
# tokens: what an engine keeps may be wrong once. Larger: more of that is let pass.
CLEAR = 1.5


class SecondLook:
    """Changes verdicts of played cases that are too close to call. members: three times as many honest runs."""

    def __init__(
        self, driver: EngineDriver, testbed: Testbed, members: Sequence[Member], thresholds: Thresholds
    ) -> None:
        self.driver, self.testbed, self.members, self.thresholds = driver, testbed, members, thresholds

    def at_all(self, played: Sequence[PlayedCase]) -> list[str]:
        """Judge again what is undecided, and what fails narrowly if nothing else fails; return a line for each that was
        chance."""
        lines = []
        failed = [verdict for one in played for verdict in one.verdicts if verdict.verdict == "fail"]
        self.highest = (
            NARROW if all(self._is_narrow(verdict) for verdict in failed) else 1
        ) * self.thresholds.fail_score
        for one in played:
            if any(self._is_close(verdict) for verdict in one.verdicts):
                lines += self.at(one)
                if one.verdict == "fail":  # the campaign fails: other narrow failures are none to look at
                    self.highest = self.thresholds.fail_score
        self._together(played)
        return lines

    def at(self, one: PlayedCase) -> list[str]:
        """Judge with more honest runs, then ask the same of other tokens. What comes again in none of them was chance,
        and the returned line says so; what does stays undecided, or fails."""
        failed = [verdict for verdict in one.verdicts if verdict.verdict == "fail"]
        doubtful = self._judge_with_more_runs(one)
        if not doubtful:
            return [f"{one.case.name}: {verdict.why}; not beside more honest runs" for verdict in failed[:1]]
        if any(not verdict.score < CLEAR * self.thresholds.fail_score for verdict in doubtful):
            return []
        fresh = self._verdicts_of_other_tokens(one)
        if overall(fresh) == "pass":
            one.verdicts = [_changed(verdict, "pass", doubtful) for verdict in one.verdicts]
            return [f"{one.case.name}: {doubtful[0].why}; not again in {AGAIN} cases like it"]
        if "fail" in fresh or no_chance(1 + fresh.count("undecided")):
            one.verdicts = [_changed(verdict, "fail", doubtful) for verdict in one.verdicts]
        return []

    def _judge_with_more_runs(self, one: PlayedCase) -> list[Verdict]:
        """Return the verdicts that were close, and do not pass now."""
        doubtful = []
        for i, ratios in enumerate(self._ratios(one.case, one)):
            if self._is_close(one.verdicts[i]):
                one.verdicts[i] = judge(ratios, self._lenient, each_row=True)
                doubtful += [one.verdicts[i]] if one.verdicts[i].verdict != "pass" else []
        return doubtful

    def _verdicts_of_other_tokens(self, one: PlayedCase) -> list[str]:
        vocab = self.testbed.model.config.vocab_size
        cases = [with_other_tokens(one.case, vocab, seed) for seed in range(AGAIN)]
        return [
            overall([judge(ratios, self._lenient, each_row=True).verdict for ratios in self._ratios(case, one)])
            for case in cases
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

    @property
    def _lenient(self) -> Thresholds:
        return self.thresholds.as_noisy_as_honest()

    def _is_close(self, verdict: Verdict) -> bool:
        """Does its score, and not that nothing could be shown, leave it open?"""
        return verdict.verdict != "pass" and self.thresholds.pass_score < verdict.score < self.highest

    def _is_narrow(self, verdict: Verdict) -> bool:
        return verdict.score < NARROW * self.thresholds.fail_score


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
